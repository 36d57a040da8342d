"""Train the runs of a comparison, each in its own folder, on the same rows."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import torch

from softprompt.backbone.devices import choose_dtype
from softprompt.backbone.model import Backbone
from softprompt.compare.lr_search import RunSpec, TrainedRun
from softprompt.compare.memory import MemoryMeter
from softprompt.compare.results import Cost
from softprompt.data import Table
from softprompt.data.inputs import Row
from softprompt.inference import read_answers
from softprompt.recipe import Recipe
from softprompt.train import ResolvedTraining, RunDir, run_recipe, setup_run
from softprompt.train.config import resolve_training
from softprompt.train.finetune import (
    FinetuneKind,
    choose_finetune_defaults,
    finetune,
    setup_finetune,
)
from softprompt.train.recipe_backbone import choose_device, load_recipe_backbone
from softprompt.train.sampler import BatchSampler
from softprompt.train.trainer import compute_selection_score

# The first steps of a run take longer than the others.
_WARMUP_STEPS = 2
_FP32_BYTES = 4
_MIXED_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class ComparisonRunner:
    """Trains variants; an interrupted run of a prompt resumes, any other run starts again.

    Args:
        backbone: of all prompts.
        tables: the training and validation rows, without the test rows, so that none can be used.
        folder: of the runs.
        should_stop: called after every step. If it returns True, the run is saved and
            KeyboardInterrupt is raised.
    """

    def __init__(
        self,
        backbone: Backbone,
        tables: Mapping[str, Table],
        *,
        folder: Path,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.backbone, self.tables, self.folder = backbone, tables, folder
        self._should_stop = should_stop

    def __call__(self, spec: RunSpec) -> TrainedRun:
        """Train with a fraction of the steps and a multiple of the learning rate."""
        recipe = spec.variant.recipe.model_copy(update={"seed": spec.seed})
        if spec.variant.kind == "prompt":
            return self._train_prompt(recipe, spec)
        return self._finetune(recipe, spec, spec.variant.kind)

    def _check_stop(self) -> None:
        if self._should_stop is not None and self._should_stop():
            raise KeyboardInterrupt

    def _train_prompt(self, recipe: Recipe, spec: RunSpec) -> TrainedRun:
        prepared = setup_run(recipe, backbone=self.backbone, tables=self.tables)
        lengths = [e.length for e in prepared.rows["train"].examples]
        recipe = _set_schedule(recipe, spec, training=prepared.training, lengths=lengths)
        prepared = replace(
            prepared,
            recipe=recipe,
            training=resolve_training(recipe, prepared.defaults, rows=len(lengths)),
        )
        run = RunDir(self.folder / spec.name)
        is_started = (run.path / "recipe.toml").exists()
        if is_started and run.read_recipe() != recipe:  # other steps, or another learning rate
            shutil.rmtree(run.path)
            is_started = False
        with MemoryMeter(self.backbone.device) as meter:
            model = run_recipe(
                recipe,
                run.path,
                callbacks=[lambda _event: self._check_stop()],
                resume=is_started,
                prepared=prepared,
            )

        def predict(rows: Sequence[Row]) -> list[str]:
            return read_answers(model.task, model.predict(rows), rows=rows)

        size = sum(file.stat().st_size for file in run.artifact.iterdir())
        memory = meter.added_bytes + _count_bytes(self.backbone)
        return _read_run(run, prepared.training, predict=predict, size=size, memory=memory)

    def _finetune(self, recipe: Recipe, spec: RunSpec, kind: FinetuneKind) -> TrainedRun:
        recipe = _use_fp32_weights(recipe) if kind == "fine-tuning" else recipe
        backbone = load_recipe_backbone(recipe.backbone)
        parts = setup_finetune(recipe, kind, backbone=backbone, tables=self.tables)
        lengths = [e.length for e in parts.rows.examples]
        recipe = _set_schedule(recipe, spec, training=parts.training, lengths=lengths)
        defaults = choose_finetune_defaults(kind, backbone.geometry)
        training = resolve_training(recipe, defaults, rows=len(lengths))
        run = RunDir(self.folder / spec.name)
        shutil.rmtree(run.path, ignore_errors=True)
        with MemoryMeter(backbone.device) as meter:
            predict = finetune(
                recipe,
                run.path,
                parts=replace(parts, training=training),
                callback=lambda _event: self._check_stop(),
            )
        size = sum(p.numel() * p.element_size() for p in parts.trained)
        memory = meter.added_bytes + _count_bytes(backbone)
        return _read_run(run, training, predict=predict, size=size, memory=memory)


def _set_schedule(
    recipe: Recipe, spec: RunSpec, *, training: ResolvedTraining, lengths: Sequence[int]
) -> Recipe:
    """The recipe with the learning rates and the steps of a run.

    Args:
        training: the settings of the recipe with their defaults.
        lengths: of the training rows in tokens.
    """
    sampler = BatchSampler(lengths, training)
    changes: dict[str, float] = {
        "learning_rate": training.learning_rate * spec.multiplier,
        "head_learning_rate": training.head_learning_rate * spec.multiplier,
    }
    if spec.steps is not None or spec.fraction < 1:
        steps = ceil(spec.fraction * (spec.steps or sampler.count_steps()))
        changes |= {"max_steps": steps, "epochs": ceil(steps / len(sampler.draw_batches(0)))}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _use_fp32_weights(recipe: Recipe) -> Recipe:
    """The recipe with weights in fp32: small updates would be lost in 16 bits."""
    section = recipe.backbone
    dtype = choose_dtype(section.dtype, choose_device(section))
    if dtype.itemsize >= _FP32_BYTES:
        return recipe
    return recipe.model_copy(
        update={
            "backbone": section.model_copy(update={"dtype": "float32"}),
            "train": recipe.train.model_copy(update={"mixed_precision": _MIXED_PRECISION[dtype]}),
        }
    )


def _read_run(
    run: RunDir,
    training: ResolvedTraining,
    *,
    predict: Callable[[Sequence[Row]], list[str]],
    size: int,
    memory: int,
) -> TrainedRun:
    """The result of a finished run from its folder.

    Args:
        training: the settings of the run.
        predict: answers rows with the selected state.
        size: bytes to save for the task, without the backbone.
        memory: bytes of the backbone plus the peak that training adds to it.
    """
    metrics, events = run.read_metrics() or {}, [*run.read_events()]
    validation = metrics["validation"]
    timed = _time_steps(events)
    timed = timed[_WARMUP_STEPS:] or timed
    rows, seconds = (sum(column) for column in zip(*timed, strict=True)) if timed else (0, 0.0)
    trainable = metrics["trainable_parameters"]
    return TrainedRun(
        answer=predict,
        score=compute_selection_score(
            validation, select=training.best_metric, step=metrics["best_step"]
        ),
        validation=validation,
        rate=training.learning_rate,
        pace=seconds / max(1, len(timed)),
        cost=Cost(
            trainable=trainable,
            parameters=metrics["backbone_parameters"],
            added=metrics.get("added_parameters", trainable),
            size=size,
            seconds=float(events[-1]["seconds"]),
            steps=metrics["steps"],
            speed=rows / seconds if seconds else 0.0,
            memory=memory,
        ),
        run=run.path.name,
    )


def _time_steps(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Rows and seconds of each step that directly follows another; of all steps if none does."""
    steps = [
        (before["event"], now["rows"], now["seconds"] - before["seconds"])
        for before, now in pairwise(events)
        if now["event"] == "step"
    ]
    # The time of a step after a validation includes writing the checkpoint.
    timed = [pair for before, *pair in steps if before == "step"] or [pair for _, *pair in steps]
    return [(rows, seconds) for rows, seconds in timed]


def _count_bytes(backbone: Backbone) -> int:
    return sum(p.numel() * p.element_size() for p in backbone.model.parameters())
