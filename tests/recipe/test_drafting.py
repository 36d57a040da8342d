"""The roles of a table's columns, the held-out rows, and the template for a backbone."""

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from softprompt.data import check_labels, read_splits, split_rows
from softprompt.errors import DataError
from softprompt.recipe import make_recipe, read_recipe
from softprompt.recipe.column_roles import ColumnRoles, guess_columns
from softprompt.recipe.drafted_backbones import BackboneInfo
from softprompt.recipe.drafting import (
    ENCODER,
    choose_held_out,
    draft_recipe,
    draft_template,
    draft_verbalizer,
)
from support.questions import make_questions
from support.reviews import write_rows

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
@pytest.mark.parametrize("form", ["typed", "csv"])
def test_the_roles_of_columns_are_guessed(name: str, form: str) -> None:
    columns, label, texts, group = KNOWN[name]
    table = make_table(**columns)
    if form == "csv":  # in which every cell is text
        table = Dataset.from_dict({n: [*map(str, table[n])] for n in table.column_names})
    roles = guess_columns(table, "rows.csv")
    assert (roles.label, roles.texts, roles.group) == (label, texts, group)
    assert set(roles.labels) == {str(value) for value in columns[label]}
    assert {label, *texts, group, *roles.unused} - {None} == {*columns, *({group} - {None})}
    assert roles.kind == "classify"


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
    with pytest.raises(DataError, match=r"no row of a\.csv has a value in 'text' and 'label'"):
        guess_columns(make_table(text=["good", None], label=[" ", "y"]), "a.csv")


WORDS = [["a", "b"], ["c"], ["d", "e", "f"]]
# Tables whose columns have no task of softprompt, and what they have.
UNSUPPORTED = {
    "tags": (
        {"text": text, "ner_tags": [[0, 1], [0], [1, 1, 0]], "id": str},
        "'ner_tags'",
        "a tag for each word",
    ),
    "entities": (
        {"text": text, "entities": lambda i: [{"start": i, "end": i + 1, "label": "x"}]},
        "'entities'",
        "spans of the text",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_table_that_no_task_fits_is_refused_with_what_it_has(name: str) -> None:
    columns, column, what = UNSUPPORTED[name]
    with pytest.raises(DataError) as caught:
        guess_columns(make_table(**columns), "a.jsonl")
    said = str(caught.value)
    assert said.startswith(f"column {column} of a.jsonl has {what}")
    assert "no task" in said
    assert "kind = " in said


BIO = [["B-A", "I-A"], ["O"], ["O", "B-A", "O"]]
TAGGED = {
    "conll": ({"words": WORDS, "column_2": WORDS, "tags": BIO}, "words", "tags", "BIO"),
    "conll2003": ({"id": str, "tokens": WORDS, "ner_tags": BIO}, "tokens", "ner_tags", "BIO"),
    "parts of speech": (
        {"tokens": WORDS, "pos_tags": [["DET", "NOUN"], ["VERB"], ["DET", "ADJ", "NOUN"]]},
        "tokens",
        "pos_tags",
        "none",
    ),
    "csv": (
        {"words": [*map(json.dumps, WORDS)], "tags": [*map(str, BIO)]},
        "words",
        "tags",
        "BIO",
    ),
    "spans": (
        {"text": text, "entities": lambda i: [{"start": 0, "end": 3 + (i % 3 > 0), "label": "x"}]
         if i % 3 != 1 else []},
        "text",
        "entities",
        "BIO",
    ),
}  # fmt: skip


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("name", TAGGED)
def test_tags_of_words_are_a_task(name: str, automatic, tmp_path) -> None:
    columns, words, target, scheme = TAGGED[name]
    table = make_table(40, **columns)
    roles = guess_columns(table, "a.jsonl")
    assert (roles.texts, roles.label, roles.kind) == ((words,), target, "tag")
    assert roles.scheme == scheme
    path = write_rows(tmp_path / "train.jsonl", table.to_list())
    draft = draft_recipe(path, directory=tmp_path, automatic=automatic)
    recipe = make_recipe(tomllib.loads(draft.text))
    settings = recipe.task_settings
    assert settings.kind == "tag"
    assert (settings.words_column, settings.target_column) == (words, target)
    assert settings.scheme == scheme
    assert settings.template == f"{{{words}}}"
    assert recipe.backbone.name == "builtin:minilm"
    assert recipe.method.name == "p-tuning-v2"
    assert not recipe.train.keep_plain_head


def test_a_causal_backbone_gets_the_words_twice() -> None:
    columns, *_ = TAGGED["conll"]
    roles = guess_columns(make_table(**columns), "a.jsonl")
    causal = BackboneInfo("llama", "causal", has_head=True)
    assert draft_template(roles, causal) == "{soft:10}{words}\n{words}"


def write_squad(folder: Path, *, form: str, **names: str) -> Path:
    """Questions in a file of a form; ``names`` are other names of columns."""
    rows = [
        {names.get(name, name): value for name, value in row.items()}
        for row in make_questions(30, seed=0)
    ]
    path = folder / f"train.{form}"
    match form:
        case "json":
            questions = [
                {"id": row["id"], "question": row["question"], "answers": [
                    {"text": text, "answer_start": start}
                    for text, start in zip(*row["answers"].values(), strict=True)
                ], "is_impossible": not row["answers"]["text"]}
                for row in rows
            ]  # fmt: skip
            paragraphs = [
                {"context": row["context"], "qas": [question]}
                for row, question in zip(rows, questions, strict=True)
            ]
            data = [{"title": "words", "paragraphs": paragraphs}]
            path.write_text(json.dumps({"version": "v2.0", "data": data}), encoding="utf-8")
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                key = names.get("answers", "answers")
                writer.writerows(row | {key: json.dumps(row[key])} for row in rows)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_questions_with_answers_in_a_context_are_recognised(tmp_path: Path, form: str) -> None:
    path = write_squad(tmp_path, form=form)
    draft = draft_recipe(path, directory=tmp_path)
    assert draft.columns.kind == "extract"
    assert draft.columns.texts == ("question", "context")
    assert draft.columns.label == "answers"
    assert "10 of 30 questions have none" in " ".join(draft.notes)
    for line in ('kind = "extract"', 'target_column = "answers"', 'null_threshold = "auto"'):
        assert line in draft.text
    recipe = make_recipe(tomllib.loads(draft.text))
    assert recipe.task_settings.template == "{soft:10}{question}{sep}{context}"
    automatic = draft_recipe(path, directory=tmp_path, automatic=True).text
    assert "keep_plain_head" not in automatic
    assert 'template = "{question}{sep}{context}"' in automatic
    assert ENCODER in automatic


def test_the_context_is_where_the_answers_stand(tmp_path: Path) -> None:
    path = write_squad(tmp_path, form="jsonl", context="passage", question="asked", answers="gold")
    columns = draft_recipe(path, directory=tmp_path).columns
    assert (columns.texts, columns.label) == (("asked", "passage"), "gold")
    rows = {"answers": lambda i: {"text": ["no"], "answer_start": [i]}, "a": text, "b": text}
    with pytest.raises(DataError, match=r"no column looks like the text .* Call .* 'context'"):
        guess_columns(make_table(**rows), "a.jsonl")
    rows = {"answers": lambda _: {"text": [], "answer_start": []}, "context": text}
    with pytest.raises(DataError, match=r"no column looks like the question"):
        guess_columns(make_table(**rows), "a.jsonl")


SETS = {
    "multi-label": ({"text": text, "labels": WORDS}, "labels"),
    "unnamed": ({"text": text, "genres": WORDS}, "genres"),
    "as Python writes it": ({"text": text, "labels": ["['a', 'b']", "['c']", "[]"]}, "labels"),
    "with lines between": ({"text": text, "labels": ["a|b", "a", "b|c"]}, "labels"),
    "next to a language": ({"text": text, "labels": WORDS, "language": ["de", "en"]}, "labels"),
}


@pytest.mark.parametrize("name", SETS)
def test_several_labels_for_a_row_are_a_task(name: str, tmp_path) -> None:
    columns, column = SETS[name]
    roles = guess_columns(make_table(**columns), "a.jsonl")
    assert (roles.kind, roles.multi_label, roles.label) == ("classify", True, column)
    assert roles.texts == ("text",)
    assert "any number of labels for a row" in roles.notes[0]


NUMBERS = {
    "scores": ({"text": text, "score": lambda i: i / 7}, "score"),
    "scores, written": ({"text": text, "label": lambda i: f"{i / 7:.3f}"}, "label"),
    "points": ({"text": text, "rating": int}, "rating"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_too_many_for_labels_are_a_task(name: str) -> None:
    columns, column = NUMBERS[name]
    roles = guess_columns(make_table(**columns), "a.csv")
    assert (roles.kind, roles.label, roles.labels) == ("regress", column, ())
    assert 'kind = "regress"' in roles.notes[0]


def test_whole_steps_of_a_scale_are_labels_and_halves_are_numbers() -> None:
    roles = guess_columns(make_table(text=text, stars=lambda i: 1 + i % 5), "a.csv")
    assert (roles.kind, roles.label) == ("classify", "stars")
    halves = guess_columns(make_table(text=text, stars=lambda i: 1 + i % 9 / 2), "a.csv")
    assert (halves.kind, halves.label) == ("regress", "stars")


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            SETS["multi-label"][0],
            ['kind = "classify"', "multi_label = true", 'thresholds = "auto"'],
        ),
        (NUMBERS["scores"][0], ['kind = "regress"', 'target_column = "score"']),
    ],
)
def test_the_drafted_recipe_of_such_rows_has_no_faults(tmp_path, columns, lines, automatic) -> None:
    path = tmp_path / "train.jsonl"
    write_rows(path, make_table(**columns).to_list())
    draft = draft_recipe(path, directory=tmp_path, backbone="builtin:minilm", automatic=automatic)
    for line in lines:
        assert line in draft.text
    assert make_recipe(tomllib.loads(draft.text)).task.kind == draft.columns.kind


TEXTS_TO_WRITE = {
    "summaries": ({"article": text, "summary": short, "id": int}, "summary", ("article",)),
    "answers": ({"question": short, "answer": text}, "answer", ("question",)),
    "targets": ({"source": text, "target": lambda i: text(i + 7)}, "target", ("source",)),
    "labels": ({"text": text, "label": lambda i: f"tag {i}"}, "label", ("text",)),
}


@pytest.mark.parametrize("name", TEXTS_TO_WRITE)
def test_free_text_is_to_be_written(name: str, tmp_path) -> None:
    columns, target, texts = TEXTS_TO_WRITE[name]
    table = make_table(**columns)
    roles = guess_columns(table, "a.csv")
    assert (roles.kind, roles.label, roles.texts, roles.labels) == ("generate", target, texts, ())
    assert f"column {target!r} has 24 different texts in 24 rows" in roles.notes[0]
    table.to_csv(tmp_path / "train.csv", index=False)
    draft = draft_recipe(tmp_path / "train.csv", directory=tmp_path)
    recipe = make_recipe(tomllib.loads(draft.text))
    assert recipe.task_settings.target_column == target
    assert f"{{{texts[0]}}}" in recipe.task_settings.template
    assert repr(draft) == f"RecipeDraft({texts[0]!r} to {target!r}, 24 rows)"


def test_an_encoder_cannot_write_text(tmp_path, monkeypatch) -> None:
    make_table(article=text, summary=short).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(
        DataError, match=r"'summary'.*is an encoder, which cannot write text\. Choose"
    ):
        draft_recipe(tmp_path / "train.csv", backbone="builtin:minilm", directory=tmp_path)


def test_columns_that_are_not_used_are_told() -> None:
    roles = guess_columns(make_table(text=text, label=["x", "y"], id=int, lang=["en"]), "a.csv")
    assert roles.notes == ("the recipe does not use the columns 'id', 'lang'",)
    assert guess_columns(make_table(text=text, label=["x", "y"]), "a.csv").notes == ()


def test_advice_is_not_what_the_table_has_already() -> None:
    with pytest.raises(DataError) as caught:
        guess_columns(make_table(3, text=int, label=["x", "y", "z"]), "a.csv")
    assert "Call the" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        guess_columns(make_table(label=["x", "y"], n=int), "a.csv")
    assert "Rename" not in str(caught.value)
    assert "no column of text next to 'label'" in str(caught.value)


def test_labels_that_differ_in_spaces_only_are_joined_by_the_draft(tmp_path) -> None:
    rows = [{"text": text(i), "label": ["no", "no ", "yes", "Yes"][i % 4]} for i in range(40)]
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    draft = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path)
    assert draft.columns.labels == ("Yes", "no", "yes")
    assert draft.held_out.files == {"test": str(tmp_path / "test.jsonl")}
    assert any("differ only in case or spacing: 'Yes' (10 rows), 'yes'" in n for n in draft.notes)
    data = tomllib.loads(draft.text)["data"]
    names = {"no": "no", "no ": "no", "yes": "yes", "Yes": "Yes"}
    assert data["value_map"] == {"label": names}


@pytest.mark.parametrize("gap", [None, "", " "])
@pytest.mark.parametrize("column", ["text", "label"])
def test_rows_without_a_value_are_left_out_by_the_draft(tmp_path, gap, column) -> None:
    rows = [{"text": text(i), "label": ["no", "yes"][i % 2]} for i in range(40)]
    rows[7][column] = rows[9][column] = gap
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    draft = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path)
    assert draft.notes[-1] == (
        f"2 rows have no value in column {column!r}, the first is row 7 (counted from 0): the "
        "recipe leaves them out by drop_missing"
    )
    assert draft.columns.rows == 38
    (tmp_path / "recipe.toml").write_text(draft.text, "utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.data.drop_missing == [column]
    splits = read_splits(recipe.data, seed=recipe.seed)
    assert len(splits["test"]) == 38
    assert sorted(splits["test"]["text"]) == sorted(
        [row["text"] for n, row in enumerate(rows) if n not in {7, 9}]
    )
    assert len(splits["train"]) + len(splits["validation"]) == 38


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
    parts = split_rows(table, seed=held_out.seed, shares=held_out.shares, stratify="label")
    for part in parts.values():
        check_labels(part, "label", known=set(parts["train"]["label"]), split="any")
    few = choose_held_out(make_table(2, text=text, label=["a", "b"]), "a.csv", columns=roles)
    assert few.shares["train"] == 1
    assert "too few" in few.notes[0]


@pytest.mark.parametrize("with_files", [False, True])
def test_rows_in_two_splits_are_noted(tmp_path, with_files) -> None:
    """In files of their own, and in one file whose copies the split would part."""
    rows = [{"text": text(i), "label": "no" if i % 2 else "yes"} for i in range(200)]
    copies = [{**row, "text": f" {row['text'].upper()}"} for row in rows]
    source = tmp_path / "train.jsonl"
    if with_files:
        write_rows(source, rows)
        write_rows(tmp_path / "test.jsonl", copies[:60])
    else:
        write_rows(source, [*rows, *copies])
    notes = draft_recipe(source, directory=tmp_path).notes
    shared = [note for note in notes if "have their text in the" in note]
    assert any("test rows have their text in the train data too" in note for note in shared)
    assert all("data.drop_duplicates = true" in note for note in shared)


def test_few_rows_are_split_so_that_every_split_has_every_label() -> None:
    """Else half of the labels could not be measured."""
    table = make_table(12, text=text, label=["good", "bad"])
    held_out = choose_held_out(table, "a.csv", columns=guess_columns(table, "a.csv"))
    parts = split_rows(table, seed=held_out.seed, shares=held_out.shares, stratify="label")
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 7, "validation": 3, "test": 2,
    }  # fmt: skip
    assert all({*part["label"]} == {"good", "bad"} for part in parts.values())
    assert held_out.notes[0].startswith("few rows: 3 validation rows")


def test_a_draft_names_files_as_seen_from_the_recipe(tmp_path) -> None:
    rows = [{"text": text(i), "label": "no" if i % 3 else "yes"} for i in range(24)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "dev", "test"):
        own = lines.replace('"text": "', f'"text": "{name} ')
        (tmp_path / f"{name}.jsonl").write_text(own, "utf-8")
    draft = draft_recipe(tmp_path / "train.jsonl", directory=tmp_path / "recipes")
    assert repr(draft) == "RecipeDraft('text' by 'label', 24 rows)"
    (few,) = draft.notes
    assert few.startswith("few rows: 24 validation rows to choose the best prompt by and 24 test ")
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
    few, first, second = draft.notes
    assert few.startswith("few rows: 3 validation rows to choose the best prompt by and 2 test ")
    assert first.startswith("could not load the backbone; assuming a causal language model: ")
    assert second == "rows may belong together by 'film': see group_by in the recipe"
    assert '# group_by = "film"' in draft.text


@pytest.mark.parametrize(
    ("kind", "comment"),
    [("encoder", "a probe chooses what it reads"), ("causal", "it reads the last token")],
)
def test_a_draft_with_a_head_says_what_chooses_its_readout(tmp_path, monkeypatch, kind, comment):
    info = BackboneInfo("m", kind, has_head=True)
    monkeypatch.setattr("softprompt.recipe.drafting.inspect_backbone", lambda *_a: (info, []))
    path = tmp_path / "stars.csv"
    path.write_text("review,stars\n" + "A triumph of a film.,5\nA bore of a film.,1\n" * 20)
    text = draft_recipe(path, directory=tmp_path, backbone="m").text
    (line,) = [line for line in text.splitlines() if line.startswith("pooling")]
    assert line.startswith('pooling = "auto"')
    assert comment in line
    assert make_recipe(tomllib.loads(text)).task_settings.pooling == "auto"


def test_conversations_are_recognised(tmp_path) -> None:
    rows = []
    for n in range(40):
        asked = {"role": "user", "content": f"Add {n}."}
        said = [asked, {"role": "assistant", "content": "A" * n or "no"}]
        rows.append({"id": n, "messages": said * (1 + n % 2)})
    path = write_rows(tmp_path / "train.jsonl", rows)
    draft = draft_recipe(path, directory=tmp_path)
    recipe = make_recipe(tomllib.loads(draft.text))
    assert recipe.task_settings.messages_column == "messages"
    assert recipe.task_settings.template == "{soft:10}{messages:system}{messages}"
    assert recipe.task_settings.max_new_tokens == 32
    assert any("20 of 40 conversations have several answers" in note for note in draft.notes)
    automatic = make_recipe(tomllib.loads(draft_recipe(path, automatic=True).text))
    assert automatic.method.name == "p-tuning-v2"
    assert "soft" not in automatic.task_settings.template
    rows[3]["messages"] = rows[3]["messages"][:1]
    write_rows(path, rows)
    with pytest.raises(DataError, match=r"row 3 .*the last message has the role 'user'"):
        draft_recipe(path)


@pytest.mark.parametrize(
    ("turns", "template"),
    [
        (("system", "user"), "{soft:10}{messages:system}{messages}"),
        (("user",), "{messages}{soft:10}"),
        ((), None),
    ],
)
def test_a_draft_of_conversations_fits_the_chat_template(tmp_path, monkeypatch, turns, template):
    info = BackboneInfo("m", "causal", has_head=True, turns=turns)
    monkeypatch.setattr("softprompt.recipe.drafting.inspect_backbone", lambda *_a: (info, []))
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_rows(tmp_path / "train.jsonl", [{"messages": said}] * 20)
    if template is None:
        with pytest.raises(DataError, match=r"m has no chat template.*by --backbone"):
            draft_recipe(path, backbone="m")
        return
    text = draft_recipe(path, backbone="m").text
    assert tomllib.loads(text)["task"]["template"] == template
