"""Extractive question answering on a backbone: a start and an end among the context's tokens.

A context that is too long is divided into windows. Each of its tokens is read in the window in
which it has the most context, so that the scores of all windows are one sequence: the start and the
end of an answer are each one of all tokens of the context, or the place that stands for no answer.
All of them share one softmax (Clark and Gardner 2018 normalize over paragraphs together), so that
scores of windows can be compared, and an answer that crosses the border of a window is not lost.

The place of no answer is [CLS] on an encoder (Devlin et al. 2019), and the last token on a causal
backbone, which alone sees question and context (as in XLNet, Yang et al. 2019). Of several windows
it is that with the lowest score, since any window may have the answer.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row
from softprompt.data.rendering import Renderer
from softprompt.data.row_words import PlacedToken, place_window_tokens
from softprompt.data.squad import ContextAnswer
from softprompt.data.table import get_text, is_missing, to_text
from softprompt.data.template import Field, SoftTokens, Template
from softprompt.data.windows import FieldToken, Window, WindowRenderer
from softprompt.errors import DataError, TemplateError, format_unknown
from softprompt.prompt import Prompt
from softprompt.tasks.answer_spans import WindowScores, find_best_spans
from softprompt.tasks.base import Example, HeadTask
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.extraction import ContextAnswers, read_context_answers
from softprompt.tasks.objectives import Prediction, SummedLoss


@dataclass(frozen=True, eq=False)
class StartEndScores:
    """The scores of a row: of no answer, and of the tokens of its context.

    Args:
        null: as start and as end.
        tokens: each as start and as end, over all windows.
    """

    null: Float[Tensor, "2"]
    tokens: Float[Tensor, "N 2"]

    def join(self) -> Float[Tensor, "N1 2"]:
        """All of them, that of no answer first."""
        return torch.cat([self.null[None], self.tokens])


class Extractor(HeadTask):
    """A head of two outputs on the tokens of a context, in windows.

    Args:
        backbone: the backbone to run.
        head: the head to train.
        objective: how answers are chosen and scored.
        windows: the renderer of rows.
        target_column: the column of the answers.
    """

    objective: ContextAnswers

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        objective: ContextAnswers,
        windows: WindowRenderer,
        target_column: str,
    ) -> None:
        self.backbone = backbone
        self.objective = objective
        self.windows = windows
        self._head = head.to(backbone.device)
        self.columns = windows.renderer.template.fields
        self.target_column = target_column

    def with_head(self, head: ClassifierHead) -> "Extractor":
        """A copy of the task with another head."""
        task = copy(self)
        task._head = head.to(self.backbone.device)  # noqa: SLF001  # a copy of this one
        return task

    def with_objective(self, objective: ContextAnswers) -> "Extractor":
        """A copy of the task that chooses answers in another way.

        Args:
            objective: of the copy.
        """
        task = copy(self)
        task.objective = objective
        return task

    @property
    def head(self) -> ClassifierHead:
        """The head, which is trained with the prompt."""
        return self._head

    @property
    def renderers(self) -> tuple[Renderer, ...]:
        """The renderer of each window."""
        return (self.windows.renderer,)

    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """The windows of a row, with the place of its first answer among the context's tokens."""
        windows = self.windows.render(row)
        context = get_text(row, self.windows.field)
        owned = [[token for token in window.tokens if token.owned] for window in windows]
        tokens = [token for of_window in owned for token in of_window]
        return Example(
            tuple(window.row for window in windows),
            tuple(
                (self._find_null(window), *(token.position for token in of_window))
                for window, of_window in zip(windows, owned, strict=True)
            ),
            self._locate_answer(row, context, tokens) if target else None,
            text=context,
            characters=tuple((token.start, token.end) for token in tokens),
        )

    def place_tokens(self, row: Row) -> list[list[PlacedToken]]:
        """The tokens of each window of a row that have characters of its fields.

        Args:
            row: as for `make_example`.
        """
        return place_window_tokens(self.windows, row)

    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """The windows of many rows."""
        return [self.make_example(row, target=target) for row in rows]

    def _find_null(self, window: Window) -> int:
        """The position that stands for no answer."""
        if self.backbone.geometry.architecture == "causal":
            return len(window.row.input_ids) - 1
        return self.windows.renderer.template.soft_before_bos

    def _locate_answer(
        self, row: Row, context: str, tokens: Sequence[FieldToken]
    ) -> tuple[int, int]:
        """The first and the last token of the first answer, counted from 1; 0 and 0 for none."""
        if self.target_column not in row:
            raise DataError(format_unknown("column", self.target_column, options=row))
        cell = row[self.target_column]
        text = "" if is_missing(cell) else to_text(cell)
        answers = read_context_answers(text, context, where="the row")
        if not answers:
            return 0, 0
        return find_tokens(answers[0], [(token.start, token.end) for token in tokens])

    def score_states(
        self, examples: Sequence[Example], states: Sequence[Float[Tensor, "_ H"]]
    ) -> list[StartEndScores]:
        """The head's scores of rows, in fp32.

        Args:
            examples: the rows.
            states: of each row those at its read positions.
        """
        scores = self._head(torch.cat([*states]).float())
        parts = scores.split([len(of_row) for of_row in states])
        pairs = zip(examples, parts, strict=True)
        return [_divide_scores(example, part) for example, part in pairs]

    def compute_scores(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[StartEndScores]:
        """The scores of rows, from one run of the backbone over all their windows.

        Args:
            examples: the rows.
            prompts: a single prompt for all rows, or several.
            rows: for each row the index of its prompt; None with a single prompt.
        """
        return self.score_states(examples, self.compute_row_states(examples, prompts, rows=rows))

    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """The mean cross-entropy of start and end, summed over rows."""
        return sum_span_loss(self.compute_scores(examples, prompts, rows=rows), examples)

    def read_rows(
        self, examples: Sequence[Example], states: Sequence[Float[Tensor, "_ H"]]
    ) -> list[Prediction]:
        """The best parts of the contexts, or no answer."""
        return self.choose_answers(examples, self.score_states(examples, states))

    @torch.no_grad()
    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """The best parts of the contexts, or no answer."""
        return self.choose_answers(examples, self.compute_scores(examples, prompts, rows=rows))

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """Loss and predictions, from one run of the backbone."""
        scores = self.compute_scores(examples, [prompt])
        return sum_span_loss(scores, examples), self.choose_answers(examples, scores)

    def choose_answers(
        self, examples: Sequence[Example], scores: Sequence[StartEndScores]
    ) -> list[Prediction]:
        """The predictions of rows.

        Args:
            examples: the rows.
            scores: of each row.
        """
        return choose_answers(examples, scores, objective=self.objective)


def _divide_scores(example: Example, scores: Float[Tensor, "K 2"]) -> StartEndScores:
    """The scores of a row's windows as those of one text."""
    lengths = [len(positions) for positions in example.read_positions]
    firsts = [0, *accumulate(lengths)][:-1]
    nulls = scores[firsts]
    is_token = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    is_token[firsts] = False
    return StartEndScores(nulls[nulls.sum(dim=1).argmin()], scores[is_token])


def find_tokens(answer: ContextAnswer, characters: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token with characters of an answer, counted from 1.

    Args:
        answer: in the context.
        characters: the range of each token of the context.

    Raises:
        DataError: the answer has no token.
    """
    stop = answer.start + len(answer.text)
    found = [
        at for at, (start, end) in enumerate(characters, 1) if start < stop and end > answer.start
    ]
    if not found:
        msg = (
            f"the answer {answer.text!r} at character {answer.start} has no token: this tokenizer "
            "leaves its characters out. Correct the answer, or leave the row out."
        )
        raise DataError(msg)
    return found[0], found[-1]


def count_answer_tokens(example: Example) -> int:
    """The number of tokens of a row's first answer; 0 if it has none.

    Args:
        example: with its target.
    """
    match example.target:
        case (int() as first, int() as last) if first:
            return last - first + 1
        case _:
            return 0


def sum_span_loss(scores: Sequence[StartEndScores], examples: Sequence[Example]) -> SummedLoss:
    """The mean cross-entropy of start and end, summed over rows.

    Args:
        scores: of each row.
        examples: the rows, with their targets.
    """
    joined = [of_row.join() for of_row in scores]
    # One softmax for each row: what fills up shorter ones has no probability.
    padded = pad_sequence(joined, batch_first=True, padding_value=-torch.inf)
    targets = torch.tensor(
        [example.target for example in examples if isinstance(example.target, tuple)],
        device=padded.device,
    )
    total = F.cross_entropy(padded, targets.long(), reduction="sum")
    return SummedLoss(total / 2, len(examples))


def choose_answers(
    examples: Sequence[Example], scores: Sequence[StartEndScores], *, objective: ContextAnswers
) -> list[Prediction]:
    """The predictions of rows.

    Args:
        examples: the rows.
        scores: of each row.
        objective: how answers are chosen.
    """
    found: list[Prediction] = []
    for example, of_row in zip(examples, scores, strict=True):
        logs = of_row.join().double().log_softmax(dim=0).cpu().numpy()
        null = float(logs[0].sum())
        tokens = WindowScores(logs[1:, 0], logs[1:, 1], example.characters, null)
        if not np.isfinite(logs).all():
            found.append(objective.choose([], float("nan")))
            continue
        spans = find_best_spans(
            [tokens],
            example.text,
            count=objective.n_best,
            max_tokens=objective.max_answer_tokens,
        )
        found.append(objective.choose(spans, null))
    return found


def check_order(template: Template, context: str, *, family: str) -> None:
    """Check that a token of the context sees what it must, where tokens see only those before.

    Args:
        template: of a row.
        context: the name of the field.
        family: of the backbone, for messages.

    Raises:
        TemplateError: something that the answer depends on comes after the context, or nothing
            does.
    """
    names = [piece.name if isinstance(piece, Field) else "" for piece in template.pieces]
    if context not in names:
        return  # reported where the context is divided
    at = names.index(context)
    later = [name for name in names[at + 1 :] if name]
    seen = template.pieces[:at]
    if at + 1 == len(template.pieces):
        msg = (
            f"the template {template.text!r} ends with the context, but on {family} its last token "
            "stands for no answer, and must not be one of the context. Write something after it, "
            "such as '\\nAnswer:'."
        )
        raise TemplateError(msg)
    fault = ""
    if later:
        fault = f"its field {later[0]!r} comes"
    elif template.soft_length and not any(isinstance(piece, SoftTokens) for piece in seen):
        fault = "its soft tokens come"
    if fault:
        msg = (
            f"the template {template.text!r} does not fit {family}, whose tokens see only what is "
            f"before them: {fault} after the context, where none of its tokens sees them. Move "
            "that before the context."
        )
        raise TemplateError(msg)
