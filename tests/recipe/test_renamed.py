"""Old keys, values and options: each is a fault that gives the new name."""

import pytest
import tomli_w

from softprompt.cli.main import app
from softprompt.cli.options import RENAMED_OPTIONS
from softprompt.compare.config import ComparisonConfig, VariantConfig, read_plan
from softprompt.errors import RecipeError
from softprompt.methods import METHODS
from softprompt.recipe import make_recipe, read_overrides, read_recipe
from softprompt.recipe.renamed import RENAMED_KEYS, RENAMED_VALUES
from softprompt.recipe.schema import Recipe
from softprompt.tasks import TASKS

PLAIN = {
    "backbone": {"name": "some/model"},
    "data": {"train": "train.csv"},
    "task": {"kind": "classify"},
    "method": {"name": "p-tuning-v2"},
}
TABLES = {name: field.annotation for name, field in Recipe.model_fields.items()}
KINDS = {"classify": {"pool"}, "generate": {"constrain", "beams", "sample", "max_target_tokens"}}
OF_RECIPES = [path for path in RENAMED_KEYS if path.split(".")[0] in TABLES]
OF_COMPARISONS = [path for path in RENAMED_KEYS if path not in OF_RECIPES]


def options_of(path: str) -> list[tuple[dict[str, str], str]]:
    """For each choice that has the key: the choice, and the new name there."""
    section, _, key = path.partition(".")
    match section:
        case "task":
            (kind,) = [kind for kind, keys in KINDS.items() if key in keys]
            choices = [("kind", kind, TASKS[kind])]
        case "method":
            choices = [("name", name, made) for name, made in METHODS.items()]
        case _:
            names = TABLES[section].model_fields
            return [({}, name) for name in RENAMED_KEYS[path] if name in names]
    own = "init" if section == "method" else "kind"
    return [
        ({choice: value}, name)
        for choice, value, made in choices
        for name in RENAMED_KEYS[path]
        if name in {own, *made.__dataclass_fields__}
    ]


CASES = [(path, *option) for path in OF_RECIPES for option in options_of(path)]


def faults_of(call) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        call()
    return caught.value.faults


def recipe_with(path: str, choice: dict[str, str]) -> dict[str, dict[str, object]]:
    section, _, key = path.partition(".")
    return PLAIN | {section: PLAIN.get(section, {}) | choice | {key: "anything"}}


def test_every_key_is_in_some_table():
    assert {path for path, *_ in CASES} == {*OF_RECIPES}
    fields = {*ComparisonConfig.model_fields}
    assert all({*RENAMED_KEYS[path]} <= fields for path in OF_COMPARISONS if "." not in path)
    assert {*RENAMED_KEYS["variants.set"]} <= {*VariantConfig.model_fields}


@pytest.mark.parametrize(("path", "choice", "name"), CASES)
def test_an_old_key_of_a_recipe(path, choice, name):
    data = recipe_with(path, choice)
    assert faults_of(lambda: make_recipe(data)) == (f"{path}: renamed to {name}. Write that.",)


@pytest.mark.parametrize(("path", "choice", "name"), CASES)
def test_an_old_key_that_is_set(tmp_path, path, choice, name):
    section = path.partition(".")[0]
    data = PLAIN | {section: PLAIN.get(section, {}) | choice}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(data))
    found = faults_of(lambda: read_recipe(tmp_path / "recipe.toml", [f"{path}=1"]))
    assert found == (f"{path}: renamed to {name}. Write that.",)


@pytest.mark.parametrize("path", [p for p in OF_RECIPES if p.startswith(("task.", "backbone."))])
def test_an_old_key_of_single_tables(path):
    """As `import` takes them, where the kind of task may be left out."""
    found = faults_of(lambda: read_overrides([f"{path}=1"], backbone={"name": "x"}))
    assert f"{path}: renamed to {RENAMED_KEYS[path][0]}. Write that." in found


def test_all_old_keys_at_once():
    train = {path.partition(".")[2]: 1 for path in OF_RECIPES if path.startswith("train.")}
    found = faults_of(lambda: make_recipe(PLAIN | {"train": train}))
    assert {*found} == {
        f"train.{old}: renamed to {RENAMED_KEYS[f'train.{old}'][0]}. Write that." for old in train
    }


def test_an_old_key_that_the_table_never_had_is_unknown():
    (found,) = faults_of(
        lambda: make_recipe(recipe_with("method.dropout", {"name": "prompt-tuning"}))
    )
    assert found == (
        "method.dropout: unknown key 'dropout'. Options: bottleneck_size, init, layers, "
        "mlp_per_token, name, num_words, reparametrization."
    )


@pytest.mark.parametrize(
    ("path", "old", "said"),
    [
        ("task.head", "unbiased", "'unbiased' was renamed to 'linear-no-bias'. Write that."),
        ("task.head", "mlp", "'mlp' was renamed to 'mlp-tanh'. Write that."),
        ("task.choices", "any", "'any' is the default now. Leave the key out."),
        ("task.choices", "data", "'data' was renamed to 'from-data'. Write that."),
    ],
)
def test_an_old_value(path, old, said):
    key = path.partition(".")[2]
    kind = "classify" if key == "head" else "generate"
    data = PLAIN | {"task": {"kind": kind, key: old}}
    assert faults_of(lambda: make_recipe(data)) == (f"{path}: {said}",)


def test_no_old_value_is_untested_and_each_new_one_is_right():
    assert {(path, old) for path, values in RENAMED_VALUES.items() for old in values} == {
        ("task.head", "unbiased"),
        ("task.head", "mlp"),
        ("task.choices", "any"),
        ("task.choices", "data"),
    }
    for path, values in RENAMED_VALUES.items():
        key = path.partition(".")[2]
        kind = "classify" if key == "head" else "generate"
        for new in values.values():
            table = {"kind": kind} | ({} if new is None else {key: new})
            assert make_recipe(PLAIN | {"task": table}).task.kind == kind


@pytest.fixture
def comparison(tmp_path):
    def write(table):
        (tmp_path / "recipe.toml").write_text(tomli_w.dumps(PLAIN))
        (tmp_path / "comparison.toml").write_text(tomli_w.dumps(table))
        return tmp_path / "comparison.toml"

    return write


@pytest.mark.parametrize("old", [path for path in OF_COMPARISONS if "." not in path])
def test_an_old_key_of_a_comparison(comparison, old):
    path = comparison({"base": "recipe.toml"} | {old: "recipe.toml"})
    (new,) = RENAMED_KEYS[old]
    assert faults_of(lambda: read_plan(path)) == (f"{old}: renamed to {new}. Write that.",)


def test_a_comparison_all_of_whose_keys_are_old(comparison):
    """It is still a comparison; and nothing is missing that stands there under its old name."""
    path = comparison({"recipe": "recipe.toml", "seeds": 3, "controls": []})
    assert {*faults_of(lambda: read_plan(path))} == {
        "recipe: renamed to base. Write that.",
        "seeds: renamed to num_seeds. Write that.",
        "controls: renamed to baselines. Write that.",
    }


def test_old_keys_of_a_variant(comparison):
    old = {"name": "a", "set": {}}
    path = comparison({"base": "recipe.toml", "variants": [old]})
    assert faults_of(lambda: read_plan(path)) == (
        "variants.0.set: renamed to overrides. Write that.",
    )
    deep = {"name": "a", "overrides": {"train.clip": 2.0}}
    path = comparison({"base": "recipe.toml", "variants": [deep]})
    (found,) = faults_of(lambda: read_plan(path))
    assert found.endswith("'a': train.clip: renamed to max_grad_norm. Write that.")


def test_a_recipe_is_not_a_comparison():
    """Keys of a comparison's file were never those of a recipe."""
    (found,) = faults_of(lambda: make_recipe(PLAIN | {"seeds": 3}))
    assert found.startswith("seeds: unknown key 'seeds'. Options: ")


@pytest.mark.parametrize("command", ["compare", "find-lr"])
@pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())
@pytest.mark.parametrize("joined", [True, False])
def test_an_old_option(capsys, command, old, new, joined):
    asked = [command, "recipe.toml", *([f"{old}=1"] if joined else [old, "1"])]
    with pytest.raises(SystemExit) as caught:
        app(asked)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    has = command == "compare" or new in {"--lr-multipliers", "--search-fraction"}
    assert (f"{old}: renamed to {new}. Write that." in said) == has
    assert has or f"No such option: {old}" in said


def test_a_value_is_not_taken_for_an_option(capsys):
    """`predict` answers it as a text; what is wrong here is the artifact."""
    with pytest.raises(SystemExit):
        app(["predict", "no-artifact", "--", "--share"])
    assert "renamed" not in capsys.readouterr().err
