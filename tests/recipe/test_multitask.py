"""Multitask recipes: what the tasks share, and all faults at once."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from softprompt.errors import RecipeError
from softprompt.recipe import make_recipe
from softprompt.recipe.multitask import make_multitask_recipe, read_multitask_recipe

TASK = {"data": {"train": "rows.csv"}, "task": {"kind": "classify", "template": "{soft:3}{text}"}}
TABLE: dict[str, Any] = {
    "seed": 5,
    "backbone": {"name": "builtin:minilm"},
    "method": {"name": "multitask-prompt-tuning", "num_ranks": 2},
    "train": {"epochs": 3},
    "tasks": {
        "mood": TASK,
        "topic": TASK | {"data": {"train": "topics.csv", "max_rows": {"train": 9}}},
    },
}


def changed(**tables: Any) -> dict[str, Any]:
    """The recipe with other keys in some tables; None leaves a table out."""
    table = deepcopy(TABLE)
    for name, value in tables.items():
        both = isinstance(value, dict) and isinstance(table.get(name), dict)
        table[name] = table[name] | value if both else value
    return {name: value for name, value in table.items() if value is not None}


def find_faults(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        make_multitask_recipe(table)
    return caught.value.faults


def test_the_tasks_share_all_but_data_and_task() -> None:
    recipe = make_multitask_recipe(TABLE, ["train.epochs=4", "tasks.mood.data.max_rows.train=7"])
    mood, topic = recipe.recipes["mood"].as_data(), recipe.recipes["topic"].as_data()
    limits = [table.pop("data")["max_rows"]["train"] for table in (mood, topic)]
    assert limits == [7, 9]
    assert mood.pop("task") == topic.pop("task")
    assert mood == topic
    assert mood["train"]["epochs"] == 4
    # Without an initialization, the shared prompt does not depend on the labels of a task.
    assert mood["method"]["init"]["from"] == "vocabulary"
    assert TABLE["train"]["epochs"] == 3


def test_a_recipe_that_is_written_is_the_same_when_it_is_read(tmp_path: Path) -> None:
    recipe = make_multitask_recipe(TABLE | {"sampling_temperature": 2.5})
    path = tmp_path / "tasks.toml"
    path.write_text(tomli_w.dumps(recipe.as_data()), "utf-8")
    again = read_multitask_recipe(path)
    assert again == recipe
    assert again.sampling_temperature == 2.5


def test_files_are_named_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n", "utf-8")
    table = changed(method={"init": {"from": "artifact", "path": "runs/one"}})
    (tmp_path / "tasks.toml").write_text(tomli_w.dumps(table), "utf-8")
    recipe = read_multitask_recipe(tmp_path / "tasks.toml")
    assert recipe.recipes["mood"].data.train == str(tmp_path / "rows.csv")
    assert recipe.shared.method.init.path == str(tmp_path / "runs" / "one")


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            changed(tasks=None),
            "tasks: is missing. Add it.",
        ),
        (
            {**TABLE, "tasks": {"mood": TASK}},
            "tasks: 1 task cannot share a prompt. Name at least two, each as a table [tasks.NAME].",
        ),
        (
            changed(tasks={"../up": TASK}),
            (
                "tasks: '../up' is not a valid name of a folder. Use letters, digits, '_', '-' and "
                "'.', the first of them a letter or a digit."
            ),
        ),
        (
            changed(data={"train": "a.csv"}),
            "data: each task has its own. Write it as [tasks.NAME.data].",
        ),
        (
            changed(sampling_temperature=0.0),
            "sampling_temperature: input should be greater than 0, not 0.0.",
        ),
        (
            changed(method={"name": "p-tuning", "num_ranks": None}),
            None,
        ),
        (
            changed(method={"train_shared": False}),
            "method.train_shared: without a shared prompt the tasks share nothing. Take it out.",
        ),
        (
            changed(method={"init": {"from": "labels"}}),
            (
                "method.init.words: is missing: the labels of each task differ, but the tasks "
                "share one start. Add the words."
            ),
        ),
        (
            changed(method={"init": {"from": "artifacts", "paths": ["a", "b"]}}),
            (
                'method.init.from: "artifacts" chooses by the validation rows of one task, but the '
                'tasks share one start. Name one with "artifact".'
            ),
        ),
        (
            changed(train={"epochs": "auto"}),
            (
                'train.epochs: "auto" depends on a single task, but the tasks train '
                "together. Give another value."
            ),
        ),
        (
            changed(train={"keep_plain_head": True}),
            (
                "train.keep_plain_head: true depends on a single task, but the tasks "
                "train together. Give another value."
            ),
        ),
        (
            changed(tasks={"mood": TASK | {"data": {"train": "rows.csv", "folds": 3}}}),
            (
                "tasks.mood.data.folds: the tasks train together, once. Give the task validation "
                "rows instead."
            ),
        ),
    ],
)  # fmt: skip
def test_each_fault_names_its_key(table, fault) -> None:
    if fault is None:
        table["method"].pop("num_ranks")
        fault = (
            'method.name: p-tuning trains a prompt for one task. Write '
            '"multitask-prompt-tuning", or give each task a recipe of its own.'
        )  # fmt: skip
    assert find_faults(table) == (fault,)


def test_all_faults_are_reported_at_once_and_shared_ones_once() -> None:
    table = changed(train={"epoch": 3})
    table["tasks"]["mood"]["task"] = {"kind": "clasify"}
    table["tasks"]["topic"]["data"]["trian"] = "a.csv"
    faults = find_faults(table)
    keys = [fault.partition(":")[0] for fault in faults]
    assert sorted(keys) == ["tasks.mood.task.kind", "tasks.topic.data.trian", "train.epoch"]


def test_one_task_takes_no_recipe_of_several() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(TABLE)
    (fault,) = caught.value.faults
    assert fault == (
        "tasks: this is a multitask recipe, which only softprompt train and check take "
        "(train_multitask and check_multitask in Python). Give a recipe of one task."
    )
