"""Train a prompt: `train_recipe` runs a recipe into a folder, `fit` trains on rows in memory."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator

from softprompt.artifact import Artifact
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import RowsLike
from softprompt.errors import DataError, RecipeError, TrainingError, format_unknown
from softprompt.hub.model_card import MEMORY
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel, attach
from softprompt.injection.verify import load_backbone
from softprompt.methods import METHODS, MethodSettings, PromptTuning
from softprompt.methods.initializers import Initializer
from softprompt.recipe import Recipe, make_recipe
from softprompt.tasks import TaskSettings
from softprompt.train.accelerator import (
    check_sharding,
    make_accelerator,
    use_gradient_checkpointing,
)
from softprompt.train.calibration import calibrate_task
from softprompt.train.config import TrainingConfig
from softprompt.train.datasets import SplitsLike, make_split_tables
from softprompt.train.display import ProgressOption, log_event, make_callbacks
from softprompt.train.events import Callback, PhaseStarted
from softprompt.train.folds import run_folds
from softprompt.train.initialization import InitLike
from softprompt.train.rate_search import settle_learning_rate
from softprompt.train.recipe_backbone import choose_device
from softprompt.train.recorder import train_to_end
from softprompt.train.results import (
    Outcome,
    check_run_savable,
    collect_metrics,
    draw_picture,
    evaluate_all_validation_rows,
    make_run_artifact,
    measure_test,
    to_dict,
)
from softprompt.train.run_dir import RunDir
from softprompt.train.seeds import combine_seeds, train_seeds
from softprompt.train.setup import RunSetup, make_trainer, settle_head, settle_readout, setup_run
from softprompt.train.stages import notify
from softprompt.train.trainer import Trainer
from softprompt.train.transfer import settle_start
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


def train_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> PromptModel | Ensemble:
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
        The best prompt by validation, ready to predict; or the ensemble of several seeds.

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
) -> PromptModel | Ensemble:
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
        The best prompt on its backbone, or the ensemble of several seeds. Its metrics on the test
        rows, if there are any, are in ``metrics.json``. If its backbone is sharded, all processes
        must make the same calls.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was interrupted, and can be resumed.
    """
    run = RunDir(folder)
    accelerator, all_callbacks = open_run(recipe, run, callbacks=callbacks, resume=resume)
    is_main = accelerator.is_main_process
    with ExitStack() as stack:
        if resume and is_main:
            stack.enter_context(run.lock())
        parts = prepared or setup_run(recipe, callbacks=all_callbacks)
        checkpoint = run.load_any_checkpoint() if resume and parts.has_open_readout else None
        parts = settle_readout(parts, callbacks=all_callbacks, checkpoint=checkpoint)
        stack.enter_context(
            use_gradient_checkpointing(parts.backbone, wanted=recipe.train.gradient_checkpointing)
        )
        check_run_savable(make_trainer(parts, accelerator), parts)
        accelerator.wait_for_everyone()
        if is_main and not resume:
            stack.enter_context(run.lock())
            run.create(recipe)
        outcome = train_parts(
            parts, accelerator, callbacks=all_callbacks, folder=run, resume=resume
        )
        _save_outcome(outcome, run, prepared=parts, accelerator=accelerator)
        return outcome.model


def open_run(
    recipe: Recipe, run: RunDir, *, callbacks: Sequence[Callback], resume: bool
) -> tuple[Accelerator, tuple[Callback, ...]]:
    """Check the folder of a run, and make its accelerator.

    Args:
        recipe: of the run; of several tasks, that of any.
        run: the folder.
        callbacks: of the caller.
        resume: whether the run in the folder is resumed.

    Returns:
        The accelerator, and the callbacks with the log of the main process.

    Raises:
        SoftpromptError: the folder is in use, or the devices do not fit.
    """
    if not resume:
        run.check_free()
    cpu = choose_device(recipe.backbone).startswith("cpu")
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=run.path)
    check_sharding(recipe.backbone, accelerator)
    return accelerator, _add_log(callbacks, accelerator)


def _add_log(callbacks: Sequence[Callback], accelerator: Accelerator) -> tuple[Callback, ...]:
    return (log_event, *callbacks) if accelerator.is_main_process else (*callbacks,)


def _save_outcome(
    outcome: Outcome, run: RunDir, *, prepared: RunSetup, accelerator: Accelerator
) -> None:
    """Write artifact, picture and metrics, which come last."""
    if accelerator.is_main_process:
        run.save_artifact(outcome.artifact)
        draw_picture(run, prepared.recipe)
        run.write_metrics(outcome.metrics)
    accelerator.wait_for_everyone()


def train_parts(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
    resume: bool = False,
) -> Outcome:
    """Choose start, rate and length, train one seed or several, and keep what is best.

    Args:
        prepared: the parts of the run, with their readout; their method is trained in place.
        accelerator: of the run.
        callbacks: called with every event, in every process.
        folder: of the run, whose test rows are then evaluated; None to keep all in memory.
        resume: whether to resume the run in the folder.

    Returns:
        What the run keeps, with its metrics.
    """
    settled = settle_start(prepared, accelerator, callbacks=callbacks, folder=folder)
    settled = settle_head(settled)
    settled = settle_learning_rate(settled, accelerator, callbacks=callbacks, folder=folder)
    scores = None
    if settled.folds:
        settled, scores = run_folds(settled, accelerator, callbacks=callbacks, folder=folder)
    if settled.recipe.train.seeds > 1:
        results = train_seeds(
            settled, accelerator, scores=scores, callbacks=callbacks, folder=folder, resume=resume
        )
        outcome = combine_seeds(
            results, prepared=settled, callbacks=callbacks, has_test=folder is not None
        )
    else:
        outcome = _train_one(
            settled, accelerator, callbacks=callbacks, folder=folder, resume=resume
        )
    if not settled.recipe.train.keep_plain_head:
        return outcome
    notify(callbacks, PhaseStarted("judging", "the prompt by a plain head", step=outcome.steps))
    return judge_run(outcome, prepared=settled)


def _train_one(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None,
    resume: bool,
) -> Outcome:
    """Train the only seed of a run; with a folder, its test rows are evaluated too."""
    trainer, best = train_to_end(
        prepared, accelerator, callbacks=callbacks, folder=folder, resume=resume
    )
    prepared = calibrate_task(prepared, best, trainer=trainer, callbacks=callbacks)
    model = attach(make_run_artifact(prepared, best, start=trainer.start), prepared.backbone)
    metrics = collect_metrics(trainer, best, prepared=prepared)
    if folder is not None:
        metrics |= measure_test(model, trainer, prepared=prepared, callbacks=callbacks)
    return Outcome(model, metrics, trainer.step)


def finish_run(
    trainer: Trainer, run: RunDir, *, prepared: RunSetup, callbacks: Sequence[Callback]
) -> PromptModel:
    """Evaluate the best prompt of a training that has ended, and write its folder.

    Args:
        trainer: at the end of its run.
        run: the folder.
        prepared: the parts of the run.
        callbacks: called with the phases of the evaluation.
    """
    best = evaluate_all_validation_rows(
        trainer.get_best(), trainer, prepared=prepared, callbacks=callbacks
    )
    prepared = calibrate_task(prepared, best, trainer=trainer, callbacks=callbacks)
    model = attach(make_run_artifact(prepared, best, start=trainer.start), prepared.backbone)
    metrics = collect_metrics(trainer, best, prepared=prepared)
    metrics |= measure_test(model, trainer, prepared=prepared, callbacks=callbacks)
    outcome = Outcome(model, metrics, trainer.step)
    _save_outcome(outcome, run, prepared=prepared, accelerator=trainer.accelerator)
    return model


def fit(  # noqa: PLR0913  # what a recipe decides, each with a default
    backbone: Backbone | str | Path,
    task: TaskSettings,
    rows: RowsLike | SplitsLike,
    *,
    validation: RowsLike | float | None = None,
    method: MethodSettings | str | None = None,
    init: InitLike | None = None,
    config: TrainingConfig | None = None,
    folds: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> PromptModel | Ensemble:
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
            from, whose trained head is taken too where labels and shapes agree; or a list of
            artifacts, of which the prompt with the lowest validation loss is taken. By default
            label words if there are some.
        config: how the prompt is trained; by default as the method's authors did.
        folds: the number of folds of a cross-validation, for few rows, instead of validation rows:
            all rows but those of one fold are trained on in turn, their mean score chooses the
            number of steps, and the prompt is trained on all rows.
        callbacks: called with every event of the run, in order.
        progress: show a bar and a row for each validation on stderr; ``"auto"`` does so in a
            terminal and in a notebook only.

    Returns:
        The best prompt by validation, ready to predict; the last one without validation; or the
        ensemble of several seeds.

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


def run_prepared(prepared: RunSetup, *, callbacks: Sequence[Callback]) -> PromptModel | Ensemble:
    """Train the parts of a run to the end, without a folder.

    Args:
        prepared: of the recipe; their method is trained in place.
        callbacks: called with every event, in every process.

    Returns:
        The best prompt by validation, or the ensemble of several seeds.
    """
    recipe, backbone = prepared.recipe, prepared.backbone
    cpu = backbone.device.type == "cpu"
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=None)
    all_callbacks = _add_log(callbacks, accelerator)
    prepared = settle_readout(prepared, callbacks=all_callbacks)
    with use_gradient_checkpointing(backbone, wanted=recipe.train.gradient_checkpointing):
        return train_parts(prepared, accelerator, callbacks=all_callbacks).model


_INITIALIZATIONS = "FromText(…), another From…, an artifact, or a list of two artifacts or more"


def _check_arguments(task: object, init: object, *, config: TrainingConfig | None) -> None:
    """Check that task and initialization are softprompt's settings, and that there is no tracker.

    Trackers are for run directories, which `fit` does not have.
    """
    is_list = isinstance(init, list | tuple) and len(init) > 1
    for name, value, kind, examples in (
        ("task", task, TaskSettings, "Classify(…) or Generate(…)"),
        *(
            ("init", each, Initializer | Artifact | None, _INITIALIZATIONS)
            for each in (cast("Sequence[object]", init) if is_list else [init])
        ),
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
