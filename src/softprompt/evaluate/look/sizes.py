"""How large a prompt is, and how far training has moved it."""

from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.prompt import InputPrompt, KVPrefix, Prompt

_LEAST = 1e-12


@dataclass(frozen=True)
class Site:
    """One layer of a prefix.

    Args:
        layer: the attention site.
        keys: the mean norm of its keys, over heads and soft tokens.
        values: likewise of its values.
    """

    layer: int
    keys: float
    values: float


@dataclass(frozen=True)
class Moved:
    """How far a prompt is from its start, in norms of the start.

    Args:
        overall: of all its numbers together.
        each: of each soft token of an input prompt; of each layer of a prefix, keys and values
            together.
    """

    overall: float
    each: tuple[float, ...]


def sizes(prefix: KVPrefix) -> list[Site]:
    """How large a prefix is, layer by layer."""
    keys, values = (t.detach().float().norm(dim=-1) for t in (prefix.keys, prefix.values))
    means = zip(keys.mean(dim=(1, 2)).tolist(), values.mean(dim=(1, 2)).tolist(), strict=True)
    return [Site(at, *pair) for at, pair in zip(prefix.layers, means, strict=True)]


def moved(start: Prompt, now: Prompt) -> Moved:
    """How far a prompt has moved.

    Args:
        start: before training.
        now: a prompt of the same shape.
    """
    before, after = _parts(start), _parts(now)
    whole, each = before.norm().clamp(min=_LEAST), before.norm(dim=1).clamp(min=_LEAST)
    way = after - before
    return Moved(float(way.norm() / whole), tuple((way.norm(dim=1) / each).tolist()))


def _parts(prompt: Prompt) -> Float[Tensor, "parts numbers"]:
    """A line for each soft token, or for each layer."""
    match prompt:
        case InputPrompt(vectors=vectors):
            lines = vectors
        case KVPrefix(keys=keys, values=values):
            lines = torch.stack([keys, values], dim=1).flatten(1)
        case unreachable:
            assert_never(unreachable)
    return lines.detach().float().cpu()
