"""The events of a training run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from softprompt.inference.loops import EvaluationReport

Phase: TypeAlias = Literal[
    "reading",
    "loading",
    "tokenizing",
    "probing",
    "searching",
    "training",
    "validating",
    "calibrating",
    "testing",
    "judging",
]


@dataclass(frozen=True)
class Started:
    """A run starts, or resumes from a checkpoint.

    Args:
        step: the number of steps that are already done.
        total_steps: of the whole run, at most.
        rows: the number of rows by split.
        truncated: the number of truncated rows by split.
        trainable_parameters: their number, with those of a trained head.
        backbone_parameters: the number of those that are run.
        shapes: of the backbone and of the prompt, as a text.
        best_metric: the validation metric that the best prompt is selected by.
        validations: the number of validations that are still to come, at most.
        final_rows: the number of rows that are evaluated after the last step.
        notes: on what the initialization took from an artifact.

    Examples:
        >>> rows = {"train": 90, "validation": 10}
        >>> start = Started(0, 15, rows, {"train": 0}, 5760, 134_515_008, "prompt: …", "loss")
        >>> start.total_steps
        15
    """

    step: int
    total_steps: int
    rows: Mapping[str, int]
    truncated: Mapping[str, int]
    trainable_parameters: int
    backbone_parameters: int
    shapes: str
    best_metric: str
    validations: int = 0
    final_rows: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseStarted:
    """Work begins that may take a while; a run's folder does not record it.

    Args:
        phase: the work. Reading, loading, tokenizing, probing, which chooses the readout of a
            trained head, searching, which chooses the learning rate, and training, with which each
            of several seeds begins, come before `Started`; testing comes after `Finished`, as do
            the validation of the best prompt on all rows, and calibrating, which chooses a
            temperature or thresholds.
        what: the files or the backbone, the readout, or the number of rows.
        rows: the number of rows; 0 where they are not known yet.
        step: the number of steps that are already done.

    Examples:
        >>> event = PhaseStarted("validating", "1,200 rows", rows=1200)
        >>> print(event.phase, event.what)
        validating 1,200 rows
    """

    phase: Phase
    what: str
    rows: int = 0
    step: int = 0


@dataclass(frozen=True)
class SearchProgress:
    """A step of a search for the learning rate, before the run itself starts.

    Args:
        multiplier: of the usual rate.
        done: the number of steps of the search that are done.
        total: the number of all its steps, at most.
        step: of the run itself, 0.

    Examples:
        >>> progress = SearchProgress(multiplier=3.0, done=12, total=60)
        >>> f"{progress.done} of {progress.total} steps"
        '12 of 60 steps'
    """

    multiplier: float
    done: int
    total: int
    step: int = 0


@dataclass(frozen=True)
class FoldProgress:
    """A step or a validation of a cross-validation, before the run itself starts.

    Args:
        fold: its number, counted from 1.
        folds: their number.
        done: the number of steps of this fold that are done.
        total: the number of all its steps.
        step: of the run itself, 0.

    Examples:
        >>> progress = FoldProgress(fold=2, folds=5, done=12, total=60)
        >>> f"fold {progress.fold} of {progress.folds}"
        'fold 2 of 5'
    """

    fold: int
    folds: int
    done: int
    total: int
    step: int = 0


@dataclass(frozen=True)
class PrecomputePlanned:
    """What is computed once and cached, or skipped, before the first step.

    Args:
        savings: a sentence each, as in the plan of `check_recipe`.
        step: the number of steps that are already done.

    Examples:
        >>> PrecomputePlanned(("text before the prompt is run forward only",)).step
        0
    """

    savings: tuple[str, ...]
    step: int = 0


@dataclass(frozen=True)
class PrecomputeProgress:
    """Progress of caching the states that training does not change, before the first step.

    Args:
        done: the number of tokens so far.
        total: the number of all tokens.
        size: of the whole cache in bytes.
        step: the number of steps that are already done.

    Examples:
        >>> progress = PrecomputeProgress(done=500, total=2000, size=1_000_000)
        >>> f"{progress.done / progress.total:.0%}"
        '25%'
    """

    done: int
    total: int
    size: int
    step: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Args:
        step: counted from 1.
        epoch: with its fraction.
        loss: per scored token, of the step's rows.
        rows: the number of rows of the step.
        learning_rate: of the prompt.
        norm: of the gradient before clipping.
        task: whose rows they are, if several tasks are trained together; else empty.

    Examples:
        >>> Step(step=3, epoch=0.5, loss=0.69, rows=8, learning_rate=0.01, norm=1.2).loss
        0.69
    """

    step: int
    epoch: float
    loss: float
    rows: int
    learning_rate: float
    norm: float
    task: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One validation.

    Args:
        step: the number of steps before it; 0 is the start.
        epoch: with its fraction.
        train_loss: per scored token since the last validation; None at the start.
        report: loss and metrics on the validation rows.
        best: whether it is the best so far.
        prompt_norm: relative to the norm of the initialization; None without a prompt.
        moved: the prompt's distance from initialization, relative to its norm; None without a
            prompt.
        train: loss and metrics on training rows, if these are evaluated too.
        task: whose rows they are, if several tasks are trained together; else empty.

    Examples:
        >>> from softprompt import EvaluationReport
        >>> report = EvaluationReport(10, {"loss": 0.41, "accuracy": 0.9}, None)
        >>> Evaluation(6, 1.0, 0.5, report, best=True).metrics["accuracy"]
        0.9
    """

    step: int
    epoch: float
    train_loss: float | None
    report: EvaluationReport
    best: bool
    prompt_norm: float | None = None
    moved: float | None = None
    train: EvaluationReport | None = None
    task: str = ""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The validation metrics."""
        return self.report.metrics


@dataclass(frozen=True)
class TrainingWarning:
    """Something looks wrong; the run continues.

    Args:
        step: the number of steps before it.
        message: the fact and the remedy.
        task: that it is about, if several tasks are trained together; else empty.

    Examples:
        >>> TrainingWarning(6, "the prompt has not moved. Try a higher learning rate.").step
        6
    """

    step: int
    message: str
    task: str = ""


@dataclass(frozen=True)
class Finished:
    """The run has finished.

    Args:
        step: the last one.
        reason: why it ended.

    Examples:
        >>> Finished(15, "all 5 epochs done").reason
        'all 5 epochs done'
    """

    step: int
    reason: str


Event = (
    PhaseStarted
    | SearchProgress
    | FoldProgress
    | Started
    | PrecomputePlanned
    | PrecomputeProgress
    | Step
    | Evaluation
    | TrainingWarning
    | Finished
)
Callback: TypeAlias = Callable[[Event], object]


def describe_event(event: Event) -> dict[str, Any]:
    """The fields of an event as a file of events has them; those of its report are on one level.

    Args:
        event: any event of a run.
    """
    fields: dict[str, Any] = asdict(event)
    if isinstance(event, Evaluation):
        fields["train"] = None if event.train is None else dict(event.train.metrics)
    if not fields.get("task", True):
        del fields["task"]  # of runs with several tasks only
    report: dict[str, Any] = fields.pop("report", {})
    for rows in ("truth", "predictions"):  # of each row; empty while a run trains
        report.pop(rows, None)
    return fields | report


def is_event_record(line: object) -> bool:
    """Whether a line of a file of events has what is read of an event.

    Args:
        line: as parsed from JSON.
    """
    keys = ["seconds"]
    match line:
        case {"event": "step", "step": int()}:
            keys += ["epoch", "loss"]
        case {"event": "evaluation", "step": int(), "best": bool(), "train_loss": _, "metrics": m}:
            keys += ["epoch"]
            if not _has_numbers(m, ["loss"]):
                return False
        case {"event": "step" | "evaluation"}:
            return False
        case {"event": str()}:
            pass
        case _:
            return False
    return _has_numbers(line, keys)


def _has_numbers(table: object, keys: Sequence[str]) -> bool:
    return isinstance(table, Mapping) and all(isinstance(table.get(k), int | float) for k in keys)
