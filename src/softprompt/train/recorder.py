"""One training to its end: its events go to callbacks and, where there is one, into a folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any, Protocol

from accelerate import Accelerator

from softprompt.train.accelerator import track_event, use_trackers
from softprompt.train.events import Callback, Evaluation, Event, PhaseStarted
from softprompt.train.results import (
    check_run_savable,
    collect_checkpoint,
    count_final_rows,
    evaluate_all_validation_rows,
    restore_run,
)
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup, make_trainer
from softprompt.train.stages import notify
from softprompt.train.summary import prepare_caches
from softprompt.train.trainer import Best, Trainer

# The most steps without a checkpoint; each validation saves one too.
CHECKPOINT_EVERY = 50
_PROJECT = "softprompt"


def train_to_end(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
    resume: bool = False,
) -> tuple[Trainer, Best]:
    """Train the parts of a run to the end.

    Args:
        prepared: of the run, settled; their method is trained in place.
        accelerator: of the run.
        callbacks: called with every event, in every process.
        folder: of the run, or of one of its seeds, which gets checkpoints and events; None for no
            folder, and no trackers.
        resume: whether to continue from the checkpoint in the folder, if there is one.

    Returns:
        The trainer after its last step, and the best prompt with its metrics on all validation
        rows.

    Raises:
        ArtifactError: the checkpoint is that of another recipe, backbone or other rows.
        KeyboardInterrupt: a callback stopped the run, which is saved.
    """
    trainer = make_trainer(prepared, accelerator)
    if folder is None:
        check_run_savable(trainer, prepared)
        for event in chain(prepare_caches(trainer, prepared), trainer.iterate()):
            notify(callbacks, event)
    else:
        num_events = restore_run(trainer, folder, prepared=prepared) if resume else 0
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and resume:
            RunDir(folder.root).write_recipe(prepared.recipe)
        preparation = prepare_caches(
            trainer, prepared, final_rows=count_final_rows(trainer, prepared)
        )
        recorder = RunRecorder(
            trainer, folder, collect=partial(collect_checkpoint, trainer, prepared)
        )
        is_seed = folder.root != folder.path
        project = f"{_PROJECT}-{folder.path.name}" if is_seed else _PROJECT
        wanted = bool(prepared.recipe.train.trackers)
        with use_trackers(accelerator, project=project, wanted=wanted):
            recorder.run(preparation, callbacks=callbacks, num_events=num_events)
    best = evaluate_all_validation_rows(
        trainer.get_best(), trainer, prepared=prepared, callbacks=callbacks
    )
    return trainer, best


class TrainingLoop(Protocol):
    """A loop that yields its events, such as a `Trainer`.

    Attributes:
        accelerator: device, precision and processes.
        step: the number of finished steps.
    """

    accelerator: Accelerator
    step: int

    def iterate(self) -> Iterator[Event]:
        """Train from the current position to the end."""


class RunRecorder:
    """Runs a training loop, and writes its events and checkpoints into a folder.

    Args:
        loop: at its position.
        folder: of the run.
        collect: makes the state to resume from, with the number of events in the folder.
    """

    def __init__(
        self, loop: TrainingLoop, folder: RunDir, *, collect: Callable[..., Mapping[str, Any]]
    ) -> None:
        self.loop, self.folder, self.collect = loop, folder, collect
        self.is_main = loop.accelerator.is_main_process
        self.num_events = 0
        self.saved_at = loop.step

    def run(
        self, preparation: Iterable[Event], *, callbacks: Sequence[Callback], num_events: int
    ) -> None:
        """Run the loop to the end.

        Args:
            preparation: the events before the first step, which are not recorded.
            callbacks: called with every event.
            num_events: the number of events in the folder that a resumed run keeps.
        """
        self.num_events = num_events
        earlier_seconds = self.folder.truncate_events(num_events) if self.is_main else 0.0
        for event in preparation:
            notify(callbacks, event)
        start = perf_counter() - earlier_seconds
        for event in self.loop.iterate():
            track_event(self.loop.accelerator, event)
            if self.is_main and not isinstance(event, PhaseStarted):
                self._record(event, perf_counter() - start)
            try:
                notify(callbacks, event)
            except KeyboardInterrupt:
                self._save()
                raise

    def _record(self, event: Event, seconds: float) -> None:
        self.folder.append_event(event, seconds=round(seconds, 3))
        self.num_events += 1
        if isinstance(event, Evaluation) or event.step - self.saved_at >= CHECKPOINT_EVERY:
            self._save()

    def _save(self) -> None:
        state = self.collect(num_events=self.num_events)
        if self.is_main:
            self.folder.save_checkpoint(state)
        self.saved_at = self.loop.step
