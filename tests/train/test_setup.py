"""From a recipe to the parts of a run: templates, initializations and faults."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from softprompt.artifact import load_artifact
from softprompt.errors import DataError, PromptError, TemplateError
from softprompt.methods.defaults import choose_defaults
from softprompt.methods.initializers import FromLabels, FromRandom, FromText, FromVocabulary
from softprompt.recipe import make_recipe
from softprompt.train import run_recipe, setup_run
from softprompt.train.stages import resolve_initializer
from softprompt.train.templates import make_default_template

ROWS = [
    {"text": "a good film", "label": "positive", "answer": "good"},
    {"text": "a bad film", "label": "negative", "answer": "bad"},
]


def set_up(data: dict[str, Any], backbone: Any, rows: list[dict[str, Any]] | None = None) -> Any:
    tables = {"train": Dataset.from_list(rows or ROWS)}
    return setup_run(make_recipe(data), backbone=backbone, tables=tables)


def without_template(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"task": {k: v for k, v in data["task"].items() if k != "template"}}


@pytest.mark.parametrize(
    ("family", "method", "columns", "template"),
    [
        ("bert", "p-tuning-v2", ["text"], "{text}"),
        ("bert", "p-tuning-v2", ["first", "second"], "{first}{sep}{second}"),
        ("llama", "p-tuning-v2", ["first", "second"], "{first}\n{second}"),
        ("bert", "prompt-tuning", ["text"], "{soft:20}{text}"),
    ],
)
def test_the_default_template_joins_the_text_columns(
    data, backbone, family, method, columns, template
):
    rows = [{c: f"{c} {n}" for c in columns} | {"label": "ab"[n], "n": n} for n in range(2)]
    recipe = without_template(data(family, method, task="head"))
    assert set_up(recipe, backbone(family), rows).template == template


@pytest.mark.parametrize("columns", [[], ["a", "b", "c"]])
def test_without_a_template_there_must_be_one_or_two_texts(columns):
    table = Dataset.from_list([dict.fromkeys(columns, "x") | {"label": "y", "number": 3}])
    settings = make_recipe(
        {
            "backbone": {"name": "x"},
            "data": {"train": "x"},
            "task": {"kind": "classify"},
            "method": {"name": "p-tuning-v2"},
        }
    ).task_settings
    with pytest.raises(TemplateError) as caught:
        make_default_template(table, settings, kind="causal")
    example = "{a}" if columns else "{text}"
    assert str(caught.value) == (
        "without a template there must be one or two text columns besides 'label', but there are "
        f"{len(columns)}: {columns}. Write task.template, such as {example!r}."
    )


SOFT_TOKENS = {
    "missing": (
        ("prompt-tuning", "{text} is"),
        "the template has no soft tokens, but prompt-tuning trains them.",
        "Write {soft:10} at their place.",
    ),
    "too many": (
        ("p-tuning-v2", "{soft:4}{text} is"),
        "the template has 4 soft tokens, but p-tuning-v2 trains keys and values instead.",
        "Remove {soft:N}, and set method.length.",
    ),
}


@pytest.mark.parametrize(("given", "fact", "remedy"), SOFT_TOKENS.values(), ids=SOFT_TOKENS)
def test_soft_tokens_are_there_if_the_method_trains_them(data, backbone, given, fact, remedy):
    method, template = given
    recipe = data("llama", method)
    recipe["task"]["template"] = template
    with pytest.raises(TemplateError) as caught:
        set_up(recipe, backbone("llama"))
    assert str(caught.value) == f"{fact} {remedy}"


def test_a_field_without_a_column_is_refused(data, backbone):
    recipe = data("llama", "p-tuning-v2")
    recipe["task"]["template"] = "{txet} is"
    with pytest.raises(TemplateError, match=r"unknown field 'txet'.*Did you mean 'text'"):
        set_up(recipe, backbone("llama"))


def test_the_label_column_must_be_there(data, backbone):
    recipe = data("llama", "p-tuning-v2")
    recipe["task"]["label_column"] = "lable"
    with pytest.raises(DataError, match=r"has no column 'lable'.*Did you mean 'label'"):
        set_up(recipe, backbone("llama"))


@pytest.mark.parametrize(
    ("method", "task", "init", "wanted"),
    [
        ("prompt-tuning", "words", None, FromLabels((" bad", " good"))),
        ("prompt-tuning", "head", None, FromLabels(("negative", "positive"))),
        ("prompt-tuning", "generate", None, FromVocabulary()),
        ("p-tuning-v2", "words", None, FromRandom()),
        ("p-tuning-v2", "words", {"from": "vocabulary"}, FromVocabulary()),
        ("prompt-tuning", "words", {"from": "random"}, FromRandom()),
        ("prompt-tuning", "words", {"from": "text", "text": "a film"}, FromText("a film")),
        ("prompt-tuning", "words", {"from": "labels"}, FromLabels((" bad", " good"))),
        ("prompt-tuning", "words", {"from": "labels", "words": ["x"]}, FromLabels(("x",))),
    ],
)
def test_the_initializer_of_a_recipe(data, backbone, method, task, init, wanted):
    table = data("llama", method, task=task)
    if init is not None:
        table["method"]["init"] = init
    labels = () if task == "generate" else ("negative", "positive")
    defaults = choose_defaults(method, backbone("llama").geometry)
    assert resolve_initializer(make_recipe(table), labels=labels, defaults=defaults) == wanted


def test_a_prompt_may_be_initialized_from_an_artifact(parts, data, backbone, tmp_path):
    first = parts()
    run_recipe(first.recipe, tmp_path / "first", prepared=first)
    table = data("llama")
    table["method"]["init"] = {"from": "artifact", "path": str(tmp_path / "first")}
    vectors = set_up(table, backbone("llama")).method().vectors
    assert_close(vectors, load_artifact(tmp_path / "first").prompt.vectors, atol=0, rtol=0)
    table["task"]["template"] = "{soft:5}{text} movie"
    with pytest.raises(PromptError, match="of 3 soft tokens, but the method trains vectors of 5"):
        set_up(table, backbone("llama"))


def test_the_seed_decides_the_initialization(parts, backbone, data):
    def vectors(seed: int) -> torch.Tensor:
        torch.rand(3)
        return (
            set_up(data("llama", "p-tuning") | {"seed": seed}, backbone("llama")).method().vectors
        )

    assert torch.equal(vectors(3), vectors(3))
    assert not torch.equal(vectors(3), vectors(4))


def test_the_seed_decides_the_head(backbone, data):
    def head(seed: int) -> torch.Tensor:
        recipe = data("bert", "p-tuning-v2", task="head") | {"seed": seed}
        return set_up(recipe, backbone("bert")).task.head.output.weight

    assert torch.equal(head(3), head(3))
    assert not torch.equal(head(3), head(4))


def test_max_length_truncates_rows(data, backbone):
    recipe = data("llama")
    recipe["data"]["max_length"] = 9
    rows = [row | {"text": "film " * 20} for row in ROWS]
    found = set_up(recipe, backbone("llama"), rows)
    assert [e.length for e in found.rows["train"].examples] == [9, 9]
    assert found.rows["train"].truncated == 2


def test_hashes_are_of_the_columns_that_are_used(data, backbone):
    plain = set_up(data("llama"), backbone("llama")).hashes
    more = set_up(data("llama"), backbone("llama"), [row | {"more": 1} for row in ROWS]).hashes
    other = set_up(data("llama"), backbone("llama"), [row | {"text": "x"} for row in ROWS]).hashes
    assert more == plain
    assert other != plain
