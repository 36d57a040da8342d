"""The examples are what they say: recipes that pass, a demonstration that runs on real reviews."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.evaluate import majority
from softprompt.recipe import make_recipe, read_recipe
from softprompt.train import prepare, train

ROOT = Path(__file__).parents[1]
RECIPES = [
    *sorted((ROOT / "examples").rglob("*.toml")),
    *sorted((ROOT / "benchmarks").rglob("*.toml")),
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path: Path):
    """A recipe file is read without a fault, and its data and verbalizer belong together."""
    recipe = read_recipe(path)
    verbalizer = recipe.task_settings.verbalizer
    assert verbalizer is None or set(verbalizer) == {"fresh", "rotten"}
    assert recipe.data.group == "film"


@pytest.mark.slow
def test_a_real_encoder_learns_from_real_reviews(tmp_path: Path):
    """2,500 reviews are enough for MiniLM to leave the majority class behind on other films."""
    recipe = make_recipe(
        {
            "backbone": {"name": "builtin:minilm", "dtype": "float32"},
            "data": {
                "train": "builtin:rotten-tomatoes",
                "group": "film",
                "limit": {"train": 2500, "validation": 100, "test": 400},
            },
            "task": {"kind": "classify", "template": "{text}"},
            "method": {"name": "p-tuning-v2"},
            "train": {"epochs": 3, "select": "accuracy"},
        }
    )
    prepared = prepare(recipe)
    train(recipe, tmp_path / "run", prepared=prepared)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    commonest = majority(prepared.rows["train"].truth, prepared.rows["test"].truth)
    assert found["test"]["accuracy"] > commonest + 0.08


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path):
    """With a handful of rows it goes all the way, and says what it must."""
    small = ["data.limit.train=64", "data.limit.validation=16", "data.limit.test=32"]
    command = [sys.executable, ROOT / "examples" / "demo.py", *small, "train.epochs=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for said in ("majority class", "hard prompt, untrained", "soft prompt, trained", "curve.png"):
        assert said in done.stdout
