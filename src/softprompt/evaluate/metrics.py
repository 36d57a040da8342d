"""How good the answers are: pure functions on lists of text.

The libraries are imported where they are used: each takes a second that other commands need not
wait for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.errors import DataError

_OTHER = "other"
_PAIR = 2


@dataclass(frozen=True)
class Confusion:
    """How often each label was answered with what.

    Args:
        labels: the rows, which are the true labels.
        predicted_labels: the columns; the labels, and ``other`` behind them if something was
            answered that is no label (in brackets if a label has that name already).
        counts: test rows, one tuple a true label.
    """

    labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def classification(
    truth: Sequence[str], predicted: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
    """Score answers that should be one of the labels.

    Args:
        truth: the true label of each row.
        predicted: the answer to each row. One that is no label is wrong, and counts as one more
            class, ``other``, which nothing truly belongs to.
        labels: all labels, at least two. Of two, the second one is the positive one.

    Returns:
        ``accuracy`` (0 to 1); ``macro_f1`` (0 to 1), the plain mean over ``labels``, where a label
        without a hit scores 0, also if no row has it; ``matthews`` (-1 to 1), 0 where it is not
        defined; and for two labels ``f1`` (0 to 1) of the positive one.

    Raises:
        DataError: no rows, not as many answers as rows, fewer than two labels or one of them twice,
            or a true label that is not among them.
    """
    from sklearn.metrics import (  # noqa: PLC0415  # slow to import
        accuracy_score,
        f1_score,
        matthews_corrcoef,
    )

    table = confusion(truth, predicted, labels=labels)
    # The cells, weighted with their counts, are the rows; but sklearn sees every class in them and
    # so has nothing to warn of when a test set is small.
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
    return scores | ({"f1": float(f1[1])} if len(labels) == _PAIR else {})


def confusion(
    truth: Sequence[str], predicted: Sequence[str], *, labels: Sequence[str]
) -> Confusion:
    """Count how often each label was answered with what.

    Args:
        truth: the true label of each row.
        predicted: the answer to each row, a label or any other text.
        labels: all labels, in the order wanted, at least two.

    Raises:
        DataError: as for `classification`.
    """
    _check_pairs(truth, predicted)
    _check_labels(truth, labels)
    known, other = set(labels), _OTHER
    while other in known:
        other = f"({other})"
    answers = [answer if answer in known else other for answer in predicted]
    columns = (*labels, other) if other in answers else (*labels,)
    count = Counter(zip(truth, answers, strict=True))
    rows = tuple(tuple(count[label, column] for column in columns) for label in labels)
    return Confusion((*labels,), columns, rows)


def generation(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Score written text against one reference a row.

    Args:
        truth: the references.
        predicted: the answers.

    Returns:
        ``exact_match`` (0 to 1), the share of rows that agree in all but surrounding space;
        ``bleu`` and ``chrf`` (0 to 100), of the whole corpus, as sacrebleu counts by default;
        ``rouge1``, ``rouge2`` and ``rougeL`` (0 to 1), F-measures averaged over rows, as
        rouge_score counts without stemming. ROUGE sees only a to z and 0 to 9, so text in other
        scripts scores 0 there: look at ``chrf``.

    Raises:
        DataError: no rows, or not as many answers as references.
    """
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  # slow to import
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415  # likewise
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # likewise

    _check_pairs(truth, predicted)
    pairs = [*zip(truth, predicted, strict=True)]
    equal = sum(wanted.strip() == answer.strip() for wanted, answer in pairs)
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scored = [rouge.score(wanted, answer) for wanted, answer in pairs]
    return {
        "exact_match": equal / len(pairs),
        "bleu": float(BLEU().corpus_score([*predicted], [[*truth]]).score),
        "chrf": float(CHRF().corpus_score([*predicted], [[*truth]]).score),
    } | {
        name: sum(float(row[name].fmeasure) for row in scored) / len(scored)
        for name in ("rouge1", "rouge2", "rougeL")
    }


def nearness(truth: Sequence[str], predicted: Sequence[str]) -> tuple[float, ...]:
    """How near each written text comes to its reference: sacrebleu's sentence chrF, 0 to 1.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Raises:
        DataError: no rows, or not as many answers as references.
    """
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # slow to import

    _check_pairs(truth, predicted)
    pairs, counted = zip(truth, predicted, strict=True), CHRF()
    return tuple(
        round(float(counted.sentence_score(answer, [wanted]).score) / 100, 6)
        for wanted, answer in pairs
    )


def majority(train_labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """The accuracy (0 to 1) of always answering the commonest label of the training data.

    Of labels that are equally common the first in alphabetical order is taken, so that the order
    of the rows decides nothing.

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
    strange = sorted(set(truth) - set(labels))
    if strange:
        msg = (
            f"the true labels {', '.join(map(repr, strange[:5]))} are not among the labels "
            f"{', '.join(map(repr, labels[:20]))}. Add them, or leave out their rows."
        )
        raise DataError(msg)
