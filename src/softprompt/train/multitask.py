"""Train several tasks together on one shared prompt: `train_multitask` runs a multitask recipe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from softprompt.backbone.model import Backbone
from softprompt.errors import ArtifactError, FaultCollector
from softprompt.inference.model import PromptModel
from softprompt.recipe.multitask import MultitaskRecipe
from softprompt.train.accelerator import (
    use_gradient_checkpointing,
    use_trackers,
)
from softprompt.train.api import finish_run, open_run
from softprompt.train.display import ProgressOption, make_callbacks
from softprompt.train.events import Callback, Event, PhaseStarted, Started, TrainingWarning
from softprompt.train.multitask_trainer import SHARED_STATE, MultitaskTrainer
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.recorder import RunRecorder
from softprompt.train.results import (
    check_run_savable,
    check_steps,
    collect_checkpoint,
    count_final_rows,
    explain_misfit,
    make_run_artifact,
    restore_trainer,
)
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import (
    RunSetup,
    check_setup,
    make_trainer,
    settle_head,
    settle_readout,
    setup_run,
)
from softprompt.train.stages import notify
from softprompt.train.summary import prepare_caches
from softprompt.train.validation import CheckResult, check_best_metric


def train_multitask(
    recipe: MultitaskRecipe,
    folder: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> dict[str, PromptModel]:
    """Train a shared prompt and the prompts of several tasks, or resume an interrupted run.

    The folder gets the recipe, a checkpoint, the events and ``metrics.json`` of the whole run. In
    ``tasks/NAME`` it gets a finished run directory for each task, whose artifact is an ordinary
    prompt, and in ``shared`` the shared prompt as an artifact to start other runs from.

    Args:
        recipe: of all tasks.
        folder: of the run; a new one, or with ``resume`` that of the interrupted run.
        resume: continue from the folder's last checkpoint, with the same numbers. The recipe may
            have other ``epochs``, ``max_steps`` and ``early_stopping_patience`` than before.
        callbacks: called with every event of the run, in order, in every process. A
            KeyboardInterrupt that one of them raises stops the run, which is saved first.
        progress: show a bar and a row for each validation on stderr; ``"auto"`` does so in a
            terminal and in a notebook only.

    Returns:
        The best prompt of each task by its validation, ready to predict, by the task's name.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was stopped, and can be resumed.

    Warns:
        SoftpromptWarning: the run does not seem to converge.

    Examples:
        ```python
        models = train_multitask(read_multitask_recipe(Path("tasks.toml")), "runs/tasks")
        print(models["mood"].predict(["Moving and funny."]))
        ```

        >>> from softprompt import make_multitask_recipe
        >>> task = {"data": {"train": "rows.csv"}, "task": {"kind": "classify"}}
        >>> recipe = make_multitask_recipe(
        ...     {
        ...         "backbone": {"name": "./nowhere"},
        ...         "method": {"name": "multitask-prompt-tuning"},
        ...         "tasks": {"mood": task, "topic": task},
        ...     }
        ... )
        >>> train_multitask(recipe, "runs/tasks")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.BackboneError: there is no file or folder './nowhere'. ...
    """
    with make_callbacks(callbacks, progress=progress) as all_callbacks:
        return run_multitask(recipe, Path(folder), callbacks=all_callbacks, resume=resume)


def run_multitask(
    recipe: MultitaskRecipe,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    prepared: Mapping[str, RunSetup] | None = None,
) -> dict[str, PromptModel]:
    """Run a recipe as `train_multitask` does, but without progress and without Python warnings.

    Args:
        recipe: of all tasks.
        folder: of the run; a new one, or with ``resume`` the interrupted one.
        callbacks: called with every event, in every process.
        resume: whether to resume the run in the folder.
        prepared: the parts of each task, if they are already made. They are trained in place.

    Returns:
        The best prompt of each task.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was interrupted, and can be resumed.
    """
    run, shared = RunDir(folder), recipe.shared
    accelerator, all_callbacks = open_run(shared, run, callbacks=callbacks, resume=resume)
    is_main = accelerator.is_main_process
    with ExitStack() as stack:
        if resume and is_main:
            stack.enter_context(run.lock())
        state = run.load_checkpoint() if resume else None
        parts = prepared or setup_tasks(recipe, callbacks=all_callbacks)
        parts = _settle_heads(parts, callbacks=all_callbacks, state=state)
        backbone = next(iter(parts.values())).backbone
        stack.enter_context(
            use_gradient_checkpointing(backbone, wanted=shared.train.gradient_checkpointing)
        )
        loop = make_multitask_trainer(parts, accelerator, recipe=recipe)
        for name, trainer in loop.trainers.items():
            check_run_savable(trainer, parts[name])
        accelerator.wait_for_everyone()
        if is_main and not resume:
            stack.enter_context(run.lock())
            run.create(recipe)
        num_events = _restore(loop, state, run=run, prepared=parts, recipe=recipe) if state else 0
        if is_main and resume:
            run.write_recipe(recipe)
        recorder = RunRecorder(loop, run, collect=partial(_collect, loop, parts, recipe))
        with use_trackers(accelerator, wanted=bool(shared.train.trackers)):
            recorder.run(_prepare(loop, parts), callbacks=all_callbacks, num_events=num_events)
        return _finish(loop, run, prepared=parts, recipe=recipe, callbacks=all_callbacks)


def setup_tasks(
    recipe: MultitaskRecipe,
    *,
    backbone: Backbone | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, RunSetup]:
    """Read, load, check and build everything that the tasks need; the backbone is loaded once.

    Args:
        recipe: of all tasks.
        backbone: if it is already loaded.
        callbacks: called with the phases of the setup.

    Returns:
        The parts of each task by its name.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    if backbone is None:
        notify(callbacks, PhaseStarted("loading", recipe.shared.backbone.name))
        backbone = load_recipe_backbone(recipe.shared.backbone)
    return link_tasks(
        {
            name: setup_run(each, backbone=backbone, callbacks=callbacks)
            for name, each in recipe.recipes.items()
        }
    )


def link_tasks(prepared: Mapping[str, RunSetup]) -> dict[str, RunSetup]:
    """The parts of each task, with the names of the others, which its artifact records.

    Args:
        prepared: by the names of the tasks.
    """
    return {
        name: replace(parts, trained_with=tuple(other for other in prepared if other != name))
        for name, parts in prepared.items()
    }


def make_multitask_trainer(
    prepared: Mapping[str, RunSetup], accelerator: Accelerator, *, recipe: MultitaskRecipe
) -> MultitaskTrainer:
    """Make the training loop of the parts of all tasks.

    Args:
        prepared: by the names of the tasks; their methods are trained in place.
        accelerator: of the run.
        recipe: of all tasks.
    """
    trainers = {name: make_trainer(parts, accelerator) for name, parts in prepared.items()}
    return MultitaskTrainer(trainers, temperature=recipe.sampling_temperature)


def check_multitask(recipe: MultitaskRecipe, *, backbone: Backbone | None = None) -> CheckResult:
    """Check a multitask recipe with its data and its backbone, without training.

    Args:
        recipe: to check.
        backbone: that of the recipe, if it is loaded already.

    Returns:
        All faults, each with the name of its task; or notes on what each task will do. It has no
        plan.

    Examples:
        >>> from softprompt import make_multitask_recipe
        >>> task = {"data": {"train": "rows.csv"}, "task": {"kind": "classify"}}
        >>> recipe = make_multitask_recipe(
        ...     {
        ...         "backbone": {"name": "./nowhere"},
        ...         "method": {"name": "multitask-prompt-tuning"},
        ...         "tasks": {"mood": task, "topic": task},
        ...     }
        ... )
        >>> check_multitask(recipe).faults[0]  # doctest: +ELLIPSIS
        "task 'mood': there is no file rows.csv ...
    """
    faults, notes, parts = list[str](), list[str](), dict[str, RunSetup]()
    for name, each in recipe.recipes.items():
        collector = FaultCollector(keep_going=True)
        setup = check_setup(each, collector, backbone=backbone)
        if setup is not None:
            collector.check(check_best_metric, setup)
        faults += [f"task {name!r}: {fault}" for fault in collector.faults]
        notes += [f"task {name!r}: {note}" for note in collector.notes]
        if setup is not None:
            parts[name], backbone = setup, setup.backbone
    if len(parts) == len(recipe.recipes):
        collector = FaultCollector(keep_going=True)
        accelerator = Accelerator(cpu=next(iter(parts.values())).backbone.device.type == "cpu")
        loop = collector.attempt(make_multitask_trainer, parts, accelerator, recipe=recipe)
        faults += collector.faults
        notes += [] if loop is None else _describe_tasks(loop, parts)
    return CheckResult(tuple(dict.fromkeys(faults)), tuple(notes))


def _describe_tasks(loop: MultitaskTrainer, prepared: Mapping[str, RunSetup]) -> Iterator[str]:
    """A sentence on each task, and one on the whole run."""
    for name, parts in prepared.items():
        rows = ", ".join(f"{len(split.truth):,} {kind}" for kind, split in parts.rows.items())
        yield f"task {name!r}: {rows} rows; {loop.counts[name]:,} steps of each round"
        yield from (f"task {name!r}: {text}" for text in (*parts.slips, *parts.warnings))
    yield (
        f"{loop.total:,} steps in rounds of {loop.round_steps:,}; the shared prompt has "
        f"{loop.shared.numel():,} numbers"
    )


def _settle_heads(
    prepared: Mapping[str, RunSetup],
    *,
    callbacks: Sequence[Callback],
    state: Mapping[str, Any] | None,
) -> dict[str, RunSetup]:
    """The parts with the readout of each trained head, or the checkpoint's, and its start."""
    tasks = {} if state is None else state.get("tasks", {})
    return {
        name: settle_head(settle_readout(parts, callbacks=callbacks, checkpoint=tasks.get(name)))
        for name, parts in prepared.items()
    }


def _collect(
    loop: MultitaskTrainer,
    prepared: Mapping[str, RunSetup],
    recipe: MultitaskRecipe,
    *,
    num_events: int,
) -> dict[str, Any]:
    """The state to resume from: that of each task as a run of its own has it, and the loop's."""
    tasks = {}
    for name, trainer in loop.trainers.items():
        state = collect_checkpoint(trainer, prepared[name], num_events=num_events)
        own = {key: part for key, part in state["trainer"].items() if key not in SHARED_STATE}
        tasks[name] = state | {"trainer": own}
    return {
        "loop": loop.state_dict(),
        "tasks": tasks,
        "sampling_temperature": recipe.sampling_temperature,
        "num_events": num_events,
    }


def _restore(
    loop: MultitaskTrainer,
    state: Mapping[str, Any],
    *,
    run: RunDir,
    prepared: Mapping[str, RunSetup],
    recipe: MultitaskRecipe,
) -> int:
    """Load a checkpoint into the loop; return the number of its events."""
    with explain_misfit(run):
        before = {"tasks": [*state["tasks"]], "sampling_temperature": state["sampling_temperature"]}
        now = {"tasks": [*prepared], "sampling_temperature": recipe.sampling_temperature}
        if changed := [key for key in now if before[key] != now[key]]:
            listed = "; ".join(f"{key}: {before[key]}, now {now[key]}" for key in changed)
            msg = (
                f"the recipe of the run in {run.path} was changed since it started: {listed}. "
                "Restore it, or train again."
            )
            raise ArtifactError(msg)
        shared = {key: state["loop"][key] for key in SHARED_STATE}
        for name, trainer in loop.trainers.items():
            of_task = state["tasks"][name]
            whole = {**of_task, "trainer": of_task["trainer"] | shared}
            restore_trainer(trainer, whole, run=run, prepared=prepared[name])
        loop.load_state_dict(state["loop"])
        check_steps(loop.step, loop.total)
        return int(state["num_events"])


def _prepare(loop: MultitaskTrainer, prepared: Mapping[str, RunSetup]) -> Iterator[Event]:
    """Describe the whole run, and cache what training does not change of each task."""
    preparations = {
        name: prepare_caches(
            trainer, prepared[name], final_rows=count_final_rows(trainer, prepared[name])
        )
        for name, trainer in loop.trainers.items()
    }
    starts = {name: next(events) for name, events in preparations.items()}
    yield _join_starts({n: s for n, s in starts.items() if isinstance(s, Started)}, loop)
    for name, events in preparations.items():
        for event in events:
            yield replace(event, task=name) if isinstance(event, TrainingWarning) else event


def _join_starts(starts: Mapping[str, Started], loop: MultitaskTrainer) -> Started:
    """The start of the whole run."""
    first = next(iter(starts.values()))
    splits = dict.fromkeys(split for start in starts.values() for split in start.rows)
    modules = [trainer.modules for trainer in loop.trainers.values()]
    parameters = {p for module in modules for p in module.parameters() if p.requires_grad}
    return replace(
        first,
        total_steps=loop.total,
        rows={split: sum(s.rows.get(split, 0) for s in starts.values()) for split in splits},
        truncated={
            split: sum(s.truncated.get(split, 0) for s in starts.values()) for split in splits
        },
        trainable_parameters=sum(p.numel() for p in parameters),
        validations=loop.count_validations(),
        final_rows=sum(s.final_rows for s in starts.values()),
        notes=tuple(f"{name}: {note}" for name, s in starts.items() for note in s.notes),
    )


def _finish(
    loop: MultitaskTrainer,
    run: RunDir,
    *,
    prepared: Mapping[str, RunSetup],
    recipe: MultitaskRecipe,
    callbacks: Sequence[Callback],
) -> dict[str, PromptModel]:
    """Write a run directory for each task, the shared prompt, and the metrics, which come last."""
    is_main = loop.accelerator.is_main_process
    models, metrics = dict[str, PromptModel](), dict[str, Any]()
    for name, trainer in loop.trainers.items():
        own, parts = RunDir(run.path / "tasks" / name), prepared[name]
        if is_main:
            own.path.mkdir(parents=True, exist_ok=True)
            own.write_recipe(parts.recipe)
            own.copy_events(run, task=name)
        models[name] = finish_run(trainer, own, prepared=parts, callbacks=callbacks)
        metrics[name] = own.read_metrics()
    if is_main:
        step = _save_shared(loop, run, prepared=prepared)
        run.write_metrics(
            {
                "tasks": metrics,
                "steps": loop.step,
                "steps_of_round": loop.counts,
                "sampling_temperature": recipe.sampling_temperature,
                "shared": {"step": step, "path": "shared"},
            }
        )
    loop.accelerator.wait_for_everyone()
    return models


def _save_shared(loop: MultitaskTrainer, run: RunDir, *, prepared: Mapping[str, RunSetup]) -> int:
    """Write the shared prompt as an artifact of the first task; return its step."""
    name, trainer = next(iter(loop.trainers.items()))
    prompt, step = loop.get_best_shared()
    best = replace(trainer.get_best(), prompt=prompt, step=step, metrics={})
    artifact = make_run_artifact(prepared[name], best, start=trainer.start)
    RunDir(run.path / "shared").save_artifact(artifact)
    return step
