"""The short search for a learning rate: the same few steps with each of several rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol as Interface

from softprompt.compare.config import Variant
from softprompt.compare.results import Cost
from softprompt.data.inputs import Row
from softprompt.errors import TrainingError

# Steps of the run that measures the time of a step; the first, slower ones do not count.
_TIMED_STEPS = 12


@dataclass(frozen=True)
class RunSpec:
    """One run of a variant.

    Args:
        variant: what is trained.
        name: of the run.
        seed: of the initialization and of the order of rows.
        multiplier: of the variant's learning rate.
        fraction: of the steps.
        steps: of a whole run; None for the number in the recipe.
    """

    variant: Variant
    name: str
    seed: int
    multiplier: float = 1.0
    fraction: float = 1.0
    steps: int | None = None


@dataclass(frozen=True)
class TrainedRun:
    """The result of training, before the test.

    Args:
        answer: predicts rows with the best state by validation.
        score: of that state on the validation rows; higher is better.
        validation: all its metrics on the validation rows.
        rate: the learning rate of the run.
        pace: seconds per step.
        cost: of the training.
        run: the name of the run's folder.
    """

    answer: Callable[[Sequence[Row]], list[str]]
    score: float
    validation: Mapping[str, float]
    rate: float
    pace: float
    cost: Cost
    run: str = ""


class TrainFn(Interface):
    """Trains one run in a folder of the comparison."""

    def __call__(self, spec: RunSpec) -> TrainedRun:
        """Train, or resume an interrupted run."""


def search_learning_rate(
    variant: Variant,
    *,
    multipliers: Sequence[float],
    fraction: float,
    run: TrainFn,
    steps: int | None = None,
) -> dict[float, TrainedRun]:
    """Train with each multiple of the learning rate for a fraction of the steps.

    Args:
        variant: to train, with the seed of its recipe.
        multipliers: of its learning rate.
        fraction: of the steps, for each multiplier; 0 to 1.
        run: trains a run.
        steps: of a whole run; None for the number in the recipe.

    Returns:
        The runs by their multipliers. Their weights are released, so they cannot predict.
    """
    runs = {}
    for multiplier in multipliers:
        name, seed = f"{variant.folder}-search-{multiplier:g}", variant.recipe.seed
        spec = RunSpec(variant, name, seed, multiplier=multiplier, fraction=fraction, steps=steps)
        # `answer` holds the trained weights, with fine-tuning those of a whole backbone.
        runs[multiplier] = replace(run(spec), answer=_refuse_to_predict)
    return runs


def _refuse_to_predict(_rows: Sequence[Row]) -> list[str]:
    msg = "the weights of a search are not stored. Train with the learning rate that it found."
    raise TrainingError(msg)


def select_best(runs: Mapping[float, TrainedRun]) -> float:
    """The multiplier of the best run of a search.

    Within few steps a metric often does not change. Ties are decided by the validation loss, then
    by the distance of the multiplier from 1.

    Args:
        runs: by their multipliers.
    """

    def score(multiplier: float) -> tuple[float, float, float]:
        trained = runs[multiplier]
        return trained.score, -trained.validation["loss"], -abs(math.log(multiplier))

    return max(runs, key=score)


def estimate_steps(seconds: float, *, variant: Variant, run: TrainFn) -> int:
    """The number of steps that a variant can do in a time, measured in a short run.

    Raises:
        TrainingError: a step takes no measurable time.
    """
    spec = RunSpec(variant, f"{variant.folder}-pace", variant.recipe.seed, steps=_TIMED_STEPS)
    timed = run(spec)
    if not timed.pace:
        msg = (
            "a step takes no measurable time, so a time budget cannot be converted to steps. Set "
            "train.max_steps instead."
        )
        raise TrainingError(msg)
    return max(1, int(seconds / timed.pace))
