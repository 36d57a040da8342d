"""Any number of labels a row: their text form, their loss, their thresholds and their scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from softprompt.errors import DataError, format_unknown
from softprompt.tasks.metrics import (
    compute_label_scores,
    compute_multi_label_metrics,
    score_label_sets,
)
from softprompt.tasks.objectives import (
    Prediction,
    ScoreObjective,
    Scores,
    SummedLoss,
    TargetValue,
    average_probabilities,
    list_target,
    parse_list,
)

# The threshold of a label until validation rows choose another one.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelSetPrediction(Prediction):
    """The prediction of several labels for a row.

    Args:
        labels: those whose probability reaches their threshold; perhaps none. ``label`` holds them
            as text, ``|`` between them; ``probabilities`` is each label's own.

    Examples:
        >>> found = LabelSetPrediction("a|b", {"a": 0.9, "b": 0.6, "c": 0.2}, labels=("a", "b"))
        >>> found.labels
        ('a', 'b')
    """

    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSets(ScoreObjective):
    """Any number of labels: binary cross-entropy, and the labels that reach their threshold.

    Args:
        labels: in the order of the scores.
        thresholds: the least probability of each label that is predicted.
        weights: how much a row that has a label counts in that label's loss; None: as much as one
            that does not.
        smoothing: the share by which targets 0 and 1 are drawn to 0.5 in training.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    has_probabilities: ClassVar[bool] = True
    detail_names: ClassVar[tuple[str, ...]] = ("labels",)

    @property
    def num_outputs(self) -> int:
        """One for each label."""
        return len(self.labels)

    @property
    def measure(self) -> str:
        """The mean F1 of the rows' labels."""
        return "samples_f1"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of `compute_multi_label_metrics`."""
        return ("accuracy", "micro_f1", "macro_f1", "samples_f1", "mean_average_precision")

    def read_target(self, text: str) -> tuple[int, ...]:
        """The indices of a row's labels."""
        labels = parse_label_set(text)
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            raise DataError(format_unknown("label", unknown[0], options=self.labels))
        return tuple(sorted({self.labels.index(label) for label in labels}))

    def sum_loss(
        self,
        scores: Float[Tensor, "B C"],
        targets: Sequence[TargetValue],
        *,
        training: bool = False,
    ) -> SummedLoss:
        """Binary cross-entropy of rows, each the mean over the labels.

        Args:
            scores: logits of the labels.
            targets: the indices of each row's labels.
            training: whether the targets are smoothed.
        """
        wanted = torch.zeros_like(scores)
        for row, of_row in enumerate(targets):
            wanted[row, [*list_target(of_row)]] = 1.0
        if training and self.smoothing:
            wanted = wanted * (1 - self.smoothing) + self.smoothing / 2
        weights = None if self.weights is None else scores.new_tensor(self.weights)
        losses = F.binary_cross_entropy_with_logits(
            scores, wanted, pos_weight=weights, reduction="none"
        )
        return SummedLoss(losses.mean(dim=1).sum(), len(targets))

    def to_predictions(self, scores: Float[Tensor, "B C"]) -> list[Prediction]:
        """The labels of each row and the probability of each label."""
        return [
            self._choose(dict(zip(self.labels, row, strict=True)))
            for row in scores.sigmoid().tolist()
        ]

    def _choose(self, probabilities: Mapping[str, float]) -> Prediction:
        pairs = zip(self.labels, self.thresholds, strict=True)
        labels = tuple(label for label, least in pairs if probabilities[label] >= least)
        return LabelSetPrediction(format_label_set(labels), probabilities, labels=labels)

    def average(self, predictions: Sequence[Prediction]) -> Prediction:
        """The labels whose mean probability reaches their threshold."""
        return self._choose(average_probabilities(predictions))

    def sum_averaged_loss(
        self, scores: Float[Tensor, "M B C"], targets: Sequence[TargetValue]
    ) -> SummedLoss:
        """The loss of the mean probabilities."""
        logits = torch.logit(scores.double().sigmoid().mean(dim=0), eps=1e-15)
        return self.sum_loss(logits.to(scores.dtype), targets)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """F1 over all decisions, labels and rows, and the mean average precision."""
        wanted = [parse_label_set(text) for text in truth]
        found = [parse_label_set(prediction.label) for prediction in predictions]
        shares = [[p.probabilities[n] for n in self.labels] for p in predictions if p.probabilities]
        metrics = compute_multi_label_metrics(
            wanted,
            found,
            labels=self.labels,
            probabilities=shares if len(shares) == len(found) else None,
        )
        return Scores(metrics, None, compute_label_scores(wanted, found, labels=self.labels))

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """F1 of each row's labels."""
        return score_label_sets(
            [parse_label_set(text) for text in truth], [parse_label_set(text) for text in answers]
        )

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """A row counts for each of its labels."""
        return Counter(label for text in truth for label in parse_label_set(text))

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The set of labels with the highest mean F1, of the most frequent labels."""
        rows, count = [parse_label_set(text) for text in truth], self.count_labels(truth)
        order = sorted(count, key=lambda label: (-count[label], label))
        sets = [tuple(order[:size]) for size in range(len(order) + 1)]
        scores = [sum(score_label_sets(rows, [found] * len(rows))) for found in sets]
        return format_label_set(sets[scores.index(max(scores))])

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether the labels are the same, in any order."""
        return {*parse_label_set(truth)} == {*parse_label_set(answer)}


def parse_label_set(text: str) -> tuple[str, ...]:
    """The labels in a cell: a JSON list, or labels with ``|`` between them; blank: none.

    Args:
        text: of the cell.

    Raises:
        DataError: it is not a list of texts and numbers.

    Examples:
        >>> parse_label_set("sport| politics"), parse_label_set('["a|b", 3]'), parse_label_set("")
        (('sport', 'politics'), ('a|b', '3'), ())
    """
    if not text.lstrip().startswith("["):
        parts = [part.strip() for part in text.split("|")]
        return tuple(dict.fromkeys(part for part in parts if part))
    items = parse_list(text)
    if any(not isinstance(item, str | int | float) or item == "" for item in items):
        msg = f'the labels {text[:60]!r} are not a list of texts. Write ["one", "two"] or one|two.'
        raise DataError(msg)
    return tuple(dict.fromkeys(item if isinstance(item, str) else str(item) for item in items))


def format_label_set(labels: Sequence[str]) -> str:
    """Labels as the text of a cell, which `parse_label_set` reads.

    Args:
        labels: of a row.
    """
    if any("|" in x or x != x.strip() for x in labels) or (labels and labels[0].startswith("[")):
        return json.dumps([*labels], ensure_ascii=False)
    return "|".join(labels)
