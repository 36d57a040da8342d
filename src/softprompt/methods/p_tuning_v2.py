"""P-tuning v2: keys and values of every layer as the parameters themselves (Liu et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.prompt import KVPrefix, Prompt


@dataclass(frozen=True)
class PTuningV2:
    """P-tuning v2: keys and values of every layer are trained directly (Liu et al. 2022).

    Args:
        length: the number of soft tokens (under 20 for simple classification, around 100 for
            labeling, in the paper).
        layers: attention sites as ``"all"`` or a slice such as ``"12:"``.
        shift_positions: whether the positions of a row are shifted by ``length``, as in PEFT;
            needed to export there.
        prefix_dropout: the rate of dropout on keys and values (0.1 in the authors' code).
        token_dropout: the share of soft tokens that a row does not attend to in a training step.
            None: 0.05 if the prompt starts from demonstrations (Lu et al. 2025), otherwise 0.

    Examples:
        >>> PTuningV2(length=40, layers="12:").prefix_dropout
        0.0
    """

    name: ClassVar = "p-tuning-v2"
    prompt_kind: ClassVar[PromptKind] = "kv"
    is_direct: ClassVar = True

    length: int = 20
    layers: str = "all"
    shift_positions: bool = False
    prefix_dropout: float = 0.0
    token_dropout: float | None = None

    def build(
        self,
        _geometry: Geometry,
        start: KVPrefix,
        *,
        generator: torch.Generator,  # noqa: ARG002  # all methods are built by one call
    ) -> "PTuningV2Method":
        """Build keys and values ``[L, N, P, D]`` with the initial values of a prompt.

        Args:
            start: the initial prompt, for its shape and values.
            generator: not used, because nothing is random here.

        Returns:
            The method.
        """
        return PTuningV2Method(start, self.prefix_dropout)


class PTuningV2Method(Method):
    """Two parameters, keys and values, each ``[L, N, P, D]``."""

    def __init__(self, start: KVPrefix, dropout: float) -> None:
        super().__init__()
        self.sites, self.shift_positions = start.sites, start.shift_positions
        self.keys = nn.Parameter(start.keys.detach().float().clone())
        self.values = nn.Parameter(start.values.detach().float().clone())
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> Prompt:
        """Return keys and values; with dropout in training, if its rate is not 0."""
        keys, values = self.dropout(self.keys), self.dropout(self.values)
        return KVPrefix(keys, values, self.sites, shift_positions=self.shift_positions)
