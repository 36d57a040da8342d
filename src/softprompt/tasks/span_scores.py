"""Scores of predicted spans and tags."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from softprompt.data.tag_schemes import TagScheme, TagSpan, read_spans, read_spans_leniently
from softprompt.errors import DataError

SpanMode: TypeAlias = Literal["strict", "lenient"]
_READERS: Mapping[SpanMode, Callable[..., tuple[TagSpan, ...]]] = {
    "strict": read_spans,
    "lenient": read_spans_leniently,
}


@dataclass(frozen=True)
class SpanScore:
    """How well spans are found. A span is right if its type and both of its ends are.

    Args:
        label: their type, or the name of an average.
        precision: the share of right ones among the predicted spans; 0 without any.
        recall: the share of the true spans that were found; 0 without any.
        f1: the harmonic mean of the two, or 0; of an average over types, the average of theirs.
        support: the number of true spans.
        predicted: the number of predicted spans.
        correct: the number of right ones.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    correct: int


@dataclass(frozen=True)
class SpanScores:
    """The scores of spans, by type and over all types.

    Args:
        types: of each type that is true or predicted somewhere, in alphabetical order.
        micro: of all spans together.
        macro: the mean over the types.
        weighted: the mean over the types, weighted with their true spans.
    """

    types: tuple[SpanScore, ...]
    micro: SpanScore
    macro: SpanScore
    weighted: SpanScore


def score_spans(
    truth: Sequence[Iterable[TagSpan]], predicted: Sequence[Iterable[TagSpan]]
) -> SpanScores:
    """Compare predicted spans with the true ones.

    Args:
        truth: the true spans of each row.
        predicted: the predicted ones.

    Returns:
        The scores, which are those of seqeval (version 1.2.2) with ``zero_division=0``; without any
        spans all are 0.

    Raises:
        DataError: there are not as many predictions as rows.

    Examples:
        >>> truth = [[TagSpan("PER", 0, 2), TagSpan("LOC", 3, 4)]]
        >>> score_spans(truth, [[TagSpan("PER", 0, 2), TagSpan("LOC", 2, 4)]]).micro.f1
        0.5
    """
    _check_counts(truth, predicted, what="rows")
    true = {(row, span) for row, spans in enumerate(truth) for span in spans}
    found = {(row, span) for row, spans in enumerate(predicted) for span in spans}
    support, answered, right = (
        Counter(span.label for _, span in spans) for spans in (true, found, true & found)
    )
    types = tuple(
        _make_score(label, support[label], answered[label], right[label])
        for label in sorted({*support, *answered})
    )
    micro = _make_score("micro", support.total(), answered.total(), right.total())
    return SpanScores(
        types,
        micro,
        _average(types, micro, label="macro", weights=None),
        _average(types, micro, label="weighted", weights=[score.support for score in types]),
    )


def score_tags(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: TagScheme,
    mode: SpanMode = "strict",
) -> SpanScores:
    """Compare the spans of predicted tags with those of the true ones.

    Args:
        truth: the true tags of the words of each row.
        predicted: the predicted ones.
        scheme: of both.
        mode: what counts as a span. ``strict``: what is written as the scheme says, as seqeval's
            strict mode. ``lenient``: a span may begin and end without the prefix for it, as
            seqeval's default mode and the script ``conlleval``. They differ only for tags that are
            not possible in the scheme.

    Returns:
        The scores.

    Raises:
        DataError: rows or words have no prediction, or a tag is not one of the scheme.

    Examples:
        >>> tags = [["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]]
        >>> score_tags(*tags, scheme="BIO").micro.f1
        0.0
        >>> score_tags(*tags, scheme="BIO", mode="lenient").micro.f1
        1.0
    """
    _check_words(truth, predicted)
    read = _READERS[mode]
    return score_spans(
        [read(tags, scheme=scheme) for tags in truth],
        [read(tags, scheme=scheme) for tags in predicted],
    )


def compute_tag_accuracy(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> float:
    """The share of words whose tag is right, over all rows.

    Args:
        truth: the true tags of the words of each row.
        predicted: the predicted ones.

    Returns:
        The share, 0 to 1.

    Raises:
        DataError: rows or words have no prediction, or there are no words.

    Examples:
        >>> compute_tag_accuracy([["DET", "NOUN"], ["VERB"]], [["DET", "VERB"], ["VERB"]])
        0.6666666666666666
    """
    _check_words(truth, predicted)
    pairs = [
        pair for rows in zip(truth, predicted, strict=True) for pair in zip(*rows, strict=True)
    ]
    if not pairs:
        msg = "there are no words to compare. Give at least one row with words."
        raise DataError(msg)
    return sum(true == answer for true, answer in pairs) / len(pairs)


def _check_words(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    _check_counts(truth, predicted, what="rows")
    for row, (true, answers) in enumerate(zip(truth, predicted, strict=True)):
        _check_counts(true, answers, what=f"words of row {row}")


def _check_counts(truth: Sequence[object], predicted: Sequence[object], *, what: str) -> None:
    if len(truth) != len(predicted):
        msg = (
            f"there are {len(predicted)} predictions for {len(truth)} {what}. Give one prediction "
            "for each."
        )
        raise DataError(msg)


def _make_score(label: str, support: int, predicted: int, correct: int) -> SpanScore:
    precision = correct / predicted if predicted else 0.0
    recall = correct / support if support else 0.0
    # In this order of operations seqeval's last digit is the same.
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return SpanScore(label, precision, recall, f1, support, predicted, correct)


def _average(
    types: Sequence[SpanScore], total: SpanScore, *, label: str, weights: Sequence[int] | None
) -> SpanScore:
    """The mean of the types' scores, of which the counts are those of all spans."""
    if not types or (weights is not None and not any(weights)):
        precision, recall, f1 = 0.0, 0.0, 0.0
    else:
        columns = zip(*((score.precision, score.recall, score.f1) for score in types), strict=True)
        precision, recall, f1 = (float(np.average(column, weights=weights)) for column in columns)
    return replace(total, label=label, precision=precision, recall=recall, f1=f1)
