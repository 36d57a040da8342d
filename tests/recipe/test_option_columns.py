"""Data sets of multiple choice as they are published: ``init`` recognises their columns."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from softprompt.errors import DataError
from softprompt.recipe import make_recipe
from softprompt.recipe.column_roles import guess_columns
from softprompt.recipe.drafted_backbones import BackboneInfo
from softprompt.recipe.drafting import ENCODER, draft_recipe, draft_template
from softprompt.tasks import Choose
from softprompt.tasks.targets import read_targets

LETTERS = "ABCDE"


def say(words: str) -> Callable[[int], str]:
    """A column of texts that differ."""
    return lambda n: f"{words} number {n}"


def list_texts(n: int, count: int = 4) -> list[str]:
    """The options of a row."""
    return [f"thing {n} {letter}" for letter in LETTERS[:count]]


# Of each: the columns, how the options' columns and the target's are called and its form, and the
# template's columns of text. The right option is always that at n % 2.
KNOWN: dict[str, tuple[dict[str, Callable[[int], Any]], Any, str, str, tuple[str, ...]]] = {
    "copa": (
        {
            "premise": say("The man fell"),
            "choice1": lambda n: list_texts(n)[0],
            "choice2": lambda n: list_texts(n)[1],
            "question": lambda n: ("cause", "effect")[n % 3 > 0],
            "idx": lambda n: n,
            "label": lambda n: n % 2,
        },
        ("choice1", "choice2"), "label", "index", ("premise",),
    ),
    "hellaswag": (
        {"ctx": say("A woman is standing"), "endings": list_texts, "label": lambda n: str(n % 2)},
        "endings", "label", "index", ("ctx",),
    ),
    "swag": (
        {
            "startphrase": say("On stage, a woman takes a seat"),
            **{f"ending{at}": lambda n, at=at: list_texts(n)[at] for at in range(4)},
            "label": lambda n: n % 2,
        },
        ("ending0", "ending1", "ending2", "ending3"), "label", "index", ("startphrase",),
    ),
    "arc": (
        {
            "id": str,
            "question": say("Which of these is true of the sun"),
            "choices": lambda n: {
                "text": list_texts(n, 3 + n % 3), "label": [*(LETTERS[:3 + n % 3])]
            },
            "answerKey": lambda n: LETTERS[n % 2],
        },
        "choices", "answerKey", "label", ("question",),
    ),
    "mmlu": (
        {
            "question": say("What is the order of the group"),
            "choices": list_texts,
            "answer": lambda n: n % 2,
        },
        "choices", "answer", "index", ("question",),
    ),
    "piqa": (
        {
            "goal": say("To open a jar"),
            "sol1": lambda n: list_texts(n)[0],
            "sol2": lambda n: list_texts(n)[1],
            "label": lambda n: n % 2,
        },
        ("sol1", "sol2"), "label", "index", ("goal",),
    ),
    "letters": (
        {
            "prompt": say("Question"),
            **{c: lambda n, at=at: list_texts(n)[at] for at, c in enumerate("ABC")},
            "answer": lambda n: LETTERS[n % 2],
        },
        ("A", "B", "C"), "answer", "label", ("prompt",),
    ),
    "texts": (
        {
            "text": say("The plot is"),
            "options": lambda n: " | ".join(list_texts(n, 3)),
            "target": lambda n: list_texts(n)[n % 2],
        },
        "options", "target", "text", ("text",),
    ),
}  # fmt: skip


def make_rows(name: str, count: int = 30) -> list[dict[str, Any]]:
    return [{key: make(n) for key, make in KNOWN[name][0].items()} for n in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", KNOWN)
def test_published_columns_are_recognised_and_read(tmp_path: Path, name: str) -> None:
    _, options, target, form, texts = KNOWN[name]
    rows = make_rows(name)
    draft = draft_recipe(write(tmp_path / "train.jsonl", rows), directory=tmp_path)
    columns = draft.columns
    assert (columns.kind, columns.texts, columns.label) == ("choose", texts, target)
    recipe = make_recipe(tomllib.loads(draft.text))
    task = recipe.task_settings
    assert isinstance(task, Choose)
    listed = options if isinstance(options, str) else [*options]
    assert (task.options_column, task.target_column, task.target_form) == (listed, target, form)
    assert task.head is None
    table = Dataset.from_list(rows)
    assert read_targets(table, task) == [list_texts(n)[n % 2] for n in range(30)]
    assert 'kind = "choose"' in " ".join(draft.notes)
    automatic = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path, automatic=True)
    assert "keep_plain_head" not in automatic.text
    assert ENCODER not in automatic.text
    assert make_recipe(tomllib.loads(automatic.text)).data.folds == 5


@pytest.mark.parametrize("name", ["arc", "hellaswag", "copa"])
def test_every_backbone_gets_a_template_that_it_can_read(name: str) -> None:
    roles = guess_columns(Dataset.from_list(make_rows(name)), "a.jsonl")
    (field,) = roles.texts
    encoder, llama, t5 = (
        BackboneInfo(kind, kind, has_head=True) for kind in ("encoder", "causal", "encoder-decoder")
    )
    assert draft_template(roles, encoder) == f"{{soft:10}}{{{field}}}{{sep}}{{option}}"
    if name == "hellaswag":  # its options are the ends of sentences
        assert draft_template(roles, llama) == "{soft:10}{ctx}"
    else:
        wanted = f"{field.capitalize()}: {{{field}}}\nAnswer:{{soft:10}}"
        assert draft_template(roles, llama) == draft_template(roles, t5) == wanted


def test_options_that_are_counted_from_1_are_counted_from_0(tmp_path: Path) -> None:
    """As in Winogrande and Social IQa."""
    rows = [row | {"label": str(row["label"] + 1)} for row in make_rows("copa")]
    draft = draft_recipe(write(tmp_path / "train.jsonl", rows), directory=tmp_path)
    recipe = make_recipe(tomllib.loads(draft.text))
    assert recipe.data.value_map == {"label": {"1": "0", "2": "1"}}
    assert recipe.task_settings.target_form == "index"
    assert "by its index, from 1" in " ".join(draft.notes)


def test_files_next_to_the_training_data_are_checked(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", make_rows("arc"))
    write(tmp_path / "validation.jsonl", make_rows("arc", 10))
    write(tmp_path / "test.jsonl", [row | {"answerKey": "Z"} for row in make_rows("arc", 10)])
    draft = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path)
    assert "validation" in draft.held_out.files
    assert "test" not in draft.held_out.files
    assert "test.jsonl is left out: row 0" in " ".join(draft.notes)


def test_options_without_a_right_one_are_refused() -> None:
    rows = [{"text": f"text {n}", "choices": list_texts(n), "label": "x"} for n in range(12)]
    with pytest.raises(DataError, match=r"'choices' of a has options, .* 'label' does not: row 0"):
        guess_columns(Dataset.from_list(rows), "a")
    rows = [{"text": f"text {n}", "choices": list_texts(n)} for n in range(12)]
    with pytest.raises(DataError, match=r"no column says which one is right\. Call that column"):
        guess_columns(Dataset.from_list(rows), "a")


def test_numbered_columns_that_are_no_options_have_other_tasks() -> None:
    rows = [
        {"answer1": f"text {n}", "answer2": f"more {n}", "label": ("good", "bad")[n % 2]}
        for n in range(12)
    ]
    assert guess_columns(Dataset.from_list(rows), "a").kind == "classify"
