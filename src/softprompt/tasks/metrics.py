"""Metrics of labels and numbers: pure functions on lists.

The libraries are imported where they are used, since each takes about a second to import.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError

_OTHER = "other"  # the column of predictions that are not labels
_PAIR = 2


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
    check_pairs(truth, predicted)
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
    return tuple(
        make_class_scores(
            label,
            right=counts[at],
            rows=sum(counts),
            predicted=sum(row[at] for row in confusion.counts),
        )
        for at, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True))
    )


def make_class_scores(label: str, *, right: int, rows: int, predicted: int) -> ClassScores:
    """The scores of a label, from counts.

    Args:
        label: the label.
        right: the rows that have it and are predicted as such.
        rows: those that have it.
        predicted: those that are predicted as such.
    """
    precision, recall = right / max(1, predicted), right / max(1, rows)
    f1 = 2 * right / max(1, rows + predicted)
    return ClassScores(label, precision, recall, f1, rows, predicted)


def compute_calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], *, bins: int = 15
) -> float:
    """The expected calibration error: how far probabilities are from the share of right answers.

    Predictions are put into bins of equal width by their probability. The error is the mean over
    predictions of the distance between the mean probability and the share of right ones of their
    bin. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        probabilities: of the predicted label of each row, 0 to 1.
        right: whether it is the row's label.
        bins: their number.

    Returns:
        The error, 0 to 1.

    Raises:
        DataError: there are no rows, or not as many probabilities as rows.

    Examples:
        >>> round(compute_calibration_error([0.75, 0.75, 0.75, 0.75], [True, True, True, False]), 3)
        0.0
    """
    if not probabilities or len(probabilities) != len(right):
        msg = f"{len(probabilities)} probabilities of {len(right)} rows: give one for each row."
        raise DataError(msg)
    shares, hits = np.array(probabilities, dtype=float), np.array(right, dtype=float)
    if not np.isfinite(shares).all():
        return float("nan")
    # The upper end of a bin belongs to it.
    places = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=shares - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(shares))


def measure_abstention(abstained: Sequence[bool], right: Sequence[bool]) -> dict[str, float]:
    """How many rows are predicted, and the accuracy on these.

    Source: El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification".

    Args:
        abstained: whether the prediction of each row is withheld.
        right: whether it is right.

    Returns:
        ``coverage``, the share of rows that are predicted, and ``selective_accuracy``, that of
        right ones among them; 0 where none is predicted.
    """
    kept = [hit for withheld, hit in zip(abstained, right, strict=True) if not withheld]
    return {
        "coverage": len(kept) / len(abstained),
        "selective_accuracy": sum(kept) / max(1, len(kept)),
    }


def compute_multi_label_metrics(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    labels: Sequence[str],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """Metrics of rows that have any number of labels.

    Args:
        truth: the labels of each row.
        predicted: those that are predicted for it.
        labels: all labels.
        probabilities: of each row and label, in the order of ``labels``; None if not known.

    Returns:
        ``accuracy``, the share of rows all of whose labels are right and no others; ``micro_f1``,
        over all decisions; ``macro_f1``, the unweighted mean over labels, where a label without
        any true or predicted row counts as 0; ``samples_f1``, the mean over rows, where a row
        without labels that is predicted as such counts as 1; and with probabilities
        ``mean_average_precision``, the mean over labels that a row has. All from 0 to 1, as
        scikit-learn computes them.

    Raises:
        DataError: there are no rows, or not as many predictions as rows.
    """
    from sklearn.metrics import average_precision_score, f1_score  # noqa: PLC0415  # slow to import

    check_pairs(truth, predicted)
    wanted, found = (_mark_labels(rows, labels) for rows in (truth, predicted))
    metrics = {
        "accuracy": float((wanted == found).all(axis=1).mean()),
        "micro_f1": float(f1_score(wanted, found, average="micro", zero_division=0.0)),
        "macro_f1": float(f1_score(wanted, found, average="macro", zero_division=0.0)),
        "samples_f1": float(np.mean(score_label_sets(truth, predicted))),
    }
    present = wanted.any(axis=0)
    if probabilities is not None and present.any():
        shares = np.array(probabilities)[:, present]
        metrics["mean_average_precision"] = float(
            average_precision_score(wanted[:, present], shares, average="macro")
        )
    return metrics


def score_label_sets(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[float, ...]:
    """F1 of the labels of each row; 1 where there are none, and none are predicted.

    Args:
        truth: the labels of each row.
        predicted: those that are predicted for it.
    """
    scores = []
    for wanted, found in zip(truth, predicted, strict=True):
        both, total = len({*wanted} & {*found}), len({*wanted}) + len({*found})
        scores.append(2 * both / total if total else 1.0)
    return tuple(scores)


def compute_label_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, labels: Sequence[str]
) -> tuple[ClassScores, ...]:
    """The scores of each label of rows that have any number of labels.

    Args:
        truth: the labels of each row.
        predicted: those that are predicted for it.
        labels: all labels.
    """
    wanted, found = (_mark_labels(rows, labels) for rows in (truth, predicted))
    counts = zip(
        labels,
        (wanted & found).sum(axis=0).tolist(),
        wanted.sum(axis=0).tolist(),
        found.sum(axis=0).tolist(),
        strict=True,
    )
    return tuple(make_class_scores(n, right=r, rows=w, predicted=f) for n, r, w, f in counts)


def _mark_labels(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which row has which label, ``[rows, labels]``."""
    return np.array([[label in {*of_row} for label in labels] for of_row in rows], dtype=bool)


def compute_regression_metrics(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Metrics of predicted numbers; of several numbers a row, their means.

    Args:
        truth: the numbers of each row.
        predicted: those that are predicted for it.

    Returns:
        ``pearson`` and ``spearman`` (-1 to 1; 0 where one side does not vary), ``mae`` and
        ``rmse`` in the numbers' own unit, and ``r2`` (at most 1; 0 for the mean of the rows; 0
        where the rows do not vary).

    Raises:
        DataError: there are no rows, or not as many predictions as rows.
    """
    from scipy.stats import rankdata  # noqa: PLC0415  # slow to import

    check_pairs(truth, predicted)
    wanted, found = np.array(truth, dtype=float), np.array(predicted, dtype=float)
    errors = found - wanted
    ranks = [rankdata(values, axis=0) for values in (wanted, found)]
    return {
        "pearson": _correlate(wanted, found),
        "spearman": _correlate(*ranks),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.mean(np.sqrt((errors**2).mean(axis=0)))),
        "r2": float(np.mean(score_squares(truth, predicted))),
    }


def _correlate(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The mean over columns of Pearson's correlation; 0 where it is not defined."""
    a, b = (values - values.mean(axis=0) for values in (first, second))
    norms = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return float(np.mean(np.where(norms > 0, (a * b).sum(axis=0) / np.maximum(norms, 1e-300), 0.0)))


def score_squares(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """The share of each row in R²: 1 minus its squared error over the variance of the rows.

    Args:
        truth: the numbers of each row.
        predicted: those that are predicted for it.

    Returns:
        The shares, whose mean is R²; 0 where the rows do not vary.
    """
    wanted, found = np.array(truth, dtype=float), np.array(predicted, dtype=float)
    variance = wanted.var(axis=0)
    shares = 1 - (found - wanted) ** 2 / np.where(variance > 0, variance, 1.0)
    return tuple(np.where(variance > 0, shares, 0.0).mean(axis=1).tolist())


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


def check_pairs(truth: Sequence[object], predicted: Sequence[object]) -> None:
    """Check that there are as many predictions as rows, and some.

    Args:
        truth: of each row.
        predicted: for each row.

    Raises:
        DataError: there are not.
    """
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
