"""Train to the end and keep what comes of it: the edge between the loop and the world."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator

from softprompt.artifact import SCHEMA, Artifact, Manifest
from softprompt.errors import ArtifactError
from softprompt.evaluate.model import Model, bring
from softprompt.evaluate.predict import Report
from softprompt.prompt import KVPrefix
from softprompt.recipe import Recipe
from softprompt.train.best import Best
from softprompt.train.events import Evaluation, Event, Step
from softprompt.train.folder import RunFolder
from softprompt.train.picture import draw
from softprompt.train.prepare import Prepared, prepare
from softprompt.train.state import generators, restore_generators
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
        watch: told every event, with the trainer.
        prepared: the recipe's parts, if they are made already.

    Returns:
        The best prompt at work. Its metrics on the test rows, if there are any, are in
        ``metrics.json``.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: after the state was saved, so that the run can be resumed.
    """
    accelerator = _accelerator(recipe, folder)
    torch.manual_seed(recipe.seed)
    run = RunFolder(folder)
    if not resume and accelerator.is_main_process:
        run.begin(recipe)
    prepared = prepared or prepare(recipe)
    with backbone_mode(prepared):
        trainer = make_trainer(prepared, accelerator)
        if resume:
            _restore(trainer, run, prepared)
        _loop(trainer, run, prepared, watch)
    accelerator.wait_for_everyone()
    model = bring(artifact_of(prepared, trainer.chosen()), prepared.backbone)
    if accelerator.is_main_process:
        _finish(model, trainer, run, prepared)
    accelerator.end_training()
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


def artifact_of(prepared: Prepared, best: Best) -> Artifact:
    """What inference needs of a run, and how it came about."""
    backbone, prompt = prepared.backbone, best.prompt
    tensors = prompt.tensors()
    named = {f"prompt.{k}": t for k, t in tensors.items()}
    named |= {f"head.{k}": t for k, t in best.head.items()}
    prefix = prompt if isinstance(prompt, KVPrefix) else None
    manifest = Manifest(
        schema=SCHEMA,
        softprompt=version("softprompt"),
        kind="input" if prefix is None else "kv",
        length=prompt.length,
        shapes={name: list(tensor.shape) for name, tensor in named.items()},
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        layers=None if prefix is None else list(prefix.layers),
        shifted=None if prefix is None else prefix.shifted,
        template=prepared.template,
        max_length=prepared.recipe.data.max_length,
        task=_task_data(prepared),
        labels=list(prepared.task.labels),
        backbone={
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint,
            "family": backbone.geometry.family,
        },
        data={
            name: {"rows": len(prepared.rows[name].truth), "sha256": digest}
            for name, digest in prepared.hashes.items()
        },
        recipe=prepared.recipe.as_data(),
        metrics={"validation": dict(best.metrics), "step": best.step},
    )
    return Artifact(manifest, prompt, dict(best.head))


def _accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    made = Accelerator(
        mixed_precision=recipe.train.mixed_precision,
        log_with=list(recipe.train.trackers) or None,
        project_dir=folder,
        cpu=recipe.backbone.device == "cpu",
    )
    if recipe.train.trackers:
        made.init_trackers("softprompt")
    return made


@contextmanager
def backbone_mode(prepared: Prepared) -> Iterator[None]:
    """Put the backbone in training mode while gradient checkpointing or its own dropout needs it.

    Otherwise it stays in eval mode; no dropout is left that checkpointing could wake.
    """
    model, section = prepared.backbone.model, prepared.recipe
    if section.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(section.train.gradient_checkpointing or section.backbone.dropout)
    try:
        yield
    finally:
        if section.train.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


def _loop(trainer: Trainer, run: RunFolder, prepared: Prepared, watch: Watcher | None) -> None:
    main = trainer.accelerator.is_main_process
    began, before = perf_counter(), 0
    try:
        for event in trainer.run():
            seconds = perf_counter() - began
            if main:
                run.note(event, seconds=round(seconds, 3))
                if isinstance(event, Evaluation) or event.step - before >= CHECKPOINT_EVERY:
                    run.save_checkpoint(_whole(trainer, prepared))
                    before = event.step
            _track(trainer.accelerator, event)
            if watch is not None:
                watch(event, trainer)
    except KeyboardInterrupt:
        if main:
            run.save_checkpoint(_whole(trainer, prepared))
        raise


def _whole(trainer: Trainer, prepared: Prepared) -> dict[str, Any]:
    return {
        "trainer": trainer.state(),
        "generators": generators(),
        "hashes": dict(prepared.hashes),
        "fingerprint": prepared.backbone.fingerprint,
    }


def _restore(trainer: Trainer, run: RunFolder, prepared: Prepared) -> None:
    state = run.load_checkpoint()
    if state is None:
        run.forget_after(-1)
        return
    if state["hashes"] != dict(prepared.hashes):
        changed = [n for n, digest in prepared.hashes.items() if state["hashes"].get(n) != digest]
        msg = (
            f"the {' and '.join(changed)} data is not what the run in {run.path} began with, so "
            "it cannot go on with the same numbers. Put the data back, or train anew."
        )
        raise ArtifactError(msg)
    if state["fingerprint"] != prepared.backbone.fingerprint:
        msg = (
            f"{prepared.backbone.name} is not the backbone that the run in {run.path} began with. "
            "Give the same revision, or train anew."
        )
        raise ArtifactError(msg)
    trainer.load(state["trainer"])
    restore_generators(state["generators"])
    run.forget_after(trainer.step)


def _track(accelerator: Accelerator, event: Event) -> None:
    if not accelerator.log_with:
        return
    match event:
        case Step():
            values = {"train/loss": event.loss, "train/learning_rate": event.learning_rate}
        case Evaluation():
            values = {f"validation/{name}": value for name, value in event.metrics.items()}
        case _:
            return
    accelerator.log(values, step=event.step)


def _finish(model: Model, trainer: Trainer, run: RunFolder, prepared: Prepared) -> None:
    found: dict[str, Any] = {"validation": dict(trainer.chosen().metrics)}
    test = prepared.rows.get("test")
    if test is not None:
        found["test"] = plain(model.judge(test.examples, test.truth))
    found |= {"best_step": trainer.chosen().step, "steps": trainer.step}
    found["trainable_parameters"] = sum(p.numel() for p in trainer.modules.parameters())
    found["backbone_parameters"] = sum(p.numel() for p in prepared.backbone.model.parameters())
    found["template"] = prepared.template
    found["training"] = {k: v for k, v in asdict(prepared.training).items() if v is not None}
    found["defaults_from"] = prepared.usual.source
    run.finish(model.artifact, found)
    draw(run.events(), run.picture, title=f"{run.path.name}: {prepared.recipe.method.name}")


def plain(report: Report) -> dict[str, Any]:
    """A report as JSON has it: the metrics by name, the rows and the confusion."""
    found: dict[str, Any] = {"rows": report.rows, **report.metrics}
    if report.confusion is not None:
        found["confusion"] = asdict(report.confusion)
    return found


def _task_data(prepared: Prepared) -> Mapping[str, Any]:
    settings = prepared.recipe.task_settings
    return {"kind": settings.kind, **asdict(settings), "template": prepared.template}


__all__ = ["Watcher", "artifact_of", "make_trainer", "plain", "train"]
