"""The short search for a learning rate: the same few steps with each of several rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol as Interface

from softprompt.compare.arms import Arm
from softprompt.compare.exam import Row
from softprompt.compare.outcome import Cost
from softprompt.errors import TrainingError

# Steps that tell how long one takes; the first ones, which take longer, are not counted.
_PACING = 12


@dataclass(frozen=True)
class Trial:
    """One run of an arm.

    Args:
        arm: what is trained.
        name: of the run.
        seed: of what it starts from, and of the order of rows.
        factor: by which the arm's learning rate is multiplied.
        share: of the steps.
        steps: of a whole run; None for as many as the recipe says.
    """

    arm: Arm
    name: str
    seed: int
    factor: float = 1.0
    share: float = 1.0
    steps: int | None = None


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
        answer: the answers of what was best by validation.
        score: the higher, the better.
        validation: all metrics of the best one.
        rate: the learning rate that was used.
        pace: seconds that a step takes.
        cost: what it took.
        run: the folder of the run.
    """

    answer: Callable[[Sequence[Row]], list[str]]
    score: float
    validation: Mapping[str, float]
    rate: float
    pace: float
    cost: Cost
    run: str = ""


class Runner(Interface):
    """Trains; given by whoever may write folders."""

    def __call__(self, trial: Trial) -> Trained:
        """Train, or go on where it was stopped."""


def search(
    arm: Arm,
    *,
    factors: Sequence[float],
    share: float,
    run: Runner,
    steps: int | None = None,
) -> dict[float, Trained]:
    """What each factor of the learning rate comes to in a share of the steps.

    Args:
        steps: of a whole run; None for as many as the recipe says.
    """
    found = {}
    for factor in factors:
        name, seed = f"{arm.folder}-search-{factor:g}", arm.recipe.seed
        trained = run(Trial(arm, name, seed, factor=factor, share=share, steps=steps))
        # What answers holds on to weights, perhaps to a whole backbone's.
        found[factor] = replace(trained, answer=_forgotten)
    return found


def _forgotten(_rows: Sequence[Row]) -> list[str]:
    msg = "the weights of a search are not kept. Train with the rate that it found."
    raise TrainingError(msg)


def best_of(found: Mapping[float, Trained]) -> float:
    """The factor to go on with.

    Few steps often leave a metric as it was: then the loss decides, then the usual rate.
    """

    def worth(factor: float) -> tuple[float, float, float]:
        trained = found[factor]
        return trained.score, -trained.validation["loss"], -abs(math.log(factor))

    return max(found, key=worth)


def steps_within(seconds: float, *, arm: Arm, run: Runner) -> int:
    """How many steps an arm can do in so many seconds, by a trial of a few."""
    trial = run(Trial(arm, f"{arm.folder}-pace", arm.recipe.seed, steps=_PACING))
    if not trial.pace:
        msg = (
            "a step takes no time that could be measured, so seconds cannot be told in steps. Give "
            "train.steps instead."
        )
        raise TrainingError(msg)
    return max(1, int(seconds / trial.pace))
