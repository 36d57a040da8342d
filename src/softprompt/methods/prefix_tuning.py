"""Prefix tuning: keys and values of every layer, made by an MLP (Li & Liang 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.methods.p_tuning import reset_parameters
from softprompt.prompt import KVPrefix, Prompt


@dataclass(frozen=True)
class PrefixTuning:
    """Prefix tuning: keys and values of every layer, made by an MLP (Li & Liang 2021).

    Args:
        length: the number of soft tokens (10 for table-to-text, 200 for summarization in the
            paper).
        encoder_hidden_size: the width of the MLP (512; 800 for XSUM).
        layers: attention sites as ``"all"`` or a slice such as ``"12:"``.
        shift_positions: whether the positions of a row are shifted by ``length``, as in PEFT;
            needed to export there.
        token_dropout: the share of soft tokens that a row does not attend to in a training step.
            None: 0.05 if the prompt starts from demonstrations (Lu et al. 2025), otherwise 0.

    Examples:
        >>> PrefixTuning(length=20).encoder_hidden_size
        512
    """

    name: ClassVar = "prefix-tuning"
    prompt_kind: ClassVar[PromptKind] = "kv"
    is_direct: ClassVar = False

    length: int = 10
    encoder_hidden_size: int = 512
    layers: str = "all"
    shift_positions: bool = False
    token_dropout: float | None = None

    def build(
        self, geometry: Geometry, start: KVPrefix, *, generator: torch.Generator
    ) -> "PrefixTuningMethod":
        """Build an MLP whose output has the shape of the initial prompt.

        Args:
            geometry: the geometry of the backbone.
            start: the initial prompt, for its shape.
            generator: the generator of the initial weights.

        Returns:
            The method.
        """
        return PrefixTuningMethod(self, start, width=geometry.hidden_size, generator=generator)


class PrefixTuningMethod(Method):
    """Embedding ``[P, H]``, N(0, 1) → Linear(H, m) → tanh → Linear(m, L·2·N·D)."""

    def __init__(
        self,
        settings: PrefixTuning,
        start: KVPrefix,
        *,
        width: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        layers, heads, length, size = start.keys.shape
        self.sites, self.shift_positions = start.sites, start.shift_positions
        self.shape = (length, layers, 2, heads, size)
        self.embedding = nn.Parameter(torch.randn(length, width, generator=generator))
        self.mlp = nn.Sequential(
            nn.Linear(width, settings.encoder_hidden_size),
            nn.Tanh(),
            nn.Linear(settings.encoder_hidden_size, layers * 2 * heads * size),
        )
        reset_parameters(self, generator, skip=("embedding",))

    def forward(self) -> Prompt:
        """Run the MLP; this is done once per step, not per row."""
        pairs = self.mlp(self.embedding).view(self.shape)
        keys, values = pairs.permute(2, 1, 3, 0, 4)
        return KVPrefix(keys, values, self.sites, shift_positions=self.shift_positions)
