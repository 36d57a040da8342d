"""Train to the end and keep what comes of it: the edge between the loop and the world."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from accelerate import Accelerator

from softprompt.evaluate.model import Model, bring
from softprompt.recipe import Recipe
from softprompt.train.events import Evaluation, Event
from softprompt.train.folder import RunFolder
from softprompt.train.launch import check_shares, checkpointing, make_accelerator, track
from softprompt.train.picture import draw
from softprompt.train.prepare import Prepared, device_of, prepare
from softprompt.train.result import artifact_of, on_all_rows, plain, results
from softprompt.train.resume import restore, whole_state
from softprompt.train.savings import begin
from softprompt.train.trainer import Trainer

CHECKPOINT_EVERY = 50

Watcher = Callable[[Event, Trainer], None]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    watch: Watcher | None = None,
    resume: bool = False,
    prepared: Prepared | None = None,
) -> Model:
    """Run a recipe, or go on with one, and write its folder.

    Args:
        folder: of the run; a new one, or with ``resume`` the stopped one.
        watch: told every event, with the trainer, in every process. A KeyboardInterrupt that it
            raises stops the run where it is; any other one, at the last checkpoint, since it may
            have torn a step.
        prepared: the recipe's parts, if they are made already. They are used up: the method
            among them is trained.

    Returns:
        The best prompt at work. Its metrics on the test rows, if there are any, are in
        ``metrics.json``. If its backbone is sharded, all processes must use it alike.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was stopped, and can be resumed.
    """
    run = RunFolder(folder)
    if not resume:
        run.check_free()
    device = device_of(recipe.backbone)
    accelerator = make_accelerator(recipe.train, cpu=device.startswith("cpu"), folder=folder)
    check_shares(recipe.backbone, accelerator)
    parts = prepared or prepare(recipe)
    with checkpointing(parts.backbone, wanted=recipe.train.gradient_checkpointing):
        trainer = make_trainer(parts, accelerator)
        noted = restore(trainer, run, prepared=parts) if resume else 0
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not resume:
            run.begin(recipe)
        if recipe.train.trackers:
            accelerator.init_trackers("softprompt")
        try:
            _Loop(trainer, run, prepared=parts).go(watch, noted=noted)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
    best = on_all_rows(trainer.chosen(), trainer, prepared=parts)
    model = bring(artifact_of(parts, best, start=trainer.start), parts.backbone)
    numbers = results(model, trainer, best=best, prepared=parts)
    if accelerator.is_main_process:
        run.finish(model.artifact, numbers)
        draw(run.events(), run.picture, title=f"{run.path.name}: {recipe.method.name}")
    accelerator.wait_for_everyone()
    return model


def make_trainer(prepared: Prepared, accelerator: Accelerator) -> Trainer:
    """The loop over a recipe's parts."""
    return Trainer(
        prepared.task,
        prepared.method,
        rows=prepared.rows["train"],
        validation=prepared.rows.get("validation"),
        training=prepared.training,
        accelerator=accelerator,
    )


class _Loop:
    """A trainer's events, written down as they come."""

    def __init__(self, trainer: Trainer, run: RunFolder, *, prepared: Prepared) -> None:
        self.trainer, self.run, self.prepared = trainer, run, prepared
        self.main = trainer.accelerator.is_main_process
        self.noted = 0
        self.saved_at = trainer.step

    def go(self, watch: Watcher | None, *, noted: int) -> None:
        """Go to the end."""
        self.noted = noted
        before = self.run.rewind(noted) if self.main else 0.0
        for told in begin(self.trainer, self.prepared):
            if watch is not None:
                watch(told, self.trainer)
        began = perf_counter() - before
        for event in self.trainer.run():
            track(self.trainer.accelerator, event)
            if self.main:
                self._keep(event, perf_counter() - began)
            if watch is not None:
                try:
                    watch(event, self.trainer)
                except KeyboardInterrupt:
                    self._save()
                    raise

    def _keep(self, event: Event, seconds: float) -> None:
        self.run.note(event, seconds=round(seconds, 3))
        self.noted += 1
        if isinstance(event, Evaluation) or event.step - self.saved_at >= CHECKPOINT_EVERY:
            self._save()

    def _save(self) -> None:
        state = whole_state(self.trainer, self.prepared, noted=self.noted)
        if self.main:
            self.run.save_checkpoint(state)
        self.saved_at = self.trainer.step


__all__ = ["Watcher", "artifact_of", "make_trainer", "plain", "train"]
