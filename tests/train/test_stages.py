"""One list of stages sets up every run: the fault that is raised is the first of all faults."""

import json
from typing import Any

import pytest
import torch
from datasets import Dataset

from softprompt.errors import (
    DataError,
    FaultCollector,
    RecipeError,
    SoftpromptError,
    TemplateError,
)
from softprompt.inference import predict_without_prompt
from softprompt.recipe import Recipe, make_recipe
from softprompt.tasks import build_task
from softprompt.train import setup_run, stages
from softprompt.train.finetune import setup_finetune
from softprompt.train.setup import check_setup, evaluate_hard_prompt, setup_hard_prompt
from softprompt.train.validation import check_recipe

SPLITS = {"train": 11, "validation": 5, "test": 4}


def collect_faults(recipe: Recipe, **given: Any) -> list[str]:
    """All faults of a recipe."""
    collector = FaultCollector(keep_going=True)
    setup = check_setup(recipe, collector, **given)
    assert (setup is None) == bool(collector.faults)
    assert not collector.notes
    return collector.faults


def first(recipe: Recipe, **given: Any) -> str:
    """The fault that is raised."""
    with pytest.raises(SoftpromptError) as caught:
        setup_run(recipe, **given)
    return caught.value.faults[0] if isinstance(caught.value, RecipeError) else str(caught.value)


def words(positive: str, negative: str) -> dict[str, str]:
    return {"negative": negative, "positive": positive}


TWO = [{"text": "a", "label": label, "answer": "a"} for label in ("negative", "positive")]
# By the stage that finds them: the changed keys of the recipe, or the rows of a split.
Change = dict[tuple[str, ...], Any]
FAULTS: dict[str, Change] = {
    "read: no file": {("data", "test"): "nowhere.jsonl"},
    "read: no training file": {("data", "train"): "nowhere.jsonl"},
    "read: a file without rows": {("rows", "validation"): []},
    "split: a value without a name": {
        ("data", "value_map"): {"text": {"a": "b"}},
        **{("rows", name): TWO for name in ("train", "validation")},
        ("rows", "test"): [{"text": "b", "label": "positive", "answer": "a"}],
    },
    "split: no group": {("data", "group_by"): "flim", ("data", "validation"): None},
    "labels: no column": {("task", "label_column"): "lable"},
    "labels: one only": {("rows", "train"): [{"text": "a", "label": "positive"}] * 3},
    "labels: unseen": {("rows", "test"): [{"text": "a", "label": "neutral"}]},
    "labels: no word": {("task", "verbalizer"): {"negative": " bad", "neutral": " so"}},
    "backbone: not there": {("backbone", "name"): "./nowhere"},
    "template: brace": {("task", "template"): "{text}{soft:3"},
    "template: unknown field": {("task", "template"): "{txt}{soft:3}"},
    "template: no soft token": {("task", "template"): "{text} is"},
    "template: soft tokens too many": {("method",): {"name": "p-tuning-v2", "length": 3}},
    "template: column missing": {("rows", "test"): [{"label": "positive"}]},
    "template: gap": {
        ("rows", "train"): [
            {"text": "a", "label": "positive"},
            {"text": None, "label": "negative"},
        ]
    },
    "template: no default": {
        ("task", "template"): None,
        ("rows", "train"): [{"text": n, "label": label} for n, label in enumerate(words("", ""))],
    },
    "method: no such layers": {("method", "layers"): "7:"},
    "method: no artifact": {("method", "init"): {"from": "artifact", "path": "nothing"}},
    "task: mask": {("task", "template"): "{text}{mask}{soft:3}"},
    "task: one word twice": {("task", "verbalizer"): words(" bad", " bad")},
    "task: too long": {("task", "template"): "{text}{soft:80}"},
}


@pytest.fixture
def faulty(tmp_path, monkeypatch, data, rows, backbone):
    """Recipes with faults, on files, and the backbone unless its name is the fault."""
    monkeypatch.chdir(tmp_path)

    def make(*changes: Change) -> tuple[Recipe, dict[str, Any]]:
        table = data("llama", "prompt-tuning", task="words")
        table["data"] |= {name: f"{name}.jsonl" for name in SPLITS}
        written = {name: rows(count, seed) for seed, (name, count) in enumerate(SPLITS.items())}
        for change in changes:
            for (*parents, last), value in change.items():
                owner = {"rows": written}.get("".join(parents[:1]), table)
                for key in parents if owner is table else ():
                    owner = owner[key]
                owner[last] = value
                if value is None:
                    del owner[last]
        for name, part in written.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in part))
        exists = table["backbone"]["name"] == "llama"
        return make_recipe(table), {"backbone": backbone("llama")} if exists else {}

    return make


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_that_is_raised_is_the_first_of_all(faulty, name):
    recipe, given = faulty(FAULTS[name])
    found = collect_faults(recipe, **given)
    assert found[0] == first(recipe, **given)
    assert len(found) == 1


# Faults that can be found in one pass: none prevents the checks of the others.
TOGETHER = (
    (
        "read: a file without rows",
        "labels: unseen",
        "template: unknown field",
        "method: no artifact",
        "task: one word twice",
    ),
    ("read: no file", "split: no group", "labels: no word", "template: no soft token"),
    ("read: no training file", "backbone: not there", "template: brace"),
    ("split: a value without a name", "labels: no column", "template: unknown field"),
    ("labels: one only", "backbone: not there", "template: no soft token"),
    ("template: gap", "method: no such layers", "task: mask"),
    ("template: column missing", "method: no artifact", "task: too long"),
)


@pytest.mark.parametrize("names", TOGETHER, ids=" + ".join)
def test_independent_faults_are_reported_together(faulty, names):
    alone = [
        collect_faults(recipe, **given)[0] for recipe, given in (faulty(FAULTS[n]) for n in names)
    ]
    recipe, given = faulty(*(FAULTS[name] for name in names))
    found = collect_faults(recipe, **given)
    assert {*alone} <= {*found}
    assert len(found) == len({*found})
    assert found[0] == first(recipe, **given)


GOOD = [
    ("llama", "prompt-tuning", "words"),
    ("llama", "p-tuning-v2", "generate"),
    ("bert", "p-tuning", "head"),
    ("t5", "prefix-tuning", "words"),
]


def tables_of(rows) -> dict[str, Dataset]:
    return {
        name: Dataset.from_list(rows(count, seed))
        for seed, (name, count) in enumerate(SPLITS.items())
    }


@pytest.mark.parametrize(("family", "method", "task"), GOOD)
def test_a_good_recipe_is_set_up_the_same_way_by_both(data, rows, backbone, family, method, task):
    recipe = make_recipe(data(family, method, task=task))
    given = {"backbone": backbone(family), "tables": tables_of(rows)}
    collector = FaultCollector(keep_going=True)
    checked, made = check_setup(recipe, collector, **given), setup_run(recipe, **given)
    assert checked is not None
    assert collector.is_clean
    for name in ("template", "training", "defaults", "rows", "hashes"):
        assert getattr(checked, name) == getattr(made, name)
    assert [*made.rows] == [*made.hashes] == [*SPLITS]
    for ours, theirs in zip(checked.method.parameters(), made.method.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checking_a_good_recipe_runs_no_stage_twice(tmp_path, data, rows, saved, monkeypatch):
    table = data("llama")
    table["backbone"]["name"] = str(saved("llama"))
    for name, part in tables_of(rows).items():
        part.to_json(tmp_path / f"{name}.jsonl")
        table["data"][name] = str(tmp_path / f"{name}.jsonl")
    counts = dict.fromkeys(
        ("read_sources", "load_recipe_backbone", "build_method", "build_task", "render_splits"), 0
    )

    def counted(name):
        step = getattr(stages, name)

        def run(*args, **kwargs):
            counts[name] += 1
            return step(*args, **kwargs)

        return run

    for name in counts:
        monkeypatch.setattr(stages, name, counted(name))
    found = check_recipe(make_recipe(table))
    assert found.plan is not None
    assert counts.pop("render_splits") == len(SPLITS)  # once a split
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("kind", ["fine-tuning", "lora"])
@pytest.mark.parametrize(("family", "task"), [("llama", "words"), ("bert", "head")])
def test_fine_tuning_has_the_same_rows_without_soft_tokens(
    data, rows, new_backbone, kind, family, task
):
    recipe = make_recipe(data(family, "prompt-tuning", task=task))
    assert "{soft:3}" in recipe.task_settings.template
    own, tables = new_backbone(family), tables_of(rows)
    prompt = setup_run(recipe, backbone=own, tables=tables)
    tuned = setup_finetune(recipe, kind, backbone=own, tables=tables)
    vocabulary = own.geometry.vocab_size
    for name, found in (("train", tuned.rows), ("validation", tuned.validation)):
        assert found.truth == prompt.rows[name].truth
        for ours, theirs in zip(found.examples, prompt.rows[name].examples, strict=True):
            assert ours.target == theirs.target
            (without,), (whole,) = ours.variants, theirs.variants
            assert without.input_ids == tuple(i for i in whole.input_ids if i < vocabulary)
            assert len(without.input_ids) == len(whole.input_ids) - 3


def test_fine_tuning_needs_validation_rows(data, rows, new_backbone):
    recipe = make_recipe(data("llama"))
    tables = {"train": tables_of(rows)["train"]}
    with pytest.raises(DataError, match=r"no validation rows, by which lora .* Name some in"):
        setup_finetune(recipe, "lora", backbone=new_backbone("llama"), tables=tables)


@pytest.mark.parametrize(("text", "words"), [(None, ""), ("it was", " it was")])
def test_the_hard_prompt_has_the_words_of_the_initialization(data, rows, backbone, text, words):
    table, own = data("llama"), backbone("llama")
    table["task"]["template"] = "{text}{soft:3}"
    if text:
        table["method"]["init"] = {"from": "text", "text": text}
    recipe, tables = make_recipe(table), tables_of(rows)
    task = setup_hard_prompt(recipe, backbone=own, tables=tables)
    wanted = build_task(recipe.task_settings, own, template="{text}" + words)
    for row in tables["test"].to_list():
        assert task.make_example(row) == wanted.make_example(row)


def test_the_hard_prompt_is_evaluated_by_the_backbone_s_predictions(data, rows, backbone):
    recipe, own, tables = make_recipe(data("llama")), backbone("llama"), tables_of(rows)
    task = setup_hard_prompt(recipe, backbone=own, tables=tables)
    test = tables["test"].to_list()
    predicted = predict_without_prompt(task, test)
    right = [label == row["label"] for label, row in zip(predicted, test, strict=True)]
    found = evaluate_hard_prompt(recipe, backbone=own, tables=tables)
    assert found.rows == SPLITS["test"]
    assert found.metrics["accuracy"] == sum(right) / len(right)
    with pytest.raises(DataError, match=r"unknown split 'tset'. Options: .* mean 'test'"):
        evaluate_hard_prompt(recipe, split="tset", backbone=own, tables=tables)


def test_a_trained_head_has_no_hard_prompt(data, rows, backbone):
    recipe = make_recipe(data("bert", "p-tuning-v2", task="head"))
    with pytest.raises(TemplateError, match=r"random until it is trained. Write label words"):
        setup_hard_prompt(recipe, backbone=backbone("bert"), tables=tables_of(rows))


def test_rows_in_memory_are_used_unchanged(data, rows, backbone):
    """A comparison reads its rows once, renames values, and passes the rows to every run."""
    table = data("llama")
    table["data"] |= {
        "value_map": {"label": {"0": "negative", "1": "positive"}},
        "max_rows": {"train": 3},
    }
    made = setup_run(make_recipe(table), backbone=backbone("llama"), tables=tables_of(rows))
    assert {name: len(part.truth) for name, part in made.rows.items()} == SPLITS


def test_rows_in_memory_must_include_training_rows(data, rows, backbone):
    tables = {"validation": tables_of(rows)["validation"]}
    with pytest.raises(DataError, match=r"the splits are 'validation'. Give some under the name"):
        setup_run(make_recipe(data("llama")), backbone=backbone("llama"), tables=tables)
