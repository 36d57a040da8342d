"""The key/value cache of rows that join and leave a batch while they are generated.

All rows end at the same column, so that a step appends one column, and a row that is shorter begins
later. What lies outside a row's own columns is hidden by the mask, and is zero: a number that is
not finite would spoil the row in spite of its weight of zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from softprompt.backbone.references import Architecture

# Tensors grow by this many columns and rows at once, so that most steps copy nothing.
_COLUMNS, _ROWS = 64, 4


class RowLayer(CacheLayerMixin):
    """The keys and values of one layer.

    Attributes:
        keys: of all rows ``[B, N, T, D]``, a view of a larger tensor.
        values: of all rows, as another such view.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.keys: Tensor
        self.values: Tensor
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._rows = self._begin = self._end = 0

    @property
    def width(self) -> int:
        """The number of columns in use."""
        return self._end - self._begin

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start with the keys and values of new rows, whose tensors are used as they are."""
        self._buffers = key_states, value_states
        self._rows, self._end = key_states.shape[0], key_states.shape[2]
        self.is_initialized = True
        self._show()

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_args: Any,  # noqa: ANN401  # transformers' own
        **_kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Append columns to all rows, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        new = key_states.shape[2]
        buffers = self._make_room(self._rows, before=0, after=new)
        begin, self._end = self._end, self._end + new
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, begin : self._end] = states
        return self._show()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of columns with the new ones, and that of columns that are gone."""
        return self.width + query_length, 0

    def get_seq_length(self) -> int:
        """The number of columns."""
        return self.width

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1

    def join(self, other: "RowLayer", columns: Mapping[int, slice]) -> None:
        """Append rows of another layer.

        Args:
            other: whose rows are copied.
            columns: those that each of the copied rows has its own keys and values in.
        """
        lengths = [c.stop - c.start for c in columns.values()]
        keys, values = other.keys, other.values
        if self._buffers is None:
            empty = keys[:0, :, :0], values[:0, :, :0]
            self.lazy_initialization(*empty)
        first, count = self._rows, self._rows + len(columns)
        buffers = self._make_room(count, before=max(lengths), after=0)
        for new, ((row, at), length) in enumerate(
            zip(columns.items(), lengths, strict=True), first
        ):
            for buffer, states in zip(buffers, (keys, values), strict=True):
                buffer[new, :, self._end - length : self._end] = states[row, :, at]
        self._rows, self._begin = count, min(self._begin, self._end - max(lengths))
        self._show()

    def prepend(self, row: int, *, length: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values ``[N, P, D]`` before a row's columns, ``length`` of them."""
        before = length + keys.shape[1]
        buffers = self._make_room(self._rows, before=before, after=0)
        for buffer, states in zip(buffers, (keys, values), strict=True):
            buffer[row, :, self._end - before : self._end - length] = states
        self._begin = min(self._begin, self._end - before)
        self._show()

    def drop(self, row: int, *, width: int) -> None:
        """Remove a row, whose place the last row takes.

        Args:
            row: its index.
            width: the number of columns that the remaining rows need.
        """
        self._rows -= 1
        for buffer in self._get_buffers():
            if row != self._rows:
                buffer[row] = buffer[self._rows]
            buffer[self._rows] = 0
        self.cut(width)

    def cut(self, width: int) -> None:
        """Keep the last columns; at the left the others are in use by no row."""
        self._begin = self._end - width
        self._show()

    def rewind(self, width: int) -> None:
        """Take back the columns that were appended last; they are written again."""
        self._end = self._begin + width
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        """Set the views to the rows and columns in use."""
        at = slice(self._begin, self._end)
        self.keys, self.values = (t[: self._rows, :, at] for t in self._get_buffers())
        return self.keys, self.values

    def _get_buffers(self) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            msg = "a layer without keys and values has no rows"
            raise AssertionError(msg)
        return self._buffers

    def _make_room(self, rows: int, *, before: int, after: int) -> tuple[Tensor, Tensor]:
        """Tensors with room for rows, for columns up to the end, and for columns after it."""
        old = self._get_buffers()
        slots, columns = old[0].shape[0], old[0].shape[2]
        if rows <= slots and before <= self._end and self._end + after <= columns:
            return old
        width = self.width
        left = max(before - width, 0)
        slots = max(slots, -(-rows // _ROWS) * _ROWS)
        columns = -(-(left + width + after) // _COLUMNS) * _COLUMNS
        keys, values = (self._grow(t, slots, columns, left=left) for t in old)
        self._buffers = keys, values
        self._begin, self._end = left, left + width
        return keys, values

    def _grow(self, old: Tensor, slots: int, columns: int, *, left: int) -> Tensor:
        new = old.new_zeros(slots, old.shape[1], columns, old.shape[3])
        new[: self._rows, :, left : left + self.width] = old[
            : self._rows, :, self._begin : self._end
        ]
        return new


class RowColumns:
    """The columns of rows in all layers: of the rows' own tokens, or of encoded ones.

    Attributes:
        cache: the layers, as a model takes them.
        lengths: the number of each row's columns.
    """

    def __init__(self) -> None:
        self.cache = Cache(layer_class_to_replicate=RowLayer)
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """The number of columns of the longest row."""
        return max(self.lengths, default=0)

    @property
    def layers(self) -> list[RowLayer]:
        """The layers."""
        return [layer for layer in self.cache.layers if isinstance(layer, RowLayer)]

    def make_mask(self, *, after: int = 0) -> Int[Tensor, "B T"]:
        """1 in each row's own columns, the last ones, and in those ``after`` them."""
        begins = torch.tensor([self.width - length for length in self.lengths])
        return (torch.arange(self.width + after) >= begins[:, None]).long()

    def locate(self, row: int) -> slice:
        """The columns of a row."""
        return slice(self.width - self.lengths[row], self.width)

    def join(self, other: "RowColumns", columns: Mapping[int, slice]) -> None:
        """Append rows of others, by the columns that each of them has its own tokens in."""
        layers = self.cache.layers
        layers += [RowLayer() for _ in other.layers[len(layers) :]]
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.join(new, columns)
        self.lengths += [at.stop - at.start for at in columns.values()]

    def prepend(self, row: int, prefix: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put keys and values ``[N, P, D]`` of every layer before a row's own columns."""
        for layer, (keys, values) in zip(self.layers, prefix, strict=True):
            layer.prepend(row, length=self.lengths[row], keys=keys, values=values)
        self.lengths[row] += prefix[0][0].shape[1]

    def drop(self, row: int) -> None:
        """Remove a row, whose place the last row takes."""
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        for layer in self.layers:
            layer.drop(row, width=self.width)

    def rewind(self) -> None:
        """Forget the columns that an unfinished pass has appended."""
        for layer in self.layers:
            layer.rewind(self.width)


class RowCache:
    """The keys and values of rows; of a decoder also those of the encoder's states.

    Args:
        architecture: of the backbone.

    Attributes:
        own: of the rows' own tokens.
        encoded: of the tokens that an encoder has read; None without an encoder.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.own = RowColumns()
        self.encoded = RowColumns() if architecture == "encoder-decoder" else None

    @property
    def argument(self) -> Cache:
        """The cache as a model takes it."""
        if self.encoded is None:
            return self.own.cache
        return EncoderDecoderCache(self.own.cache, self.encoded.cache)

    def advance(self) -> None:
        """Count the column that a pass has appended to every row."""
        self.own.lengths = [length + 1 for length in self.own.lengths]

    def drop(self, row: int) -> None:
        """Remove a row, whose place the last row takes."""
        self.own.drop(row)
        if self.encoded is not None:
            self.encoded.drop(row)

    def join(
        self,
        other: "RowCache",
        columns: Mapping[int, slice],
        *,
        encoded: Mapping[int, slice] | None = None,
    ) -> None:
        """Append rows of another cache.

        Args:
            other: whose rows are copied.
            columns: those that each of the copied rows has its own tokens in.
            encoded: the same for the tokens that an encoder has read.
        """
        self.own.join(other.own, columns)
        if self.encoded is not None and other.encoded is not None and encoded is not None:
            self.encoded.join(other.encoded, encoded)

    def take_row(self, other: "RowCache", row: int) -> None:
        """Append a row of another cache, in which all rows end at the same column."""
        encoded = None if other.encoded is None else {row: other.encoded.locate(row)}
        self.join(other, {row: other.own.locate(row)}, encoded=encoded)
