"""Metrics: pure functions on lists of text.

The libraries are imported where they are used, since each takes about a second to import.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.data.words import UNSPACED_SCRIPTS
from softprompt.errors import DataError

_OTHER = "other"  # the column of predictions that are not labels
_PAIR = 2
_WITHOUT_SPACES = re.compile(
    "([" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_SCRIPTS) + "])"
)


@dataclass(frozen=True)
class ConfusionMatrix:
    """The number of rows for each true and each predicted label.

    Args:
        labels: the true labels, one for each row of the matrix.
        predicted_labels: the columns: the labels, then ``other`` if there are predictions that are
            not labels (in brackets if a label has that name already).
        counts: one tuple for each true label.
    """

    labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def compute_classification_metrics(
    truth: Sequence[str],
    predicted: Sequence[str],
    *,
    labels: Sequence[str],
    is_ordinal: bool = False,
) -> dict[str, float]:
    """Metrics of predicted labels.

    Args:
        truth: the true label of each row.
        predicted: the prediction for each row. One that is not a label is wrong, and counts as
            a further class, ``other``, that no row belongs to.
        labels: all labels, at least two. Of two, the second is the positive one.
        is_ordinal: whether the labels are in their order.

    Returns:
        ``accuracy`` (0 to 1); ``macro_f1`` (0 to 1), the unweighted mean over ``labels``, where a
        label that is never predicted correctly scores 0, even if no row has it; ``matthews``
        (-1 to 1), 0 where it is not defined; for two labels ``f1`` (0 to 1) of the positive one;
        and for labels in an order ``quadratic_kappa`` (-1 to 1; Cohen 1968), of the rows that are
        predicted as a label, 0 where it is not defined.

    Raises:
        DataError: there are no rows, not as many predictions as rows, fewer than two labels, a
            label twice, or a true label that is not among them.
    """
    from sklearn.metrics import (  # noqa: PLC0415  # slow to import
        accuracy_score,
        f1_score,
        matthews_corrcoef,
    )

    table = compute_confusion_matrix(truth, predicted, labels=labels)
    # The cells, weighted with their counts, stand for the rows. They contain every class, so that
    # sklearn has no reason to warn when a test set is small.
    cells = [(i, j, n) for i, row in enumerate(table.counts) for j, n in enumerate(row)]
    true, answered, weight = zip(*cells, strict=True)
    classes = range(len(labels))
    f1 = f1_score(
        true,
        answered,
        labels=[*classes],
        average=None,
        sample_weight=weight,
        zero_division=0.0,
    )
    scores = {
        "accuracy": float(accuracy_score(true, answered, sample_weight=weight)),
        "macro_f1": float(f1.mean()),
        "matthews": float(matthews_corrcoef(true, answered, sample_weight=weight)),
    }
    if len(labels) == _PAIR:
        scores["f1"] = float(f1[1])
    if is_ordinal:
        scores["quadratic_kappa"] = _compute_quadratic_kappa(table)
    return scores


def _compute_quadratic_kappa(confusion: ConfusionMatrix) -> float:
    """One minus the squared errors of the rows, over those of labels drawn independently."""
    counts = np.array(confusion.counts, dtype=float)[:, : len(confusion.labels)]
    places = np.arange(len(confusion.labels))
    errors = (places[:, None] - places) ** 2
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / max(1.0, counts.sum())
    by_chance = float((errors * expected).sum())
    return 1 - float((errors * counts).sum()) / by_chance if by_chance else 0.0


def compute_confusion_matrix(
    truth: Sequence[str], predicted: Sequence[str], *, labels: Sequence[str]
) -> ConfusionMatrix:
    """Count the rows for each true and each predicted label.

    Args:
        truth: the true label of each row.
        predicted: the prediction for each row, a label or any other text.
        labels: all labels, at least two, in the order of the matrix.

    Returns:
        The matrix.

    Raises:
        DataError: as in `compute_classification_metrics`.
    """
    _check_pairs(truth, predicted)
    _check_labels(truth, labels)
    known, other = set(labels), _OTHER
    while other in known:
        other = f"({other})"
    answers = [label if label in known else other for label in predicted]
    columns = (*labels, other) if other in answers else (*labels,)
    count = Counter(zip(truth, answers, strict=True))
    rows = tuple(tuple(count[label, column] for column in columns) for label in labels)
    return ConfusionMatrix((*labels,), columns, rows)


@dataclass(frozen=True)
class ClassScores:
    """How well rows of one label are predicted.

    Args:
        label: the label.
        precision: the share of right ones among the rows that are predicted as this label; 0
            without such rows.
        recall: the share of right ones among the rows that have this label; 0 without such rows.
        f1: the harmonic mean of the two, or 0.
        rows: the number of rows that have this label.
        predicted: the number of rows that are predicted as this label.
    """

    label: str
    precision: float
    recall: float
    f1: float
    rows: int
    predicted: int


def compute_class_scores(confusion: ConfusionMatrix) -> tuple[ClassScores, ...]:
    """The scores of each label, in the order of the matrix.

    Args:
        confusion: of the rows.
    """
    scores = []
    for at, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        right, rows = counts[at], sum(counts)
        predicted = sum(row[at] for row in confusion.counts)
        precision, recall = right / max(1, predicted), right / max(1, rows)
        f1 = 2 * right / max(1, rows + predicted)
        scores.append(ClassScores(label, precision, recall, f1, rows, predicted))
    return tuple(scores)


@dataclass(frozen=True)
class Confusion:
    """Rows of one label that are predicted as another one.

    Args:
        label: the true label.
        predicted: the predicted one, or ``other``.
        rows: their number.
        share: of the rows that have the true label.
    """

    label: str
    predicted: str
    rows: int
    share: float


def list_confusions(confusion: ConfusionMatrix) -> tuple[Confusion, ...]:
    """All pairs of labels that are confused, the commonest first.

    Args:
        confusion: of the rows.
    """
    pairs = [
        Confusion(label, predicted, count, count / sum(counts))
        for label, counts in zip(confusion.labels, confusion.counts, strict=True)
        for predicted, count in zip(confusion.predicted_labels, counts, strict=True)
        if count and predicted != label
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.rows, -pair.share)))


def is_right(truth: str, predicted: str, *, is_label: bool) -> bool:
    """Whether a prediction counts as right in ``accuracy`` or ``exact_match``.

    Args:
        truth: the target.
        predicted: the prediction.
        is_label: whether it is one of a list of labels or choices; else, space around a text does
            not count.
    """
    return truth == predicted if is_label else truth.strip() == predicted.strip()


def compute_generation_metrics(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Metrics of generated text, with one reference for each row.

    Args:
        truth: the references.
        predicted: the generated texts.

    Returns:
        ``exact_match`` (0 to 1), the share of rows that are equal except for surrounding space;
        ``bleu`` and ``chrf`` (0 to 100), of the whole corpus, as sacrebleu counts by default;
        ``rouge1``, ``rouge2`` and ``rougeL`` (0 to 1), F-measures averaged over rows, as
        rouge_score counts without stemming. Each character is a word in scripts that put no spaces
        between words, as sacrebleu counts Chinese, and ROUGE takes letters of every script, of
        which rouge_score takes a to z alone.

    Raises:
        DataError: there are no rows, or not as many texts as references.
    """
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  # slow to import
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415  # slow to import
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # slow to import

    _check_pairs(truth, predicted)
    pairs = [*zip(truth, predicted, strict=True)]
    equal = sum(is_right(reference, text, is_label=False) for reference, text in pairs)
    spaced = [[_space_characters(text) for text in texts] for texts in (predicted, truth)]
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_WordTokenizer())
    scored = [rouge.score(reference, text) for reference, text in pairs]
    return {
        "exact_match": equal / len(pairs),
        "bleu": float(BLEU().corpus_score(spaced[0], [spaced[1]]).score),
        "chrf": float(CHRF().corpus_score([*predicted], [[*truth]]).score),
    } | {
        name: sum(float(row[name].fmeasure) for row in scored) / len(scored)
        for name in ("rouge1", "rouge2", "rougeL")
    }


def _space_characters(text: str) -> str:
    """Put spaces around each character of a script that has none between its words."""
    return _WITHOUT_SPACES.sub(r" \1 ", text)


class _WordTokenizer:
    """ROUGE's words: letters, marks and digits of any script; of ASCII, rouge_score's."""

    def tokenize(self, text: str) -> list[str]:
        spaced = _space_characters(text.lower())
        kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in spaced)
        return "".join(kept).split()


def score_chrf(truth: Sequence[str], predicted: Sequence[str]) -> tuple[float, ...]:
    """The similarity of each generated text to its reference: sacrebleu's sentence chrF, 0 to 1.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Args:
        truth: the references.
        predicted: the generated texts.

    Raises:
        DataError: there are no rows, or not as many texts as references.
    """
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # slow to import

    _check_pairs(truth, predicted)
    metric = CHRF()
    return tuple(
        round(float(metric.sentence_score(text, [reference]).score) / 100, 6)
        for reference, text in zip(truth, predicted, strict=True)
    )


def compute_majority_accuracy(train_labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """The accuracy (0 to 1) of always predicting the commonest label of the training data.

    Of equally common labels the first in alphabetical order is taken, so that the order of the
    rows does not matter.

    Args:
        train_labels: of the training rows.
        test_labels: of the rows to score.

    Raises:
        DataError: either list is empty.
    """
    for name, rows in {"training": train_labels, "test": test_labels}.items():
        if not rows:
            msg = f"there are no {name} labels to compare with. Give at least one row."
            raise DataError(msg)
    count = Counter(train_labels)
    commonest = min(count, key=lambda label: (-count[label], label))
    return sum(label == commonest for label in test_labels) / len(test_labels)


def _check_pairs(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted):
        msg = f"{len(truth)} true answers and {len(predicted)} predicted ones: give one for each."
        raise DataError(msg)
    if not truth:
        msg = "there are no rows to score. Give at least one."
        raise DataError(msg)


def _check_labels(truth: Sequence[str], labels: Sequence[str]) -> None:
    if len(set(labels)) != len(labels) or len(labels) < _PAIR:
        msg = f"the labels are {[*labels]}. At least two are needed, all of them different."
        raise DataError(msg)
    unknown = sorted(set(truth) - set(labels))
    if unknown:
        msg = (
            f"the true labels {', '.join(map(repr, unknown[:5]))} are not among the labels "
            f"{', '.join(map(repr, labels[:20]))}. Add them, or leave out their rows."
        )
        raise DataError(msg)
