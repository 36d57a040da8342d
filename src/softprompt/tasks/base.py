"""What every task is: rows in, a loss or answers out, whatever the prompt and the method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.backbone.model import Backbone
from softprompt.data.tokenise import Tokenised
from softprompt.injection.kept import Kept, first_layer, key_of
from softprompt.injection.rows import Given
from softprompt.injection.run import run
from softprompt.injection.segments import Beginning, begin, cut, run_cut
from softprompt.prompt import Prompt
from softprompt.tasks.layout import padded, picked, with_decoder

Row = Mapping[str, object]

# Fewer rows are one batch, which shares its beginning anyway.
_MANY = 33


@dataclass(frozen=True)
class Example:
    """A row as a task runs it.

    Args:
        variants: the row as the backbone sees it, once or in several continuations.
        points: for each variant the positions whose hidden states are needed.
        target: the label's index, or the ids to be written; None where nothing is known.
    """

    variants: tuple[Tokenised, ...]
    points: tuple[tuple[int, ...], ...]
    target: int | tuple[int, ...] | None

    @property
    def length(self) -> int:
        """The tokens of the longest variant, for batches of like length."""
        return max(len(v.ids) for v in self.variants)

    @property
    def cut(self) -> bool:
        """Whether a field was truncated."""
        return any(v.cut for v in self.variants)


@dataclass(frozen=True, eq=False)
class Loss:
    """A sum over scored tokens and how many there were, so that any split of a batch adds up.

    Args:
        total: the summed loss, with its graph.
        count: the scored tokens; for classification the rows.
    """

    total: Float[Tensor, ""]
    count: int


@dataclass(frozen=True)
class Answer:
    """What a task says of a row.

    Args:
        label: the likeliest label, or the text.
        probabilities: of every label, summing to one; empty for text.
    """

    label: str
    probabilities: Mapping[str, float]


class Task(ABC):
    """What is asked of a backbone's output, bound to one backbone."""

    backbone: Backbone
    labels: tuple[str, ...]
    kept: Kept | Beginning | None = None

    def keeping(self, kept: Kept | Beginning) -> "Task":
        """The same task, which finds there what was computed of rows before."""
        twin = copy(self)
        twin.kept = kept
        return twin

    def answering(self, examples: Sequence[Example], prompt: Prompt | None) -> "Task":
        """The same task, which runs what these rows begin with once for all of them."""
        rows = [variant.ids for example in examples for variant in example.variants]
        if self.kept is not None or prompt is None or len(rows) < _MANY:
            return self
        beginning = begin(self.backbone, rows, prompt=prompt)
        return self if beginning is None else self.keeping(beginning)

    def rows_run(self, example: Example) -> tuple[Tokenised, ...]:
        """What the backbone is run on to learn from a row."""
        return example.variants

    def given(self, rows: Sequence[Tokenised], prompts: Sequence[Prompt | None]) -> Given | None:
        """The states of rows at the layer where they are kept, if no prompt reaches below it."""
        kept = self.kept
        if not isinstance(kept, Kept) or kept.layer is None:
            return None
        reached = [first_layer(prompt) for prompt in prompts]
        if any(layer is not None and layer < kept.layer for layer in reached):
            return None
        found = kept.find([key_of(r.ids, r.types) for r in rows], device=self.backbone.device)
        return None if found is None else Given(kept.layer, found)

    def states_at(
        self,
        rows: Sequence[Tokenised],
        *,
        points: Sequence[Sequence[int]],
        prompts: Sequence[Prompt | None],
        which: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "S H"]:
        """The hidden states at each row's points; what no answer needs is not run.

        Args:
            which: for each row the index of its prompt.
        """
        if which is None and len(prompts) == 1:
            ids = [row.ids for row in rows]
            needed = [min(at, default=0) for at in points]
            where = cut(self.backbone, ids, prompt=prompts[0], needed=needed, kept=self.kept)
            if where is not None:
                states = run_cut(self.backbone, ids, where=where)
                behind = [[p - at for p in ps] for ps, at in zip(points, where.at, strict=True)]
                return picked(states, behind)
        given = self.given(rows, prompts)
        inputs = padded(self.backbone, rows)
        return picked(run(self.backbone, inputs, prompts=prompts, rows=which, given=given), points)

    def decoded(
        self,
        rows: Sequence[Tokenised],
        *,
        decoder: Sequence[Sequence[int]],
        prompts: Sequence[Prompt | None],
        which: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "Bd Td H"]:
        """The decoder's hidden states over what it is fed, once or several times for each row."""
        inputs = with_decoder(padded(self.backbone, rows), decoder)
        given = self.given(rows, prompts)
        return run(self.backbone, inputs, prompts=prompts, rows=which, given=given)

    @property
    def head(self) -> nn.Module | None:
        """A module that is trained with the prompt; None for most tasks."""
        return None

    @property
    def parameters(self) -> int:
        """The backbone's parameters that are run; no language-model head where a trained one is."""
        model = self.backbone.model
        owner = model if self.head is None else model.base_model
        return sum(p.numel() for p in owner.parameters())

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have to be answered."""

    @property
    @abstractmethod
    def target_column(self) -> str:
        """The column that a row must have as well to be learnt from."""

    @abstractmethod
    def example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row; with ``target`` also what it should be answered."""

    @abstractmethod
    def loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Loss:
        """The summed loss of a batch."""

    @abstractmethod
    def answer(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Answer]:
        """Answer a batch."""
