"""Explanations: the words of a row with their scores, and how they are shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import exp
from typing import Literal, TypeAlias

from jinja2 import Environment, StrictUndefined

from softprompt.data.row_words import FieldSpan

ExplanationMethod: TypeAlias = Literal["integrated-gradients", "leave-one-out"]
# Whose score is explained; all but a number's are log-probabilities.
ScoreKind: TypeAlias = Literal["label", "tag", "span", "answer", "text", "number"]

# The sum is complete within this share of the difference of scores, or within so many nats.
_RELATIVE_GAP, _ABSOLUTE_GAP = 0.01, 0.005
# The legend of the words whose score is explained.
_SUBJECTS: dict[ScoreKind, str] = {
    "tag": "this word", "span": "this span", "answer": "the answer",
}  # fmt: skip
_METHODS: dict[ExplanationMethod, str] = {
    "integrated-gradients": "integrated gradients",
    "leave-one-out": "leave-one-out",
}
# The most words of the table; the text has all of them.
_MOST_WORDS = 30


@dataclass(frozen=True)
class ExplainedWord:
    """A word of a row, and how much it moved the score.

    Args:
        field: of the row.
        start: the word's first character in the field's text.
        end: its last character plus one.
        text: the word.
        score: in nats; above zero if the word made the label likelier.

    Examples:
        >>> ExplainedWord("text", 2, end=6, text="good", score=1.5).text
        'good'
    """

    field: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """Which words of a row moved a prediction.

    Args:
        method: that the scores were computed by.
        label: the label, the tag, the type of the span, the answer, the text or the number that is
            explained; empty for no answer.
        fields: the texts of the row that the template has.
        words: those that the backbone reads, in their order.
        score: the log-probability of the label.
        baseline: what the row is compared with.
        baseline_score: the log-probability of the label there.
        steps: of integrated gradients; 0 for leave-one-out.
        truncated: whether a field was truncated, so that words are missing at its end.
        kind: of what is explained; the score of a ``number`` is the number itself.
        subject: the word that has the tag, the span, or the answer; None where the score is that of
            the whole row, or of no answer.

    Examples:
        >>> words = (ExplainedWord("text", 0, end=4, text="good", score=1.4),)
        >>> facts = {"label": "positive", "fields": {"text": "good"}, "words": words}
        >>> scores = {"score": -0.1, "baseline": "[MASK]", "baseline_score": -1.5, "steps": 16}
        >>> explanation = Explanation("integrated-gradients", truncated=False, **facts, **scores)
        >>> explanation.total, round(abs(explanation.gap), 6), explanation.is_complete
        (1.4, 0.0, True)
    """

    method: ExplanationMethod
    label: str
    fields: Mapping[str, str]
    words: tuple[ExplainedWord, ...]
    score: float
    baseline: str
    baseline_score: float
    steps: int
    truncated: bool
    kind: ScoreKind = "label"
    subject: FieldSpan | None = None

    @property
    def title(self) -> str:
        """What is explained, in a few words."""
        if self.subject is None or self.kind == "answer":
            return self.label or ("(no answer)" if self.kind == "answer" else "(no text)")
        field, start, end = self.subject
        return f"{self.label} of \u201c{self.fields[field][start:end]}\u201d"

    @property
    def total(self) -> float:
        """The sum of the words' scores."""
        return sum(word.score for word in self.words)

    @property
    def gap(self) -> float:
        """What the sum lacks of the difference between the row's score and the baseline's."""
        return self.score - self.baseline_score - self.total

    @property
    def is_complete(self) -> bool:
        """Whether the gap is at most 1 % of the difference of scores, or at most 0.005."""
        return is_sum_complete(self.gap, self.score - self.baseline_score)

    def to_dict(self) -> dict[str, object]:
        """The explanation as plain data, for JSON.

        Returns:
            The fields, and ``total``, ``gap`` and ``complete``.
        """
        return {
            "method": self.method,
            "kind": self.kind,
            "label": self.label,
            "subject": self._describe_subject(),
            "score": self.score,
            "baseline": self.baseline,
            "baseline_score": self.baseline_score,
            "total": self.total,
            "gap": self.gap,
            "complete": self.is_complete,
            "steps": self.steps,
            "truncated": self.truncated,
            "fields": dict(self.fields),
            "words": [dict(vars(word)) for word in self.words],
        }

    def _describe_subject(self) -> dict[str, object] | None:
        if self.subject is None:
            return None
        field, start, end = self.subject
        return {**self.subject._asdict(), "text": self.fields[field][start:end]}

    def _repr_html_(self) -> str:
        return make_explanation_page([self])


def is_sum_complete(gap: float, difference: float) -> bool:
    """Whether words sum to the difference of scores, within 1 % of it or 0.005.

    Args:
        gap: what they lack.
        difference: of the scores.
    """
    return abs(gap) <= max(_RELATIVE_GAP * abs(difference), _ABSOLUTE_GAP)


@dataclass(frozen=True)
class Passage:
    """A part of a field's text, which is a word or stands between words.

    Args:
        text: of the part.
        score: of the word; None between words.
        share: of the largest score of the row, from -1 to 1.
        is_unread: whether it was cut off.
        is_subject: whether it is of the word, the span or the answer that is explained.
    """

    text: str
    score: float | None
    share: float
    is_unread: bool = False
    is_subject: bool = False


def list_passages(explanation: Explanation, field: str) -> list[Passage]:
    """The whole text of a field, divided at its words.

    Args:
        explanation: with the field.
        field: its name.

    Returns:
        The parts, which joined are the text.

    Examples:
        >>> from softprompt.analysis import ExplainedWord, Explanation
        >>> words = (ExplainedWord("text", 2, end=6, text="good", score=1.5),)
        >>> facts = {"label": "positive", "fields": {"text": "a good film"}, "words": words}
        >>> scores = {"score": -0.1, "baseline": "[MASK]", "baseline_score": -1.5, "steps": 16}
        >>> explanation = Explanation("integrated-gradients", truncated=False, **facts, **scores)
        >>> [(part.text, part.score) for part in list_passages(explanation, "text")]
        [('a ', None), ('good', 1.5), (' film', None)]
    """
    found = list[Passage]()
    for start, passage in _iterate_passages(explanation, field):
        found += _divide_at_subject(explanation, field, start=start, passage=passage)
    return found


def _iterate_passages(explanation: Explanation, field: str) -> Iterator[tuple[int, Passage]]:
    """The first character of each part, and the part."""
    text, at = explanation.fields[field], 0
    largest = _find_largest(explanation.words)
    for word in explanation.words:
        if word.field != field:
            continue
        if at < word.start:
            yield at, Passage(text[at : word.start], None, 0.0)
        yield word.start, Passage(word.text, word.score, word.score / largest)
        at = word.end
    if at < len(text):
        subject = explanation.subject  # its field is read whole
        is_unread = explanation.truncated and (subject is None or subject.field != field)
        yield at, Passage(text[at:], None, 0.0, is_unread=is_unread)


def _divide_at_subject(
    explanation: Explanation, field: str, *, start: int, passage: Passage
) -> Iterator[Passage]:
    """The parts of a passage before the subject, in it and behind it, as far as there are any."""
    if explanation.subject is None or explanation.subject.field != field:
        yield passage
        return
    bounds = [bound - start for bound in explanation.subject[1:]]
    first, last = (min(max(bound, 0), len(passage.text)) for bound in bounds)
    for begin, end in ((0, first), (first, last), (last, len(passage.text))):
        if begin < end:
            yield replace(passage, text=passage.text[begin:end], is_subject=begin == first < last)


def _find_largest(words: Sequence[ExplainedWord]) -> float:
    """The largest score without its sign; 1 if all are zero."""
    return max((abs(word.score) for word in words), default=0.0) or 1.0


def sort_words(explanation: Explanation) -> list[ExplainedWord]:
    """The words, those that moved the score most first.

    Args:
        explanation: with the words.
    """
    return sorted(explanation.words, key=lambda word: -abs(word.score))


def describe_score(explanation: Explanation) -> str:
    """The score that is explained, as a short text.

    Args:
        explanation: with the score.

    Examples:
        >>> from softprompt.analysis import ExplainedWord, Explanation
        >>> words = (ExplainedWord("text", 0, end=4, text="good", score=1.5),)
        >>> facts = {"label": "positive", "fields": {"text": "good"}, "words": words}
        >>> scores = {"score": -0.1, "baseline": "[MASK]", "baseline_score": -1.6, "steps": 16}
        >>> explanation = Explanation("integrated-gradients", truncated=False, **facts, **scores)
        >>> describe_score(explanation)
        'log p = -0.100 (p = 0.905)'
    """
    if explanation.kind == "number":
        return f"the number is {explanation.score:.3f}"
    of_what = {"answer": " of start and end", "span": " of its tags"}.get(explanation.kind, "")
    return f"log p{of_what} = {explanation.score:.3f} (p = {exp(explanation.score):.3g})"


def describe_sum(explanation: Explanation) -> str:
    """A sentence that says what the words' scores sum to, and what they should.

    Args:
        explanation: with the words.

    Returns:
        One or two sentences.
    """
    difference = explanation.score - explanation.baseline_score
    fact = (
        f"{describe_score(explanation)}; with {explanation.baseline} "
        f"{explanation.baseline_score:.3f}. The words sum to "
        f"{explanation.total:+.3f} of {difference:+.3f}"
    )
    if explanation.is_complete:
        return f"{fact}."
    fact += f"; {explanation.gap:+.3f} are missing."
    if explanation.method == "leave-one-out":
        return f"{fact} Words that mean something together, or repeat each other, do not sum up."
    return f"{fact} Raise the steps, now {explanation.steps}."


def make_explanation_page(explanations: Sequence[Explanation]) -> str:
    """Make one HTML page of explanations, without scripts and without external files.

    Args:
        explanations: of one row or several.

    Returns:
        The page.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, explain_prediction, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> page = make_explanation_page([explain_prediction(model, "a <good> film")])
        >>> page.splitlines()[0], "&lt;" in page, "<good>" in page
        ('<!doctype html>', True, False)
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("softprompt.analysis").joinpath("explanation.html").read_text(encoding="utf-8")
    variables = {
        "explanations": explanations,
        "methods": _METHODS,
        "subjects": _SUBJECTS,
        "list_passages": list_passages,
        "sort_words": sort_words,
        "describe_sum": describe_sum,
        "find_largest": _find_largest,
        "most_words": _MOST_WORDS,
        "describe_score": describe_score,
    }
    return environment.from_string(text).render(variables) + "\n"
