"""Batches: rows of similar length together, padded to the longest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.data.rendering import RenderedRow
from softprompt.errors import DataError

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of rows, padded to the longest.

    Args:
        input_ids: token ids; soft token k is V + k.
        attention_mask: 1 where a token is real, 0 where it is padding.
        token_type_ids: token type ids; 0 on padding.
        rows: the index of each row in the data set.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    token_type_ids: Int[Tensor, "B T"]
    rows: Int[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.token_type_ids.to(device),
            self.rows.to(device),
        )


def collate(rows: Sequence[RenderedRow], indices: Sequence[int], *, pad: int, side: Side) -> Batch:
    """Put rows into one batch.

    Args:
        rows: the rendered rows, at least one.
        indices: their indices in the data set, one per row.
        pad: the id to pad with.
        side: the side of the padding.

    Returns:
        The batch, on the CPU.

    Raises:
        DataError: there are no rows, or not one index per row.
    """
    if not rows or len(rows) != len(indices):
        msg = f"{len(rows)} rows and {len(indices)} indices do not match. Give one index per row."
        raise DataError(msg)
    width = max(len(row.input_ids) for row in rows)
    ones = [(1,) * len(row.input_ids) for row in rows]
    return Batch(
        input_ids=_pad([row.input_ids for row in rows], width, value=pad, side=side),
        attention_mask=_pad(ones, width, value=0, side=side),
        token_type_ids=_pad([row.token_type_ids for row in rows], width, value=0, side=side),
        rows=torch.tensor(list(indices)),
    )


def _pad(
    rows: Sequence[tuple[int, ...]], width: int, *, value: int, side: Side
) -> Int[Tensor, "B T"]:
    gaps = [(value,) * (width - len(row)) for row in rows]
    match side:
        case "left":
            padded = [gap + row for gap, row in zip(gaps, rows, strict=True)]
        case "right":
            padded = [row + gap for gap, row in zip(gaps, rows, strict=True)]
        case _:
            assert_never(side)
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)


def group_by_length(
    lengths: Sequence[int],
    *,
    size: int,
    seed: int | None,
    max_tokens: int | None = None,
    megabatch_factor: int = 50,
) -> list[list[int]]:
    """Make batches of rows of similar length: little padding, and still shuffled.

    Rows are shuffled, cut into mega-batches of ``megabatch_factor * size`` rows, sorted by length
    within each and cut into batches; then the batches are shuffled.

    Args:
        lengths: the number of tokens of each row.
        size: the most rows of a batch.
        seed: the seed of the shuffling; None for one fixed order, longest rows first (for
            evaluation: the batch that needs the most memory comes first).
        max_tokens: the most tokens of a batch, including padding; a longer row is a batch of its
            own.
        megabatch_factor: the number of batches that are sorted together; more of them mean less
            padding and less randomness.

    Returns:
        Batches of indices into ``lengths``, with every index once.

    Raises:
        DataError: ``size``, ``max_tokens`` or ``megabatch_factor`` is not positive.
    """
    limits = {"size": size, "max_tokens": max_tokens, "megabatch_factor": megabatch_factor}
    for name, number in limits.items():
        if number is not None and number < 1:
            msg = f"batches with {name} = {number} are not possible. Give at least 1."
            raise DataError(msg)
    if seed is None:
        return list(_cut_batches(range(len(lengths)), lengths, size=size, budget=max_tokens))
    generator = torch.Generator().manual_seed(seed)
    order = _draw_order(len(lengths), generator)
    step = megabatch_factor * size
    parts = [order[start : start + step] for start in range(0, len(order), step)]
    batches = [b for p in parts for b in _cut_batches(p, lengths, size=size, budget=max_tokens)]
    return [batches[i] for i in _draw_order(len(batches), generator)]


def _draw_order(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator).tolist()]


def _cut_batches(
    indices: Sequence[int], lengths: Sequence[int], *, size: int, budget: int | None
) -> Iterator[list[int]]:
    """Sort by length, longest first, and cut: a batch is as wide as its first row."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda i: lengths[i], reverse=True):
        is_full = budget is not None and batch and (len(batch) + 1) * lengths[batch[0]] > budget
        if len(batch) == size or is_full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
