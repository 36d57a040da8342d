"""What a task is asked for: how targets are read, and how scores become a loss and predictions.

An objective knows no backbone. `SingleLabel` is one of several labels, `FreeText` that of text
generation; `softprompt.tasks.label_sets` and `softprompt.tasks.regression` have the other kinds of
transformers' ``problem_type``.

Targets and predictions have a text form each, in which files, comparisons and records hold them.
"""

import ast
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from softprompt.errors import DataError, format_unknown
from softprompt.tasks.metrics import (
    ClassScores,
    ConfusionMatrix,
    compute_calibration_error,
    compute_class_scores,
    compute_classification_metrics,
    compute_confusion_matrix,
    measure_abstention,
)
from softprompt.tasks.text_metrics import compute_generation_metrics, score_chrf

# The metrics that are better the lower they are.
MINIMIZED = ("loss", "ece", "mae", "rmse")
TargetValue: TypeAlias = int | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SummedLoss:
    """A loss summed over scored tokens, and their number, so that parts of a batch add up.

    Args:
        total: the summed loss, with its graph.
        count: the number of scored tokens; for classification and regression, of rows.
    """

    total: Float[Tensor, ""]
    count: int


@dataclass(frozen=True)
class Prediction:
    """The prediction for a row. Tasks whose predictions have more fields extend it.

    Args:
        label: the likeliest label, or the generated text; of other tasks, the prediction as text.
        probabilities: of every label, summing to one; empty for text.
        token_ids: the generated tokens, without the end token; None for a label.
        abstained: whether the probability of the label is below ``task.abstain_below``.

    Examples:
        >>> prediction = Prediction("positive", {"negative": 0.25, "positive": 0.75})
        >>> prediction.probabilities[prediction.label]
        0.75
    """

    label: str
    probabilities: Mapping[str, float]
    token_ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    abstained: bool = False

    @property
    def details(self) -> dict[str, Any]:
        """What JSON has of it besides label and probabilities: the fields that its task adds."""
        added = fields(self)[len(fields(Prediction)) :]
        found = {f.name: _to_data(vars(self)[f.name]) for f in added}
        return found | ({"abstained": True} if self.abstained else {})


def _to_data(value: object) -> object:
    """A value as JSON has it; a record becomes a mapping."""
    if isinstance(value, tuple):
        return tuple(map(_to_data, value))
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


@dataclass(frozen=True)
class Scores:
    """How well rows are predicted.

    Args:
        metrics: by name.
        confusion: true labels against predicted ones; None where rows have no single label.
        classes: precision, recall and F1 of each label; empty without labels.
    """

    metrics: Mapping[str, float]
    confusion: ConfusionMatrix | None = None
    classes: tuple[ClassScores, ...] = ()


class Objective(ABC):
    """What a task is asked for, apart from any backbone.

    Attributes:
        labels: that can be predicted; empty if there are none.
        loss_unit: what the loss is a mean over.
        has_probabilities: whether predictions have probabilities of all labels.
        detail_names: the names of what `Prediction.details` adds to every prediction.
    """

    labels: tuple[str, ...]
    loss_unit: ClassVar[str] = "row"
    has_probabilities: ClassVar[bool] = False
    detail_names: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def measure(self) -> str:
        """The name of the score of one row, by which variants are compared."""

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of validation rows, without the loss."""

    @abstractmethod
    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """Score the predictions of all rows.

        Args:
            truth: the target of each row as text.
            predictions: for the rows.
        """

    @abstractmethod
    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """The score of each row, whose mean is `measure`.

        Args:
            truth: the target of each row as text.
            answers: the prediction of each row as text.
        """

    @abstractmethod
    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """The number of rows that have each label; empty without labels.

        Args:
            truth: the targets of rows.
        """

    @abstractmethod
    def choose_constant(self, truth: Sequence[str]) -> str:
        """The answer that is best for all rows without a look at them, as text.

        Args:
            truth: the targets of the training rows.
        """

    @abstractmethod
    def is_right(self, truth: str, answer: str) -> bool:
        """Whether a prediction counts as right.

        Args:
            truth: the target as text.
            answer: the prediction as text.
        """


class ScoreObjective(Objective):
    """An objective whose predictions are read from scores, one for each output of a head."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C, the number of scores of a row."""

    @abstractmethod
    def read_target(self, text: str) -> TargetValue:
        """Read a row's target.

        Args:
            text: of the target's cell.

        Raises:
            DataError: it is not a target of this objective.
        """

    @abstractmethod
    def sum_loss(
        self,
        scores: Float[Tensor, "B C"],
        targets: Sequence[TargetValue],
        *,
        training: bool = False,
    ) -> SummedLoss:
        """The loss of rows.

        Args:
            scores: of each row.
            targets: of each row.
            training: whether the targets are smoothed.
        """

    @abstractmethod
    def to_predictions(self, scores: Float[Tensor, "B C"]) -> list[Prediction]:
        """The predictions for rows.

        Args:
            scores: of each row.
        """

    @abstractmethod
    def average(self, predictions: Sequence[Prediction]) -> Prediction:
        """The mean of several prompts' predictions for one row.

        Args:
            predictions: at least one.
        """

    @abstractmethod
    def sum_averaged_loss(
        self, scores: Float[Tensor, "M B C"], targets: Sequence[TargetValue]
    ) -> SummedLoss:
        """The loss of the mean prediction of several prompts.

        Args:
            scores: of each prompt and row.
            targets: of each row.
        """


@dataclass(frozen=True)
class SingleLabel(ScoreObjective):
    """One of several labels: cross-entropy, and the likeliest label.

    Args:
        labels: in the order of the scores.
        weights: of the rows of each label, in the labels' order; None: all rows count the same.
        smoothing: the share of each target that is spread over all labels in training.
        is_ordinal: whether the labels are in an order, so that far errors count more.
        temperature: divides the scores (Guo et al. 2017), so that probabilities are those of being
            right.
        abstain_below: the least probability of a label that is predicted; None: any is.
    """

    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    is_ordinal: bool = False
    temperature: float = 1.0
    abstain_below: float | None = None

    has_probabilities: ClassVar[bool] = True

    @property
    def num_outputs(self) -> int:
        """One for each label."""
        return len(self.labels)

    @property
    def measure(self) -> str:
        """The share of right labels."""
        return "accuracy"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of `compute_classification_metrics`, and the calibration error."""
        names = ["accuracy", "macro_f1", "matthews", "ece"]
        names += ["f1"] if len(self.labels) == 2 else []  # noqa: PLR2004  # a positive one
        return (*names, *(["quadratic_kappa"] if self.is_ordinal else []))

    def read_target(self, text: str) -> int:
        """The index of a label."""
        if text not in self.labels:
            raise DataError(format_unknown("label", text, options=self.labels))
        return self.labels.index(text)

    def sum_loss(
        self,
        scores: Float[Tensor, "B C"],
        targets: Sequence[TargetValue],
        *,
        training: bool = False,
    ) -> SummedLoss:
        """Cross-entropy of rows, each times its weight.

        Args:
            scores: unnormalized log-probabilities of the labels.
            targets: the index of each row's label.
            training: whether the targets are smoothed.
        """
        total = F.cross_entropy(
            self._divide(scores),
            torch.tensor(targets, device=scores.device),
            weight=None if self.weights is None else scores.new_tensor(self.weights),
            label_smoothing=self.smoothing if training else 0.0,
            reduction="sum",
        )
        return SummedLoss(total, len(targets))

    def _divide(self, scores: Tensor) -> Tensor:
        return scores if self.temperature == 1 else scores / self.temperature

    def to_predictions(self, scores: Float[Tensor, "B C"]) -> list[Prediction]:
        """The likeliest label of each row and the probabilities of all."""
        return [
            self._choose(dict(zip(self.labels, row, strict=True)))
            for row in self._divide(scores).softmax(dim=-1).tolist()
        ]

    def _choose(self, probabilities: Mapping[str, float]) -> Prediction:
        label = max(probabilities, key=probabilities.__getitem__)
        is_sure = self.abstain_below is None or probabilities[label] >= self.abstain_below
        return Prediction(label, probabilities, abstained=not is_sure)

    def average(self, predictions: Sequence[Prediction]) -> Prediction:
        """The label with the highest mean probability."""
        return self._choose(average_probabilities(predictions))

    def sum_averaged_loss(
        self, scores: Float[Tensor, "M B C"], targets: Sequence[TargetValue]
    ) -> SummedLoss:
        """The loss of the mean probabilities."""
        log_probs = self._divide(scores).log_softmax(dim=-1)
        total = F.nll_loss(
            log_probs.logsumexp(dim=0) - math.log(len(log_probs)),
            torch.tensor(targets, device=scores.device),
            weight=None if self.weights is None else scores.new_tensor(self.weights),
            reduction="sum",
        )
        return SummedLoss(total, len(targets))

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """Accuracy and the other metrics; with probabilities, the calibration error."""
        answers = [prediction.label for prediction in predictions]
        metrics = compute_classification_metrics(
            truth, answers, labels=self.labels, is_ordinal=self.is_ordinal
        )
        if all(prediction.probabilities for prediction in predictions):
            shares = [prediction.probabilities[prediction.label] for prediction in predictions]
            right = [t == a for t, a in zip(truth, answers, strict=True)]
            metrics["ece"] = compute_calibration_error(shares, right)
            if self.abstain_below is not None:
                metrics |= measure_abstention([p.abstained for p in predictions], right)
        confusion = compute_confusion_matrix(truth, answers, labels=self.labels)
        return Scores(metrics, confusion, compute_class_scores(confusion))

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """1 for the right label, else 0."""
        return tuple(float(t == a) for t, a in zip(truth, answers, strict=True))

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """Each row has one."""
        return Counter(truth)

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The most frequent label."""
        return find_commonest(truth)

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether it is the label."""
        return truth == answer


@dataclass(frozen=True)
class FreeText(Objective):
    """Text, or one of several answers.

    Args:
        labels: the answers; empty for any text.
    """

    labels: tuple[str, ...] = ()

    loss_unit: ClassVar[str] = "scored token"

    @property
    def measure(self) -> str:
        """``accuracy`` with answers to choose from, else ``chrf``."""
        return "accuracy" if self.labels else "chrf"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of text, and with answers to choose from those of labels."""
        texts = ("exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL")
        if not self.labels:
            return texts
        names = [n for n in SingleLabel(self.labels).metric_names if n != "ece"]
        return (*names, *texts)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """Similarity to the targets; with answers to choose from, accuracy too."""
        answers = [prediction.label for prediction in predictions]
        texts = compute_generation_metrics(truth, answers)
        if not self.labels:
            return Scores(texts)
        found = SingleLabel(self.labels).score(truth, [Prediction(a, {}) for a in answers])
        return Scores({**found.metrics, **texts}, found.confusion, found.classes)

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """The similarity to the target, chrF from 0 to 1; of answers to choose from 1 or 0."""
        if self.labels:
            return SingleLabel(self.labels).score_rows(truth, answers)
        return score_chrf(truth, answers)

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """The answers to choose from."""
        return Counter(truth) if self.labels else Counter()

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The most frequent text."""
        return find_commonest(truth)

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether it is the text; without answers to choose from, space around it is ignored."""
        return truth == answer if self.labels else truth.strip() == answer.strip()


def find_commonest(texts: Sequence[str]) -> str:
    """The most frequent text; the alphabet decides ties.

    Args:
        texts: at least one.
    """
    count = Counter(texts)
    return min(count, key=lambda text: (-count[text], text))


def average_probabilities(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The mean probability of each label over several prompts' predictions for one row.

    Args:
        predictions: at least one, with the same labels.
    """
    labels = predictions[0].probabilities
    return {n: sum(p.probabilities[n] for p in predictions) / len(predictions) for n in labels}


def list_target(target: TargetValue) -> tuple[int, ...] | tuple[float, ...]:
    """A target that is a list of indices or numbers.

    Args:
        target: as `ScoreObjective.read_target` returns it.
    """
    return (target,) if isinstance(target, int) else target


def parse_list(text: str) -> list[object]:
    """The items of a cell that holds a list, as JSON or as Python writes it.

    Args:
        text: of the cell.

    Raises:
        DataError: it is not a list.

    Examples:
        >>> parse_list('["a", 1]'), parse_list("['a', 1]")
        (['a', 1], ['a', 1])
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = _parse_python_list(text)
    return list(items) if isinstance(items, list) else [items]


def _parse_python_list(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        msg = f'the cell {text[:60]!r} begins as a list, but is not one. Write ["a", "b"].'
        raise DataError(msg) from error
