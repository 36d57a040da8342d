"""Recipes of small runs, for every kind of task, and what runs write."""

import json
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.artifact import load_artifact
from softprompt.methods import METHODS
from softprompt.train import RunSetup, Step, run_recipe
from support.tiny_models import ENCODERS, SMALL


def make_task_table(kind: str, *, family: str, soft: bool) -> dict[str, Any]:
    """The ``[task]`` of a recipe: label words, a trained head, or text."""
    prompt = "{soft:3}" if soft else ""
    match kind:
        case "words":
            mask = " {mask}" if family in ENCODERS else " movie"
            words = {"negative": " bad", "positive": " good"}
            return {
                "kind": "classify",
                "template": f"{prompt}{{text}}{mask}",
                "verbalizer": words,
            }
        case "head":
            return {"kind": "classify", "template": f"{prompt}{{text}}"}
        case _:
            return {
                "kind": "generate",
                "template": f"{{text}} is{prompt}",
                "target_column": "answer",
                "max_new_tokens": 4,
            }


def make_recipe_data(
    family: str = "llama",
    method: str = "prompt-tuning",
    *,
    task: str = "words",
    settings: dict[str, Any] | None = None,
    task_settings: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    cache: dict[str, float] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A recipe as plain data; ``train`` is its last table."""
    soft = METHODS[method].prompt_kind == "input"
    defaults = {"batch_size": 4, "epochs": 2, "learning_rate": 0.05, "lr_scheduler": "linear"}
    return {
        "seed": 7,
        "backbone": {"name": family, "device": "cpu", "dtype": "float32"} | (backbone or {}),
        # Nothing is split off: a split that is not given is missing.
        "data": {"train": "memory", "split_sizes": {"train": 1.0, "validation": 0.0, "test": 0.0}},
        "task": make_task_table(task, family=family, soft=soft) | (task_settings or {}),
        "method": {"name": method} | SMALL.get(method, {}) | (settings or {}),
        "train": defaults | train,
        "cache": cache or {},
    }


def renew_run(prepared: RunSetup) -> RunSetup:
    """The same parts with copies of the method and the head, which training changes."""
    task = copy(prepared.task)
    if task.head is not None:
        task._head = deepcopy(task.head)
    return replace(prepared, task=task, method=deepcopy(prepared.method))


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind that a run wrote into its folder."""
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def read_numbers(folder: Path) -> list[dict[str, Any]]:
    """All events that a run wrote into its folder, without the seconds."""
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def check_resumed(prepare: Callable[[], RunSetup], folder: Path) -> None:
    """Check that a run that was stopped in its third step has the numbers of a whole one."""
    whole = prepare()
    run_recipe(whole.recipe, folder / "whole", prepared=whole)
    stopped = prepare()

    def stop(event: object) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(stopped.recipe, folder / "part", prepared=stopped, callbacks=[stop])
    again = prepare()
    run_recipe(again.recipe, folder / "part", prepared=again, resume=True)
    assert read_numbers(folder / "part") == read_numbers(folder / "whole")
    one, other = (load_artifact(folder / name / "artifact") for name in ("part", "whole"))
    assert one.manifest.task == other.manifest.task
    for name, tensor in other.to_tensors().items():
        assert torch.equal(tensor, one.to_tensors()[name]), name
