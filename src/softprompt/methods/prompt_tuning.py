"""Prompt tuning: the vectors themselves are the parameters (Lester et al. 2021).

With a reparametrization they are a function of other parameters, which is folded when the prompt is
saved: an artifact holds the vectors alone.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, assert_never

import torch
from torch import Tensor, nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.prompt import InputPrompt, Prompt

Reparametrization = Literal["none", "residual", "superposition"]

# The authors' code has 800 (ResidualPrompts, `bottleneck_size`).
_BOTTLENECK = 800
# More do not help (Sadraei Javaheri et al. 2024).
_NUM_WORDS = 128


@dataclass(frozen=True)
class PromptTuning:
    """Prompt tuning: the vectors are trained directly (Lester et al. 2021).

    The template determines their positions and their number.

    Args:
        layers: the layers that see the soft tokens: ``"all"``, or ``"12:"`` for layer 12 and later
            (Liu et al. 2022, "Late prompt tuning").
        reparametrization: ``none``; ``residual``: the output of a small MLP is added to each vector
            (Razdaibiedina et al. 2023); ``superposition``: each vector is a weighted sum of word
            embeddings (Sadraei Javaheri et al. 2024). The artifact holds the vectors alone.
        bottleneck_size: the inner width of the MLP of ``residual``. None: 800, as in the authors'
            code.
        mlp_per_token: whether each soft token has an MLP of its own with ``residual``. None: all
            share one.
        num_words: the number of sampled words with ``superposition``. None: 128, beyond which the
            paper finds no gain.

    Examples:
        >>> PromptTuning(layers="12:").prompt_kind
        'input'
        >>> PromptTuning(reparametrization="residual", bottleneck_size=64).is_direct
        True
    """

    name: ClassVar = "prompt-tuning"
    prompt_kind: ClassVar[PromptKind] = "input"
    is_direct: ClassVar = True

    layers: str = "all"
    reparametrization: Reparametrization = "none"
    bottleneck_size: int | None = None
    mlp_per_token: bool | None = None
    num_words: int | None = None

    @property
    def sampled_words(self) -> int:
        """The number of words to sample for the method; 0 if it needs none."""
        return (self.num_words or _NUM_WORDS) if self.reparametrization == "superposition" else 0

    def build(
        self,
        _geometry: Geometry,
        start: InputPrompt,
        *,
        generator: torch.Generator,
        words: InputPrompt | None = None,
    ) -> Method:
        """Build vectors ``[P, E]`` (``[P, H]`` at a later layer) with the values of a prompt.

        Args:
            start: the initial prompt, for its shape and values.
            generator: the generator of the MLP's initial weights.
            words: the vectors of sampled words, for ``superposition``.

        Returns:
            The method.
        """
        match self.reparametrization:
            case "none":
                return PromptTuningMethod(start)
            case "residual":
                return ResidualMethod(
                    start,
                    bottleneck=self.bottleneck_size or _BOTTLENECK,
                    mlps=start.length if self.mlp_per_token else 1,
                    generator=generator,
                )
            case "superposition":
                return SuperpositionMethod(start, start if words is None else words)
            case _:
                assert_never(self.reparametrization)


class PromptTuningMethod(Method):
    """One parameter, ``[P, E]`` or ``[P, H]``."""

    def __init__(self, start: InputPrompt) -> None:
        super().__init__()
        self.layer = start.start_layer
        self.vectors = nn.Parameter(start.vectors.detach().float().clone())

    def forward(self) -> Prompt:
        """Return the vectors."""
        return InputPrompt(self.vectors, self.layer)


class ResidualMethod(Method):
    """Vectors plus an MLP of each: P + LN(W₂ ReLU(W₁ P)), with the residual connection.

    The gain and the bias of the layer norm start at 0, so that the prompt starts exactly at its
    initial value. In the authors' code they start at 1 and 0, and the normalized output of random
    weights is added to each vector: in backbones with embeddings of 0.02 to 0.2, unlike T5's, it is
    far larger than the vector.
    """

    def __init__(
        self, start: InputPrompt, *, bottleneck: int, mlps: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layer = start.start_layer
        width = start.vectors.shape[1]
        self.vectors = nn.Parameter(start.vectors.detach().float().clone())
        self.down = _draw_linear(mlps, width, bottleneck, generator=generator)
        self.down_bias = nn.Parameter(torch.zeros(mlps, 1, bottleneck))
        self.up = _draw_linear(mlps, bottleneck, width, generator=generator)
        self.up_bias = nn.Parameter(torch.zeros(mlps, 1, width))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self) -> Prompt:
        """Run the MLP; this is done once per step, not per row."""
        tokens = self.vectors.view(len(self.down), -1, self.vectors.shape[1])
        inner = torch.baddbmm(self.down_bias, tokens, self.down).relu()
        added = torch.baddbmm(self.up_bias, inner, self.up).view_as(self.vectors)
        return InputPrompt(self.vectors + self.norm(added), self.layer)


class SuperpositionMethod(Method):
    """Weighted sums of fixed vectors, W·E: the trained parameter is W, ``[P, P + m]``.

    The fixed vectors are those of the initial prompt and of m sampled words. W starts as the
    identity beside zeros, so the prompt starts exactly at its initial value, whatever that is.
    """

    def __init__(self, start: InputPrompt, words: InputPrompt) -> None:
        super().__init__()
        self.layer = start.start_layer
        fixed = torch.cat([start.vectors, words.vectors]).detach().float()
        self.fixed: Tensor
        self.register_buffer("fixed", fixed)
        self.weights = nn.Parameter(torch.eye(start.length, len(fixed)))

    def forward(self) -> Prompt:
        """Sum the fixed vectors; this is done once per step, not per row."""
        return InputPrompt(self.weights @ self.fixed, self.layer)


def _draw_linear(
    count: int, inputs: int, outputs: int, *, generator: torch.Generator
) -> nn.Parameter:
    """The weights of ``count`` linear layers, with the distribution of ``nn.Linear``."""
    sample = torch.rand(count, inputs, outputs, generator=generator)
    return nn.Parameter((2 * sample - 1) / sqrt(inputs))
