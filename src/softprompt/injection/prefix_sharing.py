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
from softprompt.injection.compatibility import explain_unshiftable
from softprompt.injection.forward import assign_prompts, compute_position_ids
from softprompt.injection.row_prompts import SitePrefix
from softprompt.injection.state_cache import (
    CachedStates,
    compute_keys_and_values,
    compute_row_key,
    compute_states,
)
from softprompt.prompt import InputPrompt, Prompt

Ids = Sequence[int]

_SHARE = 4


@dataclass(frozen=True, eq=False)
class RowSplit:
    """The places where rows are split into two parts.

    Args:
        at: the number of tokens of each row's first part.
        shared: whether the first part is the same in all rows, with soft tokens in it.
        prompt: the prompt of all rows.
        lines: the cached keys and values of the first parts, if there are any.
    """

    at: tuple[int, ...]
    shared: bool
    prompt: InputPrompt
    lines: Float[Tensor, "B T W"] | None = None


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """The tokens that many rows begin with, run once for all of them.

    Args:
        ids: the token ids, including those of soft tokens.
        prompt: the prompt of these soft tokens.
        lines: the keys and values of all attention sites, one line per token.
    """

    ids: tuple[int, ...]
    prompt: InputPrompt
    lines: Float[Tensor, "T W"]


def plan_split(
    backbone: Backbone,
    rows: Sequence[Ids],
    *,
    prompt: Prompt | None,
    needed: Sequence[int],
    kept: CachedStates | SharedPrefix | None = None,
) -> RowSplit | None:
    """Decide where splitting the rows saves work.

    With a sharded backbone all processes split their rows, or none does: they must run the
    backbone equally often.

    Args:
        backbone: the backbone.
        rows: ids in which soft token k is ``V + k``.
        prompt: the prompt of all rows.
        needed: the first position of each row for which the hidden state is needed.
        kept: keys and values that were computed before.

    Returns:
        The split; None if the rows should be run whole.
    """
    if not isinstance(prompt, InputPrompt) or not can_split(backbone):
        return None
    if isinstance(kept, SharedPrefix) and kept.prompt is prompt:
        split = _split_after_prefix(rows, kept, needed=needed)
    else:
        split = _split_after_common(backbone, rows, prompt=prompt, needed=needed)
        if split is None or len(rows) == 1:
            text = _split_after_text(backbone, rows, prompt=prompt, needed=needed, kept=kept)
            split = text or split
    passes = 0 if split is None else 1 + split.shared + 2 * (split.lines is None)
    return split if check_ranks_agree(backbone, passes) else None


def run_split(
    backbone: Backbone, rows: Sequence[Ids], *, where: RowSplit
) -> Float[Tensor, "B T H"]:
    """Compute the last hidden states of the second parts, padded on the right."""
    inputs = _pad(backbone, [row[at:] for row, at in zip(rows, where.at, strict=True)])
    device = inputs.input_ids.device
    prompts = 1 if where.shared else len(rows)
    which = torch.arange(len(rows), device=device).clamp(max=prompts - 1)
    whole = assign_prompts(backbone, inputs, prompts=[where.prompt])
    hook = replace(
        whole,
        rows=which,
        entries={
            at: replace(e, offsets=e.offsets.expand(prompts), enters=e.enters.expand(prompts))
            for at, e in whole.entries.items()
        },
        sites=_compute_first_parts(backbone, rows, where),
        shift=torch.tensor(where.at[:prompts], device=device),
    )
    positions = compute_position_ids(backbone, inputs, cached=hook)
    with use_hook(hook):
        return backbone.compute_hidden_states(inputs, positions=positions)


def can_split(backbone: Backbone) -> bool:
    """Whether a row's first part can be run separately; with dropout the result would differ."""
    geometry = backbone.geometry
    return (
        geometry.architecture == "causal"
        and geometry.num_attention_sites > 0
        and explain_unshiftable(geometry) is None
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
    lines = compute_states(backbone, _pad(backbone, [ids]), layer=None, prompt=prompt)[0]
    return SharedPrefix(ids, prompt, lines)


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
    kept: CachedStates | SharedPrefix | None,
) -> RowSplit | None:
    """Split after the text before the first soft token."""
    vocabulary = backbone.geometry.vocab_size
    text = tuple(_count_text_tokens(row, vocabulary) for row in rows)
    if not all(0 < at <= first for at, first in zip(text, needed, strict=True)):
        return None
    lines = None
    if isinstance(kept, CachedStates) and kept.layer is None:
        keys = [compute_row_key(row[:at]) for row, at in zip(rows, text, strict=True)]
        lines = kept.find(keys, device=backbone.device)
    is_training = torch.is_grad_enabled() and prompt.vectors.requires_grad
    # A separate pass is worth it if a large part of the tokens then needs no graph.
    if lines is None and not (is_training and _SHARE * sum(text) > sum(map(len, rows))):
        return None
    return RowSplit(text, shared=False, prompt=prompt, lines=lines)


def _split_after_prefix(
    rows: Sequence[Ids], prefix: SharedPrefix, *, needed: Sequence[int]
) -> RowSplit | None:
    """Split after a shared prefix, if all rows begin with it and continue."""
    length = len(prefix.ids)
    if min(needed) < length or any(tuple(row[:length]) != prefix.ids for row in rows):
        return None
    at = (length,) * len(rows)
    return RowSplit(at, shared=True, prompt=prefix.prompt, lines=prefix.lines[None])


def _count_text_tokens(row: Ids, vocabulary: int) -> int:
    """The number of tokens before the first soft token; 0 if there is no soft token."""
    return next((at for at, i in enumerate(row) if i >= vocabulary), 0)


def _compute_first_parts(
    backbone: Backbone, rows: Sequence[Ids], where: RowSplit
) -> dict[int, SitePrefix]:
    """The keys and values of the first parts at every attention site."""
    firsts = [row[:at] for row, at in zip(rows, where.at, strict=True)]
    inputs = _pad(backbone, firsts[:1] if where.shared else firsts)
    if where.lines is not None:
        geometry = backbone.geometry
        shape = (geometry.num_attention_sites, 2, geometry.num_kv_heads, geometry.head_dim)
        # [B, T, L, 2, N, D] to [L, 2, B, N, T, D]
        pairs = where.lines.unflatten(2, shape).permute(2, 3, 0, 4, 1, 5)
        states = [(keys, values) for keys, values in pairs]
    elif where.shared:
        states = compute_keys_and_values(backbone, inputs, prompt=where.prompt)
    else:
        with torch.no_grad():
            states = compute_keys_and_values(backbone, inputs)
    visible = None if bool(inputs.attention_mask.all()) else inputs.attention_mask.bool()
    return {at: SitePrefix(*pair, visible) for at, pair in enumerate(states)}


def _pad(backbone: Backbone, rows: Sequence[Ids]) -> BatchInputs:
    width = max(len(row) for row in rows)
    ids = [[*row, *[backbone.pad_token_id] * (width - len(row))] for row in rows]
    mask = [[*[1] * len(row), *[0] * (width - len(row))] for row in rows]
    device = backbone.device
    return BatchInputs(
        input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
    )
