"""Run a backbone on rows with prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.model import Backbone, Inputs
from softprompt.backbone.seam import listening
from softprompt.errors import PromptError
from softprompt.injection.gather import gather
from softprompt.injection.rows import Given, RowPrompts
from softprompt.prompt import InputPrompt, Prompt


def run(
    backbone: Backbone,
    inputs: Inputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    given: Given | None = None,
) -> Float[Tensor, "Bs Ts H"]:
    """The last hidden states of a batch, each row with its own prompt.

    Args:
        inputs: ids in which soft token k of a row's prompt is ``V + k``.
        prompts: the prompts in play; None stands for none, which is the bare backbone.
        rows: for each row the index of its prompt; may be left out if there is just one.
        given: states of the rows at a layer that no prompt reaches from below.

    Returns:
        Hidden states of the row, or of the decoder of an encoder-decoder.

    Raises:
        PromptError: a prompt does not fit the backbone, or a row asks for soft tokens that its
            prompt does not have.
    """
    with injected(backbone, inputs, prompts=prompts, rows=rows, given=given) as laid:
        if given is not None and given.layer == backbone.geometry.blocks:
            return backbone.decode(inputs, states=given.states)
        return backbone.hidden(inputs, positions=positions(backbone, inputs, given=laid))


@contextmanager
def injected(
    backbone: Backbone,
    inputs: Inputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    given: Given | None = None,
) -> Iterator[RowPrompts]:
    """Let the prompts speak in every pass that starts in this context."""
    laid = replace(assign(backbone, inputs, prompts=prompts, rows=rows), given=given)
    with listening(laid):
        yield laid


def assign(
    backbone: Backbone,
    inputs: Inputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
) -> RowPrompts:
    """Check a batch against its prompts and lay them out for the seam."""
    if rows is None:
        if len(prompts) != 1:
            msg = f"{len(prompts)} prompts, but no `rows` to say which row has which."
            raise PromptError(msg)
        rows = torch.zeros(inputs.ids.shape[0], dtype=torch.long, device=inputs.ids.device)
    _check_rows(backbone, inputs, prompts, rows)
    return gather(backbone, prompts, rows=rows, ids=inputs.ids)


def positions(
    backbone: Backbone, inputs: Inputs, *, given: RowPrompts
) -> Int[Tensor, "B T"] | None:
    """Position ids from the mask, so that padding on either side changes nothing."""
    offset = backbone.geometry.position_offset
    if offset is None:
        return None
    count = (inputs.mask.long().cumsum(dim=1) - 1).clamp(min=0)
    moved = given.moved(len(count))
    return count + offset + (0 if moved is None else moved[:, None])


def _check_rows(
    backbone: Backbone, inputs: Inputs, prompts: Sequence[Prompt | None], rows: Tensor
) -> None:
    """No row may look beyond its own prompt: there stands the next one's."""
    if rows.shape != inputs.ids.shape[:1] or int(rows.min()) < 0 or int(rows.max()) >= len(prompts):
        msg = (
            f"`rows` must name one of the {len(prompts)} prompts for each of the "
            f"{inputs.ids.shape[0]} rows; it is {rows.tolist()}."
        )
        raise PromptError(msg)
    lengths = [p.length if isinstance(p, InputPrompt) else 0 for p in prompts]
    own = torch.tensor(lengths, device=rows.device)[rows]
    asked = inputs.ids.amax(dim=1) + 1 - backbone.geometry.vocabulary
    over = (asked > own.to(asked.device)).nonzero()
    if len(over):
        row = int(over[0])
        msg = (
            f"row {row} asks for soft token {int(asked[row]) - 1}, but its prompt has "
            f"{int(own[row])} soft tokens. Render it with the prompt's own template."
        )
        raise PromptError(msg)
