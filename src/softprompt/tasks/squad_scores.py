"""Scores of extractive question answering, as SQuAD's evaluation scripts compute them.

Rajpurkar et al. 2016 (version 1.1) and 2018 (version 2.0, with questions that have no answer).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from softprompt.errors import DataError

SquadVersion: TypeAlias = Literal["1.1", "2.0"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """An answer in small letters, without ASCII punctuation, articles and further white space.

    Args:
        text: an answer.

    Returns:
        The text that is compared.

    Examples:
        >>> normalize_answer("  The U.S.  Army's")
        'us armys'
    """
    without = _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION))
    return " ".join(without.split())


def choose_squad_version(references: Sequence[Sequence[str]]) -> SquadVersion:
    """The version of a data set: 2.0 if a question has no answer.

    Args:
        references: the right answers of each row.
    """
    return "1.1" if all(references) else "2.0"


def score_exact_match(
    prediction: str, references: Sequence[str], *, version: SquadVersion
) -> float:
    """Whether a prediction is one of the right answers, 1 or 0.

    Args:
        prediction: a text; empty for no answer.
        references: the right answers; none if the question has no answer.
        version: of the script.

    Returns:
        The best score over the right answers.

    Examples:
        >>> score_exact_match("the Eiffel tower", ["Eiffel Tower", "it"], version="1.1")
        1.0
    """
    return _find_best(_match, prediction, references, version=version)


def score_answer_f1(prediction: str, references: Sequence[str], *, version: SquadVersion) -> float:
    """F1 of the words of a prediction, from 0 to 1.

    Args:
        prediction: a text; empty for no answer.
        references: the right answers; none if the question has no answer.
        version: of the script. If neither text has a word but articles, 1.1 says 0 and 2.0 says 1.

    Returns:
        The best score over the right answers.

    Examples:
        >>> round(score_answer_f1("tower of Paris", ["the Eiffel tower"], version="1.1"), 3)
        0.4
    """

    def score(words: str, reference: str) -> float:
        return _compute_word_f1(words.split(), reference.split(), version=version)

    return _find_best(score, prediction, references, version=version)


def _find_best(
    score: Callable[[str, str], float],
    prediction: str,
    references: Sequence[str],
    *,
    version: SquadVersion,
) -> float:
    normalized = [normalize_answer(reference) for reference in references]
    if version == "2.0":
        normalized = [reference for reference in normalized if reference] or [""]
    if not normalized:
        msg = (
            "a question has no right answer, which the scores of SQuAD 1.1 do not know. Use those "
            "of version 2.0."
        )
        raise DataError(msg)
    words = normalize_answer(prediction)
    return max(score(words, reference) for reference in normalized)


def _match(prediction: str, reference: str) -> float:
    return float(prediction == reference)


def _compute_word_f1(
    predicted: Sequence[str], reference: Sequence[str], *, version: SquadVersion
) -> float:
    if version == "2.0" and not (predicted and reference):
        return float(predicted == reference)
    common = sum((Counter(predicted) & Counter(reference)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def compute_squad_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Exact match and F1 over rows, from 0 to 1; the scripts write them in percent.

    Args:
        predictions: one for each row; empty for no answer.
        references: the right answers of each row; if a row has none, those of SQuAD 2.0 are
            computed: also over the rows with an answer, and the share of the others that were
            left without one.

    Returns:
        The metrics by name.

    Raises:
        DataError: there are no rows, or not one prediction for each.

    Examples:
        >>> compute_squad_metrics(["in Rome", ""], [["Rome"], []])["unanswerable_exact_match"]
        1.0
    """
    if not predictions or len(predictions) != len(references):
        msg = (
            f"{len(predictions)} predictions and {len(references)} rows cannot be compared. Give "
            "one prediction for each row, and at least one."
        )
        raise DataError(msg)
    version = choose_squad_version(references)
    pairs = [*zip(predictions, references, strict=True)]
    exact = [score_exact_match(*pair, version=version) for pair in pairs]
    f1 = [score_answer_f1(*pair, version=version) for pair in pairs]
    metrics = {"exact_match": _average(exact), "f1": _average(f1)}
    if version == "2.0":
        with_answer = [at for at, of_row in enumerate(references) if of_row]
        without = [at for at, of_row in enumerate(references) if not of_row]
        if with_answer:
            metrics["answerable_exact_match"] = _average([exact[at] for at in with_answer])
            metrics["answerable_f1"] = _average([f1[at] for at in with_answer])
        metrics["unanswerable_exact_match"] = _average([exact[at] for at in without])
    return metrics


def _average(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class NullThreshold:
    """The threshold from which on a question gets no answer.

    Args:
        value: a row whose null score exceeds the score of its best span by more than it has no
            answer.
        score: the mean score of the rows that it was chosen on.

    Examples:
        >>> NullThreshold(0.5, score=0.75).value
        0.5
    """

    value: float
    score: float


def choose_null_threshold(
    differences: Sequence[float],
    predictions: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    metric: Literal["exact_match", "f1"] = "f1",
) -> NullThreshold:
    """Choose the threshold with the best mean score, as ``find_best_thresh`` of SQuAD 2.0 does.

    Of several that are equally good it is the lowest. Rows of one difference are answered together;
    the script counts each of them alone, which is a score that no threshold reaches.

    Args:
        differences: for each row the null score less the score of its best span.
        predictions: the text of the best span of each row.
        references: the right answers of each row; none if it has no answer.
        metric: whose mean is the score.

    Returns:
        The threshold: the difference of the last row that is answered; below all differences if it
        is best to answer none.

    Raises:
        DataError: there are no rows, or not one of each for every row.

    Examples:
        >>> references = [["Rome"], [], ["Paris"]]
        >>> choose_null_threshold([-2.0, 3.0, 1.0], ["Rome", "it", "Paris"], references=references)
        NullThreshold(value=1.0, score=1.0)
    """
    if not differences or not len(differences) == len(predictions) == len(references):
        msg = (
            f"{len(differences)} differences, {len(predictions)} predictions and "
            f"{len(references)} rows do not go together. Give one of each for every row, and at "
            "least one."
        )
        raise DataError(msg)
    score = score_exact_match if metric == "exact_match" else score_answer_f1
    gains = [
        score(text, of_row, version="2.0") if of_row else -float(bool(text))
        for text, of_row in zip(predictions, references, strict=True)
    ]
    total = best = float(sum(not of_row for of_row in references))
    threshold = min(differences) - 1.0
    order = sorted(range(len(differences)), key=differences.__getitem__)
    for difference, group in groupby(order, key=differences.__getitem__):
        total += sum(gains[at] for at in group)
        if total > best:
            best, threshold = total, difference
    return NullThreshold(threshold, best / len(differences))
