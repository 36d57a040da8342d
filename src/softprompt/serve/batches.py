"""Batches: how the rows that wait are divided, and those that another server runs."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import numpy as np

from softprompt.inference.generated_row import GenerationEvent, GenerationRequest
from softprompt.inference.mixed import PromptedRow

# The tokens that take as long as what every pass takes in any case, by the kind of device. Measured
# on CPUs with SmolLM2-135M and MiniLM, 50 and 75; on GPUs an estimate, which only has to be large.
PASS_TOKENS = {"cpu": 64, "cuda": 4096}


class RemoteBatch(ABC):
    """A running batch of another server, of texts as a `TextBatch` and of other rows."""

    @abstractmethod
    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Send a row to generate text for.

        Args:
            key: the name of the row in its events.
            request: the row.
        """

    @abstractmethod
    def add_row(self, key: Hashable, row: PromptedRow) -> None:
        """Send a row to be predicted.

        Args:
            key: the name of the row in its only event, which has its prediction or its error.
            row: the row.
        """

    @abstractmethod
    def remove(self, key: Hashable) -> None:
        """Leave a row: its request is closed.

        Args:
            key: of the row; one that has ended already is ignored.
        """

    @abstractmethod
    def step(self) -> list[GenerationEvent]:
        """Wait for a moment for what the server sends.

        Returns:
            The events that have come.
        """


def divide_by_length(
    lengths: Sequence[int],
    *,
    counts: Sequence[int],
    max_rows: int,
    max_tokens: int,
    pass_tokens: int,
) -> list[list[int]]:
    """Divide rows into batches that take the least time in all, with padding to the longest.

    Args:
        lengths: of the rows.
        counts: how often each row is in its batch.
        max_rows: the most rows of a batch.
        max_tokens: the most positions of a batch, unless a row has more alone.
        pass_tokens: the tokens that take as long as a pass takes in any case.

    Returns:
        The indices of the rows of each batch.

    Examples:
        >>> limits = {"counts": [1] * 4, "max_rows": 4, "max_tokens": 999}
        >>> divide_by_length([9, 30, 10, 31], pass_tokens=5, **limits)
        [[0, 2], [1, 3]]
        >>> divide_by_length([9, 30, 10, 31], pass_tokens=500, **limits)
        [[0, 2, 1, 3]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    total = np.cumsum([0, *(counts[index] for index in order)])
    least, begins = np.zeros(len(order) + 1), [0] * (len(order) + 1)
    # The best division of the shortest rows, and where its last batch begins.
    for end in range(1, len(order) + 1):
        first = max(0, end - max_rows)
        tokens = (total[end] - total[first:end]) * lengths[order[end - 1]]
        fits = np.append(tokens[:-1] <= max_tokens, [True])
        costs = np.where(fits, least[first:end] + tokens, np.inf)
        begins[end] = first + int(costs.argmin())
        least[end] = costs[begins[end] - first] + pass_tokens
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]
