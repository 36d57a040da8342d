"""The short search for a learning rate: the same few steps with each of several rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from softprompt.evaluate import Model
from softprompt.recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
        model: the best prompt by validation, at work.
        score: the higher, the better.
        validation: all metrics of the best prompt.
        rate: the learning rate that was used.
        trainable: parameters.
        size: bytes of the artifact.
        seconds: of training.
        steps: of the optimiser.
    """

    model: Model
    score: float
    validation: Mapping[str, float]
    rate: float
    trainable: int
    size: int
    seconds: float
    steps: int


class Runner(Interface):
    """Trains a recipe; given by whoever may write folders."""

    def __call__(self, recipe: Recipe, name: str, *, share: float, factor: float) -> Trained:
        """Train, or go on where it was stopped.

        Args:
            name: of the run's folder.
            share: of the recipe's steps.
            factor: by which its learning rate is multiplied.
        """


def search(
    recipe: Recipe, name: str, *, factors: Sequence[float], share: float, run: Runner
) -> dict[float, Trained]:
    """What each factor of the learning rate comes to in a share of the steps."""
    return {
        factor: run(recipe, f"{name}-search-{factor:g}", share=share, factor=factor)
        for factor in factors
    }


def best_of(found: Mapping[float, Trained]) -> float:
    """The factor to go on with.

    Few steps often leave a metric as it was: then the loss decides, then the usual rate.
    """

    def worth(factor: float) -> tuple[float, float, float]:
        trained = found[factor]
        return trained.score, -trained.validation["loss"], -abs(math.log(factor))

    return max(found, key=worth)
