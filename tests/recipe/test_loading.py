"""Recipes: strict, complete, all faults at once, and unchanged by writing and reading."""

import tomllib
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from softprompt.errors import RecipeError
from softprompt.methods import METHODS, PrefixTuning, PromptTuning, PTuning
from softprompt.methods.defaults import Defaults, choose_defaults
from softprompt.recipe import Recipe, make_recipe, read_recipe
from softprompt.tasks import TASKS, Classify, Generate
from softprompt.train.config import resolve_training
from softprompt.train.optimizers import list_optimizers

EXAMPLE = """
seed = 42
[backbone]
name = "builtin:smollm2-135m-instruct"
dtype = "bfloat16"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
[task]
kind = "classify"
template = "Review: {text}\\nSentiment:{soft:10}"
label_column = "label"
verbalizer = { negative = " negative", positive = " positive" }
[method]
name = "prompt-tuning"
init = { from = "text", text = "Overall, the sentiment of the review is" }
[train]
epochs = 4
batch_size = 32
learning_rate = 0.01
"""
SMALL: dict[str, Any] = {
    "backbone": {"name": "some/model"},
    "data": {"train": "train.csv"},
    "task": {"kind": "classify"},
    "method": {"name": "p-tuning-v2"},
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    """A small recipe with one value set; None takes the key out."""
    data = deepcopy(SMALL)
    table = data
    for key in path[:-1]:
        table = table.setdefault(key, {})
    if value is None:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return data


ORDERED_TWICE = {
    "kind": "classify",
    "labels": ["no", "yes"],
    "verbalizer": {"no": " no", "yes": " yes"},
}


def faults(data: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        make_recipe(data)
    return caught.value.faults


def test_the_example_is_read(tmp_path):
    (tmp_path / "recipe.toml").write_text(EXAMPLE)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert (recipe.seed, recipe.backbone.dtype) == (42, "bfloat16")
    assert recipe.backbone.name == "builtin:smollm2-135m-instruct"
    assert recipe.task_settings == Classify(
        template="Review: {text}\nSentiment:{soft:10}",
        label_column="label",
        verbalizer={"negative": " negative", "positive": " positive"},
    )
    assert recipe.method_settings == PromptTuning()
    start = recipe.method.init
    assert (start.source, start.text) == ("text", "Overall, the sentiment of the review is")
    assert (recipe.train.epochs, recipe.train.batch_size) == (4, 32)
    assert recipe.train.learning_rate == 0.01


def test_a_number_may_be_whole_where_a_fraction_is_meant():
    assert make_recipe(changed("train", "learning_rate", value=1)).train.learning_rate == 1.0


def test_all_faults_at_once():
    found = faults(
        {
            "sede": 3,
            "backbone": {"dtype": "bf16"},
            "data": {"train": "a.csv", "split_sizes": {"train": 0.5, "validation": -1.0}},
            "task": {"kind": "classify", "lable_column": "y", "head": "lineal"},
            "method": {"name": "p-tuning", "encoder_hidden_size": "8"},
            "train": {"epochs": 0, "optimiser": "adamw", "batch_size": 3.5},
        }
    )
    wanted = [
        (
            "sede: unknown key 'sede'. Options: backbone, cache, data, method, seed, task, train. "
            "Did you mean 'seed'?"
        ),
        "backbone.name: is missing. Add it.",
        "backbone.dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'bf16'.",
        "data.split_sizes.validation: input should be greater than or equal to 0, not -1.0.",
        (
            "task.lable_column: unknown key 'lable_column'. Options: abstain_below, "
            "chat_template_kwargs, class_weights, head, kind, label_column, label_smoothing, "
            "labels, messages_column, multi_label, ordinal, pooling, temperature, template, "
            "thresholds, verbalizer. Did you mean 'label_column'?"
        ),
        (
            "task.head: input should be 'linear', 'linear-normalized', 'linear-no-bias', "
            "'mlp-tanh', 'mlp-gelu', 'mlp-relu' or 'mlp-norm', not 'lineal'."
        ),
        "method.encoder_hidden_size: input should be a valid integer, not '8'.",
        "train.epochs: input should be greater than 0, not 0.",
        "train.batch_size: input should be a valid integer, not 3.5.",
    ]
    for fault in wanted:
        assert fault in found
    (optimiser,) = set(found) - set(wanted)
    assert optimiser.startswith("train.optimiser: unknown key 'optimiser'. Options: batch_size, ")
    assert optimiser.endswith("Did you mean 'optimizer'?")


def test_the_message_lists_them():
    with pytest.raises(RecipeError) as caught:
        make_recipe(changed("train", "epochs", value=0))
    assert str(caught.value) == (
        "1 fault in the recipe:\n  - train.epochs: input should be greater than 0, not 0."
    )
    with pytest.raises(RecipeError, match=r"^4 faults in the recipe:\n  - "):
        make_recipe({})


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (
            changed("method", "name", value="p-tuning-v3"),
            (
                "method.name: unknown method 'p-tuning-v3'. Options: multitask-prompt-tuning, "
                "p-tuning, p-tuning-v2, prefix-tuning, prompt-tuning. Did you mean 'p-tuning-v2'?"
            ),
        ),
        (
            changed("task", "kind", value="clasify"),
            (
                "task.kind: unknown task 'clasify'. Options: choose, classify, extract, generate, "
                "regress, tag. Did you mean 'classify'?"
            ),
        ),
        (
            changed("method", "initialize", value={"from": "random"}),
            (
                "method.initialize: unknown key 'initialize'. Options: init, "
                "layers, length, name, prefix_dropout, shift_positions, token_dropout."
            ),
        ),
        (
            changed("method", "init", value={"from": "vocab"}),
            (
                "method.init.from: input should be 'vocabulary', 'labels', 'text', 'random', "
                "'artifact', 'artifacts' or 'demonstrations', not 'vocab'."
            ),
        ),
        (
            changed("method", "init", value={"form": "text", "from": "random"}),
            (
                "method.init.form: unknown key 'form'. Options: from, path, paths, rows, text, "
                "words. Did you mean 'from'?"
            ),
        ),
        (
            changed("method", "init", value={"from": "text"}),
            "method.init.text: is missing with from = 'text'. Add it.",
        ),
        (
            changed("method", "init", value={"from": "artifact"}),
            "method.init.path: is missing with from = 'artifact'. Add it.",
        ),
        (
            changed("method", "init", value={"from": "random", "text": "x"}),
            "method.init.text: means nothing with from = 'random'. Take it out.",
        ),
        (
            changed("method", "init", value={"from": "random", "words": ["x"]}),
            "method.init.words: means nothing with from = 'random'. Take it out.",
        ),
        (
            changed("data", "split_sizes", value={"train": 0.5}),
            "data.split_sizes: they add up to 0.7, not 1. Correct them.",
        ),
        (
            changed("train", "warmup_ratio", value=3),
            "train.warmup_ratio: it is a share of all steps, from 0 to 1, not 3.",
        ),
        (
            changed("task", value=ORDERED_TWICE),
            (
                "task.labels: means nothing with a verbalizer, whose own order is that of the "
                "labels. Take it out."
            ),
        ),
        (changed("method", value="p-tuning"), "method: must be a table of keys, not 'p-tuning'."),
        (changed("data", value=["a.csv"]), "data: must be a table of keys, not ['a.csv']."),
        (changed("seed", value=-1), "seed: input should be greater than or equal to 0, not -1."),
        (changed("seed", value=True), "seed: input should be a valid integer, not True."),
        (
            changed("backbone", "device_map", value=3),
            (
                "backbone.device_map: input should be a valid string, not 3. Or: must be a table "
                "of keys, not 3."
            ),
        ),
        (
            changed("train", "trackers", value=["tensorbord"]),
            (
                "train.trackers.0: input should be 'tensorboard', 'wandb', 'mlflow' or 'trackio', "
                "not 'tensorbord'."
            ),
        ),
        (
            changed("train", "gradient_checkpointing", value="yes"),
            "train.gradient_checkpointing: input should be a valid boolean, not 'yes'.",
        ),
        (changed("backbone", value=None), "backbone: is missing. Add it."),
        (changed("method", "name", value=None), "method.name: is missing. Add it."),
    ],
)
def test_each_fault_says_where_what_and_what_to_do(data, fault):
    assert faults(data) == (fault,)


def test_a_value_of_several_kinds_has_one_fault():
    (fault,) = faults({**SMALL, "task": {"kind": "generate", "choices": "all"}})
    assert fault.startswith("task.choices: ")
    assert "input should be 'from-data', not 'all'." in fault
    assert " Or: " in fault


def test_faults_end_with_one_full_stop():
    for fault in faults(
        {"backbone": 1, "data": 2, "task": 3, "method": 4, "train": 5, "seed": "6"}
    ):
        assert fault.endswith(".")
        assert not fault.endswith("..")


def test_a_recipe_cannot_be_changed():
    recipe = make_recipe(SMALL)
    with pytest.raises(Exception, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    def write(data: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(tomli_w.dumps(data), "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("change", "read", "value"),
    [
        ("train.epochs=3", lambda r: r.train.epochs, 3),
        ("train.epochs = 3", lambda r: r.train.epochs, 3),
        ("train.learning_rate=1e-3", lambda r: r.train.learning_rate, 0.001),
        ("train.gradient_checkpointing=true", lambda r: r.train.gradient_checkpointing, True),
        ("train.optimizer=adafactor", lambda r: r.train.optimizer, "adafactor"),
        ('train.optimizer="adafactor"', lambda r: r.train.optimizer, "adafactor"),
        ("train.optimizer_args.b=[1, 0.6]", lambda r: r.train.optimizer_args["b"], [1, 0.6]),
        ("data.max_rows.train=100", lambda r: r.data.max_rows.train, 100),
        ("backbone.name=org/model=x", lambda r: r.backbone.name, "org/model=x"),
        ("task.template={text} is{mask}", lambda r: r.task_settings.template, "{text} is{mask}"),
        ("data.train=2024-01-01", lambda r: r.data.train, "2024-01-01"),
        ("task.verbalizer={a = ['b']}", lambda r: r.task_settings.list_words(), {"a": ("b",)}),
        ("method.length=7", lambda r: r.method_settings.length, 7),
        ("method.init.from=random", lambda r: r.method.init.source, "random"),
    ],
)  # fmt: skip
def test_set_changes_one_value(written, change, read, value):
    assert read(read_recipe(written(SMALL), [change])) == value


def test_the_last_change_counts(written):
    recipe = read_recipe(written(SMALL), ["train.epochs=3", "train.epochs=4"])
    assert recipe.train.epochs == 4


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("train.epochs", "--set 'train.epochs': write section.key=value, such as train.epochs=3."),
        ("=3", "--set '=3': write section.key=value, such as train.epochs=3."),
        ("train..epochs=3", "--set 'train..epochs=3': write section.key=value, such as "),
        ("data.train.x=3", "--set 'data.train.x=3': 'train' is a value, not a table. Set 'train' "),
        (
            "train.epochs=many",
            "train.epochs: input should be a valid integer, not 'many'. Or: input should be 'auto'",
        ),
        ("train.epoch=3", "train.epoch: unknown key 'epoch'. Options: "),
        ("trian.epochs=3", "trian: unknown key 'trian'. Options: "),
    ],
)
def test_set_that_is_wrong_is_refused(written, change, fault):
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(SMALL), [change])
    (found,) = caught.value.faults
    assert found.startswith(fault)


def test_all_faults_of_set_at_once(written):
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(SMALL), ["a", "b"])
    assert len(caught.value.faults) == 2


def test_files_are_named_relative_to_the_recipe(written, tmp_path, monkeypatch):
    for name in ("train.csv", "held.csv"):
        (tmp_path / name).write_text("text,label\n")
    (tmp_path / "model").mkdir()
    data = changed("data", "validation", value="held.csv")
    data["data"]["test"] = "org/reviews"
    data["backbone"]["name"] = "model"
    data["method"]["init"] = {"from": "artifact", "path": "runs/first"}
    path = written(data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = read_recipe(Path("..") / path.name)
    assert recipe.data.train == str(tmp_path / "train.csv")
    assert recipe.data.validation == str(tmp_path / "held.csv")
    assert recipe.data.test == "org/reviews", "no file of that name: it is looked for on the Hub"
    assert recipe.backbone.name == str(tmp_path / "model")
    assert recipe.method.init.path == str(tmp_path / "runs" / "first")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"seed = ", "is not TOML in UTF-8: Invalid value"),
        (b"[a]\n[a]\n", "is not TOML in UTF-8: Cannot declare"),
        (b'name = "\xff"', "is not TOML in UTF-8: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path, content, fact):
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.toml")
    assert fact in caught.value.faults[0]
    assert caught.value.faults[0].endswith("Correct that place.")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(
        RecipeError, match=r"no recipe '.*lost\.toml'\. Write one with: softprompt init"
    ):
        read_recipe(tmp_path / "lost.toml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)


# --- round trip ----------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
positive = st.integers(1, 10**6)
rate = st.floats(1e-12, 1e6)
share = st.floats(0, 1)
methods = st.one_of(
    st.just({"name": "prompt-tuning"}),
    st.fixed_dictionaries(
        {"name": st.just("p-tuning"), "encoder": st.sampled_from(["mlp", "lstm"])},
        optional={"encoder_hidden_size": positive, "encoder_dropout": share},
    ),
    st.fixed_dictionaries(
        {"name": st.just("p-tuning-v2")}, optional={"length": positive, "layers": text}
    ),
)
starts = st.one_of(
    st.fixed_dictionaries({"from": st.sampled_from(["vocabulary", "random"])}),
    st.fixed_dictionaries({"from": st.just("labels")}, optional={"words": st.lists(text)}),
    st.fixed_dictionaries({"from": st.just("text"), "text": text}),
    st.fixed_dictionaries({"from": st.just("artifact"), "path": text}),
)
words = st.dictionaries(text, text | st.lists(text, max_size=3), max_size=3)
tasks = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("classify")}, optional={"template": text, "verbalizer": words}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("generate")},
        optional={
            "choices": st.just("from-data") | st.lists(text, max_size=3),
            "num_beams": positive,
        },
    ),
    st.fixed_dictionaries(
        {"kind": st.just("generate"), "do_sample": st.sampled_from([True])},
        optional={"temperature": rate},
    ),
)
trains = st.fixed_dictionaries(
    {},
    optional={
        "max_steps": positive,
        "learning_rate": rate,
        "max_grad_norm": st.just(0) | rate,
        "warmup_ratio": share,
        "lr_scheduler": st.sampled_from(["constant", "linear", "cosine"]),
        "optimizer_args": st.dictionaries(text, rate | st.lists(rate, max_size=2), max_size=2),
        "trackers": st.lists(st.sampled_from(["tensorboard", "wandb"])),
        "best_metric": text,
    },
)
recipes = st.builds(
    lambda seed, method, start, task, train, name: {
        "seed": seed,
        "backbone": {"name": name},
        "data": {"train": name},
        "task": task,
        "method": method | ({"init": start} if start else {}),
        "train": train,
    },
    st.integers(0, 2**31 - 1),
    methods,
    st.none() | starts,
    tasks,
    trains,
    text,
)


@given(recipes)
def test_a_recipe_written_and_read_is_the_same(data):
    recipe = make_recipe(data)
    again = make_recipe(tomllib.loads(tomli_w.dumps(recipe.as_data())))
    assert again == recipe
    assert again.as_data() == recipe.as_data()
    assert again.method_settings == recipe.method_settings
    assert again.task_settings == recipe.task_settings


# --- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "bart"])
def test_every_method_has_defaults_with_a_source(backbone, name, family):
    found = choose_defaults(name, backbone(family).geometry)
    assert isinstance(found, Defaults)
    assert found.optimizer in list_optimizers()
    assert 0 < found.learning_rate < 1
    assert 0 <= found.warmup_ratio < 0.2
    assert len(found.source) > 20
    assert any(year in found.source for year in ("2021", "2022", "2023", "PEFT", "benchmarks/"))


def test_the_defaults_are_the_papers(backbone):
    def of(name: str, family: str) -> tuple[str, float]:
        found = choose_defaults(name, backbone(family).geometry)
        return found.optimizer, found.learning_rate

    assert of("prompt-tuning", "t5") == ("adafactor", 0.3)
    assert of("prompt-tuning", "bert") == ("adamw", 1e-2)
    assert of("p-tuning-v2", "bert") == ("adamw", 7e-3)
    assert of("prefix-tuning", "gpt2") == ("adamw", 5e-5)
    assert of("prefix-tuning", "bert") == ("adamw", 1e-4)


def test_the_recipe_overrides_the_defaults(backbone):
    usual = choose_defaults("p-tuning-v2", backbone("bert").geometry)
    found = resolve_training(make_recipe(SMALL), usual, rows=9)
    for name in ("optimizer", "learning_rate", "weight_decay", "lr_scheduler", "warmup_ratio"):
        assert getattr(found, name) == getattr(usual, name)
    own = {
        "optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.0, "lr_scheduler": "cosine",
        "warmup_ratio": 0.0, "epochs": 9, "early_stopping_patience": 2, "best_metric": "accuracy",
    }  # fmt: skip
    found = resolve_training(make_recipe(SMALL | {"train": own, "seed": 3}), usual, rows=9)
    assert {name: getattr(found, name) for name in own} == own
    assert found.seed == 3


def test_a_max_grad_norm_of_zero_is_none(backbone):
    usual = choose_defaults("p-tuning-v2", backbone("bert").geometry)
    assert resolve_training(make_recipe(SMALL), usual, rows=9).max_grad_norm == 1.0
    assert (
        resolve_training(
            make_recipe(changed("train", "max_grad_norm", value=0)), usual, rows=9
        ).max_grad_norm
        is None
    )


@pytest.mark.parametrize("settings", [*METHODS.values(), *TASKS.values()])
def test_every_setting_can_be_set_in_a_recipe(settings):
    """Named in a recipe at its default, each is the default."""
    section = "method" if settings in METHODS.values() else "task"
    key = settings.name if section == "method" else settings.kind
    plain = {f.name: f.default for f in fields(settings) if f.default is not None}
    data = SMALL | {section: {("name" if section == "method" else "kind"): key} | plain}
    recipe = make_recipe(data)
    found = recipe.method_settings if section == "method" else recipe.task_settings
    assert found == settings()


def test_the_settings_of_a_choice_are_its_own():
    assert isinstance(
        make_recipe(changed("method", value={"name": "prefix-tuning"})).method_settings,
        PrefixTuning,
    )
    assert isinstance(
        make_recipe(changed("method", value={"name": "p-tuning"})).method_settings, PTuning
    )
    assert isinstance(
        make_recipe(changed("task", value={"kind": "generate"})).task_settings, Generate
    )
    assert isinstance(make_recipe(SMALL), Recipe)
