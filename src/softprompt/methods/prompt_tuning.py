"""Prompt tuning: the vectors themselves are the parameters (Lester et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.prompt import InputPrompt, Prompt


@dataclass(frozen=True)
class PromptTuning:
    """Prompt tuning: the vectors are trained directly (Lester et al. 2021).

    The template determines their positions and their number.

    Args:
        layers: the layers that see the soft tokens: ``"all"``, or ``"12:"`` for layer 12 and later
            (Liu et al. 2022, "Late prompt tuning").

    Examples:
        >>> PromptTuning(layers="12:").prompt_kind
        'input'
    """

    name: ClassVar = "prompt-tuning"
    prompt_kind: ClassVar[PromptKind] = "input"
    is_direct: ClassVar = True

    layers: str = "all"

    def build(
        self,
        _geometry: Geometry,
        start: InputPrompt,
        *,
        generator: torch.Generator,  # noqa: ARG002  # all methods are built by one call
    ) -> "PromptTuningMethod":
        """Build vectors ``[P, E]`` (``[P, H]`` at a later layer) with the values of a prompt.

        Args:
            start: the initial prompt, for its shape and values.
            generator: not used, because nothing is random here.

        Returns:
            The method.
        """
        return PromptTuningMethod(start)


class PromptTuningMethod(Method):
    """One parameter, ``[P, E]`` or ``[P, H]``."""

    def __init__(self, start: InputPrompt) -> None:
        super().__init__()
        self.layer = start.start_layer
        self.vectors = nn.Parameter(start.vectors.detach().float().clone())

    def forward(self) -> Prompt:
        """Return the vectors."""
        return InputPrompt(self.vectors, self.layer)
