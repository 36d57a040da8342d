"""Prefix sharing: tokens that rows have in common, or that need no gradient, are run separately.

In a causal backbone later tokens do not change earlier ones. So the tokens that all rows begin
with are run once for the batch, with their autograd graph; and text before the first soft token is
run without a graph, because it needs no gradient, or is not run at all if its keys and values are
cached. The rest of a row then attends to the keys and values of these tokens, at their original
positions. The result is that of running the whole rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.hooks import use_hook
from softprompt.backbone.model import Backbone, BatchInputs
from softprompt.backbone.sharding import check_ranks_agree
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.injection.forward import assign_prompts, compute_position_ids
from softprompt.injection.row_prompts import SitePrefix
from softprompt.injection.site_shapes import cut_to_site
from softprompt.injection.state_cache import (
    CachedStates,
    compute_keys_and_values,
    compute_row_key,
    compute_states,
)
from softprompt.prompt import InputPrompt, Prompt

Ids = Sequence[int]

# The smallest share of all tokens for which text is run in a separate pass, without a graph.
_MIN_TEXT_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class RowSplit:
    """The places where rows are split into two parts.

    Args:
        lengths: the number of tokens of each row's first part.
        shared: whether the first part is the same in all rows, with soft tokens in it.
        prompt: the prompt of all rows.
        states: the first parts' keys and values if they are cached, as `compute_states` returns
            them.
    """

    lengths: tuple[int, ...]
    shared: bool
    prompt: InputPrompt
    states: Float[Tensor, "B T W"] | None = None


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """The tokens that many rows begin with, run once for all of them.

    Args:
        ids: the token ids, including those of soft tokens.
        prompt: the prompt of these soft tokens.
        states: the keys and values of all attention sites, one vector per token.
    """

    ids: tuple[int, ...]
    prompt: InputPrompt
    states: Float[Tensor, "T W"]


def plan_split(
    backbone: Backbone,
    rows: Sequence[Ids],
    *,
    prompt: Prompt | None,
    needed: Sequence[int],
    cached: CachedStates | SharedPrefix | None = None,
) -> RowSplit | None:
    """Decide where splitting the rows saves work.

    With a sharded backbone all processes split their rows, or none does: they must run the
    backbone equally often.

    Args:
        backbone: the backbone.
        rows: ids in which soft token k is ``V + k``.
        prompt: the prompt of all rows.
        needed: the first position of each row for which the hidden state is needed.
        cached: keys and values that were computed before.

    Returns:
        The split; None if the rows should be run whole.
    """
    if not isinstance(prompt, InputPrompt) or not can_split(backbone):
        return None
    if isinstance(cached, SharedPrefix) and cached.prompt is prompt:
        split = _split_after_prefix(rows, cached, needed=needed)
    else:
        split = _split_after_common(backbone, rows, prompt=prompt, needed=needed)
        if split is None or len(rows) == 1:
            text = _split_after_text(backbone, rows, prompt=prompt, needed=needed, cached=cached)
            split = text or split
    # A number for each kind of split, because each runs the backbone in another way.
    kind = 0 if split is None else 1 + split.shared + 2 * (split.states is None)
    return split if check_ranks_agree(backbone, kind) else None


def run_split(
    backbone: Backbone, rows: Sequence[Ids], *, split: RowSplit
) -> Float[Tensor, "B T H"]:
    """Compute the last hidden states of the second parts, padded on the right."""
    inputs = _pad(backbone, [row[n:] for row, n in zip(rows, split.lengths, strict=True)])
    device = inputs.input_ids.device
    # The first parts are injected as prefixes: one for all rows, or one for each.
    count = 1 if split.shared else len(rows)
    plain = assign_prompts(backbone, inputs, prompts=[split.prompt])
    hook = replace(
        plain,
        rows=torch.arange(len(rows), device=device).clamp(max=count - 1),
        entries={
            layer: replace(e, offsets=e.offsets.expand(count), enters=e.enters.expand(count))
            for layer, e in plain.entries.items()
        },
        sites=_compute_first_parts(backbone, rows, split),
        shift=torch.tensor(split.lengths[:count], device=device),
    )
    positions = compute_position_ids(backbone, inputs, hook=hook)
    with use_hook(hook):
        return backbone.compute_hidden_states(inputs, positions=positions)


def can_split(backbone: Backbone) -> bool:
    """Whether a row's first part can be run separately; with dropout the result would differ."""
    geometry = backbone.geometry
    return (
        geometry.architecture == "causal"
        and explain_unsplittable(geometry) is None
        and geometry.limits.padding is None
        and not (backbone.model.training and backbone.dropout)
    )


@torch.no_grad()
def compute_shared_prefix(
    backbone: Backbone, rows: Sequence[Ids], *, prompt: Prompt
) -> SharedPrefix | None:
    """Run the tokens that all these rows begin with, for many more such rows.

    Args:
        backbone: the backbone.
        rows: at least two different rows.
        prompt: the prompt of the rows.

    Returns:
        The prefix; None if rows cannot be split, or there is no soft token in the common part.
    """
    if not isinstance(prompt, InputPrompt) or prompt.start_layer or not can_split(backbone):
        return None
    ids = tuple(rows[0][: measure_common_prefix(rows)])
    soft = any(i >= backbone.geometry.vocab_size for i in ids)
    if not check_ranks_agree(backbone, int(soft)) or not soft:
        return None
    states = compute_states(backbone, _pad(backbone, [ids]), layer=None, prompt=prompt)[0]
    return SharedPrefix(ids, prompt, states)


def measure_common_prefix(rows: Sequence[Ids]) -> int:
    """The number of tokens that all rows begin with, leaving at least one in each row."""
    shortest = min(len(row) for row in rows) - 1
    for at in range(shortest):
        if any(row[at] != rows[0][at] for row in rows):
            return at
    return shortest


def _split_after_common(
    backbone: Backbone, rows: Sequence[Ids], *, prompt: InputPrompt, needed: Sequence[int]
) -> RowSplit | None:
    """Split after the tokens that all rows begin with, if there are soft tokens among them.

    A single row has nothing to share, but with a sharded backbone another process may have rows
    that do.
    """
    common = min(measure_common_prefix(rows), *needed)
    soft = any(i >= backbone.geometry.vocab_size for i in rows[0][:common])
    if prompt.start_layer or not soft or (len(rows) == 1 and not backbone.sharded):
        return None
    return RowSplit((common,) * len(rows), shared=True, prompt=prompt)


def _split_after_text(
    backbone: Backbone,
    rows: Sequence[Ids],
    *,
    prompt: InputPrompt,
    needed: Sequence[int],
    cached: CachedStates | SharedPrefix | None,
) -> RowSplit | None:
    """Split after the text before the first soft token."""
    vocabulary = backbone.geometry.vocab_size
    lengths = tuple(_count_text_tokens(row, vocabulary) for row in rows)
    if not all(0 < n <= first for n, first in zip(lengths, needed, strict=True)):
        return None
    states = None
    if isinstance(cached, CachedStates) and cached.layer is None:
        keys = [compute_row_key(row[:n]) for row, n in zip(rows, lengths, strict=True)]
        states = cached.find(keys, device=backbone.device)
    is_training = torch.is_grad_enabled() and prompt.vectors.requires_grad
    is_large = sum(lengths) > _MIN_TEXT_SHARE * sum(map(len, rows))
    if states is None and not (is_training and is_large):
        return None
    return RowSplit(lengths, shared=False, prompt=prompt, states=states)


def _split_after_prefix(
    rows: Sequence[Ids], prefix: SharedPrefix, *, needed: Sequence[int]
) -> RowSplit | None:
    """Split after a shared prefix, if all rows begin with it and continue."""
    length = len(prefix.ids)
    if min(needed) < length or any(tuple(row[:length]) != prefix.ids for row in rows):
        return None
    lengths = (length,) * len(rows)
    return RowSplit(lengths, shared=True, prompt=prefix.prompt, states=prefix.states[None])


def _count_text_tokens(row: Ids, vocabulary: int) -> int:
    """The number of tokens before the first soft token; 0 if there is no soft token."""
    return next((at for at, i in enumerate(row) if i >= vocabulary), 0)


def _compute_first_parts(
    backbone: Backbone, rows: Sequence[Ids], split: RowSplit
) -> dict[int, SitePrefix]:
    """The keys and values of the first parts at every attention site."""
    first_parts = [row[:n] for row, n in zip(rows, split.lengths, strict=True)]
    inputs = _pad(backbone, first_parts[:1] if split.shared else first_parts)
    if split.states is not None:
        geometry = backbone.geometry
        shape = (geometry.num_attention_sites, 2, geometry.num_kv_heads, geometry.head_dim)
        # [B, T, L, 2, N, D] to [L, 2, B, N, T, D]
        unpacked = split.states.unflatten(2, shape).permute(2, 3, 0, 4, 1, 5)
        pairs = [
            cut_to_site(geometry, site, keys=keys, values=values)
            for site, (keys, values) in enumerate(unpacked)
        ]
    elif split.shared:
        pairs = compute_keys_and_values(backbone, inputs, prompts=[split.prompt])
    else:
        with torch.no_grad():
            pairs = compute_keys_and_values(backbone, inputs)
    visible = None if bool(inputs.attention_mask.all()) else inputs.attention_mask.bool()
    return {site: SitePrefix(*pair, visible) for site, pair in enumerate(pairs)}


def _pad(backbone: Backbone, rows: Sequence[Ids]) -> BatchInputs:
    width = max(len(row) for row in rows)
    ids = [[*row, *[backbone.pad_token_id] * (width - len(row))] for row in rows]
    mask = [[*[1] * len(row), *[0] * (width - len(row))] for row in rows]
    device = backbone.device
    return BatchInputs(
        input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
    )
