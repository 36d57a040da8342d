"""Prefix tuning: keys and values of every layer, made by an MLP (Li & Liang 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.initialise import Shape
from softprompt.methods.base import Method
from softprompt.methods.p_tuning import draw
from softprompt.prompt import KVPrefix, Prompt


@dataclass(frozen=True)
class PrefixTuning:
    """Settings of prefix tuning.

    Args:
        length: P (10 for table-to-text, 200 for summarisation in the paper).
        hidden_size: of the MLP (512; 800 for XSUM).
        layers: attention sites as ``"all"`` or a slice such as ``"12:"``.
        shifted: whether the row's positions move up by P, as PEFT's do; needed to export there.
    """

    name: ClassVar = "prefix-tuning"
    shape: ClassVar[Shape] = "kv"
    direct: ClassVar = False

    length: int = 10
    hidden_size: int = 512
    layers: str = "all"
    shifted: bool = False

    def build(
        self, geometry: Geometry, start: KVPrefix, *, generator: torch.Generator
    ) -> "PrefixTuningMethod":
        """An MLP whose output has the shape of ``start``."""
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
        self.layers, self.shifted = start.layers, start.shifted
        self.shape = (length, layers, 2, heads, size)
        self.embedding = nn.Parameter(torch.randn(length, width, generator=generator))
        self.mlp = nn.Sequential(
            nn.Linear(width, settings.hidden_size),
            nn.Tanh(),
            nn.Linear(settings.hidden_size, layers * 2 * heads * size),
        )
        draw(self, generator, skip=("embedding",))

    def forward(self) -> Prompt:
        """The MLP's output, cut into keys and values; it runs once a step, not once a row."""
        pairs = self.mlp(self.embedding).view(self.shape)
        keys, values = pairs.permute(2, 1, 3, 0, 4)
        return KVPrefix(keys, values, self.layers, shifted=self.shifted)
