"""Explanations as one HTML page without scripts and without external files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from softprompt.analysis.explanation import ExplainedWord, Explanation

_METHODS = {
    "integrated-gradients": "integrated gradients",
    "leave-one-out": "leave-one-out",
}
# The most words of the table; the text has all of them.
_MOST_WORDS = 30


@dataclass(frozen=True)
class Passage:
    """A part of a field's text, which is a word or stands between words.

    Args:
        text: of the part.
        score: of the word; None between words.
        share: of the largest score of the row, from -1 to 1.
        is_unread: whether it was cut off.
    """

    text: str
    score: float | None
    share: float
    is_unread: bool = False


def list_passages(explanation: "Explanation", field: str) -> list[Passage]:
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
    return list(_iterate_passages(explanation, field))


def _iterate_passages(explanation: "Explanation", field: str) -> Iterator[Passage]:
    text, at = explanation.fields[field], 0
    largest = _find_largest(explanation.words)
    for word in explanation.words:
        if word.field != field:
            continue
        if at < word.start:
            yield Passage(text[at : word.start], None, 0.0)
        yield Passage(word.text, word.score, word.score / largest)
        at = word.end
    if at < len(text):
        yield Passage(text[at:], None, 0.0, is_unread=bool(explanation.truncated))


def _find_largest(words: Sequence["ExplainedWord"]) -> float:
    """The largest score without its sign; 1 if all are zero."""
    return max((abs(word.score) for word in words), default=0.0) or 1.0


def sort_words(explanation: "Explanation") -> list["ExplainedWord"]:
    """The words, those that moved the score most first.

    Args:
        explanation: with the words.
    """
    return sorted(explanation.words, key=lambda word: -abs(word.score))


def describe_sum(explanation: "Explanation") -> str:
    """A sentence that says what the words' scores sum to, and what they should.

    Args:
        explanation: with the words.

    Returns:
        One or two sentences.
    """
    difference = explanation.score - explanation.baseline_score
    fact = (
        f"log p = {explanation.score:.3f} (p = {exp(explanation.score):.3g}); with "
        f"{explanation.baseline} {explanation.baseline_score:.3f}. The words sum to "
        f"{explanation.total:+.3f} of {difference:+.3f}"
    )
    if explanation.is_complete:
        return f"{fact}."
    fact += f"; {explanation.gap:+.3f} are missing."
    if explanation.method == "leave-one-out":
        return f"{fact} Words that mean something together, or repeat each other, do not sum up."
    return f"{fact} Raise the steps, now {explanation.steps}."


def make_explanation_page(explanations: Sequence["Explanation"]) -> str:
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
        "list_passages": list_passages,
        "sort_words": sort_words,
        "describe_sum": describe_sum,
        "find_largest": _find_largest,
        "most_words": _MOST_WORDS,
        "exp": exp,
    }
    return environment.from_string(text).render(variables) + "\n"
