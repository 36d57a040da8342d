"""Run only what the answer needs of rows that share one prompt.

In a causal backbone nothing that comes later changes what came before. So the beginning that all
rows have in common is run once for the batch, with its graph; and text that no soft token precedes
is run without one, since no gradient ends there. Both then stand before the rest of a row as keys
and values, at the positions that they had. The numbers are those of running the rows whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.model import Backbone, Inputs
from softprompt.backbone.seam import Recorder, listening
from softprompt.injection.rows import SitePrefix
from softprompt.injection.run import assign, positions
from softprompt.prompt import InputPrompt, Prompt

Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class Cut:
    """Where rows are cut in two.

    Args:
        at: for each row, how many of its tokens go first.
        shared: whether these are the same in all rows, soft tokens among them.
        prompt: the prompt of all rows.
    """

    at: tuple[int, ...]
    shared: bool
    prompt: InputPrompt


def cut(
    backbone: Backbone, rows: Sequence[Ids], *, prompt: Prompt | None, needed: int
) -> Cut | None:
    """Where cutting the rows saves work; None if they are to be run whole.

    Args:
        rows: ids in which soft token k is ``V + k``.
        prompt: the one prompt of all rows.
        needed: the first position whose hidden state is asked for in any row.
    """
    if not isinstance(prompt, InputPrompt) or not _can_be_cut(backbone):
        return None
    vocabulary = backbone.geometry.vocabulary
    common = min(_common(rows), needed)
    if len(rows) > 1 and any(i >= vocabulary for i in rows[0][:common]):
        return Cut((common,) * len(rows), shared=True, prompt=prompt)
    if torch.is_grad_enabled() and prompt.vectors.requires_grad:
        first = tuple(next((at for at, i in enumerate(r) if i >= vocabulary), 0) for r in rows)
        return Cut(first, shared=False, prompt=prompt) if min(first) > 0 else None
    return None


def run_cut(backbone: Backbone, rows: Sequence[Ids], *, where: Cut) -> Float[Tensor, "B T H"]:
    """The last hidden states of what stands behind the cut, padded on the right."""
    firsts = [row[:at] for row, at in zip(rows, where.at, strict=True)]
    if where.shared:
        sites = _sites(backbone, [firsts[0]], prompt=where.prompt)
    else:
        with torch.no_grad():
            sites = _sites(backbone, firsts, prompt=None)
    inputs = _padded(backbone, [row[at:] for row, at in zip(rows, where.at, strict=True)])
    device = inputs.ids.device
    prompts = 1 if where.shared else len(rows)
    which = torch.arange(len(rows), device=device).clamp(max=prompts - 1)
    whole = assign(backbone, inputs, prompts=[where.prompt])
    given = replace(
        whole,
        rows=which,
        offsets=whole.offsets.expand(prompts),
        sites=sites,
        shift=torch.tensor(where.at[:prompts], device=device),
    )
    with listening(given):
        return backbone.hidden(inputs, positions=positions(backbone, inputs, given=given))


def _can_be_cut(backbone: Backbone) -> bool:
    """A sliding window would forget what stands before the cut; dropout would not be the same."""
    geometry = backbone.geometry
    return (
        geometry.kind == "causal"
        and geometry.sites > 0
        and geometry.position_offset is not None
        and geometry.window is None
        and not backbone.model.training
    )


def _common(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    shortest = min(len(row) for row in rows) - 1
    for at in range(shortest):
        if any(row[at] != rows[0][at] for row in rows):
            return at
    return shortest


def _sites(
    backbone: Backbone, rows: Sequence[Ids], *, prompt: Prompt | None
) -> dict[int, SitePrefix]:
    """The keys and values of these tokens at every attention site, with their graph, if any."""
    inputs = _padded(backbone, rows)
    recorder = Recorder(below=(given := assign(backbone, inputs, prompts=[prompt])))
    with listening(recorder):
        backbone.hidden(inputs, positions=positions(backbone, inputs, given=given))
    visible = None if bool(inputs.mask.all()) else inputs.mask.bool()
    return {
        site: SitePrefix(keys, values, visible)
        for site, (_, keys, values) in enumerate(recorder.calls)
    }


def _padded(backbone: Backbone, rows: Sequence[Ids]) -> Inputs:
    width = max(len(row) for row in rows)
    ids = [[*row, *[backbone.pad] * (width - len(row))] for row in rows]
    mask = [[*[1] * len(row), *[0] * (width - len(row))] for row in rows]
    device = backbone.device
    return Inputs(ids=torch.tensor(ids, device=device), mask=torch.tensor(mask, device=device))
