"""The forward pass of a backbone with the prompts of a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.hooks import use_hook
from softprompt.backbone.model import Backbone, BatchInputs, Geometry
from softprompt.errors import PromptError
from softprompt.injection.compatibility import check_prompt_fits
from softprompt.injection.row_prompts import CachedInput, LayerEntry, RowPrompts, SitePrefix
from softprompt.injection.site_shapes import cut_to_site
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def build_row_prompts(
    backbone: Backbone,
    prompts: Sequence[Prompt | None],
    *,
    rows: Int[Tensor, " B"],
    ids: Int[Tensor, "B T"],
) -> RowPrompts:
    """Build the hook for the prompts of a batch.

    Args:
        backbone: the backbone.
        prompts: the prompts; None for rows without a prompt.
        rows: the index of each row's prompt.
        ids: the token ids of the rows, on the same device as ``rows``.

    Returns:
        The hook.

    Raises:
        PromptError: a prompt does not fit the backbone.
    """
    for prompt in prompts:
        if prompt is not None:
            check_prompt_fits(backbone.geometry, prompt)
    # A prompt of length 0 is that of a head alone.
    prompts = [p if p is not None and p.length else None for p in prompts]
    lengths = [0 if p is None else p.num_positions for p in prompts]
    shift = torch.tensor(lengths, device=rows.device) if any(lengths) else None
    prefixes = [p if isinstance(p, KVPrefix) else None for p in prompts]
    layers = {p.start_layer for p in prompts if isinstance(p, InputPrompt)}
    return RowPrompts(
        vocabulary=backbone.geometry.vocab_size,
        rows=rows,
        ids=ids,
        entries={layer: _make_layer_entry(prompts, layer, device=rows.device) for layer in layers},
        sites=_stack_prefixes(prefixes, backbone.geometry, is_by_row=_is_by_row(prompts, rows)),
        site_of=backbone.site_of,
        layer_of=backbone.layer_of,
        bias_of=backbone.bias_of,
        shift=shift,
    )


def _make_layer_entry(
    prompts: Sequence[Prompt | None], layer: int, *, device: torch.device
) -> LayerEntry:
    """Concatenate the vectors of all prompts that enter at a layer."""
    entering = [
        p if isinstance(p, InputPrompt) and p.start_layer == layer else None for p in prompts
    ]
    lengths = torch.tensor([0 if p is None else p.length for p in entering])
    return LayerEntry(
        torch.cat([p.vectors for p in entering if p is not None]),
        (lengths.cumsum(0) - lengths).to(device),
        torch.tensor([p is not None for p in entering], device=device),
    )


def _stack_visible(prefixes: Sequence[KVPrefix | None]) -> Bool[Tensor, "R P"] | None:
    """The soft tokens that each row attends to, padded to the longest; None if nothing is hidden.

    Padding is visible here.
    """
    hidden = [None if p is None else p.visible for p in prefixes]
    first = next((h for h in hidden if h is not None), None)
    if first is None:
        return None
    longest = max(p.length for p in prefixes if p is not None)
    everything = torch.ones(longest, dtype=torch.bool, device=first.device)
    return torch.stack(
        [everything if h is None else F.pad(h, (0, longest - len(h)), value=True) for h in hidden]
    )


def _is_by_row(prompts: Sequence[Prompt | None], rows: Int[Tensor, " B"]) -> bool:
    """Whether each row has a prompt of its own, in the same order."""
    return len(prompts) == len(rows) and rows.tolist() == [*range(len(rows))]


def _stack_prefixes(
    prefixes: Sequence[KVPrefix | None], geometry: Geometry, *, is_by_row: bool
) -> dict[int, SitePrefix]:
    """The prefixes of a batch at each attention site that has any, padded to the longest."""
    # One tensor for all sites, so that their masks are computed once.
    visible = _stack_visible(prefixes)
    found = {p.sites for p in prefixes if p is not None}
    if len(found) == 1:
        stacked = _stack_together(prefixes, visible)
        (sites,) = found
    else:
        sites = tuple(sorted({site for of_prefix in found for site in of_prefix}))
        stacked = [
            _stack_together([_keep_site(p, site) for p in prefixes], visible)[0] for site in sites
        ]
    return {
        site: SitePrefix(
            *cut_to_site(geometry, site, keys=one.keys, values=one.values),
            one.visible,
            is_by_row=is_by_row,
        )
        for site, one in zip(sites, stacked, strict=True)
    }


def _keep_site(prefix: KVPrefix | None, site: int) -> KVPrefix | None:
    """The part of a prefix at one site; None if it has none there."""
    if prefix is None or site not in prefix.sites:
        return None
    at = prefix.sites.index(site)
    part = slice(at, at + 1)
    return replace(prefix, keys=prefix.keys[part], values=prefix.values[part], sites=(site,))


def _stack_together(
    prefixes: Sequence[KVPrefix | None], visible: Bool[Tensor, "R P"] | None
) -> list[SitePrefix]:
    """Stack prefixes that have the same sites: all sites at once, which are then divided."""
    first = next(p for p in prefixes if p is not None)
    if all(p is not None and p.keys is first.keys and p.values is first.values for p in prefixes):
        pairs = zip(first.keys[:, None], first.values[:, None], strict=True)
        return [SitePrefix(keys, values, visible) for keys, values in pairs]
    lengths = [0 if p is None else p.length for p in prefixes]
    longest = max(lengths)
    # A prompt without a prefix here takes shape and dtype from another one, at length 0.
    padded = [
        tuple(
            F.pad(t[:, :, :length], (0, 0, 0, longest - length)) if length < longest else t
            for t in (first if p is None else p).to_tensors().values()
        )
        for p, length in zip(prefixes, lengths, strict=True)
    ]
    keys, values = (torch.stack(tensors, dim=1) for tensors in zip(*padded, strict=True))
    exists = None if visible is None else visible[:, :longest]
    if min(lengths) < longest:
        device = first.keys.device
        inside = (
            torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
        )
        exists = inside if exists is None else inside & exists
    return [SitePrefix(k, v, exists) for k, v in zip(keys, values, strict=True)]


def forward(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    cached: CachedInput | None = None,
) -> Float[Tensor, "Bs Ts H"]:
    """Compute the last hidden states of a batch, each row with its own prompt.

    Args:
        backbone: the backbone.
        inputs: the batch, in whose ids soft token k of a row's prompt is ``V + k``.
        prompts: the prompts; None for rows without a prompt.
        rows: the index of each row's prompt; may be left out if there is only one.
        cached: hidden states of the rows, computed before, that no prompt has changed yet.

    Returns:
        The hidden states; of an encoder-decoder those of its decoder.

    Raises:
        PromptError: a prompt does not fit the backbone, a row has soft tokens that its prompt does
            not have, or ``rows`` does not name a prompt for each row.

    Examples:
        >>> import torch
        >>> from softprompt import BatchInputs, InputPrompt
        >>> vectors = backbone.embed(torch.tensor([8, 9]))
        >>> soft = torch.tensor([[backbone.geometry.vocab_size, backbone.geometry.vocab_size + 1]])
        >>> words, mask = torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.long)
        >>> states = forward(backbone, BatchInputs(soft, mask), prompts=[InputPrompt(vectors)])
        >>> torch.allclose(states, forward(backbone, BatchInputs(words, mask), prompts=[None]))
        True
    """
    if backbone.geometry.limits.padding is not None and not bool(inputs.attention_mask.all()):
        return _run_by_length(backbone, inputs, prompts=prompts, rows=rows)
    with inject_prompts(backbone, inputs, prompts=prompts, rows=rows, cached=cached) as hook:
        if cached is not None and cached.layer == backbone.geometry.num_layers:
            return backbone.decode(inputs, states=cached.states)
        return backbone.compute_hidden_states(
            inputs, positions=compute_position_ids(backbone, inputs, hook=hook)
        )


def _run_by_length(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None,
) -> Float[Tensor, "Bs Ts H"]:
    """Run rows of equal length together, without padding, on which the states are zero."""
    order, parts = list[Tensor](), list[Tensor]()
    for group, which in split_by_length(inputs):
        own = None if rows is None else rows[which]
        states = forward(backbone, group, prompts=prompts, rows=own)
        if group.decoder_input_ids is None:
            whole = states.new_zeros(*inputs.input_ids[which].shape, states.shape[-1])
            at = inputs.attention_mask[which].bool()
            states = whole.masked_scatter(at[..., None], states)
        each = len(states) // len(which)
        order.append((which[:, None] * each + torch.arange(each, device=which.device)).flatten())
        parts.append(states)
    return torch.cat(parts)[torch.cat(order).argsort()]


def split_by_length(inputs: BatchInputs) -> Iterator[tuple[BatchInputs, Int[Tensor, " b"]]]:
    """Divide a batch into batches of rows of equal length, without padding.

    Yields:
        Each batch, and the indices of its rows.
    """
    lengths = inputs.attention_mask.sum(dim=1)
    for length in lengths.unique().tolist():
        which = (lengths == length).nonzero().flatten()
        at = inputs.attention_mask[which].bool()
        ids, types = inputs.input_ids, inputs.token_type_ids
        decoder = inputs.decoder_input_ids
        if decoder is not None:
            decoder = decoder.unflatten(0, (len(ids), -1))[which].flatten(0, 1)
        mask = inputs.attention_mask.new_ones(len(which), length)
        yield (
            BatchInputs(
                ids[which][at].view_as(mask),
                mask,
                None if types is None else types[which][at].view_as(mask),
                decoder,
            ),
            which,
        )


@contextmanager
def inject_prompts(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    cached: CachedInput | None = None,
) -> Iterator[RowPrompts]:
    """Apply the prompts in every forward pass that starts in this context."""
    hook = replace(
        assign_prompts(backbone, inputs, prompts=prompts, rows=rows), cached_states=cached
    )
    with use_hook(hook):
        yield hook


def assign_prompts(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
) -> RowPrompts:
    """Check that a batch fits its prompts, and build their hook."""
    ids = inputs.input_ids
    if rows is None:
        if len(prompts) != 1:
            msg = f"{len(prompts)} prompts need `rows`, the index of each row's prompt. Pass it."
            raise PromptError(msg)
        rows = torch.zeros(len(ids), dtype=torch.long)
    rows = rows.to(ids.device)
    _check_rows(backbone, inputs, prompts, rows)
    return build_row_prompts(backbone, prompts, rows=rows, ids=ids)


def compute_position_ids(
    backbone: Backbone, inputs: BatchInputs, *, hook: RowPrompts
) -> Int[Tensor, "B T"] | None:
    """Compute position ids from the mask, so that padding on either side changes nothing.

    Returns:
        The position ids; None if the backbone does not take any.
    """
    offset = backbone.geometry.position_offset
    if offset is None:
        return None
    positions = (inputs.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    shift = hook.get_position_shift(len(positions))
    return positions + offset + (0 if shift is None else shift[:, None])


def _check_rows(
    backbone: Backbone, inputs: BatchInputs, prompts: Sequence[Prompt | None], rows: Tensor
) -> None:
    """Check that every row has a prompt, and no more soft tokens than its prompt.

    Further ones would get the vectors of the next prompt.
    """
    if (
        rows.shape != inputs.input_ids.shape[:1]
        or int(rows.min()) < 0
        or int(rows.max()) >= len(prompts)
    ):
        msg = (
            f"`rows` must name one of the {len(prompts)} prompts for each of the "
            f"{inputs.input_ids.shape[0]} rows; it is {rows.tolist()}."
        )
        raise PromptError(msg)
    lengths = [p.length if isinstance(p, InputPrompt) else 0 for p in prompts]
    available = torch.tensor(lengths, device=rows.device)[rows]
    used = inputs.input_ids.amax(dim=1) + 1 - backbone.geometry.vocab_size
    excess = (used > available).nonzero()
    if len(excess):
        row = int(excess[0])
        msg = (
            f"row {row} has soft token {int(used[row]) - 1}, but its prompt has "
            f"{int(available[row])} soft tokens. Render it with the prompt's own template."
        )
        raise PromptError(msg)
