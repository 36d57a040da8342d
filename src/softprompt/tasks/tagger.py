"""Tagging: a trained head on the states of words, of which none is dropped, however long a row is.

A row that is too long is run in windows that overlap, and each token's state is taken from the
window in which it has the most context (`softprompt.data.windows`).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row
from softprompt.data.rendering import Renderer
from softprompt.data.row_words import PlacedToken, place_window_tokens
from softprompt.data.template import Field, Template
from softprompt.data.windows import Window, WindowRenderer
from softprompt.data.words import (
    RenderedWords,
    WordPiece,
    WordStates,
    put_stand_ins,
    render_words,
)
from softprompt.errors import DataError, PromptError, TemplateError, format_unknown
from softprompt.injection.generation import NOT_NUMBERS
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, HeadTask
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.config import Tag
from softprompt.tasks.objectives import Prediction, SummedLoss, list_target
from softprompt.tasks.tag_cells import GivenWords, read_row_tags, read_row_words
from softprompt.tasks.tag_sequences import TagSequences, forget_shares, format_tags

# Added to the name of the words' field where a template has it for context alone. No column has it.
_CONTEXT = "\N{INFORMATION SEPARATOR ONE}context"
_NO_TARGET = -1


def mark_context(template: Template, column: str) -> Template:
    """Give the words' field another name everywhere but at its last place, where tags are read.

    Args:
        template: of a row.
        column: of the words.

    Returns:
        The template, with the words' field once.

    Raises:
        TemplateError: the field is not in the template.
    """
    places = [at for at, p in enumerate(template.pieces) if p == Field(column)]
    if not places:
        msg = (
            f"in the template {template.text!r}: "
            f"{format_unknown('field', column, options=template.fields)} It is task.words_column: "
            f"write {{{column}}} where the words stand, or name another column."
        )
        raise TemplateError(msg)
    pieces = (
        Field(f"{column}{_CONTEXT}") if at in places[:-1] else piece
        for at, piece in enumerate(template.pieces)
    )
    return replace(template, pieces=tuple(pieces))


class Tagger(HeadTask):
    """A trained head on the states of each word's tokens.

    Args:
        backbone: the backbone to run.
        head: the head to train.
        objective: what the head's scores mean.
        renderer: of windows, of a template with marked context.
        settings: of the task.
        columns: of the template.
    """

    objective: TagSequences

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        objective: TagSequences,
        renderer: WindowRenderer,
        settings: Tag,
        columns: tuple[str, ...],
    ) -> None:
        self.backbone = backbone
        self.objective = objective
        self.settings = settings
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self.columns = columns
        self.target_column = settings.target_column

    def with_head(self, head: ClassifierHead) -> "Tagger":
        """A copy of the task with another head."""
        task = copy(self)
        task._head = head.to(self.backbone.device)  # noqa: SLF001  # a copy of this one
        return task

    def with_objective(self, objective: TagSequences) -> "Tagger":
        """A copy of the task with another objective."""
        task = copy(self)
        task.objective = objective
        return task

    @property
    def head(self) -> ClassifierHead:
        """The head, which is trained with the prompt."""
        return self._head

    @property
    def renderers(self) -> tuple[Renderer, ...]:
        """The renderer of a row that fits; windows are parts of its rows."""
        return (self._renderer.renderer,)

    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """The windows of a row, and the states of its words."""
        column = self.settings.words_column
        if column not in row:
            raise DataError(format_unknown("column", column, options=row))
        words = read_row_words(row[column], column)
        rendered = self._render(row, words)
        positions, states = self._list_states(rendered, text=words.text, places=words.places)
        tags = read_row_tags(row, self.settings, words=words) if target else None
        return Example(
            tuple(window.row for window in rendered.windows),
            positions,
            None if tags is None else self.objective.index_tags(format_tags(tags)),
            words=states,
        )

    def _render(self, row: Row, words: GivenWords) -> RenderedWords:
        fields = {**row, f"{self.settings.words_column}{_CONTEXT}": words.text}
        return render_words(self._renderer, fields, text=words.text, words=words.places)

    def place_tokens(self, row: Row) -> list[list[PlacedToken]]:
        """The tokens of each window of a row that have characters of its fields.

        Args:
            row: as for `make_example`.
        """
        column = self.settings.words_column
        words = read_row_words(row[column], column)
        absent = [words.places[number] for number in self._render(row, words).replaced]
        text = put_stand_ins(words.text, absent)
        fields = {**row, column: text, f"{column}{_CONTEXT}": words.text}
        return [
            [
                token._replace(
                    span=token.span._replace(field=token.span.field.removesuffix(_CONTEXT))
                )
                for token in of_window
            ]
            for of_window in place_window_tokens(self._renderer, fields)
        ]

    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """The windows of each row."""
        return [self.make_example(row, target=target) for row in rows]

    def _list_states(
        self, rendered: RenderedWords, *, text: str, places: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[tuple[int, ...], ...], WordStates]:
        """The positions that are read in each window, and which of the states are whose."""
        strategy = self.objective.aggregation
        wanted = [of_word[:1] if strategy == "first" else of_word for of_word in rendered.pieces]
        order = sorted({piece for of_word in wanted for piece in of_word})
        number = {piece: index for index, piece in enumerate(order)}
        positions = tuple(
            tuple(piece.position for piece in order if piece.window == window)
            for window in range(len(rendered.windows))
        )
        pieces = tuple(tuple(number[piece] for piece in of_word) for of_word in wanted)
        tokens = _locate_tokens(rendered.windows, order) if strategy == "simple" else ()
        return positions, WordStates(text, places, pieces, tokens)

    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """Cross-entropy at the first token of every word."""
        states = self.compute_row_states(examples, prompts, rows=rows)
        return self._sum_loss(examples, states, training=True)

    def compute_word_states(
        self, examples: Sequence[Example], prompts: Sequence[Prompt | None]
    ) -> list[Float[Tensor, "_ H"]]:
        """The state of the first token of every word of each row.

        Args:
            examples: the rows.
            prompts: a single prompt for all of them.
        """
        states = self.compute_row_states(examples, prompts)
        return [_take_first(*pair) for pair in zip(examples, states, strict=True)]

    def _sum_loss(
        self,
        examples: Sequence[Example],
        states: Sequence[Float[Tensor, "_ H"]],
        *,
        training: bool = False,
    ) -> SummedLoss:
        """Cross-entropy of words, each times the weight of its tag; smoothed in training."""
        first = [_take_first(*pair) for pair in zip(examples, states, strict=True)]
        scores: Tensor = self._head(torch.cat(first).float())
        targets = [index for example in examples for index in list_tag_indices(example)]
        wanted = torch.tensor(targets, dtype=torch.long, device=scores.device)
        weights = self.objective.weights
        total = F.cross_entropy(
            scores,
            wanted,
            weight=None if weights is None else scores.new_tensor(weights),
            ignore_index=_NO_TARGET,
            label_smoothing=self.objective.smoothing if training else 0.0,
            reduction="sum",
        )
        return SummedLoss(total, int((wanted != _NO_TARGET).sum()))

    @torch.no_grad()
    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """The tags of each row's words."""
        return forget_shares(
            self.read_rows(examples, self.compute_row_states(examples, prompts, rows=rows))
        )

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """Loss and predictions, from one run of the backbone."""
        states = self.compute_row_states(examples, [prompt])
        return self._sum_loss(examples, states), forget_shares(self.read_rows(examples, states))

    def read_rows(
        self, examples: Sequence[Example], states: Sequence[Float[Tensor, "_ H"]]
    ) -> list[Prediction]:
        """The tags of each row's words, with the probabilities of all tags."""
        scores: Tensor = self._head(torch.cat([*states]).float())
        if not scores.isfinite().all():
            raise PromptError(NOT_NUMBERS)
        shares = scores.double().softmax(dim=-1).split([len(of_row) for of_row in states])
        return [
            self.objective.describe(of_row.cpu().numpy(), example.words)
            for example, of_row in zip(examples, shares, strict=True)
            if example.words is not None
        ]


def list_tag_indices(example: Example) -> list[int]:
    """The index of the tag of each word of a row; -1 for a tag that no training row has.

    Args:
        example: of a tagger; without a target there are none.
    """
    return [] if example.target is None else [int(at) for at in list_target(example.target)]


def _take_first(example: Example, states: Float[Tensor, "_ H"]) -> Float[Tensor, "_ H"]:
    """The states of the first tokens of a row's words, of all that were read."""
    words = example.words
    return states if words is None else states[[pieces[0] for pieces in words.pieces]]


def _locate_tokens(
    windows: Sequence[Window], pieces: Sequence[WordPiece]
) -> tuple[tuple[int, int], ...]:
    """The range of characters of each token."""
    places = [{t.position: (t.start, t.end) for t in window.tokens} for window in windows]
    return tuple(places[piece.window][piece.position] for piece in pieces)
