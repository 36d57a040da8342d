"""Regression: one or several numbers a row, their text form, their scaling, loss and scores."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from softprompt.errors import DataError
from softprompt.tasks.metrics import compute_regression_metrics, score_squares
from softprompt.tasks.objectives import (
    Prediction,
    ScoreObjective,
    Scores,
    SummedLoss,
    TargetValue,
    list_target,
    parse_list,
)

RegressionLoss: TypeAlias = Literal["mse", "huber"]


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """The prediction of one or several numbers for a row.

    Args:
        values: the numbers, in the order of the target's.

    Examples:
        >>> NumberPrediction("3.5", {}, values=(3.5,)).values
        (3.5,)
    """

    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Numbers(ScoreObjective):
    """One or several numbers: squared or Huber loss of numbers that are scaled.

    Args:
        mean: of each number over the training rows.
        scale: the standard deviation of each; outputs of a head are in this unit.
        loss: ``mse``, or ``huber`` with a delta of one scale, which outliers move less.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    loss: RegressionLoss = "mse"

    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]  # there are none
    detail_names: ClassVar[tuple[str, ...]] = ("values",)

    @property
    def num_outputs(self) -> int:
        """One for each number."""
        return len(self.mean)

    @property
    def measure(self) -> str:
        """The share of the variance that is explained."""
        return "r2"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of `compute_regression_metrics`."""
        return ("pearson", "spearman", "mae", "rmse", "r2")

    def read_target(self, text: str) -> tuple[float, ...]:
        """The numbers of a row, in the unit of the loss."""
        values = parse_numbers(text, count=len(self.mean))
        triples = zip(values, self.mean, self.scale, strict=True)
        return tuple((value - mean) / scale for value, mean, scale in triples)

    def sum_loss(
        self,
        scores: Float[Tensor, "B C"],
        targets: Sequence[TargetValue],
        *,
        training: bool = False,  # noqa: ARG002  # nothing is smoothed
    ) -> SummedLoss:
        """The loss of rows, each the mean over its numbers."""
        wanted = scores.new_tensor([[*list_target(of_row)] for of_row in targets])
        compute = F.mse_loss if self.loss == "mse" else F.huber_loss
        losses = compute(scores, wanted, reduction="none")
        return SummedLoss(losses.mean(dim=1).sum(), len(targets))

    def to_predictions(self, scores: Float[Tensor, "B C"]) -> list[Prediction]:
        """The numbers of each row, in their own unit."""
        mean, scale = (torch.tensor(x, dtype=torch.float64) for x in (self.mean, self.scale))
        return [self._describe(row) for row in (scores.double().cpu() * scale + mean).tolist()]

    @staticmethod
    def _describe(values: Sequence[float]) -> Prediction:
        return NumberPrediction(format_numbers(values), {}, values=tuple(values))

    def average(self, predictions: Sequence[Prediction]) -> Prediction:
        """The mean of the numbers."""
        rows = [p.values for p in predictions if isinstance(p, NumberPrediction)]
        return self._describe([sum(column) / len(rows) for column in zip(*rows, strict=True)])

    def sum_averaged_loss(
        self, scores: Float[Tensor, "M B C"], targets: Sequence[TargetValue]
    ) -> SummedLoss:
        """The loss of the mean of several prompts' numbers."""
        return self.sum_loss(scores.mean(dim=0), targets)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """Correlations, errors, and the explained share of the variance."""
        answers = [prediction.label for prediction in predictions]
        return Scores(compute_regression_metrics(*self._read(truth, answers)))

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """The share of each row in R²: 1 minus its squared error over the variance."""
        return score_squares(*self._read(truth, answers))

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:  # noqa: ARG002  # there are none
        """No labels."""
        return Counter()

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The mean numbers."""
        rows = [parse_numbers(text) for text in truth]
        return format_numbers([sum(column) / len(rows) for column in zip(*rows, strict=True)])

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether no number is off by more than half a scale."""
        (wanted,), (found,) = self._read([truth], [answer])
        triples = zip(wanted, found, self.scale, strict=True)
        return all(abs(a - b) <= scale / 2 for a, b, scale in triples)

    def _read(
        self, truth: Sequence[str], answers: Sequence[str]
    ) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        count = len(self.mean)
        return (
            [parse_numbers(text, count=count) for text in truth],
            [parse_numbers(text, count=count) for text in answers],
        )


@dataclass(frozen=True)
class WordNumbers(ScoreObjective):
    """A number that is the mean of number words', weighted with the words' probabilities.

    Args:
        values: the number of each score's words.
        numbers: how the mean is scaled, and its loss.
    """

    values: tuple[float, ...]
    numbers: Numbers

    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]  # there are none
    detail_names: ClassVar[tuple[str, ...]] = ("values",)

    @property
    def num_outputs(self) -> int:
        """One for each number word."""
        return len(self.values)

    @property
    def measure(self) -> str:
        """The share of the variance that is explained."""
        return "r2"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of `compute_regression_metrics`."""
        return self.numbers.metric_names

    def _compute_means(self, scores: Float[Tensor, "*B C"]) -> Float[Tensor, "*B 1"]:
        """The mean numbers, in the unit of the loss."""
        mean, scale = self.numbers.mean[0], self.numbers.scale[0]
        values = scores.new_tensor([(value - mean) / scale for value in self.values])
        return (scores.softmax(dim=-1) * values).sum(dim=-1, keepdim=True)

    def read_target(self, text: str) -> TargetValue:
        """The number of a row, in the unit of the loss."""
        return self.numbers.read_target(text)

    def sum_loss(
        self,
        scores: Float[Tensor, "B C"],
        targets: Sequence[TargetValue],
        *,
        training: bool = False,
    ) -> SummedLoss:
        """The loss of the mean numbers."""
        return self.numbers.sum_loss(self._compute_means(scores), targets, training=training)

    def to_predictions(self, scores: Float[Tensor, "B C"]) -> list[Prediction]:
        """The mean number of each row, in its own unit."""
        return self.numbers.to_predictions(self._compute_means(scores))

    def average(self, predictions: Sequence[Prediction]) -> Prediction:
        """The mean of the numbers."""
        return self.numbers.average(predictions)

    def sum_averaged_loss(
        self, scores: Float[Tensor, "M B C"], targets: Sequence[TargetValue]
    ) -> SummedLoss:
        """The loss of the mean of several prompts' numbers."""
        return self.numbers.sum_loss(self._compute_means(scores).mean(dim=0), targets)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """As `Numbers` scores them."""
        return self.numbers.score(truth, predictions)

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """As `Numbers` scores them."""
        return self.numbers.score_rows(truth, answers)

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """No labels."""
        return self.numbers.count_labels(truth)

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The mean number."""
        return self.numbers.choose_constant(truth)

    def is_right(self, truth: str, answer: str) -> bool:
        """As `Numbers` counts."""
        return self.numbers.is_right(truth, answer)


def make_numbers(
    mean: tuple[float, ...],
    scale: tuple[float, ...],
    *,
    loss: RegressionLoss,
    words: Mapping[str, Sequence[str]],
) -> Numbers | WordNumbers:
    """Make the objective of a regression.

    Args:
        mean: of each number.
        scale: of each number.
        loss: the name of the loss.
        words: the number words by number; empty for a head.

    Raises:
        DataError: there are several numbers, but words are of one; or a word's number is not one.
    """
    numbers = Numbers(mean, scale, loss)
    if not words:
        return numbers
    if len(mean) > 1:
        msg = (
            f"the rows have {len(mean)} numbers, but number words predict one. Leave task.words "
            "out, which trains a head."
        )
        raise DataError(msg)
    return WordNumbers(tuple(parse_numbers(number, count=1)[0] for number in words), numbers)


def parse_numbers(text: str, *, count: int | None = None) -> tuple[float, ...]:
    """The numbers in a cell: one number, or a JSON list of numbers.

    Args:
        text: of the cell.
        count: how many there must be; None for any number.

    Raises:
        DataError: it is not a finite number, or there are more or fewer.

    Examples:
        >>> parse_numbers("3.50"), parse_numbers("[1, 2.5]")
        ((3.5,), (1.0, 2.5))
    """
    items = parse_list(text) if text.lstrip().startswith("[") else [text]
    try:
        values = tuple(float(item) for item in items if isinstance(item, str | int | float))
    except ValueError:
        values = ()
    if len(values) != len(items) or not values or not all(map(math.isfinite, values)):
        msg = (
            f"the target {text[:60]!r} is not a number, nor a list of numbers such as [1, 2.5]. "
            "Write numbers with a decimal point, without units."
        )
        raise DataError(msg)
    if count is not None and len(values) != count:
        msg = (
            f"the target {text[:60]!r} has {len(values)} numbers, but others have {count}. Give "
            "each row as many numbers."
        )
        raise DataError(msg)
    return values


def format_numbers(values: Sequence[float]) -> str:
    """Numbers as the text of a cell, which `parse_numbers` reads.

    Args:
        values: of a row.
    """
    return repr(values[0]) if len(values) == 1 else json.dumps([*values])
