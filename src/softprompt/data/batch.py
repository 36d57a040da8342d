"""Rows made tensors: rows of like length together, padded to the longest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.data.tokenise import Tokenised
from softprompt.errors import DataError

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, padded to the longest.

    Args:
        ids: token ids; soft token k is V + k.
        mask: 1 where a token is real, 0 where it is padding.
        types: token type ids; 0 on padding.
        rows: the index of each row in the data set.
    """

    ids: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    types: Int[Tensor, "B T"]
    rows: Int[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.ids.to(device), self.mask.to(device), self.types.to(device), self.rows.to(device)
        )


def collate(rows: Sequence[Tokenised], indices: Sequence[int], *, pad: int, side: Side) -> Batch:
    """Put rows into one batch.

    Args:
        rows: the rendered rows, at least one.
        indices: their places in the data set, one a row.
        pad: the id to pad with.
        side: where the padding stands.

    Returns:
        The batch, on the CPU.

    Raises:
        DataError: no rows, or not one index a row.
    """
    if not rows or len(rows) != len(indices):
        msg = f"{len(rows)} rows and {len(indices)} indices make no batch: one index a row, please."
        raise DataError(msg)
    width = max(len(row.ids) for row in rows)
    ones = [(1,) * len(row.ids) for row in rows]
    return Batch(
        ids=_padded([row.ids for row in rows], width, value=pad, side=side),
        mask=_padded(ones, width, value=0, side=side),
        types=_padded([row.types for row in rows], width, value=0, side=side),
        rows=torch.tensor(list(indices)),
    )


def _padded(
    rows: Sequence[tuple[int, ...]], width: int, *, value: int, side: Side
) -> Int[Tensor, "B T"]:
    gaps = [(value,) * (width - len(row)) for row in rows]
    match side:
        case "left":
            lines = [gap + row for gap, row in zip(gaps, rows, strict=True)]
        case "right":
            lines = [row + gap for gap, row in zip(gaps, rows, strict=True)]
        case _:
            assert_never(side)
    return torch.tensor(lines, dtype=torch.long).reshape(len(rows), width)


def like_length(
    lengths: Sequence[int],
    *,
    size: int,
    seed: int | None,
    budget: int | None = None,
    mega: int = 50,
) -> list[list[int]]:
    """Batches of rows of like length: little padding, and still shuffled.

    Rows are shuffled, cut into mega-batches of ``mega * size`` rows, sorted by length inside each,
    cut into batches, and the batches shuffled.

    Args:
        lengths: tokens of each row.
        size: most rows of a batch.
        seed: of the shuffling; None for one fixed order, longest rows first (evaluation: the
            batch that needs most memory comes first).
        budget: most tokens of a batch, padding included; a row longer than that is a batch alone.
        mega: batches that are sorted together; more of them, less padding and less chance.

    Returns:
        Batches of indices into ``lengths``; every index once.

    Raises:
        DataError: ``size``, ``budget`` or ``mega`` is not positive.
    """
    for name, number in (("size", size), ("budget", budget), ("mega", mega)):
        if number is not None and number < 1:
            msg = f"batches with a {name} of {number} are not possible. Give at least 1."
            raise DataError(msg)
    if seed is None:
        return list(_cut(range(len(lengths)), lengths, size=size, budget=budget))
    generator = torch.Generator().manual_seed(seed)
    order = _permutation(len(lengths), generator)
    step = mega * size
    megas = [order[start : start + step] for start in range(0, len(order), step)]
    batches = [b for m in megas for b in _cut(m, lengths, size=size, budget=budget)]
    return [batches[i] for i in _permutation(len(batches), generator)]


def _permutation(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator).tolist()]


def _cut(
    indices: Sequence[int], lengths: Sequence[int], *, size: int, budget: int | None
) -> Iterator[list[int]]:
    """Sort by length, longest first, and cut: a batch is as wide as its first row."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda i: lengths[i], reverse=True):
        over = budget is not None and batch and (len(batch) + 1) * lengths[batch[0]] > budget
        if len(batch) == size or over:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
