"""A run's progress on stderr: a bar where there is a terminal, and a row for each validation."""

from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self, assert_never

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from softprompt.train.events import (
    Caching,
    Evaluation,
    Event,
    Finished,
    Planned,
    Step,
    Warned,
)
from softprompt.train.plan import shapes, trained_share

if TYPE_CHECKING:
    from softprompt.train import Trainer

_SHOWN = ("accuracy", "macro_f1", "exact_match", "rougeL")


class Progress:
    """Says how a run goes.

    Args:
        quiet: nothing but warnings.
        silent: not even those.
    """

    def __init__(self, *, quiet: bool, silent: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self.quiet = quiet
        self.stopped = "stopped before the first step"
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._before = 0.0
        self._rows, self._seconds = 0, 0.0
        self._total, self._cached = 0, False
        self._names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._bars.start()
        self._say("loading the data and the backbone …")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self._bars.stop()

    def show(self, event: Event, trainer: "Trainer") -> None:
        """Say what happened."""
        if self._task is None:
            self._task = self._bars.add_task("training", total=trainer.total, state="")
            self._begin(trainer)
        now = perf_counter()
        match event:
            case Planned():
                for line in event.savings:
                    self._say(f"saved: {line}")
            case Caching():
                self._caching(event)
            case Step():
                self._step(event, seconds=now - self._before)
            case Evaluation():
                self._row(event, trainer.training.select)
            case Warned():
                self.console.print(f"warning: {event.message}", style="yellow", markup=False)
            case Finished():
                self._say(f"finished after step {event.step}: {event.reason}")
            case _:
                assert_never(event)
        self._before = now
        self.stopped = f"stopped at step {trainer.step} of {trainer.total}"

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False)

    def _begin(self, trainer: "Trainer") -> None:
        trained = sum(p.numel() for p in trainer.modules.parameters() if p.requires_grad)
        rows, self._total = len(trainer.rows.examples), trainer.total
        self._say(
            f"{trained_share(trained, trainer.task.parameters)}, {rows:,} training rows, "
            f"{trainer.total:,} steps"
        )
        self._say(shapes(trainer.start, trainer.task.backbone.geometry))
        held = trainer.validation
        for name, cut, count in (
            ("training", trainer.rows.cut, rows),
            ("validation", held.cut if held else 0, len(held.examples) if held else 0),
        ):
            if cut:
                text = f"warning: {cut:,} of {count:,} {name} rows are too long and were cut"
                self.console.print(text, style="yellow", markup=False)

    def _step(self, event: Step, *, seconds: float) -> None:
        if self._before:
            self._rows, self._seconds = self._rows + event.rows, self._seconds + seconds
        rate = f", {self._rows / self._seconds:.1f} samples/s" if self._seconds else ""
        state = f"step {event.step}, epoch {event.epoch:.2f}, loss {event.loss:.4f}{rate}"
        if self._task is not None:
            self._bars.update(self._task, total=self._total, completed=event.step, state=state)

    def _caching(self, event: Caching) -> None:
        if not self._cached:
            self._cached = True
            size = f"{event.size / 1e9:.2f} GB"
            self._say(f"computing once what no step changes: {event.total:,} tokens, {size}")
        if self._task is not None:
            self._bars.update(self._task, total=event.total, completed=event.done, state="once")

    def _row(self, event: Evaluation, select: str) -> None:
        if not self._names:
            chosen = dict.fromkeys((*_SHOWN, select))
            self._names = tuple(n for n in chosen if n in event.metrics and n != "loss")
            own = () if event.train is None else self._names
            heads = ("epoch", "step", "train loss", "valid. loss", *self._names)
            heads += tuple(f"train {name[:5]}" for name in own)
            self._say(" ".join(f"{head:>11}" for head in heads))
        seen = "-" if event.train_loss is None else f"{event.train_loss:.4f}"
        values = [event.metrics[name] for name in ("loss", *self._names)]
        if event.train is not None:
            seen = f"{event.train.metrics['loss']:.4f}"
            values += [event.train.metrics[name] for name in self._names]
        cells = [f"{event.epoch:.2f}", str(event.step), seen, *(f"{v:.4f}" for v in values)]
        self._say(" ".join(f"{cell:>11}" for cell in cells) + (" *" if event.best else ""))
