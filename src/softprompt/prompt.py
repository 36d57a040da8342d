"""The only two prompt values, and the letters used for axes everywhere.

Axes: B batch, T tokens of a row, P soft tokens, E embedding width, H hidden size, L layers
(attention sites), N key/value heads, D head size, V vocabulary (rows of the embedding table),
S scored positions, C classes, R prompts in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.errors import PromptError


@dataclass(frozen=True, eq=False)
class InputPrompt:
    """Vectors that stand among the input embeddings wherever the template puts soft tokens.

    With a ``layer`` they enter later, among the hidden states that this layer is given; the layers
    below see none of them (Liu et al. 2022, "Late prompt tuning").

    Args:
        vectors: one a soft token, at the width of the backbone's embedding table; for a later
            layer at its hidden size.
        layer: the first one that sees them.
    """

    vectors: Float[Tensor, "P W"]
    layer: int = 0

    @property
    def length(self) -> int:
        """The number of soft tokens P."""
        return self.vectors.shape[0]

    @property
    def taken(self) -> int:
        """How many positions it takes beside its tokens: none."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as an artifact stores them."""
        return {"vectors": self.vectors}

    def changed(self, change: Callable[[Tensor], Tensor]) -> "InputPrompt":
        """The same prompt with ``change`` done to each of its tensors."""
        return replace(self, vectors=change(self.vectors))


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """Keys and values that every named attention site may attend to, beside the row's own.

    A prefix has no position: the row's tokens keep theirs, so a masked prefix is exactly the bare
    backbone. ``shifted`` says that it was made or trained with the row's positions moved up by P
    (a baked prompt, PEFT, the P-tuning v2 code).

    Args:
        keys: after any rotary embedding, one slice per entry of ``layers``.
        values: likewise.
        layers: the attention sites, numbered in the order the backbone calls them.
        shifted: whether the row's first token has position P instead of 0.
    """

    keys: Float[Tensor, "L N P D"]
    values: Float[Tensor, "L N P D"]
    layers: tuple[int, ...]
    shifted: bool = False

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.shape[0] != len(self.layers):
            msg = (
                f"keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)} and "
                f"{len(self.layers)} layers do not agree: keys and values must both be [L,N,P,D] "
                "with one slice per layer."
            )
            raise PromptError(msg)

    @property
    def length(self) -> int:
        """The number of soft tokens P."""
        return self.keys.shape[2]

    @property
    def taken(self) -> int:
        """How many positions it takes, the first ones: P if the row's are moved up by it."""
        return self.length if self.shifted else 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as an artifact stores them."""
        return {"keys": self.keys, "values": self.values}

    def changed(self, change: Callable[[Tensor], Tensor]) -> "KVPrefix":
        """The same prompt with ``change`` done to each of its tensors."""
        return replace(self, keys=change(self.keys), values=change(self.values))


Prompt = InputPrompt | KVPrefix
AnyPrompt = TypeVar("AnyPrompt", InputPrompt, KVPrefix, InputPrompt | KVPrefix)


def cast(
    prompt: AnyPrompt,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> AnyPrompt:
    """The same prompt in another precision or on another device; gradients flow through."""
    return prompt.changed(lambda tensor: tensor.to(device=device, dtype=dtype))


def detached(prompt: AnyPrompt) -> AnyPrompt:
    """A copy that shares no storage and no graph with the method that made it."""
    return prompt.changed(lambda tensor: tensor.detach().clone())
