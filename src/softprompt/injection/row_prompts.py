"""The hook that applies each row's prompt, and the attention masks for it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.attention import AttentionCall
from softprompt.backbone.hooks import PassHook
from softprompt.backbone.position_bias import PositionBias


@dataclass(frozen=True, eq=False)
class SitePrefix:
    """The keys and values that the prompts of a batch add at one attention site.

    Args:
        keys: one prefix per prompt, padded to the longest; or one that all prompts share.
        values: as many as there are keys; they may be narrower than keys.
        visible: of each prompt, False on padding, on what is hidden in training, and without a
            prefix at this site; None if all True.
        is_by_row: whether there is one for each row, in their order.
    """

    keys: Float[Tensor, "R N P D"]
    values: Float[Tensor, "R N P Dv"]
    visible: Bool[Tensor, "Rv P"] | None
    is_by_row: bool = False


@dataclass(frozen=True, eq=False)
class MaskCache:
    """Attention masks and biases of one pass; each is computed once, since most sites share one.

    Args:
        positions: the positions of the row's own tokens.
        shift: the number of positions of each prompt. A prompt with positions is treated like
            text before the row: sliding windows and biases by distance apply to it. A prompt
            without positions is always visible and has no bias. None if no prompt has positions.
        entries: the masks and biases by the identities of the objects that they were computed
            from, which are stored too, so that no other object can get the same identity.
    """

    positions: Int[Tensor, "B T"]
    shift: Int[Tensor, " R"] | None
    entries: dict[tuple[int, ...], tuple[Tensor | None, tuple[object, ...]]] = field(
        default_factory=dict
    )

    def hide(
        self,
        attention: AttentionCall,
        hidden: Bool[Tensor, "B Tc"],
        *,
        queries: Bool[Tensor, "B T"],
        site: int,
    ) -> AttentionCall:
        """Hide soft tokens that have not entered yet, except from one another.

        Args:
            attention: the attention call.
            hidden: the keys to hide: soft tokens that enter at a later layer.
            queries: the queries of this pass that are such soft tokens.
            site: the number of the attention site.
        """
        key = (id(attention.mask), site, attention.key.shape[2])
        if key not in self.entries:
            self.entries[key] = _hide_columns(attention, hidden, queries), (attention.mask,)
        return replace(attention, mask=self.entries[key][0])

    def extend(
        self,
        attention: AttentionCall,
        prefix: SitePrefix,
        *,
        rows: Int[Tensor, " B"],
        bias: PositionBias | None,
    ) -> AttentionCall:
        """Add each row's prefix before its keys and values, and extend mask and bias.

        Args:
            attention: the attention call.
            prefix: the prefixes at this site.
            rows: the index of each row's prompt.
            bias: the function that computes the attention's bias, if it has one by distance.
        """
        rows = repeat_rows(rows, attention.query.shape[0])
        keys, values = prefix.keys, prefix.values
        if len(keys) > 1 and not (prefix.is_by_row and len(keys) == len(rows)):
            keys, values = keys[rows], values[rows]
        return replace(
            attention,
            prefix_kv=(keys, values),
            mask=self._extend_mask(attention, prefix, rows),
            bias=self._extend_bias(attention, prefix, rows=rows, compute_bias=bias),
        )

    def _extend_mask(
        self, attention: AttentionCall, prefix: SitePrefix, rows: Int[Tensor, " b"]
    ) -> Tensor | None:
        length, shift = prefix.keys.shape[2], self.shift
        window = None if shift is None else attention.window
        shape = (attention.query.shape[2], attention.key.shape[2], length)
        key = (id(attention.mask), id(prefix.visible), attention.causal, window or 0, *shape)
        if key not in self.entries:
            visible = None if prefix.visible is None else prefix.visible[rows][:, None, None, :]
            if shift is not None and window is not None:
                in_window = _is_in_window(self.positions, length, window)
                in_window = in_window | (shift[rows] == 0)[:, None, None, None]
                visible = in_window if visible is None else visible & in_window
            mask = _prepend_columns(attention, visible, length)
            self.entries[key] = mask, (attention.mask, prefix.visible)
        return self.entries[key][0]

    def _extend_bias(
        self,
        attention: AttentionCall,
        prefix: SitePrefix,
        *,
        rows: Int[Tensor, " b"],
        compute_bias: PositionBias | None,
    ) -> Tensor | None:
        bias, length = attention.bias, prefix.keys.shape[2]
        if bias is None:
            return None
        if compute_bias is None or self.shift is None:
            return F.pad(bias, (length, 0))
        key = (id(compute_bias), *bias.shape, length)
        if key not in self.entries:
            shift = self.shift if len(self.shift) == 1 else self.shift[rows]
            prefix_bias = compute_bias(
                attention, length, shift=shift, cached=self.positions[:, 0]
            ).masked_fill((shift == 0)[:, None, None, None], 0)
            batch = max(len(prefix_bias), len(bias))
            parts = [t.expand(batch, -1, bias.shape[2], -1) for t in (prefix_bias, bias)]
            joined = torch.cat(parts, dim=-1)
            if joined.requires_grad:
                # With gradient checkpointing a layer that is recomputed must compute this again.
                return joined
            self.entries[key] = joined, (compute_bias,)
        return self.entries[key][0]


def repeat_rows(rows: Tensor, batch: int) -> Tensor:
    """Repeat values of rows for a batch in which each row has several consecutive beams."""
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows), dim=0)


def _is_in_window(
    positions: Int[Tensor, "B T"], length: int, window: int
) -> Bool[Tensor, "B 1 T P"]:
    columns = torch.arange(length, device=positions.device)
    return (positions[:, None, :, None] - columns) < window


def _prepend_columns(
    attention: AttentionCall, visible: Bool[Tensor, "B 1 _ P"] | None, length: int
) -> Tensor | None:
    """Add columns for the prefix before those of the attention mask."""
    if visible is None and not attention.has_mask:
        return None
    mask = attention.make_explicit_mask()
    if visible is None:
        visible = torch.ones(1, 1, 1, length, dtype=torch.bool, device=mask.device)
    batch = max(len(mask), len(visible))
    mask = mask.expand(batch, -1, -1, -1)
    columns = visible.expand(batch, mask.shape[1], mask.shape[2], length)
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, lowest)
    return torch.cat([columns, mask], dim=-1)


def _hide_columns(
    attention: AttentionCall, hidden: Bool[Tensor, "B Tc"], queries: Bool[Tensor, "B T"]
) -> Tensor:
    """Hide columns of the attention mask, except from the queries that are themselves hidden."""
    mask = attention.make_explicit_mask().expand(len(attention.query), -1, -1, -1)
    columns = F.pad(hidden, (0, mask.shape[-1] - hidden.shape[1]))[:, None, None, :]
    # Hidden soft tokens still see one another: a query without any visible key would give NaN.
    columns = columns & ~queries[:, None, :, None]
    if mask.dtype == torch.bool:
        return mask & ~columns
    return mask.masked_fill(columns, torch.finfo(mask.dtype).min)


@dataclass(frozen=True, eq=False)
class LayerEntry:
    """The vectors of all input prompts that enter at one layer, concatenated.

    Args:
        vectors: of width E among the embeddings, of width H before a layer.
        offsets: the index of each prompt's first vector.
        enters: whether a prompt enters here.
    """

    vectors: Float[Tensor, "S W"]
    offsets: Int[Tensor, " R"]
    enters: Bool[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class CachedInput:
    """Hidden states that were computed before, so that the layers below can be skipped.

    Args:
        layer: the first layer that is run; the number of layers for an encoder's output.
        states: the input of this layer.
    """

    layer: int
    states: Float[Tensor, "B T H"]


@dataclass(frozen=True, eq=False)
class RowPrompts:
    """The hook that applies the prompts of a batch, each to its rows.

    Args:
        vocabulary: V; ids from V on are soft tokens.
        rows: the index of each row's prompt.
        ids: the token ids of the rows.
        entries: the vectors of soft tokens, by the layer that they enter before; 0 is the input.
        sites: the prefixes at each attention site that has any.
        site_of: the numbers of each attention module's sites, in the order of its calls.
        layer_of: the numbers of each layer module, in the order of its calls.
        bias_of: the function that computes the bias, for attention modules with one by distance.
        shift: the number of positions that each prompt shifts its row by; None if none does.
        cached_states: hidden states to start from, if there are any.
        stand_in: the token whose embedding soft tokens have before they enter.
        current_ids: the ids of the current pass.
    """

    vocabulary: int
    rows: Int[Tensor, " B"]
    ids: Int[Tensor, "B T"]
    entries: dict[int, LayerEntry]
    sites: dict[int, SitePrefix]
    site_of: dict[nn.Module, tuple[int, ...]]
    layer_of: dict[nn.Module, tuple[int, ...]]
    bias_of: dict[nn.Module, PositionBias]
    shift: Int[Tensor, " R"] | None
    cached_states: CachedInput | None = None
    stand_in: int = 0
    current_ids: list[Tensor] = field(default_factory=list)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Look ids up in the backbone's table and in the row's prompt."""
        if not self.entries:
            return table(ids)
        self.current_ids[:] = [ids]
        embedded = table(self.replace_soft(ids))
        entry = self.entries.get(0)
        return embedded if entry is None else self.insert(entry, embedded, ids=ids)

    def replace_soft(self, ids: Tensor) -> Tensor:
        """Ids for tables that have no row for soft tokens."""
        return ids.masked_fill(ids >= self.vocabulary, self.stand_in)

    def insert(self, entry: LayerEntry, states: Tensor, *, ids: Tensor) -> Tensor:
        """Replace the states of soft tokens that enter here by their vectors."""
        rows = repeat_rows(self.rows, len(ids))
        soft = (ids >= self.vocabulary) & entry.enters[rows][:, None]
        index = (ids - self.vocabulary + entry.offsets[rows][:, None]).where(soft, 0)
        return torch.where(soft[..., None], entry.vectors.to(states)[index], states)

    def mask_pending(self, ids: Int[Tensor, "B T"], *, layer: int) -> Bool[Tensor, "B T"]:
        """Which of the ids are soft tokens that enter after this layer."""
        later = [e.enters for start, e in self.entries.items() if start > layer]
        pending = torch.stack(later).any(dim=0)[repeat_rows(self.rows, len(ids))]
        return (ids >= self.vocabulary) & pending[:, None]

    def get_position_shift(self, batch: int) -> Int[Tensor, " B"] | None:
        """The number of positions that each row is shifted by; None if none is."""
        return None if self.shift is None else self.shift[repeat_rows(self.rows, batch)]

    def begin_pass(self, positions: Int[Tensor, "B T"]) -> PassHook:
        """Start one forward pass."""
        return _RowPass(self, MaskCache(positions, self.shift))


class _RowPass:
    """One forward pass. Calls are counted because ALBERT's layers share one module."""

    def __init__(self, prompts: RowPrompts, masks: MaskCache) -> None:
        self.prompts, self.masks = prompts, masks
        self.calls: dict[nn.Module, int] = {}
        self.extra_outputs: list[Any] = []
        self.current_layer: int | None = None
        # Stored here, because a layer may be recomputed when another pass has started.
        self.ids: Tensor | None = None

    def attend(self, module: nn.Module, attention: AttentionCall) -> AttentionCall:
        """Hide the soft tokens that enter later, and add the row's prefix."""
        prompts = self.prompts
        sites = prompts.site_of.get(module, ())
        if not sites:
            return attention
        # A module of several layers is called in the layer that was entered last.
        layer = self.current_layer
        site = layer if layer in sites else self._next_number(module, sites)
        if self.ids is not None and site < max(prompts.entries, default=0):
            hidden = prompts.mask_pending(repeat_rows(prompts.ids, len(self.ids)), layer=site)
            queries = prompts.mask_pending(self.ids, layer=site)
            attention = self.masks.hide(attention, hidden, queries=queries, site=site)
        prefix = prompts.sites.get(site)
        if prefix is None:
            return attention
        bias = prompts.bias_of.get(module)
        return self.masks.extend(attention, prefix, rows=prompts.rows, bias=bias)

    def on_layer(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        """Skip layers below cached states, and insert the soft tokens that enter here."""
        number = self._next_number(block, self.prompts.layer_of[block])
        cached = self.prompts.cached_states
        self.current_layer = number
        if number == 0 and self.prompts.current_ids:
            self.ids = self.prompts.current_ids[0]
        if cached is not None and number < cached.layer:
            return states, False
        if cached is not None and number == cached.layer:
            states = cached.states.to(states)
        entry = self.prompts.entries.get(number) if number else None
        if entry is not None and self.ids is not None:
            states = self.prompts.insert(entry, states, ids=self.ids)
        return states, True

    def _next_number(self, module: nn.Module, numbers: tuple[int, ...]) -> int:
        turn = self.calls.get(module, 0)
        self.calls[module] = turn + 1
        # A recomputed layer calls its module a second time for the same number.
        return numbers[turn % len(numbers)]
