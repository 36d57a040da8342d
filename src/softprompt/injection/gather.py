"""The prompts of a batch, checked against the backbone and laid out row by row for the seam."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.model import Backbone
from softprompt.injection.attend import SitePrefix
from softprompt.injection.check import check
from softprompt.injection.rows import Entrance, RowPrompts
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def gather(
    backbone: Backbone,
    prompts: Sequence[Prompt | None],
    *,
    rows: Int[Tensor, " B"],
    ids: Int[Tensor, "B T"],
) -> RowPrompts:
    """Lay the prompts of a batch out for the seam; None is a row without a prompt.

    Args:
        rows: for each row the index of its prompt.
        ids: of the rows.

    Raises:
        PromptError: a prompt does not fit the backbone.
    """
    for prompt in prompts:
        if prompt is not None:
            check(backbone.geometry, prompt)
    lengths = [0 if p is None else p.taken for p in prompts]
    shift = torch.tensor(lengths, device=rows.device) if any(lengths) else None
    prefixes = [p if isinstance(p, KVPrefix) else None for p in prompts]
    named = {site for p in prefixes if p is not None for site in p.layers}
    levels = {p.layer for p in prompts if isinstance(p, InputPrompt)}
    return RowPrompts(
        vocabulary=backbone.geometry.vocabulary,
        rows=rows,
        ids=ids,
        entrances={level: _entrance(prompts, level, device=rows.device) for level in levels},
        sites={site: _site(prefixes, site) for site in sorted(named)},
        site_of=backbone.site_of,
        block_of=backbone.block_of,
        bias_of=backbone.bias_of,
        shift=shift,
    )


def _entrance(prompts: Sequence[Prompt | None], level: int, *, device: torch.device) -> Entrance:
    own = [p if isinstance(p, InputPrompt) and p.layer == level else None for p in prompts]
    lengths = torch.tensor([0 if p is None else p.length for p in own])
    return Entrance(
        torch.cat([p.vectors for p in own if p is not None]),
        (lengths.cumsum(0) - lengths).to(device),
        torch.tensor([p is not None for p in own], device=device),
    )


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
