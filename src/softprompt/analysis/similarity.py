"""The similarity of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.analysis.trained import get_artifact, get_prompt
from softprompt.backbone.references import is_same_model
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

if TYPE_CHECKING:
    from softprompt.artifact import Artifact
    from softprompt.inference.model import PromptModel

_PAIR = 2


@dataclass(frozen=True)
class Similarity:
    """The similarity of each prompt to each, -1 to 1, in their order.

    Args:
        pooled: the cosine of the mean soft tokens.
        matched: the mean, over the soft tokens of both prompts, of the cosine to the nearest soft
            token of the other prompt; the order of the soft tokens does not matter.
        pairwise: the mean of the cosines of all pairs of soft tokens, one of each prompt; that of
            a prompt to itself says how similar its own soft tokens are.

    Examples:
        >>> half = ((1.0, 0.5), (0.5, 1.0))
        >>> Similarity(pooled=half, matched=((1.0, 0.7), (0.7, 1.0)), pairwise=half).pooled
        ((1.0, 0.5), (0.5, 1.0))
    """

    pooled: tuple[tuple[float, ...], ...]
    matched: tuple[tuple[float, ...], ...]
    pairwise: tuple[tuple[float, ...], ...]


def compute_similarity(trained: "Sequence[Prompt | Artifact | PromptModel]") -> Similarity:
    """Compute the similarity of prompts of one backbone.

    A soft token of a prefix stands for its keys and values on all layers.

    Source: Vu et al. 2022 (SPoT), "cosine similarity of average tokens" for ``pooled`` and
    "per-token average cosine similarity" for ``pairwise``, by which they choose the prompt to start
    from.

    Args:
        trained: prompts of one kind and width, or artifacts or models with them; their lengths
            may differ.

    Returns:
        Their similarities.

    Raises:
        PromptError: there are fewer than two, they are not of one kind and width, or artifacts
            or models are for different backbones.

    Examples:
        >>> one, other = torch.eye(2)
        >>> compute_similarity([InputPrompt(one[None]), InputPrompt(other[None])]).pooled
        ((1.0, 0.0), (0.0, 1.0))
    """
    _check_backbones(trained)
    prompts = [get_prompt(item) for item in trained]
    if len(prompts) < _PAIR:
        msg = f"similarity is between prompts, but {len(prompts)} was given. Give at least two."
        raise PromptError(msg)
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.length:
            msg = (
                f"number {number} is a trained head without a prompt, so it has no vectors to "
                "compare. Leave it out."
            )
            raise PromptError(msg)
    kinds = [_describe_kind(prompt) for prompt in prompts]
    for number, kind in enumerate(kinds, start=1):
        if kind != kinds[0]:
            msg = (
                f"prompts of different kinds have no cosine: the first is {kinds[0]}, number "
                f"{number} is {kind}. Compare prompts of the same kind."
            )
            raise PromptError(msg)
    tokens = [_flatten_tokens(prompt) for prompt in prompts]
    means = F.normalize(torch.stack([t.mean(dim=0) for t in tokens]), dim=1)
    units = [F.normalize(t, dim=1) for t in tokens]
    matched = [tuple(_match_tokens(one, other) for other in units) for one in units]
    # The mean of the cosines of all pairs is the product of the means of the unit vectors.
    centers = torch.stack([unit.mean(dim=0) for unit in units])
    return Similarity(_to_cosines(means), tuple(matched), _to_cosines(centers))


def _to_cosines(vectors: Float[Tensor, "R numbers"]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, (vectors @ vectors.T).clamp(-1, 1).tolist()))


def _check_backbones(trained: "Sequence[Prompt | Artifact | PromptModel]") -> None:
    """Make sure that artifacts and models are for one backbone; bare prompts do not name any."""
    named = [
        (number, one.manifest.backbone)
        for number, one in enumerate(map(get_artifact, trained), start=1)
        if one is not None
    ]
    for number, other in named[1:]:
        _, first = named[0]
        if not is_same_model(first["fingerprint"], other["fingerprint"]):
            msg = (
                f"the first is a prompt for {first['name']!r} and number {number} is a prompt for "
                f"{other['name']!r}: vectors of different backbones have nothing in common. "
                "Compare prompts of one backbone."
            )
            raise PromptError(msg)


def _describe_kind(prompt: Prompt) -> str:
    match prompt:
        case InputPrompt(start_layer=0):
            return f"vectors of {prompt.vectors.shape[1]} among the input embeddings"
        case InputPrompt():
            width = prompt.vectors.shape[1]
            return f"vectors of {width} among the hidden states at layer {prompt.start_layer}"
        case KVPrefix():
            _, heads, _, size = prompt.keys.shape
            layers = ", ".join(map(str, prompt.sites))
            return f"keys and values of {heads} heads of {size} on layers {layers}"


def _flatten_tokens(prompt: Prompt) -> Float[Tensor, "P numbers"]:
    """One row of numbers for each soft token."""
    match prompt:
        case InputPrompt(vectors=vectors):
            tokens = vectors
        case KVPrefix(keys=keys, values=values):
            tokens = torch.stack([keys, values]).permute(3, 0, 1, 2, 4).flatten(1)
    return tokens.detach().float().cpu()


def _match_tokens(one: Float[Tensor, "P numbers"], other: Float[Tensor, "Q numbers"]) -> float:
    cosines = (one @ other.T).clamp(-1, 1)
    best = torch.cat([cosines.amax(dim=1), cosines.amax(dim=0)])
    return float(best.mean())
