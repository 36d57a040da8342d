"""The order of rows, which is known before the run, so that a resumed run follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from softprompt.data.collate import group_by_length
from softprompt.train.config import ResolvedTraining

# Far more epochs than a run has, so that no two seeds share an order.
_MAX_EPOCHS = 1_000_003


@dataclass(frozen=True)
class BatchSampler:
    """The steps of every epoch.

    Args:
        lengths: tokens of each row.
        training: batch size, token budget, epochs, steps and seed.
    """

    lengths: Sequence[int]
    training: ResolvedTraining

    def draw_batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step of an epoch, over all processes."""
        return group_by_length(
            self.lengths,
            size=self.training.batch_size,
            seed=self.training.seed * _MAX_EPOCHS + epoch,
            max_tokens=self.training.max_tokens_per_batch,
        )

    def count_steps(self) -> int:
        """The number of optimizer steps of the run."""
        epochs, max_steps = self.training.epochs, self.training.max_steps
        if self.training.max_tokens_per_batch is None:
            planned = epochs * ceil(len(self.lengths) / self.training.batch_size)
        else:
            planned = 0
            for epoch in range(epochs):  # far more of them may be allowed than are run
                planned += len(self.draw_batches(epoch))
                if max_steps is not None and planned >= max_steps:
                    break
        return planned if max_steps is None else min(planned, max_steps)
