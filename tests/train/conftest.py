"""Small runs: a few reviews made of the tokenizer's words, and recipes for every kind of task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from datasets import Dataset

from softprompt.backbone import Backbone
from softprompt.recipe import Recipe, make_recipe
from softprompt.train import Prepared, Trainer, make_trainer, prepare
from softprompt.train.launch import checkpointing, make_accelerator

GOOD = ("good", "great", "wonderful", "love", "funny", "bright", "happy", "new", "fresh", "yes")
BAD = ("bad", "awful", "terrible", "hate", "boring", "dull", "sad", "old", "rotten", "no")
PLAIN = ("the", "a", "this", "film", "movie", "plot", "story", "actor", "was", "is", "very", "it")
LABELS = ("negative", "positive")
# Small enough for tiny backbones.
SMALL: dict[str, dict[str, Any]] = {
    "prompt-tuning": {},
    "p-tuning": {"hidden_size": 8},
    "prefix-tuning": {"length": 3, "hidden_size": 8},
    "p-tuning-v2": {"length": 3},
}
SEQ2SEQ, ENCODERS = {"t5", "bart"}, {"bert", "roberta", "albert"}
Row = dict[str, str]
Make = Callable[..., Prepared]


def reviews(count: int, *, seed: int) -> list[Row]:
    """Rows of one to nine words, whose label their words tell; the answers differ in length."""
    draw = Random(seed)  # noqa: S311  # no secret
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        telling = draw.choices(GOOD if label == "positive" else BAD, k=draw.randint(1, 3))
        words = [*telling, *draw.choices(PLAIN, k=draw.randint(0, 6))]
        draw.shuffle(words)
        answer = " ".join(telling)
        rows.append({"text": " ".join(words), "label": label, "answer": answer})
    return rows


def task_table(kind: str, *, family: str, soft: bool) -> dict[str, Any]:
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


def recipe_data(
    family: str = "llama",
    method: str = "prompt-tuning",
    *,
    task: str = "words",
    settings: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    cache: dict[str, float] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A recipe as plain data; ``train`` is its last table."""
    soft = method in {"prompt-tuning", "p-tuning"}
    usual = {"batch_size": 4, "epochs": 2, "learning_rate": 0.05, "schedule": "linear"}
    return {
        "seed": 7,
        "backbone": {"name": family, "device": "cpu", "dtype": "float32"} | (backbone or {}),
        # What is not given is not there: nothing is split off.
        "data": {"train": "memory", "shares": {"train": 1.0, "validation": 0.0, "test": 0.0}},
        "task": task_table(task, family=family, soft=soft),
        "method": {"name": method} | SMALL[method] | (settings or {}),
        "train": usual | train,
        "cache": cache or {},
    }


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Recipes by family, method and task."""
    return lambda *args, **changes: make_recipe(recipe_data(*args, **changes))


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    """Recipes as plain data."""
    return recipe_data


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    """Reviews by number and seed."""
    return lambda count, seed=0: reviews(count, seed=seed)


def renewed(prepared: Prepared) -> Prepared:
    """The same parts with a method and a head of their own, as they were at the start."""
    task = copy(prepared.task)
    if task.head is not None:
        task._head = deepcopy(task.head)
    return replace(prepared, task=task, method=deepcopy(prepared.method))


@pytest.fixture(scope="session")
def kept() -> dict[str, Prepared]:
    """Parts that were made already: rendering takes longer than training."""
    return {}


@pytest.fixture
def parts(backbone, kept) -> Make:
    """All the parts of a small run; what is trained is new each time.

    ``sizes`` are the rows of each split, ``own`` a backbone of one's own.
    """

    def make(
        *args: str,
        sizes: tuple[int, ...] = (11, 5, 4),
        own: Backbone | None = None,
        tables: dict[str, list[Row]] | None = None,
        **changes: Any,
    ) -> Prepared:
        recipe = make_recipe(recipe_data(*args, **changes))
        names = ("train", "validation", "test")
        drawn = {
            name: reviews(count, seed=seed)
            for seed, (name, count) in enumerate(zip(names, sizes, strict=False))
        }
        listed = drawn | (tables or {})
        key = f"{recipe} {listed}"
        if own is None and key in kept:
            return renewed(kept[key])
        made = {name: Dataset.from_list(part) for name, part in listed.items()}
        chosen = own or backbone(recipe.backbone.name)
        prepared = prepare(recipe, backbone=chosen, tables=made)
        if own is None:
            kept[key] = renewed(prepared)
        return prepared

    return make


@pytest.fixture
def trainer_of() -> Callable[[Prepared], Trainer]:
    """The loop over the parts of a run."""

    def make(prepared: Prepared) -> Trainer:
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        return make_trainer(prepared, accelerator)

    return make


@pytest.fixture
def going(trainer_of) -> Callable[..., Any]:
    """A trainer in the state that the edge puts its backbone in."""

    @contextmanager
    def run(prepared: Prepared) -> Iterator[Trainer]:
        wanted = prepared.recipe.train.gradient_checkpointing
        with checkpointing(prepared.backbone, wanted=wanted):
            yield trainer_of(prepared)

    return run


@pytest.fixture
def written(tmp_path, saved, data, rows) -> Callable[..., Path]:
    """A recipe file with its data and its backbone on disk, as a user has them."""

    def write(
        family: str = "llama",
        *args: str,
        sizes: tuple[int, int, int] = (11, 5, 4),
        **changes: Any,
    ) -> Path:
        import json

        import tomli_w

        table = data(family, *args, **changes)
        table["backbone"]["name"] = str(saved(family))
        table["data"] = {}
        for seed, (name, count) in enumerate(
            zip(("train", "validation", "test"), sizes, strict=True)
        ):
            lines = [json.dumps(row) for row in rows(count, seed)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
            table["data"][name] = f"{name}.jsonl"
        path = tmp_path / "recipe.toml"
        path.write_text(tomli_w.dumps(table), "utf-8")
        return path

    return write
