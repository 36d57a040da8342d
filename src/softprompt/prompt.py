"""The two kinds of prompt, and the letters that stand for tensor axes everywhere.

Axes: B batch, T tokens of a row, P soft tokens, E embedding width, H hidden size, L layers
(attention sites), N key/value heads, D head size, V vocabulary (rows of the embedding table),
S scored positions, C classes, R prompts in a batch, W either E or H.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softprompt.errors import PromptError


@dataclass(frozen=True, eq=False)
class InputPrompt:
    """Vectors among the input embeddings, at the places of the template's soft tokens.

    With a ``start_layer`` they enter later, among the hidden states that are the input of this
    layer; the layers below see none of them (Liu et al. 2022, "Late prompt tuning").

    Args:
        vectors: ``[P, E]``, one per soft token; ``[P, H]`` if they enter at a later layer.
        start_layer: the first layer that sees them; 0 for the input embeddings.

    Examples:
        >>> prompt = InputPrompt(torch.zeros(4, 64))
        >>> prompt
        InputPrompt(length=4, width=64, dtype=float32)
        >>> prompt.length
        4
    """

    vectors: Float[Tensor, "P W"]
    start_layer: int = 0

    @property
    def length(self) -> int:
        """The number of soft tokens P."""
        return self.vectors.shape[0]

    @property
    def num_positions(self) -> int:
        """The number of positions in addition to those of its soft tokens: 0."""
        return 0

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as an artifact stores them.

        Returns:
            One tensor, ``vectors``.
        """
        return {"vectors": self.vectors}

    def __repr__(self) -> str:
        length, width = self.vectors.shape
        layer = f", layer={self.start_layer}" if self.start_layer else ""
        dtype = str(self.vectors.dtype).removeprefix("torch.")
        return f"{type(self).__name__}(length={length}, width={width}{layer}, dtype={dtype})"

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "InputPrompt":
        """Apply a function to each tensor.

        Args:
            change: the function, from a tensor to a tensor.

        Returns:
            A new prompt.
        """
        return replace(self, vectors=change(self.vectors))


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """Keys and values that the named attention sites attend to, in addition to the row's own.

    By default a prefix takes no positions: the row's tokens keep theirs, so a masked prefix gives
    exactly the output of the bare backbone. ``shift_positions`` marks a prefix that was trained or
    computed with the row's positions shifted by P, such as one of PEFT, of the P-tuning v2 code or
    of :func:`~softprompt.to_kv_prefix`.

    Args:
        keys: ``[L, N, P, D]``, after any rotary embedding, one slice per entry of ``sites``.
        values: ``[L, N, P, D]``, one slice per entry of ``sites``.
        sites: the attention sites, numbered in the order in which the backbone calls them.
        shift_positions: whether the row's first token has position P instead of 0.
        visible: False for the soft tokens that a row does not attend to, while it is trained on;
            None for all. It is not saved.

    Raises:
        PromptError: the shapes of keys, values and sites do not agree.

    Examples:
        >>> prefix = KVPrefix(torch.zeros(2, 4, 5, 16), torch.zeros(2, 4, 5, 16), sites=(0, 1))
        >>> prefix
        KVPrefix(length=5, layers=2, heads=4, head_size=16, dtype=float32)
        >>> prefix.num_positions
        0
    """

    keys: Float[Tensor, "L N P D"]
    values: Float[Tensor, "L N P D"]
    sites: tuple[int, ...]
    shift_positions: bool = False
    visible: Bool[Tensor, " P"] | None = None

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.shape[0] != len(self.sites):
            msg = (
                f"keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)} and "
                f"{len(self.sites)} sites do not agree: keys and values must both be [L,N,P,D] "
                "with one slice per site."
            )
            raise PromptError(msg)

    @property
    def length(self) -> int:
        """The number of soft tokens P."""
        return self.keys.shape[2]

    @property
    def num_positions(self) -> int:
        """The number of positions before the row's own: P if they are shifted, else 0."""
        return self.length if self.shift_positions else 0

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as an artifact stores them.

        Returns:
            Two tensors, ``keys`` and ``values``.
        """
        return {"keys": self.keys, "values": self.values}

    def __repr__(self) -> str:
        layers, heads, length, size = self.keys.shape
        dtype = str(self.keys.dtype).removeprefix("torch.")
        shifted = ", shift_positions=True" if self.shift_positions else ""
        sizes = f"length={length}, layers={layers}, heads={heads}, head_size={size}"
        return f"{type(self).__name__}({sizes}, dtype={dtype}{shifted})"

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "KVPrefix":
        """Apply a function to each tensor.

        Args:
            change: the function, from a tensor to a tensor.

        Returns:
            A new prompt.
        """
        return replace(self, keys=change(self.keys), values=change(self.values))


Prompt = InputPrompt | KVPrefix
AnyPrompt = TypeVar("AnyPrompt", InputPrompt, KVPrefix, InputPrompt | KVPrefix)


def to(
    prompt: AnyPrompt,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> AnyPrompt:
    """Convert a prompt to another dtype or device, with gradients.

    Args:
        prompt: the prompt.
        dtype: the new dtype; None to keep it.
        device: the new device; None to keep it.

    Returns:
        A new prompt.
    """
    return prompt.map_tensors(lambda tensor: tensor.to(device=device, dtype=dtype))


def detach_copy(prompt: AnyPrompt) -> AnyPrompt:
    """Copy a prompt, without shared storage and without its autograd graph."""
    return prompt.map_tensors(lambda tensor: tensor.detach().clone())
