"""In which steps the rows are seen: known before the run, so that a resumed one goes on in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from softprompt.data.batch import like_length
from softprompt.train.settings import Training

# Far more epochs than a run has, so that no two seeds share an order.
_EPOCHS = 1_000_003


@dataclass(frozen=True)
class Order:
    """The steps of every epoch.

    Args:
        lengths: tokens of each row.
        training: batch size, token budget, epochs, steps and seed.
    """

    lengths: Sequence[int]
    training: Training

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step of an epoch, over all processes."""
        return like_length(
            self.lengths,
            size=self.training.batch_size,
            seed=self.training.seed * _EPOCHS + epoch,
            budget=self.training.token_budget,
        )

    def steps(self) -> int:
        """How many optimiser steps the run has."""
        epochs, most = self.training.epochs, self.training.steps
        if self.training.token_budget is None:
            planned = epochs * ceil(len(self.lengths) / self.training.batch_size)
        else:
            planned = sum(len(self.batches(epoch)) for epoch in range(epochs))
        return planned if most is None else min(planned, most)
