"""P-tuning v1: vectors made by a small encoder from trained embeddings (Liu et al. 2021)."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal, assert_never

import torch
from torch import Tensor, nn

from softprompt.backbone.model import Geometry
from softprompt.initialise import Shape
from softprompt.methods.base import Method
from softprompt.prompt import InputPrompt, Prompt

Encoder = Literal["mlp", "lstm"]


@dataclass(frozen=True)
class PTuning:
    """Settings of P-tuning v1.

    Args:
        encoder: ``lstm`` as in the paper, or ``mlp`` as in NeMo and PEFT.
        hidden_size: of the encoder; per direction for the LSTM. None: half the embedding width
            for the LSTM (the LAMA code), the whole for the MLP.
        encoder_layers: LSTM layers, or hidden layers of the MLP (two: the LAMA code; NeMo).
        dropout: between LSTM layers (0 in the LAMA code).
        layers: the ones that see the soft tokens: ``"all"``, or ``"12:"`` for those from there on.
    """

    name: ClassVar = "p-tuning"
    shape: ClassVar[Shape] = "input"
    direct: ClassVar = False

    encoder: Encoder = "lstm"
    hidden_size: int | None = None
    encoder_layers: int = 2
    dropout: float = 0.0
    layers: str = "all"

    def build(
        self, _geometry: Geometry, start: InputPrompt, *, generator: torch.Generator
    ) -> "PTuningMethod":
        """An encoder whose output has the shape of ``start``."""
        return PTuningMethod(self, start, generator=generator)


class PTuningMethod(Method):
    """Embedding ``[P, E]``, N(0, 1), through a bidirectional LSTM and an MLP, or an MLP alone."""

    def __init__(
        self, settings: PTuning, start: InputPrompt, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layer = start.layer
        width = start.vectors.shape[1]
        self.embedding = nn.Parameter(torch.randn(start.vectors.shape, generator=generator))
        match settings.encoder:
            case "lstm":
                hidden = settings.hidden_size or width // 2
                self.lstm: nn.LSTM | None = nn.LSTM(
                    width,
                    hidden,
                    num_layers=settings.encoder_layers,
                    dropout=settings.dropout,
                    bidirectional=True,
                    batch_first=True,
                )
                self.mlp = _mlp(2 * hidden, 2 * hidden, width, layers=1)
            case "mlp":
                hidden = settings.hidden_size or width
                self.lstm = None
                self.mlp = _mlp(width, hidden, width, layers=settings.encoder_layers)
            case _:
                assert_never(settings.encoder)
        draw(self, generator, skip=("embedding",))

    def forward(self) -> Prompt:
        """The encoder's output; it runs once a step, not once a row."""
        states = self.embedding
        if self.lstm is not None:
            states = self.lstm(states[None])[0][0]
        return InputPrompt(self.mlp(states), self.layer)


def _mlp(given: int, hidden: int, wanted: int, *, layers: int) -> nn.Sequential:
    """``layers`` times Linear and ReLU, then Linear."""
    widths = [given, *[hidden] * layers]
    blocks: list[nn.Module] = []
    for before, after in pairwise(widths):
        blocks += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], wanted))


@torch.no_grad()
def draw(module: nn.Module, generator: torch.Generator, *, skip: tuple[str, ...] = ()) -> None:
    """Draw every parameter anew from ``generator``, as torch's own defaults are distributed.

    torch initialises from the global generator; a seed must decide a run by itself.
    """
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if name in skip:
                continue
            bound = _bound(owner, parameter)
            drawn: Tensor = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2 * drawn - 1) * bound)


def _bound(owner: nn.Module, parameter: Tensor) -> float:
    """The bound of the uniform distribution in ``nn.Linear`` and ``nn.LSTM``."""
    match owner:
        case nn.Linear():
            return 1 / sqrt(owner.in_features)
        case nn.LSTM():
            return 1 / sqrt(owner.hidden_size)
        case _:
            return 1 / sqrt(parameter.shape[-1])
