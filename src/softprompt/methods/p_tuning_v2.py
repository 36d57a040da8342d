"""P-tuning v2: keys and values of every layer as the parameters themselves (Liu et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.initialise import Shape
from softprompt.methods.base import Method
from softprompt.prompt import KVPrefix, Prompt


@dataclass(frozen=True)
class PTuningV2:
    """Settings of P-tuning v2.

    Args:
        length: P (under 20 for simple classification, around 100 for labelling, in the paper).
        layers: attention sites as ``"all"`` or a slice such as ``"12:"``.
        shifted: whether the row's positions move up by P, as PEFT's do; needed to export there.
        dropout: on keys and values (0.1 in the code; 0 here, as for the backbone).
    """

    name: ClassVar = "p-tuning-v2"
    shape: ClassVar[Shape] = "kv"
    direct: ClassVar = True

    length: int = 20
    layers: str = "all"
    shifted: bool = False
    dropout: float = 0.0

    def build(
        self,
        _geometry: Geometry,
        start: KVPrefix,
        *,
        generator: torch.Generator,  # noqa: ARG002  # every method is built alike
    ) -> "PTuningV2Method":
        """Keys and values ``[L, N, P, D]`` that begin at ``start``."""
        return PTuningV2Method(start, self.dropout)


class PTuningV2Method(Method):
    """Two parameters, keys and values, each ``[L, N, P, D]``."""

    def __init__(self, start: KVPrefix, dropout: float) -> None:
        super().__init__()
        self.layers, self.shifted = start.layers, start.shifted
        self.keys = nn.Parameter(start.keys.detach().float().clone())
        self.values = nn.Parameter(start.values.detach().float().clone())
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> Prompt:
        """Keys and values, as they are (through dropout in training, if asked)."""
        keys, values = self.dropout(self.keys), self.dropout(self.values)
        return KVPrefix(keys, values, self.layers, shifted=self.shifted)
