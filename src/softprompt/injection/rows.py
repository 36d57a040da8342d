"""Prompts of a batch, row by row, as the seam's listener: the one place where they enter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from softprompt.backbone.attention import Attention
from softprompt.backbone.place import Bias
from softprompt.backbone.seam import Pass
from softprompt.injection.attend import Masks, SitePrefix, repeated


@dataclass(frozen=True, eq=False)
class Entrance:
    """The vectors of all input prompts that enter at one place, one after the other.

    Args:
        vectors: of E among the embeddings, of H before a block.
        offsets: where each prompt's vectors begin.
        enters: whether a prompt enters here.
    """

    vectors: Float[Tensor, "S W"]
    offsets: Int[Tensor, " R"]
    enters: Bool[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Given:
    """States that were computed before, in place of the blocks below.

    Args:
        layer: the first one that is run; the number of layers for an encoder's output.
        states: what it is given.
    """

    layer: int
    states: Float[Tensor, "B T H"]


@dataclass(frozen=True, eq=False)
class RowPrompts:
    """The prompts of a batch and which row has which.

    Args:
        vocabulary: V; ids from here on are soft.
        rows: for each row the index of its prompt.
        ids: of the rows.
        entrances: of the soft tokens, by the block that they enter before; 0 is the input.
        sites: what is added at each attention site that some prompt speaks to.
        site_of: for each attention module, its sites in the order of its calls.
        block_of: likewise for blocks.
        bias_of: for attention modules with a bias by distance, what computes it.
        shift: by how many positions each prompt moves its row up; None if none does.
        given: states to begin with, if there are any.
        latest: the ids of the pass that is going on.
    """

    vocabulary: int
    rows: Int[Tensor, " B"]
    ids: Int[Tensor, "B T"]
    entrances: dict[int, Entrance]
    sites: dict[int, SitePrefix]
    site_of: dict[nn.Module, tuple[int, ...]]
    block_of: dict[nn.Module, tuple[int, ...]]
    bias_of: dict[nn.Module, Bias]
    shift: Int[Tensor, " R"] | None
    given: Given | None = None
    latest: list[Tensor] = field(default_factory=list)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """One gather from the backbone's table and the row's prompt."""
        if not self.entrances:
            return table(ids)
        self.latest[:] = [ids]
        embedded = table(ids.masked_fill(ids >= self.vocabulary, 0))
        entrance = self.entrances.get(0)
        return embedded if entrance is None else self.entered(entrance, embedded, ids=ids)

    def entered(self, entrance: Entrance, states: Tensor, *, ids: Tensor) -> Tensor:
        """The states with the soft tokens that enter here."""
        rows = repeated(self.rows, len(ids))
        soft = (ids >= self.vocabulary) & entrance.enters[rows][:, None]
        index = (ids - self.vocabulary + entrance.offsets[rows][:, None]).where(soft, 0)
        return torch.where(soft[..., None], entrance.vectors.to(states)[index], states)

    def waiting(self, ids: Int[Tensor, "B T"], *, block: int) -> Bool[Tensor, "B T"]:
        """Which of the ids are soft tokens that enter behind this block."""
        later = [e.enters for at, e in self.entrances.items() if at > block]
        own = torch.stack(later).any(dim=0)[repeated(self.rows, len(ids))]
        return (ids >= self.vocabulary) & own[:, None]

    def moved(self, batch: int) -> Int[Tensor, " B"] | None:
        """By how much each row is moved up, if any is."""
        return None if self.shift is None else self.shift[repeated(self.rows, batch)]

    def call(self, positions: Int[Tensor, "B T"]) -> Pass:
        """One pass."""
        return _RowPass(self, Masks(positions, self.shift))


class _RowPass:
    """One pass. Calls are counted because ALBERT's layers share one module."""

    def __init__(self, rows: RowPrompts, masks: Masks) -> None:
        self.rows, self.masks = rows, masks
        self.calls: dict[nn.Module, int] = {}
        self.more: list[Any] = []
        self.block: int | None = None
        # Kept here, since a block may be run again when another pass has long begun.
        self.ids: Tensor | None = None

    def attend(self, module: nn.Module, attention: Attention) -> Attention:
        """Without the soft tokens that enter later, with what stands before the row."""
        rows = self.rows
        sites = rows.site_of.get(module, ())
        if not sites:
            return attention
        # A module that serves many layers does so in the layer that was entered last.
        site = self.block if self.block in sites else self._turn(module, sites)
        if self.ids is not None and site < max(rows.entrances, default=0):
            columns = rows.waiting(repeated(rows.ids, len(self.ids)), block=site)
            asking = rows.waiting(self.ids, block=site)
            attention = self.masks.hiding(attention, columns, asking=asking, which=site)
        prefix = rows.sites.get(site)
        if prefix is None:
            return attention
        bias = rows.bias_of.get(module)
        return self.masks.extended(attention, prefix, rows=rows.rows, bias=bias)

    def enter(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        """Given states in place of those of the blocks below; soft tokens that enter here."""
        number, given = self._turn(block, self.rows.block_of[block]), self.rows.given
        self.block = number
        if number == 0 and self.rows.latest:
            self.ids = self.rows.latest[0]
        if given is not None and number < given.layer:
            return states, False
        if given is not None and number == given.layer:
            states = given.states.to(states)
        entrance = self.rows.entrances.get(number) if number else None
        if entrance is not None and self.ids is not None:
            states = self.rows.entered(entrance, states, ids=self.ids)
        return states, True

    def _turn(self, module: nn.Module, numbers: tuple[int, ...]) -> int:
        turn = self.calls.get(module, 0)
        self.calls[module] = turn + 1
        # A recomputed layer calls its module a second time for the same number.
        return numbers[turn % len(numbers)]
