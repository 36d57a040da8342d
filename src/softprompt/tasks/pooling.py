"""The readout of a trained head: the hidden states of a row that it reads, and how they are pooled.

A mean or a maximum runs over the row's own tokens alone: soft tokens are not words.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from softprompt.backbone.references import Architecture
from softprompt.data.template import Field, SoftTokens, Template, TurnText

Pooling = Literal["cls", "first", "mean", "max", "last"]
# What a recipe may name: one of these, or the choice of the best one.
PoolingChoice = Literal["auto", "cls", "first", "mean", "max", "last"]
# Those that read one position of a row.
_POINTS = ("cls", "first", "last")


def get_conventional_pooling(architecture: Architecture) -> Pooling:
    """The readout of transformers' own classifiers: [CLS] of an encoder, else the last token.

    Args:
        architecture: of the backbone.
    """
    return "cls" if architecture == "encoder" else "last"


def resolve_pooling(pooling: PoolingChoice, architecture: Architecture) -> Pooling:
    """The readout that a head has on a backbone.

    ``auto`` is the conventional one until a run has chosen. On a causal backbone ``cls`` and
    ``first`` are the last token: earlier artifacts name it so.

    Args:
        pooling: as a recipe or an artifact names it.
        architecture: of the backbone.
    """
    if pooling == "auto":
        return get_conventional_pooling(architecture)
    if architecture == "causal" and pooling in ("cls", "first"):
        return "last"
    return pooling


def list_poolings(architecture: Architecture, template: Template) -> tuple[Pooling, ...]:
    """The readouts to choose from, first the one that is taken unless another is clearly better.

    That is the mean on encoders: without training it says more than [CLS], which was trained to be
    fine-tuned, and few rows do not show it.

    In a causal backbone soft tokens do not change the states of text before them, so a mean or a
    maximum is not among them where text comes first.

    Args:
        architecture: of the backbone.
        template: of a row.
    """
    if architecture == "encoder":
        return ("mean", "cls", "max", "last")
    pieces = template.pieces
    soft = [at for at, piece in enumerate(pieces) if isinstance(piece, SoftTokens)]
    text = [at for at, piece in enumerate(pieces) if isinstance(piece, Field | TurnText)]
    is_text_first = bool(soft and text and text[0] < soft[0])
    if architecture == "causal" and is_text_first:
        return ("last",)
    return ("last", "mean", "max")


def find_pooling_fault(
    pooling: PoolingChoice, *, architecture: Architecture, template: Template
) -> str | None:
    """Why a head cannot be trained with a readout; None if it can.

    Args:
        pooling: as the recipe names it.
        architecture: of the backbone.
        template: of a row.
    """
    if architecture != "causal":
        return None
    if pooling in ("cls", "first"):
        return (
            f'task.pooling = "{pooling}" reads the first token, but in a causal backbone that sees '
            'nothing of the row. Set task.pooling to "last" or "mean", or leave it out.'
        )
    pieces = template.pieces
    if pooling in ("mean", "max") and pieces and isinstance(pieces[-1], SoftTokens):
        return (
            f'task.pooling = "{pooling}" reads the words, but in a causal backbone soft tokens '
            "behind them do not change their states, so nothing could be learned. Put the soft "
            'tokens first in task.template, or set task.pooling = "last".'
        )
    return None


def locate_point(ids: Sequence[int], pooling: Pooling, *, vocab_size: int, cls: int) -> int | None:
    """The position that is read of a row; None where a readout pools many.

    The last token of an encoder's row is a word or a special token.

    Args:
        ids: the row, in which soft token k is ``vocab_size + k``.
        pooling: the readout.
        vocab_size: V, of the backbone.
        cls: the position of [CLS]; negative in a causal backbone, whose last token may be a soft
            token, since it alone has seen all others.
    """
    match pooling:
        case "cls":
            return cls
        case "first":
            return 0
        case "last":
            last = len(ids) - 1
            words = (at for at in range(last, -1, -1) if ids[at] < vocab_size)
            return last if cls < 0 else next(words, last)
        case "mean" | "max":
            return None


def mark_words(
    ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"], *, vocab_size: int
) -> Bool[Tensor, "B T"]:
    """Mark the row's own tokens: words and the tokenizer's special tokens.

    A row that has only soft tokens is marked whole.

    Args:
        ids: token ids, in which soft token k is ``vocab_size + k``.
        mask: one at each token that is not padding.
        vocab_size: V, of the backbone.
    """
    tokens = mask.bool()
    words = tokens & (ids < vocab_size)
    return torch.where(words.any(dim=1, keepdim=True), words, tokens)


def pool_states(
    states: Float[Tensor, "B T H"],
    words: Bool[Tensor, "B T"],
    *,
    pooling: Literal["mean", "max"],
) -> Float[Tensor, "B H"]:
    """The mean or the maximum of states, in fp32.

    Args:
        states: of all positions.
        words: the positions that count; at least one in each row.
        pooling: which of the two.
    """
    values, counted = states.float(), words[..., None]
    if pooling == "max":
        return values.masked_fill(~counted, -torch.inf).amax(dim=1)
    return values.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1)
