"""A comparison's file, a recipe alone, and what is wrong with either."""

from pathlib import Path

import pytest
import tomli_w

from softprompt.compare.plan import CONTROLS, read_plan
from softprompt.errors import RecipeError
from softprompt.methods import METHODS

RECIPE = {
    "seed": 5,
    "backbone": {"name": "none"},
    "data": {"train": "memory"},
    "task": {
        "kind": "classify",
        "template": "Is {text} good?{soft:3}",
        "verbalizer": {"x": " x", "y": " y"},
    },
    "method": {"name": "prompt-tuning", "initialise": {"from": "text", "text": "say"}},
    "train": {"learning_rate": 0.5, "optimizer": "adafactor", "epochs": 3},
}


@pytest.fixture
def write(tmp_path):
    def put(name="plan.toml", **table) -> Path:
        (tmp_path / "recipe.toml").write_text(tomli_w.dumps(RECIPE))
        path = tmp_path / name
        path.write_text(tomli_w.dumps(table))
        return path

    return put


def test_a_recipe_alone_is_compared_over_all_methods_with_all_controls(write):
    plan = read_plan(write().parent / "recipe.toml")
    assert [arm.name for arm in plan.arms] == [*METHODS, "fine-tuning", "lora"]
    assert plan.controls == ("majority", "hard-prompt", "linear-probe")
    assert (plan.seeds, plan.factors, plan.share, plan.seconds) == (5, (0.3, 1.0, 3.0), 0.1, None)


def test_what_is_given_beside_it_goes_before(write):
    path = write(recipe="recipe.toml", seeds=3, methods=["p-tuning"], controls=["majority"])
    plan = read_plan(path, seeds=2, seconds=9.0, methods=None)
    assert (plan.seeds, plan.seconds) == (2, 9.0)
    assert [arm.name for arm in plan.arms] == ["p-tuning"]
    assert plan.controls == ("majority",)


def test_an_arm_of_its_own(write):
    long = {"name": "long", "set": {"task.template": "{soft:9}{text}"}}
    deep = {"name": "deep", "method": "p-tuning-v2", "set": {"method.length": 7, "train.clip": 2.0}}
    plan = read_plan(write(recipe="recipe.toml", arms=[long, deep], controls=[]))
    first, second = plan.arms
    assert first.recipe.task_settings.template == "{soft:9}{text}"
    assert first.recipe.train.learning_rate == 0.5
    assert second.recipe.method_settings.length == 7
    assert second.recipe.task_settings.template == "Is {text} good?"
    assert second.recipe.train.clip == 2.0
    assert (second.recipe.train.learning_rate, second.recipe.train.optimizer) == (None, None)


def test_changes_reach_all_arms(write):
    plan = read_plan(write(recipe="recipe.toml"), ["train.epochs=9"])
    assert {arm.recipe.train.epochs for arm in plan.arms} == {9}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"methods": ["p-tunin"]}, "unknown method 'p-tunin'"),
        (
            {"controls": ["probe"]},
            f"unknown control 'probe'. Options: {', '.join(sorted(CONTROLS))}",
        ),
        ({"arms": [{"name": "lora"}]}, "'lora' is named twice"),
        ({"rates": [1.0, 1.0]}, "not distinct"),
        ({"seed": 3}, "unknown key 'seed'"),
        ({"share": 2.0}, "share"),
        ({"arms": [{"name": "a", "set": {"data.train": "x"}}]}, "all arms get the same rows"),
        ({"arms": [{"name": "a", "set": {"train.epochs": 3}}]}, "question and budget"),
        ({"arms": [{"name": "a", "set": {"train": {"clip": 3}}}]}, "sets all of 'train'"),
        ({"arms": [{"name": "a b"}, {"name": "a-b"}]}, "alike but for signs that no folder has"),
        (
            {"arms": [{"name": "a", "set": {"train.epoch": 3}}]},
            "arm 'a': train.epoch: unknown key 'epoch'",
        ),
        ({"arms": [{"name": "a", "set": {"task.kind.x": 3}}]}, "arm 'a': 'task.kind' is a value"),
        ({"arms": [{"name": "a", "method": "x"}]}, "arm 'a': unknown method 'x'"),
        ({"recipe": "absent.toml"}, "no recipe"),
    ],
)
def test_faults(write, table, message):
    with pytest.raises(RecipeError) as raised:
        read_plan(write(**{"recipe": "recipe.toml", **table}))
    assert message in str(raised.value)
