"""Classify by a trained linear head on one hidden state."""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from softprompt.backbone.model import Backbone
from softprompt.data.tokenise import Renderer
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, Row
from softprompt.tasks.classifier import Classifier

HeadKind = Literal["linear", "unbiased", "mlp", "mlp-gelu", "mlp-relu", "mlp-norm"]
Pool = Literal["cls", "first"]


class ClassifierHead(nn.Module):
    """The head of one of transformers' classifiers. Drawn N(0, 0.02) from a seed, in fp32.

    ``linear`` is one layer; ``unbiased`` too, without a bias, as causal classifiers have; ``mlp``
    is dense, tanh, linear as in BERT and RoBERTa; ``mlp-gelu`` (ELECTRA, DeBERTa-v2) and
    ``mlp-relu`` (DistilBERT) differ in their activation; ``mlp-norm`` is ModernBERT's: dense
    without a bias, gelu, norm, linear.

    Args:
        width: H.
        classes: C.
        kind: which of these.
    """

    def __init__(self, width: int, classes: int, *, kind: HeadKind, seed: int) -> None:
        super().__init__()
        self.kind = kind
        self.dense: nn.Linear | None = None
        self.norm: nn.LayerNorm | None = None
        match kind:
            case "linear" | "unbiased":
                pass
            case "mlp" | "mlp-gelu" | "mlp-relu":
                self.dense = nn.Linear(width, width)
            case "mlp-norm":
                self.dense = nn.Linear(width, width, bias=False)
                self.norm = nn.LayerNorm(width, bias=False)
            case _:
                assert_never(kind)
        self.output = nn.Linear(width, classes, bias=kind != "unbiased")
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif not name.startswith("norm."):
                nn.init.zeros_(parameter)

    def forward(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """Score the classes."""
        if self.dense is not None:
            states = self._activated(self.dense(states))
        if self.norm is not None:
            states = self.norm(states)
        scores: Tensor = self.output(states)
        return scores

    def _activated(self, states: Tensor) -> Tensor:
        match self.kind:
            case "linear" | "unbiased":
                return states
            case "mlp":
                return states.tanh()
            case "mlp-relu":
                return states.relu()
            case "mlp-gelu" | "mlp-norm":
                return F.gelu(states)
            case _:
                assert_never(self.kind)


class Pooled(Classifier):
    """A head on the real [CLS] of an encoder or the last real token of a causal backbone.

    Args:
        pool: which of an encoder's states: that of [CLS], or of whatever stands first.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        labels: Sequence[str],
        renderer: Renderer,
        target_column: str,
        pool: Pool = "cls",
    ) -> None:
        self.backbone = backbone
        self.labels = tuple(labels)
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self._target_column = target_column
        self._first = renderer.template.before if pool == "cls" else 0

    @property
    def head(self) -> nn.Module:
        """The head, which is trained with the prompt."""
        return self._head

    @property
    def columns(self) -> tuple[str, ...]:
        """The template's fields."""
        return self._renderer.template.fields

    @property
    def target_column(self) -> str:
        """Where the label stands."""
        return self._target_column

    def example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row; its point is its [CLS], or its last token."""
        label = self.target(row) if target else None
        variant = self._renderer.render(row)
        point = self._first if self.backbone.geometry.kind == "encoder" else len(variant.ids) - 1
        return Example((variant,), ((point,),), label)

    def states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B 1 H"]:
        """The state at each row's point."""
        pooled = self.states_at(
            [e.variants[0] for e in examples],
            points=[e.points[0] for e in examples],
            prompts=prompts,
            which=rows,
        )
        return pooled[:, None]

    def read(self, states: Float[Tensor, "B 1 H"]) -> Float[Tensor, "B C"]:
        """The head's scores."""
        scores: Tensor = self._head(states[:, 0].float())
        return scores
