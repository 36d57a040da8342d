"""Small runs: a few reviews made of the tokenizer's words, and recipes for every kind of task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from softprompt.backbone import Backbone
from softprompt.recipe import Recipe, make_recipe
from softprompt.train import RunSetup, Trainer, make_trainer, setup_run
from softprompt.train.accelerator import make_accelerator
from support.recipes import make_recipe_data, renew_run
from support.reviews import Row, make_reviews, write_rows

Make = Callable[..., RunSetup]


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Recipes by family, method and task."""
    return lambda *args, **changes: make_recipe(make_recipe_data(*args, **changes))


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    """Recipes as plain data."""
    return make_recipe_data


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    """Reviews by number and seed."""
    return lambda count, seed=0: make_reviews(count, seed=seed)


@pytest.fixture(scope="session")
def setups() -> dict[str, RunSetup]:
    """The setups so far: rendering rows takes longer than training on them."""
    return {}


@pytest.fixture
def parts(backbone, setups) -> Make:
    """All the parts of a small run; what is trained is new each time.

    ``sizes`` are the numbers of rows of each split; ``own`` is a backbone that no other test uses.
    """

    def make(
        *args: str,
        sizes: tuple[int, ...] = (11, 5, 4),
        own: Backbone | None = None,
        tables: dict[str, list[Row]] | None = None,
        **changes: Any,
    ) -> RunSetup:
        recipe = make_recipe(make_recipe_data(*args, **changes))
        names = ("train", "validation", "test")
        rows = {
            name: make_reviews(count, seed=seed)
            for seed, (name, count) in enumerate(zip(names, sizes, strict=False))
        } | (tables or {})
        key = f"{recipe} {rows}"
        if own is None and key in setups:
            return renew_run(setups[key])
        prepared = setup_run(
            recipe,
            backbone=own or backbone(recipe.backbone.name),
            tables={name: Dataset.from_list(part) for name, part in rows.items()},
        )
        if own is None:
            setups[key] = renew_run(prepared)
        return prepared

    return make


@pytest.fixture
def trainer_of() -> Callable[[RunSetup], Trainer]:
    """The trainer of the parts of a run."""

    def make(prepared: RunSetup) -> Trainer:
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        return make_trainer(prepared, accelerator)

    return make


@pytest.fixture
def written(tmp_path, saved, data, rows) -> Callable[..., Path]:
    """A recipe file with its data and its backbone on disk, as a user has them."""

    def write(
        family: str = "llama",
        *args: str,
        sizes: tuple[int, int, int] = (11, 5, 4),
        **changes: Any,
    ) -> Path:
        import tomli_w

        table = data(family, *args, **changes)
        table["backbone"]["name"] = str(saved(family))
        table["data"] = {}
        for seed, (name, count) in enumerate(
            zip(("train", "validation", "test"), sizes, strict=True)
        ):
            write_rows(tmp_path / f"{name}.jsonl", rows(count, seed))
            table["data"][name] = f"{name}.jsonl"
        path = tmp_path / "recipe.toml"
        path.write_text(tomli_w.dumps(table), "utf-8")
        return path

    return write
