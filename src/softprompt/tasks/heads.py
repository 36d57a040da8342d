"""A trained head on hidden states: of labels, sets of labels, numbers, or options."""

from collections.abc import Sequence
from copy import copy
from typing import assert_never

from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.data.chats import RowRenderer
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, HeadTask, Task, pad_rows
from softprompt.tasks.classification import Classifier
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.objectives import ScoreObjective
from softprompt.tasks.pooling import (
    Pooling,
    get_conventional_pooling,
    locate_point,
    mark_words,
    pool_states,
)


class PooledHeadTask(HeadTask):
    """A trained head on one state of each rendered row, or on the pooled states of its words.

    Attributes:
        pooling: the readout.
    """

    pooling: Pooling
    _head: ClassifierHead
    _renderer: RowRenderer
    _cls: int

    def with_pooling(self, pooling: Pooling) -> "PooledHeadTask":
        """A copy of the task with the same head and another readout."""
        task = copy(self)
        task.pooling = pooling
        return task

    def with_head(self, head: ClassifierHead) -> "PooledHeadTask":
        """A copy of the task with the same readout and another head."""
        task = copy(self)
        task._head = head.to(self.backbone.device)  # noqa: SLF001  # a copy of this one
        return task

    @property
    def head(self) -> ClassifierHead:
        """The head, which is trained with the prompt."""
        return self._head

    @property
    def reads_whole_rows(self) -> bool:
        """Whether it pools the states of many positions."""
        return self.pooling in ("mean", "max")

    @property
    def renderers(self) -> tuple[RowRenderer, ...]:
        """The only renderer."""
        return (self._renderer,)

    def with_shared_prefix(self, examples: Sequence[Example], prompt: Prompt | None) -> Task:
        """The task itself where states of the common tokens are read too."""
        return self if self.reads_whole_rows else super().with_shared_prefix(examples, prompt)

    def pool_variants(
        self,
        variants: Sequence[RenderedRow],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " S"] | None = None,
    ) -> Float[Tensor, "S H"]:
        """The state that is read of each rendered row; a pooled one is in fp32.

        Args:
            variants: the rendered rows.
            prompts: a single prompt for all rows, or several.
            rows: for each row the index of its prompt; None with a single prompt.
        """
        match self.pooling:
            case "mean" | "max" as pooling:
                inputs = pad_rows(self.backbone, variants)
                states = self.run_rows(variants, inputs, prompts=prompts, prompt_index=rows)
                size = self.backbone.geometry.vocab_size
                words = mark_words(inputs.input_ids, inputs.attention_mask, vocab_size=size)
                return pool_states(states, words, pooling=pooling)
            case "cls" | "first" | "last":
                return self.compute_states_at(
                    variants,
                    # The rows may have been rendered before the readout was chosen.
                    positions=[self.list_positions(variant) for variant in variants],
                    prompts=prompts,
                    prompt_index=rows,
                )
            case _:
                assert_never(self.pooling)

    def list_positions(self, row: RenderedRow) -> tuple[int, ...]:
        """The positions of a rendered row that are read.

        Args:
            row: rendered.
        """
        size = self.backbone.geometry.vocab_size
        point = locate_point(row.input_ids, self.pooling, vocab_size=size, cls=self._cls)
        if point is not None:
            return (point,)
        words = tuple(at for at, token in enumerate(row.input_ids) if token < size)
        return words or tuple(range(len(row.input_ids)))


def locate_cls(backbone: Backbone, renderer: RowRenderer) -> int:
    """The position of [CLS] in an encoder's rows; -1 in a causal backbone.

    Args:
        backbone: the backbone to run.
        renderer: of its rows.
    """
    is_encoder = backbone.geometry.architecture == "encoder"
    return renderer.template.soft_before_bos if is_encoder else -1


class HeadClassifier(Classifier, PooledHeadTask):
    """A trained head on one state of each row, or on the pooled states of its words.

    Args:
        backbone: the backbone to run.
        head: the head to train.
        objective: what the head's scores mean.
        renderer: the renderer of rows.
        target_column: the column of the label.
        pooling: the readout; None for that of transformers' own classifiers.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        objective: ScoreObjective,
        renderer: RowRenderer,
        target_column: str,
        pooling: Pooling | None = None,
    ) -> None:
        self.backbone = backbone
        self.objective = objective
        self.pooling = pooling or get_conventional_pooling(backbone.geometry.architecture)
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self.columns = renderer.template.fields
        self.target_column = target_column
        self._cls = locate_cls(backbone, renderer)

    def complete_example(
        self, row: Row, rendered: Sequence[RenderedRow], *, target: bool = True
    ) -> Example:
        """The row, with the positions that the readout reads."""
        label = self.read_target(row) if target else None
        (variant,) = rendered
        return Example((variant,), (self.list_positions(variant),), label)

    def compute_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B 1 H"]:
        """The state that is read of each row; a pooled one is in fp32."""
        variants = [e.variants[0] for e in examples]
        return self.pool_variants(variants, prompts, rows=rows)[:, None]

    def read(self, states: Float[Tensor, "B 1 H"]) -> Float[Tensor, "B C"]:
        """The head's scores."""
        scores: Tensor = self._head(states[:, 0].float())
        return scores
