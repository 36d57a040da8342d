"""How alike prompts are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

_PAIR = 2


@dataclass(frozen=True)
class Similarity:
    """How alike each prompt is to each, -1 to 1, in the order that they were given.

    Args:
        pooled: the cosine of the mean soft tokens.
        matched: the mean, over both prompts' soft tokens, of each one's cosine to the nearest soft
            token of the other; the order of the soft tokens does not matter.
    """

    pooled: tuple[tuple[float, ...], ...]
    matched: tuple[tuple[float, ...], ...]


def similarity(prompts: Sequence[Prompt]) -> Similarity:
    """Compare prompts of one backbone, each with each.

    A soft token of a prefix is all of its keys and values, on all layers.

    Source: Vu et al. 2022 (SPoT), "cosine similarity of average tokens", for ``pooled``.

    Args:
        prompts: of one kind and width; their lengths may differ.

    Raises:
        PromptError: they are fewer than two, or not of one kind and width.
    """
    if len(prompts) < _PAIR:
        msg = f"similarity is between prompts, but {len(prompts)} was given. Give at least two."
        raise PromptError(msg)
    kinds = [_kind(prompt) for prompt in prompts]
    for number, kind in enumerate(kinds, start=1):
        if kind != kinds[0]:
            msg = (
                f"prompts of different kinds have no cosine: the first is {kinds[0]}, number "
                f"{number} is {kind}. Compare those that are alike."
            )
            raise PromptError(msg)
    tokens = [_tokens(prompt) for prompt in prompts]
    means = F.normalize(torch.stack([t.mean(dim=0) for t in tokens]), dim=1)
    units = [F.normalize(t, dim=1) for t in tokens]
    matched = [tuple(_matched(one, other) for other in units) for one in units]
    pooled = (means @ means.T).clamp(-1, 1).tolist()
    return Similarity(tuple(map(tuple, pooled)), tuple(matched))


def _kind(prompt: Prompt) -> str:
    match prompt:
        case InputPrompt(layer=0):
            return f"vectors of {prompt.vectors.shape[1]} among the input embeddings"
        case InputPrompt():
            width = prompt.vectors.shape[1]
            return f"vectors of {width} among the hidden states at layer {prompt.layer}"
        case KVPrefix():
            _, heads, _, size = prompt.keys.shape
            layers = ", ".join(map(str, prompt.layers))
            return f"keys and values of {heads} heads of {size} on layers {layers}"


def _tokens(prompt: Prompt) -> Float[Tensor, "P numbers"]:
    """A line for each soft token."""
    match prompt:
        case InputPrompt(vectors=vectors):
            lines = vectors
        case KVPrefix(keys=keys, values=values):
            lines = torch.stack([keys, values]).permute(3, 0, 1, 2, 4).flatten(1)
    return lines.detach().float().cpu()


def _matched(one: Float[Tensor, "P numbers"], other: Float[Tensor, "Q numbers"]) -> float:
    cosines = (one @ other.T).clamp(-1, 1)
    best = torch.cat([cosines.amax(dim=1), cosines.amax(dim=0)])
    return float(best.mean())
