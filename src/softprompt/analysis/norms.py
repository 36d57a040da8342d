"""The norms of a prompt, and its distance from the initialization."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.analysis.trained import get_prompt
from softprompt.artifact import Artifact
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

if TYPE_CHECKING:
    from softprompt.inference.model import PromptModel

_MIN_NORM = 1e-12


@dataclass(frozen=True)
class LayerNorms:
    """The norms of one layer of a prefix.

    Args:
        layer: the attention site.
        keys: the mean norm of its keys, over heads and soft tokens.
        values: the mean norm of its values, over heads and soft tokens.

    Examples:
        >>> LayerNorms(layer=5, keys=2.0, values=4.0).values
        4.0
    """

    layer: int
    keys: float
    values: float


@dataclass(frozen=True)
class Distance:
    """The distance of a prompt from its initialization, relative to the norm of the latter.

    Args:
        overall: of the whole prompt.
        each: of each soft token of an input prompt; of each layer of a prefix, keys and values
            together.

    Examples:
        >>> Distance(overall=0.5, each=(0.4, 0.6)).overall
        0.5
    """

    overall: float
    each: tuple[float, ...]


def compute_layer_norms(trained: "Prompt | Artifact | PromptModel") -> list[LayerNorms]:
    """The norms of a prefix, layer by layer.

    Args:
        trained: a prefix, or an artifact or a model with one.

    Returns:
        A value for each of its layers.

    Raises:
        PromptError: the prompt is not a prefix.

    Examples:
        >>> ones = torch.ones(1, 2, 3, 4)
        >>> compute_layer_norms(KVPrefix(ones, 2 * ones, sites=(5,)))
        [LayerNorms(layer=5, keys=2.0, values=4.0)]
    """
    prefix = get_prompt(trained)
    if not isinstance(prefix, KVPrefix):
        msg = f"{prefix!r} has no keys and values by layer. Choose a prefix."
        raise PromptError(msg)
    keys, values = (
        tensor.detach().float().norm(dim=-1).mean(dim=(1, 2)).tolist()
        for tensor in (prefix.keys, prefix.values)
    )
    return [LayerNorms(*norms) for norms in zip(prefix.sites, keys, values, strict=True)]


def measure_distance_from_init(start: Prompt, now: Prompt) -> Distance:
    """The distance of a prompt from its initialization.

    Args:
        start: the prompt before training.
        now: a prompt of the same kind and shape, on the same layers.

    Returns:
        The distances.

    Raises:
        PromptError: the prompts differ in kind, shape or layers.

    Examples:
        >>> start, now = InputPrompt(torch.eye(2)), InputPrompt(torch.eye(2) * 1.5)
        >>> measure_distance_from_init(start, now)
        Distance(overall=0.5, each=(0.5, 0.5))
    """
    if _describe_shape(start) != _describe_shape(now):
        msg = (
            f"{now!r} has no distance from {start!r}, since they differ in kind, shape or layers. "
            "Give a prompt and its own initialization."
        )
        raise PromptError(msg)
    before, after = _flatten_parts(start), _flatten_parts(now)
    norm, norms = before.norm().clamp(min=_MIN_NORM), before.norm(dim=1).clamp(min=_MIN_NORM)
    change = after - before
    return Distance(float(change.norm() / norm), tuple((change.norm(dim=1) / norms).tolist()))


def _describe_shape(prompt: Prompt) -> tuple[object, ...]:
    match prompt:
        case InputPrompt():
            return (prompt.vectors.shape, prompt.start_layer)
        case KVPrefix():
            return (prompt.keys.shape, prompt.sites)
        case unreachable:
            assert_never(unreachable)


def _flatten_parts(prompt: Prompt) -> Float[Tensor, "parts numbers"]:
    """One row of numbers for each soft token, or for each layer of a prefix."""
    match prompt:
        case InputPrompt(vectors=vectors):
            parts = vectors
        case KVPrefix(keys=keys, values=values):
            parts = torch.stack([keys, values], dim=1).flatten(1)
        case unreachable:
            assert_never(unreachable)
    return parts.detach().float().cpu()
