"""The roles of a table's columns, the held-out rows, and the template for a backbone."""

import json
import tomllib
from typing import Any

import pytest
from datasets import Dataset

from softprompt.data import check_labels, split_rows
from softprompt.errors import DataError
from softprompt.recipe import make_recipe
from softprompt.recipe.drafting import (
    BackboneInfo,
    ColumnRoles,
    choose_held_out,
    draft_recipe,
    draft_template,
    draft_verbalizer,
    guess_columns,
)

LONG = [
    "the film is a slow but moving story",
    "nobody could hate this music",
    "dull from end to end",
]


def make_table(rows: int = 24, **columns: Any) -> Dataset:
    """A table: a list is repeated down its column, a function is given the row's number."""
    return Dataset.from_dict(
        {
            name: [v(i) if callable(v) else v[i % len(v)] for i in range(rows)]
            for name, v in columns.items()
        }
    )


def text(i: int) -> str:
    return f"{LONG[i % 3]}, number {i}"


def short(i: int) -> str:
    return f"number {i}"


# Columns as published data sets have them: the label, the texts, the group.
KNOWN = {
    "sst2": ({"idx": int, "sentence": text, "label": [0, 1]}, "label", ("sentence",), None),
    "mrpc": (
        {"sentence1": text, "sentence2": short, "label": [0, 1], "idx": int},
        "label",
        ("sentence1", "sentence2"),
        None,
    ),
    "snli": (
        {"premise": text, "hypothesis": short, "label": ["entailment", "neutral", "no"]},
        "label",
        ("premise", "hypothesis"),
        None,
    ),
    "boolq": (
        {"question": short, "answer": [True, False], "passage": text},
        "answer",
        ("question", "passage"),
        None,
    ),
    "agnews": ({"text": text, "label": ["world", "sports"]}, "label", ("text",), None),
    "yelp": (
        {"stars": [1, 2, 3, 4, 5], "user": list("abcdefghijkl"), "text": text},
        "stars",
        ("text",),
        "user",
    ),
    "films": (
        {"text": text, "label": ["fresh", "rotten"], "film": [f"film {i}" for i in range(12)]},
        "label",
        ("text",),
        "film",
    ),
    "intents": (
        {"utterance": text, "intent": [f"i{i}" for i in range(12)]},
        "intent",
        ("utterance",),
        None,
    ),
    "unnamed": ({"a": text, "b": ["x", "y", "z"], "c": int}, "b", ("a",), None),
    "scored": (
        {"review": text, "title": lambda i: f"t{i}", "score": [0.5], "kind": ["ham", "spam"]},
        "kind",
        ("review",),
        None,
    ),
    "pair": (
        {"source": text, "reply": lambda i: text(i + 7), "class": ["no", "yes"]},
        "class",
        ("source", "reply"),
        None,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_roles_of_columns_are_guessed(name: str) -> None:
    columns, label, texts, group = KNOWN[name]
    roles = guess_columns(make_table(**columns), "rows.csv")
    assert (roles.label, roles.texts, roles.group) == (label, texts, group)
    assert set(roles.labels) == {str(value) for value in columns[label]}


def test_columns_that_cannot_be_guessed_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"no column of a\.csv looks like a label.*'text' 24 values"
    ) as e:
        guess_columns(make_table(text=text, n=int), "a.csv")
    assert "Call the label's column 'label'" in str(e.value)
    with pytest.raises(DataError, match="all 24 rows of the training data have the label 'x'"):
        guess_columns(make_table(text=text, label=["x"]), "a.csv")
    with pytest.raises(DataError, match=r"no column of text next to 'label'.*Rename it"):
        guess_columns(make_table(**{"a:b": text, "label": ["x", "y"]}), "a.csv")
    with pytest.raises(DataError, match="differ only in whitespace"):
        guess_columns(make_table(text=text, label=["x", "x ", "y"]), "a.csv")
    with pytest.raises(DataError, match="no value in column 'text'"):
        guess_columns(make_table(text=["good", None, "bad"], label=["x", "y"]), "a.csv")


CAUSAL = BackboneInfo("m", "causal", has_head=True)


def test_only_labels_that_are_words_get_label_words() -> None:
    assert draft_verbalizer(("no", "very_good"), CAUSAL) == {"no": " no", "very_good": " very good"}
    assert draft_verbalizer(("gut", "schön"), CAUSAL) == {"gut": " gut", "schön": " schön"}
    for labels in (("0", "1"), ("1 star", "2 stars"), ("a", "A"), ("x" * 50, "y"), ("+", "-")):
        assert draft_verbalizer(labels, CAUSAL) is None
    assert draft_verbalizer(tuple(f"i{'x' * i}" for i in range(21)), CAUSAL) is None
    assert draft_verbalizer(("no", "yes"), BackboneInfo("m", "causal", has_head=False)) is None
    assert draft_verbalizer(("no", "yes"), BackboneInfo("m", "encoder", has_head=True)) is None
    writer = BackboneInfo("m", "encoder-decoder", has_head=True)
    assert draft_verbalizer(("0", "1"), writer) == {"0": "0", "1": "1"}


def test_the_template_suits_the_backbone() -> None:
    pair = ColumnRoles("is_same", ("0", "1"), ("s1", "s2"), None, 10)
    assert draft_template(pair, CAUSAL) == "S1: {s1}\nS2: {s2}\nIs same:{soft:10}"
    assert (
        draft_template(pair, BackboneInfo("m", "encoder", has_head=True))
        == "{soft:10}{s1}{sep}{s2}"
    )


def test_rows_are_held_out_so_that_no_label_is_unseen() -> None:
    table = make_table(12, text=text, label=lambda i: "rare" if i == 5 else "often")
    roles = guess_columns(table, "a.csv")
    held_out = choose_held_out(table, "a.csv", columns=roles)
    assert sum(held_out.shares.values()) == pytest.approx(1)
    parts = split_rows(table, seed=held_out.seed, shares=held_out.shares)
    for part in parts.values():
        check_labels(part, "label", known=set(parts["train"]["label"]), split="any")
    few = choose_held_out(make_table(2, text=text, label=["a", "b"]), "a.csv", columns=roles)
    assert few.shares["train"] == 1
    assert "too few" in few.notes[0]


def test_a_draft_names_files_as_seen_from_the_recipe(tmp_path) -> None:
    rows = [{"text": text(i), "label": "no" if i % 3 else "yes"} for i in range(24)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    draft = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path / "recipes")
    assert repr(draft) == "RecipeDraft('text' by 'label', 24 rows)"
    assert draft.notes == ()
    data = tomllib.loads(draft.text)
    assert data["data"] == {
        "train": "../train.jsonl",
        "validation": "../dev.jsonl",
        "test": "../test.jsonl",
        "max_length": 512,
    }
    assert make_recipe(data).task_settings.list_words() == {"no": (" no",), "yes": (" yes",)}


def test_names_with_control_characters_leave_a_draft_readable(tmp_path) -> None:
    names = {"text": "re\nview", "label": "its\nlabel"}
    rows = [{names["text"]: text(i), names["label"]: "a\nb" if i % 3 else "c"} for i in range(24)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = make_recipe(tomllib.loads(draft_recipe(path, directory=tmp_path).text))
    assert recipe.task_settings.label_column == names["label"]
    assert "{" + names["text"] + "}" in recipe.task_settings.template


def test_a_draft_says_what_it_assumes(tmp_path) -> None:
    rows = [
        {"text": text(i), "label": "no" if i % 3 else "yes", "film": f"film {i // 2}"}
        for i in range(24)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    draft = draft_recipe(path, backbone=str(tmp_path / "absent"), directory=tmp_path)
    first, second = draft.notes
    assert first.startswith("could not load the backbone; assuming a causal language model: ")
    assert second == "rows may belong together by 'film': see group_by in the recipe"
    assert '# group_by = "film"' in draft.text
