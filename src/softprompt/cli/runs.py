"""Runs of a comparison, each in a folder of its own, on the same rows."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import torch

from softprompt.backbone.model import Backbone
from softprompt.backbone.precision import dtype_of
from softprompt.cli.meter import Meter
from softprompt.compare import Cost, Row, Trained, Trial
from softprompt.data import Rows as Table
from softprompt.recipe import Recipe
from softprompt.train import RunFolder, Training, prepare, train
from softprompt.train.best import score_of
from softprompt.train.order import Order
from softprompt.train.prepare import device_of, open_section
from softprompt.train.settings import resolve
from softprompt.train.tune import tune
from softprompt.train.tuning import Tuning, prepare_tuning, tuning_defaults

# The first steps of a run take longer than the others.
_WARMING = 2
_WORD = 4
_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Runs:
    """Trains arms; a prompt's run that was stopped goes on, any other one begins again.

    Args:
        backbone: that all prompts speak to.
        tables: the training and validation rows; no test rows, so that none can be looked at.
        folder: of the runs.
        heed: called after every event; stops by raising KeyboardInterrupt.
    """

    def __init__(
        self,
        backbone: Backbone,
        tables: Mapping[str, Table],
        *,
        folder: Path,
        heed: Callable[[], None],
    ) -> None:
        self.backbone, self.tables, self.folder = backbone, tables, folder
        self._heed = heed

    def __call__(self, trial: Trial) -> Trained:
        """Train with a share of the steps and a multiple of the learning rate."""
        recipe = trial.arm.recipe.model_copy(update={"seed": trial.seed})
        if trial.arm.kind == "prompt":
            return self._prompt(recipe, trial)
        return self._tuned(recipe, trial, trial.arm.kind)

    def _prompt(self, recipe: Recipe, trial: Trial) -> Trained:
        prepared = prepare(recipe, backbone=self.backbone, tables=self.tables)
        lengths = [e.length for e in prepared.rows["train"].examples]
        recipe = _planned(recipe, trial, training=prepared.training, lengths=lengths)
        prepared = replace(prepared, recipe=recipe, training=resolve(recipe, prepared.usual))
        run = RunFolder(self.folder / trial.name)
        begun = (run.path / "recipe.toml").exists()
        if begun and run.recipe() != recipe:  # of a trial with other steps or another rate
            shutil.rmtree(run.path)
            begun = False
        with Meter(self.backbone.device) as meter:
            model = train(
                recipe,
                run.path,
                watch=lambda _event, _trainer: self._heed(),
                resume=begun,
                prepared=prepared,
            )

        def answer(rows: Sequence[Row]) -> list[str]:
            return [answer.label for answer in model.predict(rows)]

        size = sum(file.stat().st_size for file in run.artifact.iterdir())
        memory = meter.taken + _size_of(self.backbone)
        return _trained(run, prepared.training, answer=answer, size=size, memory=memory)

    def _tuned(self, recipe: Recipe, trial: Trial, kind: Tuning) -> Trained:
        recipe = _wide(recipe) if kind == "fine-tuning" else recipe
        backbone = open_section(recipe.backbone)
        parts = prepare_tuning(recipe, kind, backbone=backbone, tables=self.tables)
        lengths = [e.length for e in parts.rows.examples]
        recipe = _planned(recipe, trial, training=parts.training, lengths=lengths)
        training = resolve(recipe, tuning_defaults(kind, backbone.geometry))
        run = RunFolder(self.folder / trial.name)
        shutil.rmtree(run.path, ignore_errors=True)
        with Meter(backbone.device) as meter:
            answer = tune(
                recipe,
                run.path,
                parts=replace(parts, training=training),
                watch=lambda _event: self._heed(),
            )
        size = sum(p.numel() * p.element_size() for p in parts.trained)
        memory = meter.taken + _size_of(backbone)
        return _trained(run, training, answer=answer, size=size, memory=memory)


def _planned(recipe: Recipe, trial: Trial, *, training: Training, lengths: Sequence[int]) -> Recipe:
    """The recipe with the rates and the steps of a trial."""
    order = Order(lengths, training)
    rates = {name: vars(training)[name] for name in ("learning_rate", "head_learning_rate")}
    changed: dict[str, float] = {name: rate * trial.factor for name, rate in rates.items()}
    if trial.steps is not None or trial.share < 1:
        steps = ceil(trial.share * (trial.steps or order.steps()))
        changed |= {"steps": steps, "epochs": ceil(steps / len(order.batches(0)))}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changed)})


def _wide(recipe: Recipe) -> Recipe:
    """The recipe with weights in fp32: small steps on them would be lost in 16 bits."""
    section = recipe.backbone
    dtype = dtype_of(section.dtype, device_of(section))
    if dtype.itemsize >= _WORD:
        return recipe
    return recipe.model_copy(
        update={
            "backbone": section.model_copy(update={"dtype": "float32"}),
            "train": recipe.train.model_copy(update={"mixed_precision": _SHORT[dtype]}),
        }
    )


def _trained(
    run: RunFolder,
    training: Training,
    *,
    answer: Callable[[Sequence[Row]], list[str]],
    size: int,
    memory: int,
) -> Trained:
    numbers, events = run.metrics() or {}, [*run.events()]
    validation = numbers["validation"]
    pairs = [*_paces(events)]
    settled = pairs[_WARMING:] or pairs
    rows, taken = (sum(column) for column in zip(*settled, strict=True)) if settled else (0, 0.0)
    trainable = numbers["trainable_parameters"]
    return Trained(
        answer=answer,
        score=score_of(validation, select=training.select, step=numbers["best_step"]),
        validation=validation,
        rate=training.learning_rate,
        pace=taken / max(1, len(settled)),
        cost=Cost(
            trainable=trainable,
            parameters=numbers["backbone_parameters"],
            added=numbers.get("added_parameters", trainable),
            size=size,
            seconds=float(events[-1]["seconds"]),
            steps=numbers["steps"],
            speed=rows / taken if taken else 0.0,
            memory=memory,
        ),
        run=run.path.name,
    )


def _paces(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Rows and seconds of each step that follows directly on another, if any does."""
    found = [
        (before["event"], now["rows"], now["seconds"] - before["seconds"])
        for before, now in pairwise(events)
        if now["event"] == "step"
    ]
    # Behind a validation stands the checkpoint that was written after it.
    own = [pair for before, *pair in found if before == "step"] or [pair for _, *pair in found]
    return [(rows, seconds) for rows, seconds in own]


def _size_of(backbone: Backbone) -> int:
    return sum(p.numel() * p.element_size() for p in backbone.model.parameters())
