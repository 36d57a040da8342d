"""Prompts of a batch, row by row, as the seam's listener: the one place where they enter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.model import Geometry
from softprompt.backbone.seam import Attention, AttentionCall
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@dataclass(frozen=True, eq=False)
class SitePrefix:
    """What the prompts of a batch add at one attention site.

    Args:
        keys: one prefix a prompt, padded to the longest.
        values: likewise.
        visible: False on padding and on prompts that say nothing at this site; None if all True.
    """

    keys: Float[Tensor, "R N P D"]
    values: Float[Tensor, "R N P D"]
    visible: Bool[Tensor, "R P"] | None


@dataclass(frozen=True, eq=False)
class RowPrompts:
    """The prompts of a batch and which row has which.

    Args:
        vocabulary: V; ids from here on are soft.
        rows: for each row the index of its prompt.
        vectors: the vectors of all input prompts one after the other; None if there are none.
        offsets: where each prompt's vectors begin.
        sites: what is added at each attention site that some prompt speaks to.
        site_of: for each attention module, its sites in the order of its calls.
        shift: by how many positions each prompt moves its row up.
    """

    vocabulary: int
    rows: Int[Tensor, " B"]
    vectors: Float[Tensor, "S E"] | None
    offsets: Int[Tensor, " R"]
    sites: dict[int, SitePrefix]
    site_of: dict[nn.Module, tuple[int, ...]]
    shift: Int[Tensor, " R"]

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """One gather from the backbone's table and the row's prompt."""
        if self.vectors is None:
            return table(ids)
        soft = ids >= self.vocabulary
        embedded = table(ids.masked_fill(soft, 0))
        begin = self.offsets[_expanded(self.rows, ids.shape[0])][:, None]
        index = (ids - self.vocabulary + begin).where(soft, 0)
        vectors = self.vectors.to(embedded.dtype)[index]
        return torch.where(soft[..., None], vectors, embedded)

    def call(self) -> AttentionCall:
        """One pass; calls are counted because ALBERT's layers share one attention module."""
        return partial(self._attend, {})

    def _attend(
        self, calls: dict[nn.Module, int], module: nn.Module, attention: Attention
    ) -> Attention:
        sites = self.site_of.get(module, ())
        if not sites:
            return attention
        turn = calls.get(module, 0)
        calls[module] = turn + 1
        # A recomputed layer calls its module a second time for the same site.
        prefix = self.sites.get(sites[turn % len(sites)])
        return attention if prefix is None else _extended(attention, prefix, self.rows)


def gather(
    geometry: Geometry,
    prompts: Sequence[Prompt | None],
    *,
    rows: Int[Tensor, " B"],
    site_of: dict[nn.Module, tuple[int, ...]],
) -> RowPrompts:
    """Lay the prompts of a batch out for the seam; None is a row without a prompt.

    Raises:
        PromptError: a prompt does not fit the backbone.
    """
    for prompt in prompts:
        if prompt is not None:
            check(geometry, prompt)
    inputs = [p.vectors if isinstance(p, InputPrompt) else None for p in prompts]
    lengths = [0 if v is None else len(v) for v in inputs]
    present = [v for v in inputs if v is not None]
    offsets = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    shift = [p.length if isinstance(p, KVPrefix) and p.shifted else 0 for p in prompts]
    prefixes = [p if isinstance(p, KVPrefix) else None for p in prompts]
    named = {site for p in prefixes if p is not None for site in p.layers}
    return RowPrompts(
        vocabulary=geometry.vocabulary,
        rows=rows,
        vectors=torch.cat(present) if present else None,
        offsets=offsets.to(rows.device),
        sites={site: _site(prefixes, site) for site in sorted(named)},
        site_of=site_of,
        shift=torch.tensor(shift, device=rows.device),
    )


def check(geometry: Geometry, prompt: Prompt) -> None:
    """Raise PromptError if a prompt does not fit the backbone's geometry."""
    match prompt:
        case InputPrompt():
            width = prompt.vectors.shape[1]
            if width != geometry.embedding_size:
                msg = (
                    f"the prompt's vectors are {width} wide, but {geometry.family} embeds tokens "
                    f"in {geometry.embedding_size}. Use the backbone that it was trained for."
                )
                raise PromptError(msg)
        case KVPrefix():
            _check_prefix(geometry, prompt)


def _check_prefix(geometry: Geometry, prefix: KVPrefix) -> None:
    if not geometry.sites:
        msg = (
            f"{geometry.family} has an attention of its own, which keys and values cannot enter. "
            "Use a method with soft tokens among the inputs: prompt-tuning or p-tuning."
        )
        raise PromptError(msg)
    _, heads, _, size = prefix.keys.shape
    wrong = [site for site in prefix.layers if not 0 <= site < geometry.sites]
    if (heads, size) != (geometry.heads, geometry.head_size) or wrong:
        msg = (
            f"the prefix has {heads} heads of {size} on layers {min(prefix.layers)} to "
            f"{max(prefix.layers)}, but {geometry.family} has {geometry.heads} of "
            f"{geometry.head_size} on layers 0 to {geometry.sites - 1}. Use the backbone that the "
            "prompt was trained for."
        )
        raise PromptError(msg)
    if prefix.shifted and geometry.position_offset is None:
        msg = (
            f"the prefix was made with positions moved up by {prefix.length}, but "
            f"{geometry.family} takes no position ids. Train a prefix for it here instead."
        )
        raise PromptError(msg)


def _site(prefixes: Sequence[KVPrefix | None], site: int) -> SitePrefix:
    speaking = [p if p is not None and site in p.layers else None for p in prefixes]
    first = next(p for p in speaking if p is not None)
    if len(prefixes) == 1:
        at = first.layers.index(site)
        return SitePrefix(first.keys[at][None], first.values[at][None], None)
    longest = max(p.length for p in speaking if p is not None)
    keys, values, visible = [], [], []
    for prefix in speaking:
        length = 0 if prefix is None else prefix.length
        source = first if prefix is None else prefix
        at = source.layers.index(site)
        pad = (0, 0, 0, longest - length)
        keys.append(F.pad(source.keys[at][:, :length], pad))
        values.append(F.pad(source.values[at][:, :length], pad))
        visible.append(torch.arange(longest, device=source.keys.device) < length)
    return SitePrefix(torch.stack(keys), torch.stack(values), torch.stack(visible))


def _expanded(rows: Int[Tensor, " B"], batch: int) -> Int[Tensor, " b"]:
    """Beams and samples of a row stand side by side, so each row's prompt is repeated for them."""
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows))


def _extended(attention: Attention, prefix: SitePrefix, rows: Int[Tensor, " B"]) -> Attention:
    """The row's keys and values with its prefix before them; the mask and bias to match."""
    batch = attention.query.shape[0]
    which = _expanded(rows, batch)
    length = prefix.keys.shape[2]
    if len(prefix.keys) == 1:
        keys, values = (t.expand(batch, -1, -1, -1) for t in (prefix.keys, prefix.values))
    else:
        keys, values = prefix.keys[which], prefix.values[which]
    key, value = attention.key, attention.value
    visible = None if prefix.visible is None else prefix.visible[which]
    return Attention(
        query=attention.query,
        key=torch.cat([keys.to(key.dtype), key], dim=2),
        value=torch.cat([values.to(value.dtype), value], dim=2),
        mask=_mask(attention, visible, length),
        causal=attention.causal,
        bias=None if attention.bias is None else F.pad(attention.bias, (length, 0)),
    )


def _mask(attention: Attention, visible: Bool[Tensor, "B P"] | None, length: int) -> Tensor | None:
    """The attention mask with columns for the prefix, which every position may see."""
    batch, _, queries, _ = attention.query.shape
    keys = attention.key.shape[2]
    mask = attention.mask
    if mask is None:
        causal = attention.causal and queries > 1
        if visible is None and not causal:
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=attention.query.device)
        mask = mask.tril() if causal else mask
    mask = mask.expand(batch, -1, -1, -1)
    if visible is None:
        seen = torch.ones(1, 1, 1, length, dtype=torch.bool, device=mask.device)
    else:
        seen = visible[:, None, None, :]
    seen = seen.expand(batch, mask.shape[1], queries, length)
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, lowest)
    return torch.cat([seen, mask], dim=-1)
