"""``check`` reports all faults at once, or the plan of the run."""

import json
import re
import tomllib
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from softprompt.recipe import read_toml
from softprompt.train.validation import drop_invalid_keys


def read_faults(result) -> list[str]:
    """The faults that a command reported."""
    assert result.is_mistake("in the recipe:")
    count, *faults = re.split(r"\n  - ", result.err.strip())
    assert int(re.search(r"(\d+) faults? in the recipe", count)[1]) == len(faults)
    return faults


def test_the_plan_is_what_training_does(home, run, backbones) -> None:
    plan = run("check", home.recipe, "--json").json["plan"]
    tokenizer = AutoTokenizer.from_pretrained(backbones["llama"])

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    # The beginning token, the soft tokens, and a label word without its last token.
    others = 1 + 4 + max(count(" negative"), count(" positive")) - 1
    lengths = [count(f"{row['text']} sentiment") + others for row in home.rows("train")]
    train = plan["splits"]["train"]
    assert train["max_tokens"] == max(lengths)
    assert train["mean_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert (train["rows"], train["truncated"]) == (40, 0)
    assert train["labels"] == {"negative": 20, "positive": 20}
    assert plan["steps"] == 2 * ceil(40 / 16)
    assert (plan["soft_tokens"], plan["where"]) == (4, "behind the row's text")
    assert plan["trainable"] == 4 * 32
    done = run("train", home.recipe, "--output", "out", "--json", "--quiet").json
    assert plan["steps"] == done["steps"]
    assert plan["trainable"] == done["trainable_parameters"]
    assert plan["parameters"] == done["backbone_parameters"]
    settings = {name: s["value"] for name, s in plan["settings"].items() if s["value"] is not None}
    assert {k: settings[k] for k in done["training"]} == done["training"]


def test_what_a_template_has_twice_is_told(home, run) -> None:
    """It is possible, so the plan is printed too."""
    home.data["task"]["template"] = "<s>{text} sentiment{soft:4} "
    added = "the template begins with '<s>', which the tokenizer adds anyway"
    space = "the template ends in a space, and the label word ' negative' begins with one"
    said = run("check", home.recipe)
    assert said.status == 0
    assert added in said.err
    assert space in said.err
    assert "has no faults" in said.out
    result = run("check", home.recipe, "--json").json
    assert len(result["notes"]) == 2
    assert added in result["notes"][0]
    assert space in result["notes"][1]
    assert result["plan"]["steps"] == 2 * ceil(40 / 16)
    clean = run("check", home.recipe, "--json", "--set", 'task.template="{text} is{soft:4}"').json
    assert clean["notes"] == []


def test_every_default_has_its_source(home, run) -> None:
    del home.data["train"]["learning_rate"]
    settings = run("check", home.recipe, "--json").json["plan"]["settings"]
    assert settings["epochs"] == {"value": 2, "source": "recipe"}
    assert settings["max_grad_norm"]["source"] == "default"
    assert (settings["learning_rate"]["value"], settings["optimizer"]["value"]) == (0.01, "adamw")
    assert "SmolLM2" in settings["learning_rate"]["source"]


PLACES = [
    ("prompt-tuning", "{soft:3}{text}", (3, "in front of the row's text")),
    ("prompt-tuning", "{soft:3}{text}{soft:2}", (5, "around the row's text")),
    ("p-tuning-v2", "{text}", (20, "as keys and values on 2 of 2 layers")),
]


@pytest.mark.parametrize(("method", "template", "place"), PLACES)
def test_the_place_of_the_soft_tokens_is_reported(home, run, method, template, place) -> None:
    home.data["method"] = {"name": method}
    home.data["task"]["template"] = template
    plan = run("check", home.recipe, "--json").json["plan"]
    assert (plan["soft_tokens"], plan["where"]) == place


SAVED = [
    ("prompt-tuning", {}, "{text} sentiment{soft:4}", ["text before the prompt (train and valid"]),
    ("prompt-tuning", {}, "{soft:3}{text}", ["the first 4 tokens, which all rows share, are run"]),
    ("prompt-tuning", {"layers": "1:"}, "{soft:3}{text}", ["layer 0 (train and validation"]),
    ("p-tuning-v2", {"layers": "1:"}, "{text}", ["layer 0 (train and validation rows, "]),
    ("p-tuning-v2", {}, "{text}", []),
]
ONE_EPOCH = [
    "text before the prompt (validation rows",
    "text before the prompt is run forward only",
]


def test_text_of_a_single_epoch_has_no_backward_pass(home, run) -> None:
    home.data["method"] = {"name": "prompt-tuning"}
    home.data["task"]["template"] = "{text} sentiment{soft:4}"
    found = run("check", home.recipe, "--json", "--set", "train.epochs=1").json["plan"]["savings"]
    assert [line[: len(text)] for line, text in zip(found, ONE_EPOCH, strict=False)] == ONE_EPOCH


@pytest.mark.parametrize(("method", "settings", "template", "saved"), SAVED)
def test_savings_are_reported(home, run, method, settings, template, saved) -> None:
    home.data["method"] = {"name": method} | settings
    home.data["task"]["template"] = template
    found = run("check", home.recipe, "--json").json["plan"]["savings"]
    *first, scored = [*found, ""] if len(found) == len(saved) else found
    assert len(first) == len(saved)
    assert all(line.startswith(text) for line, text in zip(first, saved, strict=True))
    assert not scored or scored.endswith("words are scored, at one position a row")


def test_states_that_do_not_fit_into_the_cache_are_reported(home, run) -> None:
    home.data["cache"] = {"memory_gb": 0.0, "disk_gb": 0.0}
    [line, *_] = run("check", home.recipe, "--json").json["plan"]["savings"]
    assert "is run in every step: a cache would take 0.00 GB, more than cache.memory_gb" in line


def test_the_plan_can_be_read(home, run) -> None:
    home.write("train", [*home.rows(), {"text": "film " * 90, "label": "positive"}])
    result = run("check", home.recipe)
    assert result.status == 0
    rows = [line.split() for line in result.out.splitlines()]
    assert ["train", "41"] in [row[:2] for row in rows]
    assert next(row for row in rows if row[:2] == ["train", "41"])[-1] == "1"  # truncated
    assert re.search(r"^trainable +128 of [\d,]+ \(", result.out, re.MULTILINE)
    assert "negative 20, positive 21" in result.out


def test_nothing_is_written(home, run) -> None:
    home.recipe  # noqa: B018  # the property writes the file
    before = sorted(path.name for path in home.path.iterdir())
    run("check", "recipe.toml")
    assert sorted(path.name for path in home.path.iterdir()) == before


def change(home, **changes: Any) -> None:
    for path, value in changes.items():
        *parents, last = path.split("__")
        table = home.data
        for key in parents:
            table = table.setdefault(key, {})
        if value is None:
            table.pop(last)
        else:
            table[last] = value


# Changes of the recipe, and fragments of their fault: the fact, the limit or the remedy.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"train__epoks": 3}, ["train.epoks: unknown key 'epoks'", "mean 'epochs'"]),
    "unknown method": (
        {"method__name": "p-tunin"},
        ["unknown method 'p-tunin'", "mean 'p-tuning'"],
    ),
    "unknown task": ({"task__kind": "clasify"}, ["unknown task 'clasify'", "mean 'classify'"]),
    "wrong type": ({"train__epochs": "many"}, ["train.epochs: ", "'many'"]),
    "unknown field": (
        {"task__template": "{txt}{soft:4}"},
        ["unknown field 'txt'", "Options: label, text", "mean 'text'"],
    ),
    "unclosed brace": ({"task__template": "{text}{soft:4"}, ["without its partner", "'{{'"]),
    "no soft token": ({"task__template": "{text}"}, ["no soft tokens", "Write {soft:10}"]),
    "soft tokens too many": (
        {"method": {"name": "p-tuning-v2"}},
        ["has 4 soft tokens", "p-tuning-v2 trains keys and values", "method.length"],
    ),
    "mask on a causal backbone": (
        {"task__template": "{text}{mask}{soft:4}"},
        ["{mask}", "llama is not a masked language model", "Take {mask} out"],
    ),
    "the same word twice": (
        {"task__verbalizer": {"negative": " bad", "positive": " bad"}},
        ["'negative' and 'positive' have the same word", "Choose distinct words"],
    ),
    "a label without a word": (
        {"task__verbalizer": {"negative": " bad", "neutral": " so"}},
        ["labels without a word in the verbalizer: 'positive'", "Add a word for each label"],
    ),
    "no label column": (
        {"task__label_column": "lable"},
        ["no column 'lable'", "It has: label, text", "mean 'label'"],
    ),
    "no file": ({"data__train": "trian.jsonl"}, ["no file trian.jsonl", "mean train.jsonl"]),
    "no metric": (
        {"train__best_metric": "acuracy"},
        ["unknown metric 'acuracy'", "mean 'accuracy'"],
    ),
    "no optimizer": ({"train__optimizer": "admw"}, ["unknown optimizer 'admw'", "mean 'adamw'"]),
    "too many soft tokens": (
        {"task__template": "{text}{soft:80}"},
        ["prompt (80 soft tokens)", "the backbone has 57 for them", "Shorten the prompt to 56"],
    ),
    "no backbone": ({"backbone__name": "./nowhere"}, ["no file or folder './nowhere'", "Hub id"]),
    "no builtin": ({"backbone__name": "builtin:minilm2"}, ["'minilm2'", "mean 'minilm'"]),
    "no such layers": (
        {"method": {"name": "p-tuning-v2", "layers": "7:"}, "task__template": "{text}"},
        ["names none of the 2 layers"],
    ),
    "no artifact to start from": (
        {"method__init": {"from": "artifact", "path": "nothing"}},
        ["there is no folder", "nothing"],
    ),
    "split sizes": ({"data__split_sizes": {"train": 0.9}}, ["data.split_sizes", "1.1, not 1"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_its_remedy_before_and_at_training(home, run, name: str) -> None:
    changes, fragments = MISTAKES[name]
    change(home, **changes)
    (fault,) = read_faults(run("check", home.recipe))
    for fragment in fragments:
        assert fragment in fault
    assert run("train", home.recipe, "--quiet").is_mistake(*fragments)


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("train", b"", ["train.jsonl has no rows", "At least one row"]),
    "not UTF-8": (
        "train",
        b'{"text": "\xff"}\n',
        ["not valid UTF-8: byte 0xff", "line 1", "UTF-8"],
    ),
    "not JSON": ("test", b'{"text": "a"\n', ["line 1 of", "not valid JSON"]),
    "one class": (
        "train",
        b'{"text": "a", "label": "positive"}\n' * 3,
        ["all 3 rows", "label 'positive'", "At least two"],
    ),
    "unseen label": (
        "validation",
        b'{"text": "a", "label": "neutral"}\n',
        ["validation data has labels that the training data does not have: 'neutral' (1 row)"],
    ),
    "column missing": ("test", b'{"label": "positive"}\n', ["test data has no column 'text'"]),
    "gaps": (
        "train",
        b'{"text": "a", "label": "positive"}\n{"text": null, "label": "negative"}\n',
        ["1 row has no value in column 'text'", "Fill the cells"],
    ),
    "labels alike": (
        "train",
        b'{"text": "a", "label": "positive"}\n{"text": "b", "label": "positive "}\n',
        ["differ only in whitespace", "as 'positive'"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_fault_of_a_file_is_reported_with_its_place(home, run, name: str) -> None:
    split, raw, fragments = FILES[name]
    (home.path / f"{split}.jsonl").write_bytes(raw)
    (fault,) = read_faults(run("check", home.recipe))
    for fragment in fragments:
        assert fragment in fault
    assert run("train", home.recipe, "--quiet").is_mistake(*fragments)


def test_a_masked_backbone_needs_a_mask(home, run, backbones) -> None:
    home.data["backbone"]["name"] = str(backbones["bert"])
    (fault,) = read_faults(run("check", home.recipe))
    assert "bert predicts a label word at a mask. Write {mask}" in fault


def test_all_faults_are_reported_at_once(home, run) -> None:
    change(
        home,
        train__epoks=3,
        data__validation="nowhere.csv",
        task__template="{txt}{mask}",
        task__verbalizer={"negative": " bad", "positive": " bad"},
        method__init={"from": "artifact", "path": "nothing"},
    )
    (home.path / "test.jsonl").write_text('{"text": "a", "label": "neutral"}\n')
    found = read_faults(run("check", home.recipe))
    for fragment in (
        "unknown key 'epoks'",
        "no file",
        "no soft tokens",
        "unknown field 'txt'",
        "is not a masked language model",
        "have the same word",
        "'neutral' (1 row)",
        "there is no folder",
    ):
        assert len([fault for fault in found if fragment in fault]) == 1, fragment
    assert "nowhere.csv" in "".join(found)
    result = run("check", home.recipe, "--json")
    assert result.status == 2
    assert json.loads(result.out) == {"faults": found, "notes": [], "plan": None}


def test_data_is_checked_where_the_backbone_cannot_be(home, run) -> None:
    change(home, backbone__name="./nowhere", task__label_column="lable", task__template="{txt}")
    found = "".join(read_faults(run("check", home.recipe)))
    for fragment in ("./nowhere", "'lable'", "'txt'", "no soft tokens"):
        assert fragment in found


def test_a_backbone_on_the_hub_is_not_downloaded(home, run) -> None:
    change(home, backbone__name="some-body/some-model")
    result = run("check", home.recipe)
    assert result.status == 0
    assert "not checked: the backbone 'some-body/some-model'" in result.err
    assert run("train", home.recipe, "--quiet").is_mistake("'some-body/some-model'", "local cache")
    change(home, task__label_column="lable")
    assert "no column 'lable'" in run("check", home.recipe).err


def test_a_data_set_that_cannot_be_reached_is_not_a_fault(home, run) -> None:
    """One note reports it, whatever splits the recipe uses; the rest is checked as usual."""
    change(home, data__train="some-body/some-data[train]", data__test="some-body/some-data[test]")
    result = run("check", home.recipe)
    assert result.status == 0
    assert result.err.count("not checked: the data set 'some-body/some-data'") == 1
    assert "Hub cannot be reached" in result.err
    found = run("check", home.recipe, "--json").json
    assert (found["faults"], found["plan"], len(found["notes"])) == ([], None, 1)
    training = run("train", home.recipe, "--quiet")
    assert training.is_mistake("'some-body/some-data' cannot be loaded", "local file")
    change(home, task__template="{text}", train__epoks=1, data__validation="nowhere.csv")
    found = read_faults(run("check", home.recipe))
    for fragment in ("unknown key 'epoks'", "no soft tokens", "nowhere.csv"):
        assert len([fault for fault in found if fragment in fault]) == 1, fragment


def test_neither_backbone_nor_data_can_be_reached(home, run) -> None:
    change(home, data__train="some-body/some-data", backbone__name="some-body/some-model")
    found = run("check", home.recipe, "--json")
    assert found.status == 0
    assert [note.split(" and ")[0] for note in found.json["notes"]] == [
        "not checked: the data set 'some-body/some-data'",
        "not checked: the backbone 'some-body/some-model'",
    ]


def test_the_recipe_must_exist_and_be_toml(home, run) -> None:
    assert run("check", "nothing.toml").is_mistake("no recipe 'nothing.toml'", "softprompt init")
    Path("bad.toml").write_text("a = = 1")
    assert run("check", "bad.toml").is_mistake("bad.toml is not TOML", "line 1")
    assert run("check", home.recipe, "--set", "epochs").is_mistake("write section.key=value")


def test_valid_keys_of_a_faulty_recipe_are_used(home) -> None:
    change(home, train__epoks=3, train__epochs="many")
    recipe = drop_invalid_keys(read_toml(home.recipe), ["train.epoks: …", "train.epochs: …"])
    assert recipe is not None
    assert (recipe.train.batch_size, recipe.train.epochs) == (16, 5)
    assert drop_invalid_keys({"data": {}}, ["backbone: is missing."]) is None


def test_labels_that_may_be_one_are_told_beside_the_plan(home, run) -> None:
    first, *others = home.rows()
    home.write("train", [first | {"label": first["label"].upper()}, *others])
    del home.data["task"]["verbalizer"]
    result = run("check", home.recipe)
    assert "labels in column 'label' differ only in case or spacing: " in result.err
    assert " (1 row)" in result.err
    assert "has no faults" in result.out
    line = result.err.partition("join them in the recipe: ")[2].partition("\n")[0]
    home.data["data"] |= tomllib.loads(line)["data"]
    result = run("check", home.recipe)
    assert "differ only" not in result.err
    assert "negative 20, positive 20" in result.out


def test_of_many_labels_the_commonest_are_listed(home, run) -> None:
    del home.data["task"]["verbalizer"]
    labels = ["often"] * 3 + [f"label {n}" for n in range(30)]
    for split in ("train", "validation", "test"):
        home.write(split, [{"text": "a film", "label": label} for label in labels])
    result = run("check", home.recipe)
    assert "31 labels, the commonest: often 3, label 0 1, " in result.out
    assert result.out.count("label 1 1") == 3  # once for each split
    assert run("check", home.recipe, "--json").json["plan"]["splits"]["train"]["labels"] == {
        "often": 3
    } | dict.fromkeys(labels[3:], 1)
