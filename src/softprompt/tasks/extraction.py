"""Extractive question answering: the text form of answers, predictions, and their scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from softprompt.data.squad import ContextAnswer, read_answer_column
from softprompt.errors import DataError
from softprompt.tasks.answer_spans import AnswerSpan
from softprompt.tasks.objectives import Objective, Prediction, Scores
from softprompt.tasks.squad_scores import (
    choose_squad_version,
    compute_squad_metrics,
    score_answer_f1,
    score_exact_match,
)

# The threshold until validation rows choose another one: the likelier of the two.
DEFAULT_NULL_THRESHOLD = 0.0
NEVER: Literal["never"] = "never"
# Of a head: how likely a token begins the answer, and how likely it ends it.
SPAN_OUTPUTS = 2
# So many of the commonest answers are tried as the one for all rows.
_MOST_CONSTANTS = 5


@dataclass(frozen=True)
class AnswerPrediction(Prediction):
    """The answer to a question: a part of its context, or none.

    Args:
        start: the first character of the answer in the context; None for no answer.
        end: its last character plus one; None for no answer.
        score: the log-probability of the best part of the context, that of its first token and that
            of its last together; None if the context has no tokens.
        null_score: the same of no answer.
        candidates: the best parts of the context, the best first, also where no answer is given.

    Examples:
        >>> found = AnswerPrediction("Rome", {}, start=3, end=7, score=-0.1, null_score=-2.5)
        >>> found.text, "In Rome"[found.start : found.end]
        ('Rome', 'Rome')
    """

    start: int | None = None
    end: int | None = None
    score: float | None = None
    null_score: float = 0.0
    candidates: tuple[AnswerSpan, ...] = ()

    @property
    def text(self) -> str:
        """The answer; empty if there is none."""
        return self.label


@dataclass(frozen=True)
class ContextAnswers(Objective):
    """An answer that is a part of the context, scored as SQuAD's scripts do.

    Args:
        null_threshold: a question has no answer if its score exceeds that of the best part by more
            than this; None: each question has an answer.
        n_best: the most candidates of a prediction.
        max_answer_tokens: the most tokens of an answer.
    """

    null_threshold: float | None = DEFAULT_NULL_THRESHOLD
    n_best: int = 5
    max_answer_tokens: int = 30

    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]  # there are none
    detail_names: ClassVar[tuple[str, ...]] = ("start", "end", "score", "null_score", "candidates")

    @property
    def measure(self) -> str:
        """F1 of the words of a row's answer."""
        return "f1"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of `compute_squad_metrics`."""
        names = ("exact_match", "f1")
        if self.null_threshold is None:
            return names
        return (*names, "answerable_exact_match", "answerable_f1", "unanswerable_exact_match")

    def choose(self, candidates: Sequence[AnswerSpan], null_score: float) -> AnswerPrediction:
        """The best candidate, or no answer.

        Args:
            candidates: of a row, the best first.
            null_score: of no answer.
        """
        kept = tuple(candidates[: self.n_best])
        if not kept:
            return AnswerPrediction("", {}, null_score=null_score)
        best = kept[0]
        is_null = self.null_threshold is not None and (
            null_score - best.score > self.null_threshold
        )
        return AnswerPrediction(
            "" if is_null else best.text,
            {},
            start=None if is_null else best.start,
            end=None if is_null else best.end,
            score=best.score,
            null_score=null_score,
            candidates=kept,
        )

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """Exact match and F1; with questions that have no answer, also of each sort of them."""
        answers = [prediction.label for prediction in predictions]
        return Scores(compute_squad_metrics(answers, [list_answer_texts(text) for text in truth]))

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """F1 of the words of each answer."""
        references = [list_answer_texts(text) for text in truth]
        version = choose_squad_version(references)
        pairs = zip(answers, references, strict=True)
        return tuple(score_answer_f1(*pair, version=version) for pair in pairs)

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:  # noqa: ARG002  # there are none
        """No labels."""
        return Counter()

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The text with the highest mean F1: no answer, or one of the commonest answers."""
        counts = Counter(text for row in truth for text in {*list_answer_texts(row)})
        order = sorted(counts, key=lambda text: (-counts[text], text))
        texts = ["", *order[:_MOST_CONSTANTS]]
        scores = [sum(self.score_rows(truth, [text] * len(truth))) for text in texts]
        return texts[scores.index(max(scores))]

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether it is one of the answers, apart from case, punctuation and articles."""
        references = list_answer_texts(truth)
        version = choose_squad_version([references])
        return score_exact_match(answer, references, version=version) == 1


def list_answer_texts(text: str) -> list[str]:
    """The texts of the answers in a cell.

    Args:
        text: of the cell, as JSON.

    Raises:
        DataError: it is not of SQuAD's form.

    Examples:
        >>> list_answer_texts('{"text": ["Rome"], "answer_start": [3]}')
        ['Rome']
    """
    match parse_answers(text):
        case {"text": [*texts]}:
            return [str(found) for found in texts]
        case [*items]:
            return [str(item["text"]) for item in items if isinstance(item, Mapping)]
        case other:
            raise DataError(_describe_form(other))


def parse_answers(text: str) -> object:
    """The value of a cell with answers.

    Args:
        text: of the cell, as JSON.

    Raises:
        DataError: it has no value, or is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(_describe_form(text)) from error


def _describe_form(value: object) -> str:
    shown = f"{str(value)[:60]!r}" if value not in (None, "") else "no value"
    return (
        f'the answers are {shown}. Write them as {{"text": ["Rome"], "answer_start": [17]}}; a '
        'question without an answer has empty lists, {"text": [], "answer_start": []}.'
    )


def read_context_answers(text: str, context: str, *, where: str) -> tuple[ContextAnswer, ...]:
    """The answers of a row, each at its place in the context.

    Args:
        text: of the cell of the answers, as JSON.
        context: of the question.
        where: the row, for messages.

    Raises:
        DataError: they have another form, or one does not stand where it says.
    """
    return read_answer_column(parse_answers(text), context, where=where)
