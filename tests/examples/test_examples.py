"""The recipes of examples and benchmarks are valid, and the demonstration runs on real reviews."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from softprompt.compare.config import read_plan
from softprompt.inference import compute_majority_accuracy
from softprompt.recipe import make_recipe, read_recipe
from softprompt.tasks import Classify
from softprompt.train import run_recipe, setup_run

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "examples").rglob("*.toml")),
    *sorted((ROOT / "benchmarks").rglob("*.toml")),
]
FILES.remove(ROOT / "benchmarks" / "leaderboard" / "leaderboard.toml")  # it has tests of its own
RECIPES = [path for path in FILES if "base" not in tomllib.loads(path.read_text("utf-8"))]
COMPARISONS = [path for path in FILES if path not in RECIPES]


def get_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=get_name)
def test_every_recipe_is_valid(path: Path):
    """It has no faults, and a verbalizer has words for the labels of its data, all different."""
    recipe = read_recipe(path)
    settings = recipe.task_settings
    verbalizer = settings.verbalizer if isinstance(settings, Classify) else None
    if recipe.data.train == "builtin:rotten-tomatoes":
        assert verbalizer is None or set(verbalizer) == {"fresh", "rotten"}
        assert recipe.data.group_by == "film"
    assert verbalizer is None or len({*map(str, verbalizer.values())}) == len(verbalizer)


@pytest.mark.parametrize("path", COMPARISONS, ids=get_name)
def test_every_comparison_has_its_recipe(path: Path):
    """Its variants are valid recipes with the data of the base recipe."""
    plan = read_plan(path)
    assert plan.base == read_recipe(path.parent / tomllib.loads(path.read_text("utf-8"))["base"])
    assert plan.variants
    assert all(variant.recipe.data == plan.base.data for variant in plan.variants)


@pytest.mark.slow
def test_a_real_encoder_learns_from_real_reviews(tmp_path: Path):
    """2,500 reviews are enough for MiniLM to beat the majority class on other films."""
    recipe = make_recipe(
        {
            "backbone": {"name": "builtin:minilm", "dtype": "float32"},
            "data": {
                "train": "builtin:rotten-tomatoes",
                "group_by": "film",
                "max_rows": {"train": 2500, "validation": 100, "test": 400},
            },
            "task": {"kind": "classify", "template": "{text}"},
            "method": {"name": "p-tuning-v2"},
            "train": {"epochs": 3, "best_metric": "accuracy"},
        }
    )
    prepared = setup_run(recipe)
    run_recipe(recipe, tmp_path / "run", prepared=prepared)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    majority = compute_majority_accuracy(prepared.rows["train"].truth, prepared.rows["test"].truth)
    assert metrics["test"]["accuracy"] > majority + 0.08


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path):
    """With a few rows it runs to the end, and prints the table and the next step."""
    small = ["data.max_rows.train=64", "data.max_rows.validation=16", "data.max_rows.test=32"]
    command = [sys.executable, ROOT / "examples" / "demo.py", *small, "train.epochs=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for text in ("majority class", "hard prompt, untrained", "soft prompt, trained", "curve.png"):
        assert text in done.stdout
