"""What a training run says while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.evaluate.predict import Report


@dataclass(frozen=True)
class Planned:
    """What this run need not compute, before it begins.

    Args:
        savings: a line each; see :func:`softprompt.train.savings.savings`.
        step: before which it is said.
    """

    savings: tuple[str, ...]
    step: int = 0


@dataclass(frozen=True)
class Caching:
    """What no step changes is computed once, before the first one.

    Args:
        done: tokens.
        total: tokens.
        size: bytes, when it is done.
        step: before which it happens.
    """

    done: int
    total: int
    size: int
    step: int = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Args:
        step: counted from 1.
        epoch: with its fraction.
        loss: per scored token, of the step's rows.
        rows: how many rows it saw.
        learning_rate: of the prompt.
        norm: of the gradient before clipping.
    """

    step: int
    epoch: float
    loss: float
    rows: int
    learning_rate: float
    norm: float


@dataclass(frozen=True)
class Evaluation:
    """One validation.

    Args:
        step: after which step; 0 is the start.
        epoch: with its fraction.
        train_loss: per scored token since the last validation; None at the start.
        report: loss and metrics on the validation rows.
        best: whether no earlier one was better.
        prompt_norm: of the prompt, relative to what it started from; None where there is none.
        moved: how far the prompt is from its start, relative to the start's norm; likewise.
        train: loss and metrics on training rows, where these are judged too.
    """

    step: int
    epoch: float
    train_loss: float | None
    report: Report
    best: bool
    prompt_norm: float | None = None
    moved: float | None = None
    train: Report | None = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The validation metrics."""
        return self.report.metrics


@dataclass(frozen=True)
class Warned:
    """Something looks wrong; the run goes on.

    Args:
        step: after which step.
        message: the fact and what to try.
    """

    step: int
    message: str


@dataclass(frozen=True)
class Finished:
    """The run is over.

    Args:
        step: the last one.
        reason: why it stopped.
    """

    step: int
    reason: str


Event = Planned | Caching | Step | Evaluation | Warned | Finished
