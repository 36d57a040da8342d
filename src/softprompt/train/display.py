"""Show a run to a person: a progress bar, a table of validations, warnings, a log.

The training loop does not import this module. `fit`, `train_recipe` and the command line do.
"""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, assert_never, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from softprompt.errors import SoftpromptWarning, TrainingError, escape_control_characters
from softprompt.train.events import (
    Callback,
    Evaluation,
    Event,
    Finished,
    FoldProgress,
    PhaseStarted,
    PrecomputePlanned,
    PrecomputeProgress,
    SearchProgress,
    Started,
    Step,
    TrainingWarning,
)
from softprompt.train.plots import SHOWN_METRICS
from softprompt.train.summary import compute_trainable_share

ProgressOption: TypeAlias = bool | Literal["auto"]

_PACKAGE = "softprompt"
# How the phases of a run are shown.
_PHASES = {"loading": "loading the backbone"}
_log = logging.getLogger(__name__)


@contextmanager
def make_callbacks(
    callbacks: Sequence[Callback], *, progress: ProgressOption
) -> Iterator[tuple[Callback, ...]]:
    """The callbacks of a run that was started from Python: progress, warnings, then the user's.

    Args:
        callbacks: the user's.
        progress: whether to show progress; ``"auto"`` shows it only in a terminal or a notebook.

    Yields:
        All of them, in the order in which they are called.

    Raises:
        TrainingError: ``progress`` or ``callbacks`` is not of its type.
    """
    if progress not in (True, False, "auto"):
        msg = f"progress is {progress!r}, but must be True, False or 'auto'. Pass one of these."
        raise TrainingError(msg)
    if callable(callbacks):
        msg = "callbacks is a single callback. Pass a list of them, such as callbacks=[print]."
        raise TrainingError(msg)
    shown = is_watched() if progress == "auto" else bool(progress)
    if not shown or not is_main_process():
        yield (issue_warning, *callbacks)
        return
    with ProgressDisplay(quiet=False, show_warnings=False) as display:
        yield (display.show, issue_warning, *callbacks)


def is_watched() -> bool:
    """Whether stderr is a terminal or a notebook, and pytest is not running."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return False
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


def is_main_process() -> bool:
    """Whether this is the main one of the processes that ``accelerate launch`` has started."""
    return os.environ.get("RANK", "0") == "0"


def issue_warning(event: Event) -> None:
    """Issue a run's warning as a Python warning that points at the caller's line.

    Args:
        event: any; all others are ignored.
    """
    if isinstance(event, TrainingWarning) and is_main_process():
        warnings.warn(name_task(event), SoftpromptWarning, stacklevel=_find_stacklevel())


def log_event(event: Event) -> None:
    """Log an event under the name ``softprompt``: each step as DEBUG, the others as INFO.

    Args:
        event: any.
    """
    match event:
        case PhaseStarted():
            _log.info("%s %s", event.phase, event.what)
        case Started():
            rows = [f"{count} {name} rows" for name, count in event.rows.items()]
            _log.info(
                "training starts at step %d of %d: %s, %s",
                event.step,
                event.total_steps,
                compute_trainable_share(event.trainable_parameters, event.backbone_parameters),
                ", ".join(rows),
            )
            _log_all("%s", event.notes)
        case PrecomputePlanned():
            _log_all("not recomputed: %s", event.savings)
        case PrecomputeProgress():
            _log.debug("cached %d of %d tokens", event.done, event.total)
        case SearchProgress() | FoldProgress():
            _log.debug("%s: step %d of %d", _name_trial(event), event.done, event.total)
        case Step():
            _log.debug("step %d: loss %.4f", event.step, event.loss)
        case Evaluation():
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
            best = " (best so far)" if event.best else ""
            where = f" of {event.task}" if event.task else ""
            _log.info("validation%s at step %d: %s%s", where, event.step, numbers, best)
        case TrainingWarning():
            _log.info("warning at step %d: %s", event.step, name_task(event))
        case Finished():
            _log.info("finished after step %d: %s", event.step, event.reason)
        case _:
            assert_never(event)


def name_task(warning: TrainingWarning) -> str:
    """The message of a warning, with the task that it is about, if there are several.

    Args:
        warning: of a run.
    """
    return f"{warning.task}: {warning.message}" if warning.task else warning.message


def _name_trial(event: SearchProgress | FoldProgress) -> str:
    return f"fold {event.fold}" if isinstance(event, FoldProgress) else "the learning rate"


def _log_all(message: str, lines: Sequence[str]) -> None:
    for line in lines:
        _log.info(message, line)


class ProgressDisplay:
    """Shows the progress of a run on stderr: a bar in a terminal, and a line per validation.

    Args:
        quiet: show only warnings.
        silent: show nothing.
        show_warnings: whether to show the run's warnings here too.

    Attributes:
        stopped: how far the run is, as a sentence for a run that is stopped now.
    """

    def __init__(self, *, quiet: bool, silent: bool = False, show_warnings: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self.quiet, self.show_warnings = quiet, show_warnings
        self.stopped = "stopped before the first step"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False),
            TextColumn("{task.fields[left]}", style="cyan"),
            console=self.console,
            transient=True,
            disable=quiet or not _has_bars(self.console),
        )
        self._task: TaskID | None = None
        # Which of several seeds is trained, at the end of a sentence.
        self._seed = ""
        self._started: Started | None = None
        # When the last event came; the steps so far, with their rows and seconds.
        self._last_time = 0.0
        self._steps, self._rows, self._seconds = 0, 0, 0.0
        # The evaluation that runs; those so far, with their rows and seconds.
        self._phase: PhaseStarted | None = None
        self._validations, self._evaluated_rows, self._evaluation_seconds = 0, 0, 0.0
        self._has_announced_cache = False
        self._metric_names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show an event; if that is not possible, the run continues.

        Args:
            event: the next one of the run.
        """
        with suppress(OSError):  # a full disk, or a stream that is closed
            self._show(event)

    def _show(self, event: Event) -> None:
        now = perf_counter()
        match event:
            case PhaseStarted():
                self._show_phase(event)
            case SearchProgress() | FoldProgress():
                self._show_trial(event)
            case Started():
                self._show_start(event)
            case PrecomputePlanned() | PrecomputeProgress():
                self._show_caching(event)
            case Step():
                self._show_step(event, seconds=now - self._last_time)
            case Evaluation():
                self._count_evaluation(now - self._last_time)
                self._show_evaluation(event)
            case TrainingWarning():
                self._show_warning(event)
            case Finished():
                self._print(f"finished after step {event.step}: {event.reason}")
            case _:
                assert_never(event)
        self._last_time = now
        if self._started is not None:
            total = self._started.total_steps
            self.stopped = f"stopped at step {event.step} of {total}{self._seed}"

    def _print(self, text: str) -> None:
        if not self.quiet:
            self.console.print(escape_control_characters(text), markup=False)

    def _print_warning(self, text: str) -> None:
        shown = f"warning: {escape_control_characters(text)}"
        self.console.print(shown, style="yellow", markup=False)

    def _show_warning(self, event: TrainingWarning) -> None:
        if self.show_warnings:
            self._print_warning(name_task(event))

    def _show_phase(self, event: PhaseStarted) -> None:
        """Print a phase before the first step, or after the last; name the others at the bar."""
        if event.phase == "training":
            self._begin_seed(event.what)
        self._phase = event
        has_begun = self._started is not None and self._steps > 0
        if event.phase != "validating" or not has_begun or event.what.startswith("all"):
            self._print(f"{_PHASES.get(event.phase, event.phase)} {event.what} …")
        self._update(event.phase, state=event.what)

    def _begin_seed(self, name: str) -> None:
        """Count steps and validations from the beginning: those to come are of another seed."""
        self._seed, self._started = f" of {name}", None
        self._steps, self._rows, self._seconds = 0, 0, 0.0
        self._validations, self._evaluated_rows, self._evaluation_seconds = 0, 0, 0.0
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _show_trial(self, event: SearchProgress | FoldProgress) -> None:
        if isinstance(event, FoldProgress) and not event.done:
            self._print(f"training without fold {event.fold} of {event.folds} …")
        place = f"step {event.done} of {event.total}"
        self.stopped = f"stopped at {place} of {_name_trial(event)}{self._seed}"

    def _show_start(self, event: Started) -> None:
        self._started = event
        self._task = self._progress.add_task("training", total=event.total_steps, state="", left="")
        self._print(
            f"{compute_trainable_share(event.trainable_parameters, event.backbone_parameters)}, "
            f"{event.rows['train']:,} training rows, {event.total_steps:,} steps"
        )
        self._print(event.shapes)
        for note in event.notes:
            self._print(note)

    def _show_step(self, event: Step, *, seconds: float) -> None:
        self._steps += 1
        if self._last_time:
            self._rows, self._seconds = self._rows + event.rows, self._seconds + seconds
        rate = f", {self._rows / self._seconds:.1f} samples/s" if self._seconds else ""
        state = f"step {event.step}, epoch {event.epoch:.2f}, loss {event.loss:.4f}{rate}"
        if self._started is not None:
            total = self._started.total_steps
            self._update("training", state=state, total=total, completed=event.step)

    def _update(self, description: str, **fields: object) -> None:
        """Update the bar, with the time that is left."""
        if self._task is not None:
            left = self.estimate_seconds_left()
            left_text = "" if left is None else f"{timedelta(seconds=round(left))} left"
            fields |= {"description": description, "left": left_text}
            if isinstance(state := fields.get("state"), str):
                fields["state"] = escape_control_characters(state)
            self._progress.update(self._task, **cast("dict[str, Any]", fields))

    def _count_evaluation(self, seconds: float) -> None:
        self._validations += 1
        if self._phase is not None:
            self._evaluated_rows += self._phase.rows
            self._evaluation_seconds += seconds

    def estimate_seconds_left(self) -> float | None:
        """The seconds of the steps, validations and tests that are still to come, at most.

        Returns:
            None before the first step.
        """
        if self._started is None or not self._seconds:
            return None
        started, per_row = self._started, self._seconds / max(1, self._rows)
        steps = started.total_steps - started.step - self._steps
        if self._evaluated_rows:
            per_row = self._evaluation_seconds / self._evaluated_rows
        per_validation = started.rows.get("validation", 0) * per_row
        validations = max(0, started.validations - self._validations)
        training = steps * self._seconds / self._steps + validations * per_validation
        return training + started.final_rows * per_row

    def _show_caching(self, event: PrecomputePlanned | PrecomputeProgress) -> None:
        if isinstance(event, PrecomputePlanned):
            for line in event.savings:
                self._print(f"saved: {line}")
            return
        if not self._has_announced_cache:
            self._has_announced_cache = True
            size = f"{event.size / 1e9:.2f} GB"
            self._print(
                f"caching states that training does not change: {event.total:,} tokens, {size}"
            )
        self._update("caching", state="tokens", total=event.total, completed=event.done)

    def _show_evaluation(self, event: Evaluation) -> None:
        """Print a row of the table of validations, and before the first one its header."""
        if not self._metric_names:
            best_metric = "loss" if self._started is None else self._started.best_metric
            names = dict.fromkeys((*SHOWN_METRICS, best_metric))
            self._metric_names = tuple(n for n in names if n in event.metrics and n != "loss")
            header = ["epoch", "step", "train loss", "valid. loss", *self._metric_names]
            if event.train is not None:
                header += [f"train {name[:5]}" for name in self._metric_names]
            self._print(" ".join(f"{head:>11}" for head in header))
        train_loss = "-" if event.train_loss is None else f"{event.train_loss:.4f}"
        values = [event.metrics[name] for name in ("loss", *self._metric_names)]
        if event.train is not None:
            train_loss = f"{event.train.metrics['loss']:.4f}"
            values += [event.train.metrics[name] for name in self._metric_names]
        cells = [f"{event.epoch:.2f}", str(event.step), train_loss, *(f"{v:.4f}" for v in values)]
        marks = [mark for mark in ("*" if event.best else "", event.task) if mark]
        self._print(" ".join([*(f"{cell:>11}" for cell in cells), *marks]))


def _has_bars(console: Console) -> bool:
    """Whether a console can show a progress bar; a notebook needs ipywidgets for it."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def _find_stacklevel() -> int:
    """The stacklevel, seen from the caller, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001  # as `warnings` itself finds it
    while frame.f_back is not None and _is_internal(str(frame.f_globals.get("__name__", ""))):
        frame, level = frame.f_back, level + 1
    return level


def _is_internal(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")
