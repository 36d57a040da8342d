"""Run a task over many rows: predictions and evaluation."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from softprompt.data import Row, group_by_length
from softprompt.data.few_rows import compute_wilson_interval
from softprompt.data.messages import ASSISTANT, read_messages
from softprompt.data.table import to_text
from softprompt.errors import DataError, PromptError
from softprompt.inference.notebook import make_fact_table, make_grid
from softprompt.injection.generation import NOT_NUMBERS
from softprompt.prompt import Prompt
from softprompt.tasks import AnswerPrediction, Example, Prediction, Task
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.metrics import (
    ClassScores,
    Confusion,
    ConfusionMatrix,
    list_confusions,
)
from softprompt.tasks.tagger import Tagger

_WINDOW = 2048  # rows of a stream that are sorted into batches together
_MAX_SHOWN_LABELS = 20  # of a confusion matrix in a notebook

# The metrics that are a share of the rows.
_SHARES = ("accuracy", "exact_match")


def compute_intervals(metrics: Mapping[str, float], rows: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval, by Wilson, of each metric that is a share of the rows.

    Args:
        metrics: by name.
        rows: their number.
    """
    shares = {name: metrics[name] for name in _SHARES if name in metrics}
    return {name: compute_wilson_interval(share, rows) for name, share in shares.items()}


@dataclass(frozen=True)
class EvaluatedRows:
    """Loss and predictions for rows with known targets.

    Args:
        total: the summed loss.
        count: the number of scored tokens (of rows, in classification).
        truth: the targets.
        predictions: for the rows, in their order.
        truncated: in how many rows a field was truncated to fit.
    """

    total: float
    count: int
    truth: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    truncated: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """Loss and metrics of a prompt on some rows.

    Args:
        rows: the number of rows.
        metrics: ``loss`` per scored token, and the task's metrics by name.
        confusion: the confusion matrix; None where rows have no single label.
        truncated: in how many rows a field was truncated to fit.
        classes: precision, recall, F1 and rows of each label; empty without labels.
        right: whether each prediction is right; empty while a run trains.
        truth: the target of each row as text, in their order; empty while a run trains.
        predictions: for the rows, in their order; empty while a run trains.

    Examples:
        >>> report = EvaluationReport(8, {"loss": 0.5, "accuracy": 0.75}, confusion=None)
        >>> report
        EvaluationReport(rows=8, loss=0.5, accuracy=0.75)
        >>> report.metrics["accuracy"]
        0.75
    """

    rows: int
    metrics: Mapping[str, float]
    confusion: ConfusionMatrix | None
    truncated: int = 0
    classes: tuple[ClassScores, ...] = ()
    right: tuple[bool, ...] = field(default=(), compare=False)
    truth: tuple[str, ...] = field(default=(), compare=False)
    predictions: tuple[Prediction, ...] = field(default=(), compare=False)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The pairs of labels that are confused, the commonest first; empty for free text."""
        return () if self.confusion is None else list_confusions(self.confusion)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval, by Wilson, of each metric that is a share of the rows."""
        return compute_intervals(self.metrics, self.rows)

    @property
    def absent_labels(self) -> tuple[str, ...]:
        """The labels that no row has, each of which ``macro_f1`` counts as 0."""
        return tuple(scores.label for scores in self.classes if not scores.rows)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"{type(self).__name__}(rows={self.rows}, {metrics})"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {k: f"{v:.4f}" for k, v in self.metrics.items()}
        facts |= {
            f"{name}, 95 % interval": f"{low:.2f} to {high:.2f}"
            for name, (low, high) in self.intervals.items()
        }
        if self.absent_labels:
            facts["labels without rows, 0 in macro_f1"] = ", ".join(self.absent_labels)
        html = make_fact_table("Report", {**facts, "rows": self.rows, "truncated": self.truncated})
        if self.confusion is None or len(self.confusion.labels) > _MAX_SHOWN_LABELS:
            return html
        counts = zip(self.confusion.labels, self.confusion.counts, strict=True)
        head = ["true \\ predicted", *self.confusion.predicted_labels]
        rows = ([label, *row] for label, row in counts)
        return html + make_grid("Confusion", head=head, rows=rows)


@dataclass(frozen=True)
class EnsembleReport:
    """Loss and metrics of an ensemble on some rows.

    Args:
        ensemble: of the combined predictions.
        members: of each member alone, in their order.
    """

    ensemble: EvaluationReport
    members: tuple[EvaluationReport, ...]


def predict_rows(
    task: Task,
    examples: Sequence[Example],
    *,
    prompt: Prompt | None,
    batch_size: int = 32,
) -> Iterator[tuple[int, Prediction]]:
    """Predict rows in batches of similar length.

    Args:
        task: to run.
        examples: the rendered rows.
        prompt: None for the bare backbone.
        batch_size: the most rows that are run at once.

    Yields:
        The index of a row and its prediction, as batches are ready.

    Raises:
        PromptError: the scores of a row are not numbers.
    """
    task = task.with_shared_prefix(examples, prompt)
    for batch in group_by_length([e.length for e in examples], size=batch_size, seed=None):
        with torch.no_grad():
            predictions = task.predict([examples[i] for i in batch], [prompt])
        check_numbers(predictions)
        yield from zip(batch, predictions, strict=True)


def check_numbers(predictions: Sequence[Prediction]) -> None:
    """Check that probabilities and scores are numbers: of others, any label is the likeliest.

    Raises:
        PromptError: some are NaN.
    """
    shares = [share for one in predictions for share in one.probabilities.values()]
    shares += [one.null_score for one in predictions if isinstance(one, AnswerPrediction)]
    if any(map(math.isnan, shares)):
        raise PromptError(NOT_NUMBERS)


def predict_windows(
    stream: Iterator[Row], predict: Callable[[Sequence[Row]], Sequence[Prediction]]
) -> Iterator[Prediction]:
    """Predict the rows of a stream in windows, so that batches of similar length can be made.

    Args:
        stream: the rows.
        predict: returns the predictions for the rows of a window, in their order.

    Yields:
        The predictions, in the rows' order.
    """
    while window := list(islice(stream, _WINDOW)):
        yield from predict(window)


def predict_without_prompt(task: Task, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Predict rows with the bare backbone of a task.

    Args:
        task: to run.
        rows: with the template's fields, and the target column to compare generated text with.

    Returns:
        The labels or texts, in the rows' order, as `read_answers` returns them.
    """
    examples = [task.make_example(row, target=False) for row in rows]
    predictions = dict(predict_rows(task, examples, prompt=None))
    return read_answers(task, [predictions[i] for i in range(len(rows))], rows=rows)


def read_answers(
    task: Task, predictions: Sequence[Prediction], *, rows: Sequence[Mapping[str, object]]
) -> list[str]:
    """The predictions as text, for a comparison with the targets.

    Args:
        task: of the predictions.
        predictions: of the rows, in their order.
        rows: with the target column, if there are targets to compare with.
    """
    column = task.target_column
    if not all(column in row for row in rows):
        return [prediction.label for prediction in predictions]
    if isinstance(task, TextGenerator) and task.is_chat:
        messages = [read_messages(row[column])[-1] for row in rows]
        truth = [last.content if last.role == ASSISTANT else "" for last in messages]
    else:
        truth = ["" if row[column] is None else to_text(row[column]) for row in rows]
    return [found.label for found in match_targets(task, predictions, truth=truth)]


def match_targets(
    task: Task, predictions: Sequence[Prediction], *, truth: Sequence[str]
) -> list[Prediction]:
    """Predictions whose text is that of the target where they are the same.

    Generated text that has the tokens of its target is its target, since text does not survive
    every tokenizer: T5's writes two spaces as one.

    Args:
        task: of the predictions.
        predictions: of the rows, in their order.
        truth: the target of each row as text.
    """
    if not isinstance(task, TextGenerator):
        return [*predictions]
    pairs = zip(predictions, truth, strict=True)
    return [replace(found, label=task.compare(found, text)) for found, text in pairs]


def evaluate_rows(
    task: Task,
    examples: Sequence[Example],
    *,
    truth: Sequence[str],
    prompt: Prompt | None,
    batch_size: int = 32,
) -> EvaluatedRows:
    """Predict rows and sum their loss; a classifier runs the backbone once for both.

    Args:
        task: to run.
        examples: the rendered rows, with their targets.
        truth: the target of each row as text.
        prompt: None for the bare backbone.
        batch_size: the most rows that are run at once.

    Returns:
        The summed loss, and the predictions in the rows' order.
    """
    total, count = 0.0, 0
    predictions: dict[int, Prediction] = {}
    task = task.with_shared_prefix(examples, prompt)
    for batch in group_by_length([e.length for e in examples], size=batch_size, seed=None):
        chosen = [examples[i] for i in batch]
        with torch.no_grad():
            loss, predicted = task.evaluate(chosen, prompt)
        total, count = total + float(loss.total), count + loss.count
        predictions |= dict(zip(batch, predicted, strict=True))
    ordered = tuple(predictions[i] for i in range(len(examples)))
    return EvaluatedRows(total, count, tuple(truth), ordered, sum(e.truncated for e in examples))


def make_report(task: Task, parts: Sequence[EvaluatedRows]) -> EvaluationReport:
    """Compute the metrics of evaluated rows, which may come from several processes.

    Args:
        task: that was run.
        parts: the evaluated rows.

    Returns:
        Loss and metrics of all rows together.

    Raises:
        DataError: there are no rows.
    """
    truth = [t for part in parts for t in part.truth]
    predictions = [prediction for part in parts for prediction in part.predictions]
    if not truth:
        msg = "no rows to evaluate. Give a split or a file that has some."
        raise DataError(msg)
    loss = sum(part.total for part in parts) / sum(part.count for part in parts)
    scores = task.objective.score(truth, match_targets(task, predictions, truth=truth))
    return EvaluationReport(
        len(truth),
        {"loss": loss, **scores.metrics},
        scores.confusion,
        sum(part.truncated for part in parts),
        scores.classes,
    )


def make_row_report(task: Task, evaluated: EvaluatedRows) -> EvaluationReport:
    """As `make_report`, with the prediction of each row.

    Args:
        task: that was run.
        evaluated: all rows, in their order.

    Raises:
        DataError: there are no rows.
        PromptError: the scores of a row are not numbers.
    """
    check_numbers(evaluated.predictions)
    report = make_report(task, [evaluated])
    truth, predictions = evaluated.truth, evaluated.predictions
    pairs = zip(truth, match_targets(task, predictions, truth=truth), strict=True)
    right = tuple(task.objective.is_right(text, found.label) for text, found in pairs)
    return replace(report, right=right, truth=truth, predictions=predictions)


def stack_probabilities(
    predictions: Sequence[Prediction], labels: Sequence[str]
) -> NDArray[np.float64]:
    """The probabilities of predictions as an array [rows, labels]."""
    rows = [[prediction.probabilities[label] for label in labels] for prediction in predictions]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(labels))


def check_probabilities(task: Task) -> None:
    """Make sure that a task's predictions have probabilities.

    Raises:
        PromptError: they have none.
    """
    if not task.objective.has_probabilities:
        match task:
            case TextGenerator():
                what = "generated text"
            case Extractor():
                what = "a part of a text"
            case Tagger():
                what = "a row of tags, each with its score,"
            case Chooser():
                what = "an option of a row, whose options are its own,"
            case _:
                what = "a number"
        msg = (
            f"{what} has no probabilities of labels. Use predict, or train a prompt for a task of "
            "kind 'classify'."
        )
        raise PromptError(msg)
