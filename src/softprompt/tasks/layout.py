"""Rows as a batch on a backbone's device, and states picked out of it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.model import Backbone, Inputs
from softprompt.data.batch import Side, collate
from softprompt.data.tokenise import Tokenised


def padded(backbone: Backbone, rows: Sequence[Tokenised], *, side: Side = "right") -> Inputs:
    """Rows as one batch on the backbone's device."""
    batch = collate(rows, range(len(rows)), pad=backbone.pad, side=side).to(backbone.device)
    return Inputs(ids=batch.ids, mask=batch.mask, types=batch.types)


def with_decoder(inputs: Inputs, decoder: Sequence[Sequence[int]]) -> Inputs:
    """The same batch with what its decoder is fed; short rows are padded, which nothing sees."""
    width = max(len(row) for row in decoder)
    laid = [[*row, *[0] * (width - len(row))] for row in decoder]
    return replace(inputs, decoder_ids=torch.tensor(laid, device=inputs.ids.device))


def picked(states: Float[Tensor, "B T H"], points: Sequence[Sequence[int]]) -> Float[Tensor, "S H"]:
    """The hidden states at each row's points, one after the other."""
    row = [b for b, at in enumerate(points) for _ in at]
    column = [position for at in points for position in at]
    return states[row, column]
