"""The trained heads of classifiers, as those of transformers."""

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

HeadKind = Literal[
    "linear",
    "linear-normalized",
    "linear-no-bias",
    "mlp-tanh",
    "mlp-gelu",
    "mlp-relu",
    "mlp-norm",
]

# Added to the mean square, against division by zero; states' own is above 1e-4.
_SMALLEST_SQUARE = 1e-12


class ClassifierHead(nn.Module):
    """The head of one of transformers' classifiers, in fp32; weights are drawn from N(0, 0.02).

    ``linear`` is one layer; ``linear-normalized`` too, on states that are divided by their root
    mean square, so that only their direction counts; ``linear-no-bias`` too, without a bias, as
    causal classifiers have; ``mlp-tanh`` is dense, tanh, linear as in BERT and RoBERTa;
    ``mlp-gelu`` (ELECTRA, DeBERTa-v2) and ``mlp-relu`` (DistilBERT) differ in their activation;
    ``mlp-norm`` is ModernBERT's: dense without a bias, gelu, norm, linear.

    Args:
        width: H, the width of the states.
        classes: C, the number of classes.
        kind: one of these kinds.
        seed: the seed of the weights.
    """

    def __init__(self, width: int, classes: int, *, kind: HeadKind, seed: int) -> None:
        super().__init__()
        self.kind = kind
        self.dense: nn.Linear | None = None
        self.norm: nn.LayerNorm | None = None
        match kind:
            case "linear" | "linear-normalized" | "linear-no-bias":
                pass
            case "mlp-tanh" | "mlp-gelu" | "mlp-relu":
                self.dense = nn.Linear(width, width)
            case "mlp-norm":
                self.dense = nn.Linear(width, width, bias=False)
                self.norm = nn.LayerNorm(width, bias=False)
            case _:
                assert_never(kind)
        self.output = nn.Linear(width, classes, bias=kind != "linear-no-bias")
        if not self.output.weight.is_meta:
            self._draw_weights(seed)

    def _draw_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif not name.startswith("norm."):
                nn.init.zeros_(parameter)

    def forward(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """Score the classes."""
        if self.kind == "linear-normalized":
            states = normalize_states(states)
        if self.dense is not None:
            states = self._activate(self.dense(states))
        if self.norm is not None:
            states = self.norm(states)
        scores: Tensor = self.output(states)
        return scores

    def _activate(self, states: Tensor) -> Tensor:
        match self.kind:
            case "linear" | "linear-normalized" | "linear-no-bias":
                return states
            case "mlp-tanh":
                return states.tanh()
            case "mlp-relu":
                return states.relu()
            case "mlp-gelu" | "mlp-norm":
                return F.gelu(states)
            case _:
                assert_never(self.kind)


def normalize_states(states: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
    """States divided by their root mean square; one of zeros stays zeros.

    Args:
        states: of each row.
    """
    return F.rms_norm(states, states.shape[-1:], eps=_SMALLEST_SQUARE)


def list_head_shapes(kind: HeadKind, *, width: int, classes: int) -> dict[str, list[int]]:
    """The shapes of a head's tensors by name.

    Args:
        kind: of the head.
        width: H, the width of the states.
        classes: C, the number of classes.
    """
    with torch.device("meta"):  # no memory, whatever the sizes
        head = ClassifierHead(width, classes, kind=kind, seed=0)
    return {name: [*tensor.shape] for name, tensor in head.state_dict().items()}
