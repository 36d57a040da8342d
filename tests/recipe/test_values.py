"""Values that a run cannot use or write down are faults of the recipe, whatever their key."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from softprompt import TrainingConfig
from softprompt.errors import DataError, RecipeError
from softprompt.methods import METHODS
from softprompt.recipe import load_recipe, make_recipe_schema, read_recipe
from softprompt.recipe.drafting import draft_recipe
from softprompt.tasks import TASKS

BASE: dict[str, Any] = {
    "backbone": {"name": "builtin:minilm"},
    "data": {"train": "reviews.csv"},
    "task": {"kind": "classify"},
    "method": {"name": "prompt-tuning"},
}


def list_numbers() -> list[str]:
    """The keys of all tables whose value may be a fraction."""
    schema = make_recipe_schema()
    found = []

    def visit(table: dict[str, Any], path: str) -> None:
        for option in [table, *table.get("anyOf", []), *table.get("oneOf", [])]:
            if "$ref" in option:
                visit(schema["$defs"][option["$ref"].rpartition("/")[2]], path)
            if option.get("type") == "number":
                found.append(path)
            for key, inner in option.get("properties", {}).items():
                visit(inner, f"{path}.{key}" if path else key)

    visit(schema, "")
    return sorted({*found})


NUMBERS = list_numbers()


def with_owner(key: str) -> dict[str, Any]:
    """A recipe whose method and task have the key."""
    data = deepcopy(BASE)
    for table, name, options in (("method", "name", METHODS), ("task", "kind", TASKS)):
        owners = [n for n, o in options.items() if key.rpartition(".")[2] in o.__dataclass_fields__]
        if key.startswith(f"{table}."):
            data[table][name] = owners[0]
    return data


def refuse(source: Any, changes: list[str]) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, changes)
    return caught.value.faults


def test_all_tables_have_numbers():
    assert {"train.learning_rate", "cache.disk_gb", "task.temperature"} <= {*NUMBERS}
    assert "data.split_sizes.train" in NUMBERS
    assert len(NUMBERS) > 10


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_a_number_that_is_not_finite_is_a_fault(key, value):
    faults = refuse(with_owner(key), [f"{key}={value}"])
    assert any(fault.startswith(f"{key}: input should be a finite number") for fault in faults)


@pytest.mark.parametrize("key", [key for key in NUMBERS if key.count(".") == 1 and "train." in key])
def test_settings_from_python_are_refused_at_once(key):
    with pytest.raises(RecipeError, match="finite number, not inf"):
        TrainingConfig(**{key.rpartition(".")[2]: float("inf")})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            "train.optimizer_args={eps=inf}",
            "train.optimizer_args.eps: input should be a number",
        ),
        ("train.optimizer_args={betas=[0.9, nan]}", "train.optimizer_args.betas: input should be"),
        ("backbone.quantization_config={x={y=inf}}", "backbone.quantization_config.x.y: input"),
        ("train.learning_rate=1e25", "train.learning_rate: input should be less than or equal to"),
        ("train.head_learning_rate=1e20", "train.head_learning_rate: input should be less than"),
        ("cache.disk_gb=1e20", "cache.disk_gb: input should be less than or equal to 1000000000"),
        ("cache.memory_gb=1e300", "cache.memory_gb: input should be less than or equal to"),
        ("train.epochs=1000000000", "train.epochs: input should be less than or equal to 1000000"),
        ("backbone.device_map={'a' = 18446744073709551616}", "backbone.device_map.a: a whole numb"),
        ("train.epochs=" + "9" * 30, "train.epochs: a whole number of 100 bits is more than 64"),
        ("seed=" + "9" * 5000, "--set seed: a number has thousands of digits."),
        ("train.batch_size=" + "[" * 50 + "]" * 50, "a value is nested more than 20 levels deep."),
        ("seed=" + "[" * 9000, "--set seed: it is nested more than 100 levels deep."),
        (".".join("a" * 3000) + "=1", "a value is nested more than 20 levels deep."),
        (
            "data.train=caf\udce9.csv",
            "data.train: 'caf\\udce9.csv' is not valid Unicode at index 3",
        ),
        ("task.template={text}\ud83d", "task.template: '{text}\\ud83d' is not valid Unicode at in"),
        ("data.value_map={a={b='\udcff'}}", "data.value_map.a.b: '\\udcff' is not valid Unicode"),
        ("train.\udce9=1", "train.\udce9: "),
    ],
)
def test_a_value_beyond_reason_is_a_fault(change, fault):
    assert any(found.startswith(fault) for found in refuse(BASE, [change]))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed = 1" + "0" * 5000, "is not TOML in UTF-8: a number has thousands of digits."),
        ("seed = " + "[" * 9000, "is not TOML in UTF-8: it is nested more than 100 levels deep."),
        (".".join("a" * 3000) + " = 1", "is not TOML in UTF-8: it is nested more than 100 levels"),
        ("seed = 1" + "0" * 300, "seed: a whole number of 997 bits is more than 64 bits can hold."),
        (
            "# " + "x" * 10_000_000,
            "has more than 10,000,000 bytes, far more than a recipe. Name another.",
        ),
    ],
)
def test_a_file_beyond_reason_is_a_fault(tmp_path, text, fault):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.toml")
    assert any(fault in found for found in caught.value.faults)


def test_a_mapping_beyond_reason_is_a_fault():
    source = deepcopy(BASE)
    inner = source.setdefault("train", {}).setdefault("optimizer_args", {})
    for _ in range(5000):
        inner["a"] = {}
        inner = inner["a"]
    assert refuse(source, []) == refuse(source, ["seed=1"])
    assert refuse({**BASE, "seed": 10**5000}, ["train.epochs=1"])[0].startswith("seed: a whole num")


def test_a_folder_that_is_not_utf_8_is_named(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "r.csv").write_text("text,label\na,b\n")
    (folder / "recipe.toml").write_text(
        '[backbone]\nname = "builtin:minilm"\n[data]\ntrain = "r.csv"\n[task]\nkind = "classify"\n'
        '[method]\nname = "prompt-tuning"\n'
    )
    with pytest.raises(RecipeError, match="rename the file") as caught:
        read_recipe(Path(folder / "recipe.toml"))
    assert caught.value.faults[0].startswith("data.train: ")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_init_refuses_a_name_that_no_recipe_can_hold(tmp_path, place):
    folder = tmp_path / ("caf\udce9" if place == "folder" else "data")
    folder.mkdir()
    data = folder / ("caf\udce9.csv" if place == "file" else "t.csv")
    data.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 20)
    with pytest.raises(DataError, match="its name is not valid Unicode"):
        draft_recipe(data, backbone="builtin:minilm", directory=tmp_path)
    if place == "folder":  # next to the data, the recipe does not name it
        draft_recipe(data, backbone="builtin:minilm", directory=folder)
