"""The JSON Schema agrees with what recipes are checked by; the reference's page is made of it."""

import json
import tomllib
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from softprompt.cli.main import app
from softprompt.errors import RecipeError
from softprompt.methods import METHODS
from softprompt.recipe import describe_recipe, make_recipe, make_recipe_schema
from softprompt.recipe.renamed import RENAMED_KEYS
from softprompt.tasks import TASKS

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "examples").rglob("*.toml")),
    *sorted((ROOT / "benchmarks").rglob("*.toml")),
]
RECIPES = {
    f"{path.parent.name}/{path.stem}": data
    for path in FILES
    # A comparison has a base, and the leaderboard a protocol.
    if not {"base", "protocol"} & {*(data := tomllib.loads(path.read_text("utf-8")))}
}
PLAIN: dict[str, Any] = {
    "backbone": {"name": "some/model"},
    "data": {"train": "train.csv"},
    "task": {"kind": "classify"},
    "method": {"name": "p-tuning-v2"},
}


@pytest.fixture(scope="module")
def validator():
    schema = make_recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_command_prints_it(capsys):
    with pytest.raises(SystemExit) as caught:
        app(["recipe-schema"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out) == make_recipe_schema()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_repository_is_valid(validator, name):
    assert [*validator.iter_errors(RECIPES[name])] == []


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("section", ["backbone", "data", "task", "method", "train"])
def test_a_misspelt_key_is_not(validator, name, section):
    data = deepcopy(RECIPES[name])
    data[section]["misspelt"] = 1
    assert not validator.is_valid(data)


@pytest.mark.parametrize("path", [path for path in RENAMED_KEYS if path.partition(".")[0] in PLAIN])
def test_an_old_key_is_not(validator, path):
    section, _, key = path.partition(".")
    assert validator.is_valid(PLAIN)
    assert not validator.is_valid(PLAIN | {section: PLAIN[section] | {key: 1}})


@pytest.mark.parametrize(
    ("section", "table"),
    [
        *(("method", {"name": name}) for name in METHODS),
        *(("task", {"kind": kind}) for kind in TASKS),
        ("task", {"kind": "classify", "verbalizer": {"a": " a", "b": [" b", " c"]}}),
        ("task", {"kind": "generate", "choices": "from-data"}),
        ("task", {"kind": "generate", "choices": ["a"]}),
        ("task", {"kind": "generate", "choices": "all"}),
        ("task", {"kind": "generate", "verbalizer": {}}),
        ("task", {"kind": "clasify"}),
        ("task", {}),
        ("method", {"name": "p-tuning", "length": 3}),
        ("method", {"name": "p-tuning", "encoder": "gru"}),
        ("method", {"name": "p-tuning-v2", "length": "3"}),
        ("method", {"name": "p-tuning-v2", "init": {"from": "random"}}),
        ("method", {"name": "p-tuning-v2", "init": {"from": "nowhere"}}),
        ("method", {"name": "p-tuning-v2", "init": {}}),
        ("train", {"epochs": 0}),
        ("train", {"learning_rate": 1}),
        ("train", {"lr_scheduler": "cosine", "trackers": ["wandb"]}),
        ("train", {"trackers": ["wand"]}),
        ("train", {"max_grad_norm": -1}),
        ("data", {"train": "a.csv", "max_rows": {"train": 3}}),
        ("data", {"train": "a.csv", "max_rows": {"tain": 3}}),
        ("data", {}),
        ("cache", {"memory_gb": 0.5}),
        ("backbone", {"name": "x", "dtype": "bf16"}),
    ],
)
def test_it_accepts_the_tables_that_softprompt_accepts(validator, section, table):
    data = PLAIN | {section: table}
    try:
        make_recipe(data)
        valid = True
    except RecipeError:
        valid = False
    assert validator.is_valid(data) is valid


def test_every_key_is_described():
    def bare(table: dict[str, Any], path: str):
        for name, prop in table.get("properties", {}).items():
            inner = schema["$defs"].get(prop.get("$ref", "").rpartition("/")[2], {})
            text = prop.get("description", inner.get("description", ""))
            if not text.endswith((".", "`.")) or not text.strip("`")[:1].strip():
                yield f"{path}.{name}: {text!r}"

    schema = make_recipe_schema()
    tables = {"Recipe": schema} | schema["$defs"]
    assert [fault for path, table in tables.items() for fault in bare(table, path)] == []


def test_the_page_of_the_reference_is_made_of_it():
    """To write it anew, print `describe_recipe()` into that file."""
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text("utf-8")
    assert page == describe_recipe()


def test_the_page_has_every_key_and_its_default():
    lines = describe_recipe().splitlines()
    meaning = "The most optimizer steps. Left out: those of all epochs."
    assert f"| `max_steps` | whole number | - | {meaning} |" in lines
    for name, made in {**METHODS, **TASKS}.items():
        start = next(at for at, line in enumerate(lines) if line.endswith(f'= "{name}"'))
        keys = {line.split("`")[1] for line in lines[start:] if line.startswith("| `")}
        assert {field.name for field in fields(made)} <= keys


def test_an_open_initialization_is_the_default_and_a_misspelt_one_a_fault():
    data = {
        "backbone": {"name": "x"},
        "data": {"train": "rows.csv"},
        "task": {"kind": "classify"},
        "method": {"name": "prompt-tuning"},
    }
    assert make_recipe(data | {"method": data["method"] | {"init": "auto"}}) == make_recipe(data)
    with pytest.raises(RecipeError, match=r'method.init: .*must be "auto" or a table'):
        make_recipe(data | {"method": data["method"] | {"init": "autom"}})
