"""Train a prompt: `train_recipe` runs a recipe into a folder, `fit` trains on rows in memory."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from softprompt.artifact import Artifact
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import RowsLike
from softprompt.errors import DataError, RecipeError, TrainingError, format_unknown
from softprompt.hub.model_card import MEMORY
from softprompt.inference.model import PromptModel, attach
from softprompt.injection.verify import load_backbone
from softprompt.methods import METHODS, MethodSettings, PromptTuning
from softprompt.methods.initializers import Initializer
from softprompt.recipe import Recipe, make_recipe
from softprompt.tasks import TaskSettings
from softprompt.train.accelerator import (
    check_sharding,
    make_accelerator,
    track_event,
    use_gradient_checkpointing,
)
from softprompt.train.config import TrainingConfig
from softprompt.train.datasets import SplitsLike, make_split_tables
from softprompt.train.display import ProgressOption, log_event, make_callbacks
from softprompt.train.events import Callback, Evaluation, Event, PhaseStarted
from softprompt.train.folds import run_folds
from softprompt.train.plain_head import keep_better
from softprompt.train.rate_search import settle_learning_rate
from softprompt.train.recipe_backbone import choose_device
from softprompt.train.results import (
    check_run_savable,
    collect_checkpoint,
    collect_results,
    count_final_rows,
    draw_picture,
    evaluate_all_validation_rows,
    make_run_artifact,
    restore_run,
    to_dict,
)
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup, make_trainer, settle_readout, setup_run
from softprompt.train.stages import notify
from softprompt.train.summary import prepare_caches
from softprompt.train.trainer import Trainer
from softprompt.train.verdict import judge_run

__all__ = [
    "TrainingConfig",
    "fit",
    "make_run_artifact",
    "make_trainer",
    "run_recipe",
    "to_dict",
    "train_recipe",
]

# The most steps without a checkpoint; each validation saves one too.
CHECKPOINT_EVERY = 50


def train_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> PromptModel:
    """Run a recipe, or resume an interrupted run, and write its folder.

    The folder gets the recipe as run, a checkpoint, the events of training, metrics, a picture of
    the losses and the artifact, as ``softprompt train`` writes them.

    Args:
        recipe: everything that decides the run.
        folder: of the run; a new one, or with ``resume`` that of the interrupted run.
        resume: continue from the folder's last checkpoint, with the same numbers. The recipe may
            have other ``epochs``, ``max_steps``, ``early_stopping_patience`` and ``trackers`` than
            before, and another ``[cache]``; the run continues with them.
        callbacks: called with every event of the run, in order, in every process. A
            KeyboardInterrupt that one of them raises stops the run, which is saved first.
        progress: show a bar and a row for each validation on stderr; ``"auto"`` does so in a
            terminal and in a notebook only.

    Returns:
        The best prompt by validation, ready to predict.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was stopped, and can be resumed.

    Warns:
        SoftpromptWarning: the run does not seem to converge.

    Examples:
        ```python
        model = train_recipe(read_recipe("recipe.toml"), "runs/recipe", callbacks=[print])
        ```

        >>> from softprompt.train.events import Evaluation, Event
        >>> def report(event: Event) -> None:  # for callbacks=[report]
        ...     if isinstance(event, Evaluation) and event.best:
        ...         print(f"best at step {event.step}: {event.metrics['loss']:.3f}")
    """
    with make_callbacks(callbacks, progress=progress) as all_callbacks:
        return run_recipe(recipe, Path(folder), callbacks=all_callbacks, resume=resume)


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    prepared: RunSetup | None = None,
) -> PromptModel:
    """Run a recipe as `train_recipe` does, but without progress and without Python warnings.

    Args:
        recipe: of the run.
        folder: of the run; a new one, or with ``resume`` the interrupted one.
        callbacks: called with every event, in every process. If one raises KeyboardInterrupt, the
            run is saved first. Any other interrupt may come within a step, so the run resumes from
            its last checkpoint.
        resume: whether to resume the run in the folder.
        prepared: the recipe's parts, if they are already made. Their method is trained in place.

    Returns:
        The best prompt on its backbone. Its metrics on the test rows, if there are any, are in
        ``metrics.json``. If its backbone is sharded, all processes must make the same calls.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was interrupted, and can be resumed.
    """
    run = RunDir(folder)
    if not resume:
        run.check_free()
    device = choose_device(recipe.backbone)
    accelerator = make_accelerator(recipe.train, cpu=device.startswith("cpu"), folder=folder)
    check_sharding(recipe.backbone, accelerator)
    is_main = accelerator.is_main_process
    all_callbacks = (log_event, *callbacks) if is_main else (*callbacks,)
    with ExitStack() as stack:
        if resume and is_main:
            stack.enter_context(run.lock())
        parts = prepared or setup_run(recipe, callbacks=all_callbacks)
        checkpoint = run.load_checkpoint() if resume and parts.has_open_readout else None
        parts = settle_readout(parts, callbacks=all_callbacks, checkpoint=checkpoint)
        stack.enter_context(
            use_gradient_checkpointing(parts.backbone, wanted=recipe.train.gradient_checkpointing)
        )
        trainer = make_trainer(parts, accelerator)
        check_run_savable(trainer, parts)
        accelerator.wait_for_everyone()
        if is_main and not resume:
            stack.enter_context(run.lock())
            run.create(recipe)
        parts, trainer = _train(
            trainer, run, prepared=parts, callbacks=all_callbacks, resume=resume
        )
        return _finish(trainer, run, prepared=parts, callbacks=all_callbacks)


def _train(
    trainer: Trainer,
    run: RunDir,
    *,
    prepared: RunSetup,
    callbacks: Sequence[Callback],
    resume: bool,
) -> tuple[RunSetup, Trainer]:
    """Choose the rate, cross-validate, and train to the end; return the parts and the trainer."""
    recipe, accelerator = prepared.recipe, trainer.accelerator
    settled = settle_learning_rate(prepared, accelerator, callbacks=callbacks, folder=run)
    if settled.folds:
        settled = run_folds(settled, accelerator, callbacks=callbacks, folder=run)
    if settled is not prepared:
        prepared, trainer = settled, make_trainer(settled, accelerator)
    num_events = restore_run(trainer, run, prepared=prepared) if resume else 0
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and resume:
        run.write_recipe(recipe)
    if recipe.train.trackers:
        accelerator.init_trackers("softprompt")
    try:
        _Recorder(trainer, run, prepared=prepared).run(callbacks, num_events=num_events)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    return prepared, trainer


def _finish(
    trainer: Trainer, run: RunDir, *, prepared: RunSetup, callbacks: Sequence[Callback]
) -> PromptModel:
    """Evaluate the best prompt, and write artifact, picture and metrics, which come last."""
    best = evaluate_all_validation_rows(
        trainer.get_best(), trainer, prepared=prepared, callbacks=callbacks
    )
    model = attach(make_run_artifact(prepared, best, start=trainer.start), prepared.backbone)
    metrics = collect_results(model, trainer, best=best, prepared=prepared, callbacks=callbacks)
    if prepared.recipe.train.keep_plain_head:
        notify(callbacks, PhaseStarted("judging", "the prompt by a plain head", step=trainer.step))
        model, metrics = judge_run(model, best, prepared=prepared, metrics=metrics)
    if trainer.accelerator.is_main_process:
        run.save_artifact(model.artifact)
        draw_picture(run, prepared.recipe)
        run.write_metrics(metrics)
    trainer.accelerator.wait_for_everyone()
    return model


class _Recorder:
    """Runs a trainer, and writes its events and checkpoints into the run's folder."""

    def __init__(self, trainer: Trainer, folder: RunDir, *, prepared: RunSetup) -> None:
        self.trainer, self.folder, self.prepared = trainer, folder, prepared
        self.is_main = trainer.accelerator.is_main_process
        self.num_events = 0
        self.saved_at = trainer.step

    def run(self, callbacks: Sequence[Callback], *, num_events: int) -> None:
        """Run the trainer to the end.

        Args:
            callbacks: called with every event.
            num_events: the number of events in the folder that a resumed run keeps.
        """
        self.num_events = num_events
        earlier_seconds = self.folder.truncate_events(num_events) if self.is_main else 0.0
        event: Event
        final_rows = count_final_rows(self.trainer, self.prepared)
        for event in prepare_caches(self.trainer, self.prepared, final_rows=final_rows):
            notify(callbacks, event)
        start = perf_counter() - earlier_seconds
        for event in self.trainer.iterate():
            track_event(self.trainer.accelerator, event)
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
        state = collect_checkpoint(self.trainer, self.prepared, num_events=self.num_events)
        if self.is_main:
            self.folder.save_checkpoint(state)
        self.saved_at = self.trainer.step


def fit(  # noqa: PLR0913  # what a recipe decides, each with a default
    backbone: Backbone | str | Path,
    task: TaskSettings,
    rows: RowsLike | SplitsLike,
    *,
    validation: RowsLike | float | None = None,
    method: MethodSettings | str | None = None,
    init: Initializer | Artifact | None = None,
    config: TrainingConfig | None = None,
    folds: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> PromptModel:
    r"""Train a prompt on rows in memory, and keep the best one by validation.

    Args:
        backbone: a loaded backbone, or a name for `load_backbone`, which loads it with its
            defaults.
        task: `Classify` or `Generate`.
        rows: to train on, with the template's fields and the target column: a list of mappings, a
            pandas or polars data frame, a ``datasets.Dataset`` and the like; or these by split,
            as ``{"train": …, "validation": …}`` or a ``DatasetDict``.
        validation: the rows to select the best prompt by; or the fraction of ``rows`` to split off
            for that, 0 for none. By default it is a tenth, if ``rows`` has no such split.
        method: settings such as `PTuningV2`, or a name such as ``"p-tuning-v2"``; by default prompt
            tuning.
        init: the initialization, such as `FromText`; or an artifact (`model.artifact`) to start
            from, whose trained head is taken too where labels and shapes agree. By default label
            words if there are some.
        config: how the prompt is trained; by default as the method's authors did.
        folds: the number of folds of a cross-validation, for few rows, instead of validation rows:
            all rows but those of one fold are trained on in turn, their mean score chooses the
            number of steps, and the prompt is trained on all rows.
        callbacks: called with every event of the run, in order.
        progress: show a bar and a row for each validation on stderr; ``"auto"`` does so in a
            terminal and in a notebook only.

    Returns:
        The best prompt by validation, ready to predict; the last one without validation.

    Raises:
        RecipeError: a setting does not fit, or ``config`` names trackers, which need the run
            directory of `train_recipe`.
        DataError: both ``validation`` and ``folds`` are given, or the rows cannot be read.
        SoftpromptError: rows, task, method and backbone do not fit; the message says what to do.

    Warns:
        SoftpromptWarning: the run does not seem to converge.

    Examples:
        ```python
        model = fit(
            "builtin:smollm2-135m-instruct",
            Classify("Review: {text}\nSentiment:{soft:10}", verbalizer={"0": " no", "1": " yes"}),
            pandas.read_csv("reviews.csv"),
            validation=0.2,
            init=FromText("Overall, the sentiment of the review is"),
            config=TrainingConfig(epochs=4, learning_rate=0.01),
        )
        ```

        >>> from softprompt.tasks import Classify
        >>> fit("builtin:minilm", Classify(), [], method="p-tunin")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.TrainingError: unknown method 'p-tunin'. Options: ...
    """
    _check_arguments(task, init, config=config)
    settings = PromptTuning() if method is None else find_method(method)
    if folds is not None and validation is not None:
        msg = (
            "both folds and validation are given, but with folds every training row validates "
            "once. Leave one of them out."
        )
        raise DataError(msg)
    tables, fraction = make_split_tables(rows, validation)
    with make_callbacks(callbacks, progress=progress) as all_callbacks:
        if not isinstance(backbone, Backbone):
            notify(all_callbacks, PhaseStarted("loading", str(backbone)))
            backbone = load_backbone(backbone)
        data = {"split_sizes": make_shares(fraction), "folds": folds}
        recipe = make_fit_recipe(backbone, task, method=settings, config=config, data=data)
        prepared = setup_run(
            recipe, backbone=backbone, tables=tables, init=init, callbacks=all_callbacks
        )
        return run_prepared(prepared, callbacks=all_callbacks)


def make_fit_recipe(
    backbone: Backbone,
    task: TaskSettings,
    *,
    method: MethodSettings,
    config: TrainingConfig | None,
    data: Mapping[str, Any],
) -> Recipe:
    """The recipe of a run on rows in memory, which its artifact records.

    Args:
        backbone: loaded.
        task: its settings.
        method: its settings.
        config: of the training; None for the defaults.
        data: the recipe's ``[data]``, without the place of the rows.

    Raises:
        RecipeError: settings do not go together.
    """
    config = TrainingConfig() if config is None else config
    return make_recipe(
        {
            "seed": config.seed,
            "backbone": {"name": backbone.name, "keep_dropout": backbone.dropout},
            "data": {"train": MEMORY, **data},
            "task": {"kind": task.kind, **_to_table(task)},
            "method": {"name": method.name, **_to_table(method)},
            "train": config.as_table(),
        }
    )


def make_shares(validation: float) -> dict[str, float]:
    """The ``split_sizes`` of rows of which a fraction is split off for validation."""
    return {"train": 1 - validation, "validation": validation, "test": 0.0}


def run_prepared(prepared: RunSetup, *, callbacks: Sequence[Callback]) -> PromptModel:
    """Train the parts of a run to the end, without a folder.

    Args:
        prepared: of the recipe; their method is trained in place.
        callbacks: called with every event, in every process.

    Returns:
        The best prompt by validation.
    """
    recipe, backbone = prepared.recipe, prepared.backbone
    cpu = backbone.device.type == "cpu"
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=None)
    all_callbacks = (log_event, *callbacks) if accelerator.is_main_process else (*callbacks,)
    prepared = settle_readout(prepared, callbacks=all_callbacks)
    with use_gradient_checkpointing(backbone, wanted=recipe.train.gradient_checkpointing):
        prepared = settle_learning_rate(prepared, accelerator, callbacks=all_callbacks)
        if prepared.folds:
            prepared = run_folds(prepared, accelerator, callbacks=all_callbacks)
        trainer = make_trainer(prepared, accelerator)
        check_run_savable(trainer, prepared)
        for event in chain(prepare_caches(trainer, prepared), trainer.iterate()):
            notify(all_callbacks, event)
    best = evaluate_all_validation_rows(
        trainer.get_best(), trainer, prepared=prepared, callbacks=all_callbacks
    )
    model = attach(make_run_artifact(prepared, best, start=trainer.start), backbone)
    if not recipe.train.keep_plain_head:
        return model
    notify(all_callbacks, PhaseStarted("judging", "the prompt by a plain head", step=trainer.step))
    return keep_better(model, best, prepared=prepared)


def _check_arguments(task: object, init: object, *, config: TrainingConfig | None) -> None:
    """Check that task and initialization are softprompt's settings, and that there is no tracker.

    Trackers are for run directories, which `fit` does not have.
    """
    for name, value, kind, examples in (
        ("task", task, TaskSettings, "Classify(…) or Generate(…)"),
        ("init", init, Initializer | Artifact | None, "FromText(…), another From…, or an artifact"),
    ):
        if not isinstance(value, kind):
            msg = f"{name} is {value!r}, which is not a setting of softprompt. Pass {examples}."
            raise TrainingError(msg)
    if config is not None and config.trackers:
        fault = (
            "trackers: fit has no run directory, so it does not log to trackers. Leave them out "
            "and pass callbacks, or use train_recipe."
        )
        raise RecipeError([fault], where="TrainingConfig")


def find_method(method: MethodSettings | str) -> MethodSettings:
    """The settings of a method by its name; settings are returned unchanged.

    Args:
        method: settings or a name.

    Raises:
        TrainingError: there is no method of this name.

    Examples:
        >>> find_method("p-tuning-v2").name
        'p-tuning-v2'
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise TrainingError(format_unknown("method", method, options=METHODS))
    return cast("MethodSettings", METHODS[method]())


def _to_table(settings: TaskSettings | MethodSettings) -> dict[str, Any]:
    """The settings that are not None, as a recipe's table."""
    return {name: value for name, value in asdict(settings).items() if value is not None}
