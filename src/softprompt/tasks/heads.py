"""Classification with a trained head on one hidden state."""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow, Renderer
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example
from softprompt.tasks.classification import Classifier

HeadKind = Literal["linear", "linear-no-bias", "mlp-tanh", "mlp-gelu", "mlp-relu", "mlp-norm"]
Pooling = Literal["cls", "first"]


class ClassifierHead(nn.Module):
    """The head of one of transformers' classifiers, in fp32; weights are drawn from N(0, 0.02).

    ``linear`` is one layer; ``linear-no-bias`` too, without a bias, as causal classifiers
    have; ``mlp-tanh`` is dense, tanh, linear as in BERT and RoBERTa; ``mlp-gelu`` (ELECTRA,
    DeBERTa-v2) and ``mlp-relu`` (DistilBERT) differ in their activation; ``mlp-norm`` is
    ModernBERT's: dense without a bias, gelu, norm, linear.

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
            case "linear" | "linear-no-bias":
                pass
            case "mlp-tanh" | "mlp-gelu" | "mlp-relu":
                self.dense = nn.Linear(width, width)
            case "mlp-norm":
                self.dense = nn.Linear(width, width, bias=False)
                self.norm = nn.LayerNorm(width, bias=False)
            case _:
                assert_never(kind)
        self.output = nn.Linear(width, classes, bias=kind != "linear-no-bias")
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif not name.startswith("norm."):
                nn.init.zeros_(parameter)

    def forward(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """Score the classes."""
        if self.dense is not None:
            states = self._activate(self.dense(states))
        if self.norm is not None:
            states = self.norm(states)
        scores: Tensor = self.output(states)
        return scores

    def _activate(self, states: Tensor) -> Tensor:
        match self.kind:
            case "linear" | "linear-no-bias":
                return states
            case "mlp-tanh":
                return states.tanh()
            case "mlp-relu":
                return states.relu()
            case "mlp-gelu" | "mlp-norm":
                return F.gelu(states)
            case _:
                assert_never(self.kind)


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


class HeadClassifier(Classifier):
    """A trained head on [CLS] of an encoder or the last real token of a causal backbone.

    Args:
        backbone: the backbone to run.
        head: the head to train.
        labels: the labels, in the order of the head's scores.
        renderer: the renderer of rows.
        target_column: the column of the label.
        pooling: which state of an encoder is read: that of [CLS], or that of the first position.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        labels: Sequence[str],
        renderer: Renderer,
        target_column: str,
        pooling: Pooling = "cls",
    ) -> None:
        self.backbone = backbone
        self.labels = tuple(labels)
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self.columns = renderer.template.fields
        self.target_column = target_column
        self._encoder_position = renderer.template.soft_before_bos if pooling == "cls" else 0

    @property
    def head(self) -> nn.Module:
        """The head, which is trained with the prompt."""
        return self._head

    @property
    def renderers(self) -> tuple[Renderer, ...]:
        """The only renderer."""
        return (self._renderer,)

    def complete_example(
        self, row: Row, rendered: Sequence[RenderedRow], *, target: bool = True
    ) -> Example:
        """The position to read is that of [CLS], or the last one."""
        label = self.read_target(row) if target else None
        (variant,) = rendered
        position = (
            self._encoder_position
            if self.backbone.geometry.architecture == "encoder"
            else len(variant.input_ids) - 1
        )
        return Example((variant,), ((position,),), label)

    def compute_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B 1 H"]:
        """The state at the read position of each row."""
        pooled = self.compute_states_at(
            [e.variants[0] for e in examples],
            positions=[e.read_positions[0] for e in examples],
            prompts=prompts,
            prompt_index=rows,
        )
        return pooled[:, None]

    def read(self, states: Float[Tensor, "B 1 H"]) -> Float[Tensor, "B C"]:
        """The head's scores."""
        scores: Tensor = self._head(states[:, 0].float())
        return scores
