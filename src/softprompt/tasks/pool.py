"""Classify by a trained linear head on one hidden state."""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.backbone.model import Backbone
from softprompt.data.tokenise import Renderer
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, Row
from softprompt.tasks.classifier import Classifier

HeadKind = Literal["linear", "mlp"]


class ClassifierHead(nn.Module):
    """A linear layer, or BERT's: dense, tanh, linear. Drawn N(0, 0.02) from a seed, in fp32.

    Args:
        width: H.
        classes: C.
        kind: which of the two.
    """

    def __init__(self, width: int, classes: int, *, kind: HeadKind, seed: int) -> None:
        super().__init__()
        self.dense: nn.Linear | None = None
        match kind:
            case "linear":
                pass
            case "mlp":
                self.dense = nn.Linear(width, width)
            case _:
                assert_never(kind)
        self.output = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """Score the classes."""
        if self.dense is not None:
            states = self.dense(states).tanh()
        scores: Tensor = self.output(states)
        return scores


class Pooled(Classifier):
    """A head on the real [CLS] of an encoder or the last real token of a causal backbone."""

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        labels: Sequence[str],
        renderer: Renderer,
        target_column: str,
    ) -> None:
        self.backbone = backbone
        self.labels = tuple(labels)
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self._target_column = target_column

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
        """Render a row; its point is its first token, or its last."""
        label = self.target(row) if target else None
        variant = self._renderer.render(row)
        point = 0 if self.backbone.geometry.kind == "encoder" else len(variant.ids) - 1
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
