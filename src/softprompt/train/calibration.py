"""After the training: what validation rows decide about probabilities.

A temperature divides the scores of labels so that probabilities are the shares of right answers;
thresholds choose among any number of labels, and questions that get no answer. None of them moves
the prompt, and test rows see none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt.data.few_rows import count_rows
from softprompt.inference.loops import EvaluatedRows, stack_probabilities
from softprompt.inference.model import attach
from softprompt.tasks import (
    AnswerPrediction,
    Classifier,
    Classify,
    Extract,
    Objective,
    Prediction,
    TaskSettings,
)
from softprompt.tasks.extraction import (
    DEFAULT_NULL_THRESHOLD,
    ContextAnswers,
    list_answer_texts,
)
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.label_sets import DEFAULT_THRESHOLD, LabelSets
from softprompt.tasks.objectives import SingleLabel
from softprompt.tasks.squad_scores import choose_null_threshold
from softprompt.train.events import Callback, PhaseStarted
from softprompt.train.results import make_run_artifact
from softprompt.train.setup import RunSetup
from softprompt.train.stages import notify
from softprompt.train.trainer import Best, Trainer, evaluate_split

# Temperatures outside are those of rows that are all right, or all wrong.
_COLDEST, _HOTTEST = 0.05, 20.0
# The least probability that has a logarithm.
_TINY = 1e-30


@dataclass(frozen=True)
class Calibration:
    """What the validation rows of a run decided.

    Args:
        rows: their number.
        chosen: the settings of the task that they decided.
        before: the metrics of these rows without them.
        after: the metrics of these rows with them, which are optimistic.
    """

    rows: int
    chosen: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """The calibration as JSON has it."""
        return {
            "rows": self.rows,
            **self.chosen,
            "before": dict(self.before),
            "after": dict(self.after),
        }


def calibrate_task(
    prepared: RunSetup, best: Best, *, trainer: Trainer, callbacks: Sequence[Callback] = ()
) -> RunSetup:
    """Choose the settings that a recipe leaves to validation rows, with the best prompt of a run.

    All processes must call it: each evaluates its share.

    Args:
        prepared: the parts of the run.
        best: its prompt.
        trainer: of the run, after its last step.
        callbacks: called as it begins.

    Returns:
        The parts, whose task has these settings; as they are where none is left open, or there are
        no validation rows.
    """
    rows, task = prepared.rows.get("validation"), prepared.task
    if rows is None or not isinstance(task, Classifier | Extractor):
        return prepared
    if not has_open_answers(prepared.recipe.task_settings, task.objective):
        return prepared
    count = count_rows(len(rows.examples))
    notify(callbacks, PhaseStarted("calibrating", count, len(rows.examples), trainer.step))
    model = attach(make_run_artifact(prepared, best, start=trainer.start), prepared.backbone)
    parts = evaluate_split(
        model.task,
        rows,
        prompt=model.prompt,
        batch_size=prepared.training.batch_size,
        accelerator=trainer.accelerator,
    )
    calibrated, calibration = calibrate_by_rows(task, parts)
    return replace(prepared, task=calibrated, calibration=calibration.as_data())


def calibrate_by_rows(
    task: Classifier | Extractor, parts: Sequence[EvaluatedRows]
) -> tuple[Classifier | Extractor, Calibration]:
    """The task with what evaluated rows decide, and a record of it.

    Args:
        task: that was trained.
        parts: the evaluated rows, which it was not trained on.
    """
    truth = [text for part in parts for text in part.truth]
    predictions = [found for part in parts for found in part.predictions]
    objective, calibration = calibrate(task.objective, truth, predictions=predictions)
    return task.with_objective(objective), calibration


def has_open_answers(settings: TaskSettings, objective: Objective) -> bool:
    """Whether validation rows decide how answers are read.

    Args:
        settings: of the task.
        objective: with what training rows decided.
    """
    match settings:
        case Classify(multi_label=True, thresholds="auto"):
            return True
        case Classify(multi_label=False, temperature="auto"):
            return True
        case Extract(null_threshold="auto"):
            return isinstance(objective, ContextAnswers) and objective.null_threshold is not None
        case _:
            return False


def calibrate(
    objective: Objective, truth: Sequence[str], *, predictions: Sequence[Prediction]
) -> tuple[Any, Calibration]:
    """Choose the temperature of labels, or the thresholds of sets of labels or of no answer.

    Args:
        objective: at a temperature of 1, or with any thresholds.
        truth: the target of each row as text.
        predictions: for the rows.

    Returns:
        The objective with what was chosen, and a record of it.
    """
    match objective:
        case SingleLabel():
            probabilities = stack_probabilities(predictions, objective.labels)
            targets = [objective.read_target(text) for text in truth]
            temperature = fit_temperature(probabilities, targets)
            found: Any = replace(objective, temperature=temperature)
            chosen: dict[str, Any] = {"temperature": temperature}
            again = [_with_temperature(row, objective.labels, temperature) for row in probabilities]
        case LabelSets(labels):
            probabilities = stack_probabilities(predictions, labels)
            marks = np.zeros(probabilities.shape, dtype=bool)
            for row, text in enumerate(truth):
                marks[row, [*objective.read_target(text)]] = True
            thresholds = choose_thresholds(probabilities, marks)
            found = replace(objective, thresholds=thresholds)
            chosen = {"thresholds": dict(zip(labels, thresholds, strict=True))}
            again = [found.average([prediction]) for prediction in predictions]
        case ContextAnswers():
            answers = [found for found in predictions if isinstance(found, AnswerPrediction)]
            threshold = fit_null_threshold(answers, [list_answer_texts(text) for text in truth])
            found = replace(objective, null_threshold=threshold)
            chosen = {"null_threshold": threshold}
            again = [found.choose(one.candidates, one.null_score) for one in answers]
        case _:
            return objective, Calibration(len(truth))
    before, after = (objective.score(truth, each).metrics for each in (predictions, again))
    return found, Calibration(len(truth), chosen, before, after)


def _with_temperature(
    row: NDArray[np.float64], labels: Sequence[str], temperature: float
) -> Prediction:
    logits = np.log(np.maximum(row, _TINY)) / temperature
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    probabilities = dict(zip(labels, shares.tolist(), strict=True))
    return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)


def fit_null_threshold(
    predictions: Sequence[AnswerPrediction], references: Sequence[Sequence[str]]
) -> float:
    """The threshold of no answer with the highest mean F1, as SQuAD's script for 2.0 chooses it.

    It lies halfway between the differences of two rows, so that rounding does not move a row over
    it. Of equally good ones the lowest is taken.

    Args:
        predictions: for the rows.
        references: the right answers of each row; none if it has no answer.
    """
    pairs = zip(predictions, references, strict=True)
    # A context without tokens has no answer whatever the threshold.
    triples = [
        (one.null_score - one.score, one.candidates[0].text, texts)
        for one, texts in pairs
        if one.score is not None
    ]
    if not triples:
        return DEFAULT_NULL_THRESHOLD
    differences, texts, wanted = (list(column) for column in zip(*triples, strict=True))
    threshold = choose_null_threshold(differences, texts, references=wanted).value
    higher = [difference for difference in differences if difference > threshold]
    return (threshold + min(higher)) / 2 if higher else threshold + 1.0


def fit_temperature(probabilities: NDArray[np.float64], targets: Sequence[int]) -> float:
    """The temperature with the lowest cross-entropy of rows.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.

    Args:
        probabilities: of each row and label, at a temperature of 1.
        targets: the index of each row's label.

    Returns:
        The temperature, 0.05 to 20.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415  # slow to import
    from scipy.special import log_softmax  # noqa: PLC0415

    logits = np.log(np.maximum(probabilities, _TINY))
    places = np.arange(len(targets)), np.array(targets)

    def compute_loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[places].mean())

    found = minimize_scalar(
        compute_loss, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded"
    )
    return float(np.exp(found.x))


def choose_thresholds(
    probabilities: NDArray[np.float64], marks: NDArray[np.bool_]
) -> tuple[float, ...]:
    """The threshold of each label by its F1 over rows.

    A single threshold for all labels is chosen first, by F1 over all decisions. A label moves away
    from it only as far as its rows tell: of the thresholds whose F1 is within one standard error of
    the label's best, that nearest to the common one is taken. Few rows do not tell labels apart,
    and a label that no row has keeps the common threshold.

    Args:
        probabilities: of each row and label.
        marks: which row has which label.

    Returns:
        The thresholds; each lies halfway between two probabilities, or is 0.5.
    """
    common = _choose_threshold(probabilities.ravel(), marks.ravel(), near=DEFAULT_THRESHOLD)
    columns = zip(probabilities.T, marks.T, strict=True)
    return tuple(
        _choose_threshold(shares, wanted, near=common, errors=1.0) for shares, wanted in columns
    )


def _choose_threshold(
    shares: NDArray[np.float64], wanted: NDArray[np.bool_], *, near: float, errors: float = 0.0
) -> float:
    """The threshold nearest to another one whose F1 is within some standard errors of the best."""
    if not wanted.any():
        return near
    values = np.unique(shares)
    candidates = np.concatenate(([near], (values[1:] + values[:-1]) / 2, [values[0]]))
    found = shares[None] >= candidates[:, None]
    right = (found & wanted).sum(axis=1)
    scores = 2 * right / (found.sum(axis=1) + wanted.sum())
    best = float(scores.max())
    error = errors * (best * (1 - best) / wanted.sum()) ** 0.5
    good = candidates[scores >= best - error - 1e-12]
    return float(good[np.abs(good - near).argmin()])
