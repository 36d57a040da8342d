"""P-tuning v1: vectors made by a small encoder from trained embeddings (Liu et al. 2021)."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal, assert_never

import torch
from torch import Tensor, nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.prompt import InputPrompt, Prompt

Encoder = Literal["mlp", "lstm"]


@dataclass(frozen=True)
class PTuning:
    """P-tuning v1: vectors made by a small encoder (Liu et al. 2021).

    Args:
        encoder: ``lstm`` as in the paper, or ``mlp`` as in NeMo and PEFT.
        encoder_hidden_size: the encoder's width; per direction for the LSTM. None: half the
            embedding width for the LSTM (the LAMA code), the whole for the MLP.
        encoder_num_layers: LSTM layers, or hidden layers of the MLP (2 in the LAMA code and NeMo).
        encoder_dropout: the rate of dropout between LSTM layers (0 in the LAMA code).
        layers: the layers that see the soft tokens: ``"all"``, or ``"12:"`` for layer 12 and later.

    Examples:
        >>> PTuning(encoder="mlp", encoder_hidden_size=128).encoder_num_layers
        2
    """

    name: ClassVar = "p-tuning"
    prompt_kind: ClassVar[PromptKind] = "input"
    is_direct: ClassVar = False

    encoder: Encoder = "lstm"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    layers: str = "all"

    def build(
        self, _geometry: Geometry, start: InputPrompt, *, generator: torch.Generator
    ) -> "PTuningMethod":
        """Build an encoder whose output has the shape of the initial prompt.

        Args:
            start: the initial prompt, for its shape.
            generator: the generator of the initial weights.

        Returns:
            The method.
        """
        return PTuningMethod(self, start, generator=generator)


class PTuningMethod(Method):
    """Embedding ``[P, E]``, N(0, 1), through a bidirectional LSTM and an MLP, or an MLP alone."""

    def __init__(
        self, settings: PTuning, start: InputPrompt, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layer = start.start_layer
        width = start.vectors.shape[1]
        self.embedding = nn.Parameter(torch.randn(start.vectors.shape, generator=generator))
        match settings.encoder:
            case "lstm":
                hidden = settings.encoder_hidden_size or width // 2
                self.lstm: nn.LSTM | None = nn.LSTM(
                    width,
                    hidden,
                    num_layers=settings.encoder_num_layers,
                    dropout=settings.encoder_dropout,
                    bidirectional=True,
                    batch_first=True,
                )
                self.mlp = _build_mlp(2 * hidden, 2 * hidden, width, layers=1)
            case "mlp":
                hidden = settings.encoder_hidden_size or width
                self.lstm = None
                self.mlp = _build_mlp(width, hidden, width, layers=settings.encoder_num_layers)
            case _:
                assert_never(settings.encoder)
        reset_parameters(self, generator, skip=("embedding",))

    def forward(self) -> Prompt:
        """Run the encoder; this is done once per step, not per row."""
        states = self.embedding
        if self.lstm is not None:
            states = self.lstm(states[None])[0][0]
        return InputPrompt(self.mlp(states), self.layer)


def _build_mlp(inputs: int, hidden: int, outputs: int, *, layers: int) -> nn.Sequential:
    """``layers`` times Linear and ReLU, then Linear."""
    widths = [inputs, *[hidden] * layers]
    blocks: list[nn.Module] = []
    for before, after in pairwise(widths):
        blocks += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], outputs))


@torch.no_grad()
def reset_parameters(
    module: nn.Module, generator: torch.Generator, *, skip: tuple[str, ...] = ()
) -> None:
    """Initialize all parameters from a generator, with the distributions of torch's defaults.

    torch itself draws from the global generator, but a run must depend on its own seed only.

    Args:
        module: the module to initialize.
        generator: the generator to draw from.
        skip: the names of parameters to leave unchanged.
    """
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if name in skip:
                continue
            bound = _compute_bound(layer, parameter)
            sample: Tensor = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2 * sample - 1) * bound)


def _compute_bound(layer: nn.Module, parameter: Tensor) -> float:
    """The bound of the uniform distribution in ``nn.Linear`` and ``nn.LSTM``."""
    match layer:
        case nn.Linear():
            return 1 / sqrt(layer.in_features)
        case nn.LSTM():
            return 1 / sqrt(layer.hidden_size)
        case _:
            return 1 / sqrt(parameter.shape[-1])
