"""Run only what the answer needs of rows that share one prompt.

In a causal backbone nothing that comes later changes what came before. So the beginning that all
rows have in common is run once for the batch, with its graph; and text that no soft token precedes
is run without one, since no gradient ends there, or is not run at all where its keys and values
are kept. Both then stand before the rest of a row as keys and values, at the positions that they
had. The numbers are those of running the rows whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.model import Backbone, Inputs
from softprompt.backbone.seam import listening
from softprompt.backbone.shard import alike
from softprompt.injection.attend import SitePrefix
from softprompt.injection.check import unmovable
from softprompt.injection.kept import Kept, key_of, keys_and_values, lines_of
from softprompt.injection.run import assign, positions
from softprompt.prompt import InputPrompt, Prompt

Ids = Sequence[int]

_SHARE = 4


@dataclass(frozen=True, eq=False)
class Cut:
    """Where rows are cut in two.

    Args:
        at: for each row, how many of its tokens go first.
        shared: whether these are the same in all rows, soft tokens among them.
        prompt: the prompt of all rows.
        lines: keys and values of what goes first, where they are kept.
    """

    at: tuple[int, ...]
    shared: bool
    prompt: InputPrompt
    lines: Float[Tensor, "B T W"] | None = None


@dataclass(frozen=True, eq=False)
class Beginning:
    """What many rows begin with, run once for all of them.

    Args:
        ids: soft tokens among them.
        prompt: whose soft tokens these are.
        lines: keys and values of all attention sites, one line a token.
    """

    ids: tuple[int, ...]
    prompt: InputPrompt
    lines: Float[Tensor, "T W"]


def cut(
    backbone: Backbone,
    rows: Sequence[Ids],
    *,
    prompt: Prompt | None,
    needed: Sequence[int],
    kept: Kept | Beginning | None = None,
) -> Cut | None:
    """Where cutting the rows saves work; None if they are to be run whole.

    With a sharded backbone all processes cut, or none does: they must run it equally often.

    Args:
        rows: ids in which soft token k is ``V + k``.
        prompt: the one prompt of all rows.
        needed: for each row, the first position whose hidden state is asked for.
        kept: keys and values that were computed before.
    """
    if not isinstance(prompt, InputPrompt) or not can_be_cut(backbone):
        return None
    if isinstance(kept, Beginning) and kept.prompt is prompt:
        found = _behind(rows, kept, needed=needed)
    else:
        found = _shared(backbone, rows, prompt=prompt, needed=needed)
        if found is None or len(rows) == 1:
            text = _at_text(backbone, rows, prompt=prompt, needed=needed, kept=kept)
            found = text or found
    passes = 0 if found is None else 1 + found.shared + 2 * (found.lines is None)
    return found if alike(backbone, passes) else None


def run_cut(backbone: Backbone, rows: Sequence[Ids], *, where: Cut) -> Float[Tensor, "B T H"]:
    """The last hidden states of what stands behind the cut, padded on the right."""
    inputs = _padded(backbone, [row[at:] for row, at in zip(rows, where.at, strict=True)])
    device = inputs.ids.device
    prompts = 1 if where.shared else len(rows)
    which = torch.arange(len(rows), device=device).clamp(max=prompts - 1)
    whole = assign(backbone, inputs, prompts=[where.prompt])
    given = replace(
        whole,
        rows=which,
        entrances={
            at: replace(e, offsets=e.offsets.expand(prompts), enters=e.enters.expand(prompts))
            for at, e in whole.entrances.items()
        },
        sites=_before(backbone, rows, where),
        shift=torch.tensor(where.at[:prompts], device=device),
    )
    own = positions(backbone, inputs, given=given)
    with listening(given):
        return backbone.hidden(inputs, positions=own)


def can_be_cut(backbone: Backbone) -> bool:
    """Whether a row's beginning can be run apart; dropout would not be the same."""
    geometry = backbone.geometry
    return (
        geometry.kind == "causal"
        and geometry.sites > 0
        and unmovable(geometry) is None
        and not (backbone.model.training and backbone.dropout)
    )


@torch.no_grad()
def begin(backbone: Backbone, rows: Sequence[Ids], *, prompt: Prompt) -> Beginning | None:
    """Run what all these rows begin with, for answering many more like them.

    Args:
        rows: at least two, unlike ones.

    Returns:
        None where rows cannot be cut, or no soft token is among what they share.
    """
    if not isinstance(prompt, InputPrompt) or prompt.layer or not can_be_cut(backbone):
        return None
    ids = tuple(rows[0][: common_length(rows)])
    soft = any(i >= backbone.geometry.vocabulary for i in ids)
    if not alike(backbone, int(soft)) or not soft:
        return None
    lines = lines_of(backbone, _padded(backbone, [ids]), layer=None, prompt=prompt)[0]
    return Beginning(ids, prompt, lines)


def common_length(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    shortest = min(len(row) for row in rows) - 1
    for at in range(shortest):
        if any(row[at] != rows[0][at] for row in rows):
            return at
    return shortest


def _shared(
    backbone: Backbone, rows: Sequence[Ids], *, prompt: InputPrompt, needed: Sequence[int]
) -> Cut | None:
    """A cut behind what all rows have in common, if soft tokens are in it.

    A row alone has nothing to share, but another process may have rows that do.
    """
    common = min(common_length(rows), *needed)
    soft = any(i >= backbone.geometry.vocabulary for i in rows[0][:common])
    if prompt.layer or not soft or (len(rows) == 1 and not backbone.sharded):
        return None
    return Cut((common,) * len(rows), shared=True, prompt=prompt)


def _at_text(
    backbone: Backbone,
    rows: Sequence[Ids],
    *,
    prompt: InputPrompt,
    needed: Sequence[int],
    kept: Kept | Beginning | None,
) -> Cut | None:
    """A cut behind the text that stands before the first soft token."""
    vocabulary = backbone.geometry.vocabulary
    text = tuple(_text(row, vocabulary) for row in rows)
    if not all(0 < at <= first for at, first in zip(text, needed, strict=True)):
        return None
    lines = None
    if isinstance(kept, Kept) and kept.layer is None:
        keys = [key_of(row[:at]) for row, at in zip(rows, text, strict=True)]
        lines = kept.find(keys, device=backbone.device)
    learning = torch.is_grad_enabled() and prompt.vectors.requires_grad
    # A pass of its own is worth it where it spares a good part of the rows their graph.
    if lines is None and not (learning and _SHARE * sum(text) > sum(map(len, rows))):
        return None
    return Cut(text, shared=False, prompt=prompt, lines=lines)


def _behind(rows: Sequence[Ids], beginning: Beginning, *, needed: Sequence[int]) -> Cut | None:
    """A cut behind the beginning, if all rows have it and more."""
    length = len(beginning.ids)
    if min(needed) < length or any(tuple(row[:length]) != beginning.ids for row in rows):
        return None
    at = (length,) * len(rows)
    return Cut(at, shared=True, prompt=beginning.prompt, lines=beginning.lines[None])


def _text(row: Ids, vocabulary: int) -> int:
    """How many tokens stand before the first soft one; 0 if there is none."""
    return next((at for at, i in enumerate(row) if i >= vocabulary), 0)


def _before(backbone: Backbone, rows: Sequence[Ids], where: Cut) -> dict[int, SitePrefix]:
    """What stands before the cut, as keys and values at every attention site."""
    firsts = [row[:at] for row, at in zip(rows, where.at, strict=True)]
    inputs = _padded(backbone, firsts[:1] if where.shared else firsts)
    if where.lines is not None:
        geometry = backbone.geometry
        shape = (geometry.sites, 2, geometry.heads, geometry.head_size)
        # [B, T, L, 2, N, D] to [L, 2, B, N, T, D]
        pairs = where.lines.unflatten(2, shape).permute(2, 3, 0, 4, 1, 5)
        found = [(keys, values) for keys, values in pairs]
    elif where.shared:
        found = keys_and_values(backbone, inputs, prompt=where.prompt)
    else:
        with torch.no_grad():
            found = keys_and_values(backbone, inputs)
    visible = None if bool(inputs.mask.all()) else inputs.mask.bool()
    return {at: SitePrefix(*pair, visible) for at, pair in enumerate(found)}


def _padded(backbone: Backbone, rows: Sequence[Ids]) -> Inputs:
    width = max(len(row) for row in rows)
    ids = [[*row, *[backbone.pad] * (width - len(row))] for row in rows]
    mask = [[*[1] * len(row), *[0] * (width - len(row))] for row in rows]
    device = backbone.device
    return Inputs(ids=torch.tensor(ids, device=device), mask=torch.tensor(mask, device=device))
