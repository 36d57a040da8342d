"""Prompt tuning: the vectors themselves are the parameters (Lester et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.initialise import Shape
from softprompt.methods.base import Method
from softprompt.prompt import InputPrompt, Prompt


@dataclass(frozen=True)
class PromptTuning:
    """Settings; the template says how many soft tokens there are and where.

    Args:
        layers: the ones that see them: ``"all"``, or ``"12:"`` for those from the twelfth on
            (Liu et al. 2022, "Late prompt tuning").
    """

    name: ClassVar = "prompt-tuning"
    shape: ClassVar[Shape] = "input"
    direct: ClassVar = True

    layers: str = "all"

    def build(
        self,
        _geometry: Geometry,
        start: InputPrompt,
        *,
        generator: torch.Generator,  # noqa: ARG002  # every method is built alike
    ) -> "PromptTuningMethod":
        """Vectors ``[P, E]`` (``[P, H]`` at a later layer) that begin at ``start``."""
        return PromptTuningMethod(start)


class PromptTuningMethod(Method):
    """One parameter, ``[P, E]`` or ``[P, H]``."""

    def __init__(self, start: InputPrompt) -> None:
        super().__init__()
        self.layer = start.layer
        self.vectors = nn.Parameter(start.vectors.detach().float().clone())

    def forward(self) -> Prompt:
        """The vectors, as they are."""
        return InputPrompt(self.vectors, self.layer)
