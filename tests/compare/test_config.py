"""A comparison's file, a recipe alone, and the faults of either."""

from pathlib import Path

import pytest
import tomli_w

from softprompt.compare.config import BASELINES, read_plan
from softprompt.errors import RecipeError
from softprompt.methods import METHODS
from softprompt.recipe import make_recipe

RECIPE = {
    "seed": 5,
    "backbone": {"name": "none"},
    "data": {"train": "memory"},
    "task": {
        "kind": "classify",
        "template": "Is {text} good?{soft:3}",
        "verbalizer": {"x": " x", "y": " y"},
    },
    "method": {"name": "prompt-tuning", "init": {"from": "text", "text": "say"}},
    "train": {"learning_rate": 0.5, "optimizer": "adafactor", "epochs": 3},
}


@pytest.fixture
def write(tmp_path):
    """Writes the recipe, and a comparison file of these keys; returns the path of the latter."""

    def write_files(**table) -> Path:
        (tmp_path / "recipe.toml").write_text(tomli_w.dumps(RECIPE))
        path = tmp_path / "plan.toml"
        path.write_text(tomli_w.dumps(table))
        return path

    return write_files


def test_a_recipe_alone_is_compared_over_all_methods_with_all_baselines(write):
    plan = read_plan(write().parent / "recipe.toml")
    # Multitask prompt tuning is for several tasks.
    single = [name for name in METHODS if name != "multitask-prompt-tuning"]
    assert [variant.name for variant in plan.variants] == [*single, "fine-tuning", "lora"]
    assert plan.baselines == ("majority", "hard-prompt", "linear-probe")
    assert (
        plan.num_seeds,
        plan.lr_multipliers,
        plan.search_fraction,
        plan.time_budget_seconds,
    ) == (5, (0.3, 1.0, 3.0), 0.1, None)


def test_arguments_override_the_file(write):
    path = write(base="recipe.toml", num_seeds=3, methods=["p-tuning"], baselines=["majority"])
    plan = read_plan(path, num_seeds=2, time_budget_seconds=9.0, methods=None)
    assert (plan.num_seeds, plan.time_budget_seconds) == (2, 9.0)
    assert [variant.name for variant in plan.variants] == ["p-tuning"]
    assert plan.baselines == ("majority",)


def test_a_comparison_in_memory_is_that_of_its_file(write):
    table = {"num_seeds": 3, "methods": ["p-tuning"], "baselines": ["lora"]}
    plan = read_plan(write(base="recipe.toml", **table), ["train.epochs=9"])
    recipe = make_recipe(RECIPE)
    for base in (RECIPE, recipe):
        assert read_plan({"base": base, **table}, ["train.epochs=9"]) == plan
        assert read_plan(base, ["train.epochs=9"], **table) == plan
    assert RECIPE["train"]["epochs"] == recipe.train.epochs == 3, "the arguments are not changed"


def test_custom_variants(write):
    long = {"name": "long", "overrides": {"task.template": "{soft:9}{text}"}}
    deep = {
        "name": "deep",
        "method": "p-tuning-v2",
        "overrides": {"method.length": 7, "train.max_grad_norm": 2.0},
    }
    plan = read_plan(write(base="recipe.toml", variants=[long, deep], baselines=[]))
    first, second = plan.variants
    assert first.recipe.task_settings.template == "{soft:9}{text}"
    assert first.recipe.train.learning_rate == 0.5
    assert second.recipe.method_settings.length == 7
    assert second.recipe.task_settings.template == "Is {text} good?"
    assert second.recipe.train.max_grad_norm == 2.0
    assert (second.recipe.train.learning_rate, second.recipe.train.optimizer) == (None, None)


def test_changes_reach_all_variants(write):
    plan = read_plan(write(base="recipe.toml"), ["train.epochs=9"])
    assert {variant.recipe.train.epochs for variant in plan.variants} == {9}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"methods": ["p-tunin"]}, "unknown method 'p-tunin'"),
        (
            {"baselines": ["probe"]},
            f"unknown baseline 'probe'. Options: {', '.join(sorted(BASELINES))}",
        ),
        ({"variants": [{"name": "lora"}]}, "'lora' is named twice"),
        ({"lr_multipliers": [1.0, 1.0]}, "lr_multipliers [1.0, 1.0] are not distinct positive"),
        ({"lr_multipliers": []}, "lr_multipliers [] are not distinct positive numbers. Give such"),
        ({"lr_multipliers": [float("inf")]}, "lr_multipliers.0: input should be a finite number"),
        ({"seed": 3}, "unknown key 'seed'"),
        ({"search_fraction": 2.0}, "search_fraction"),
        (
            {"variants": [{"name": "a", "overrides": {"data.train": "x"}}]},
            "all variants share the rows",
        ),
        ({"variants": [{"name": "a", "overrides": {"train.epochs": 3}}]}, "task and the budget"),
        (
            {"variants": [{"name": "a", "overrides": {"train": {"max_grad_norm": 3}}}]},
            "sets all of 'train'",
        ),
        (
            {"variants": [{"name": "a b"}, {"name": "a-b"}]},
            "two names map to the same folder name",
        ),
        (
            {"variants": [{"name": "a", "overrides": {"train.epoch": 3}}]},
            "variant 'a': train.epoch: unknown key 'epoch'",
        ),
        (
            {"variants": [{"name": "a", "overrides": {"task.kind.x": 3}}]},
            "variant 'a': 'task.kind' is a value",
        ),
        ({"variants": [{"name": "a", "method": "x"}]}, "variant 'a': unknown method 'x'"),
        ({"base": "absent.toml"}, "no recipe"),
    ],
)
def test_faults(write, table, message):
    with pytest.raises(RecipeError) as raised:
        read_plan(write(**{"base": "recipe.toml", **table}))
    assert message in str(raised.value)
