"""A recipe's rows: read, split, limited, checked, hashed and rendered."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from softprompt.data import DataConfig, digest_rows, read_source, read_splits
from softprompt.errors import DataError
from softprompt.inference.loops import EvaluatedRows, make_report
from softprompt.tasks import Classify, Generate, Prediction, build_task
from softprompt.tasks.config import get_target_column
from softprompt.tasks.targets import check_tables, find_labels
from softprompt.train.datasets import render_table
from support.reviews import make_reviews

FILM = [
    {"text": f"film {n // 3}, line {n}", "label": n % 2, "film": f"film {n // 3}", "share": n + 0.5}
    for n in range(30)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(
                    file, [*rows[0]], delimiter="," if path.suffix == ".csv" else "\t"
                )
                writer.writeheader()
                writer.writerows(rows)
        case _:
            Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return lambda name, rows=FILM: write(tmp_path / name, rows)


def sizes(data: DataConfig, seed: int = 0) -> dict[str, int]:
    return {name: len(table) for name, table in read_splits(data, seed=seed).items()}


def test_one_file_is_split_by_split_sizes(file):
    assert sizes(DataConfig(train=file("a.csv"))) == {"train": 24, "validation": 3, "test": 3}
    shares = {"train": 0.5, "validation": 0.5, "test": 0.0}
    data = DataConfig.model_validate({"train": file("a.csv"), "split_sizes": shares})
    assert sizes(data) == {"train": 15, "validation": 15}


def test_a_seed_splits_the_rows_the_same_way_each_time(file):
    data = DataConfig(train=file("a.csv"))
    first, again, other = (read_splits(data, seed=s) for s in (0, 0, 1))
    texts = [text for table in first.values() for text in table["text"]]
    assert sorted(texts) == sorted(row["text"] for row in FILM)
    assert {n: t["text"][:] for n, t in first.items()} == {
        n: t["text"][:] for n, t in again.items()
    }
    assert first["test"]["text"][:] != other["test"]["text"][:]


def test_no_film_is_in_two_splits(file):
    found = read_splits(DataConfig(train=file("a.csv"), group_by="film"), seed=0)
    films = [{*table["film"]} for table in found.values()]
    assert len(films) == 3
    assert sum(map(len, films)) == len(set().union(*films)) == 10


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ({"validation", "test"}, {"train": 30, "validation": 10, "test": 10}),
        ({"validation"}, {"train": 30, "validation": 10}),
        ({"test"}, {"train": 27, "validation": 3, "test": 10}),
    ],
)
def test_a_split_with_a_file_is_not_split_off(file, named, wanted):
    files = {name: file(f"{name}.jsonl", FILM[:10]) for name in named}
    found = read_splits(DataConfig(train=file("a.csv"), **files), seed=0)
    assert {name: len(table) for name, table in found.items()} == wanted


def test_limits_sample_each_split(file):
    data = {"train": file("a.csv"), "max_rows": {"train": 5, "test": 2, "validation": 100}}
    section = DataConfig.model_validate(data)
    assert sizes(section) == {"train": 5, "validation": 3, "test": 2}
    whole = read_splits(DataConfig(train=data["train"]), seed=0)
    less = read_splits(section, seed=0)
    assert {*less["train"]["text"]} < {*whole["train"]["text"]}
    again = read_splits(section, seed=0)
    assert again["train"]["text"][:] == less["train"]["text"][:]


def test_a_file_has_one_split(file):
    path = file("a.csv")
    assert len(read_source(f"{path}[train]")) == 30
    with pytest.raises(DataError, match="is one table and has no split 'test'"):
        read_source(f"{path}[test]")


def test_the_hash_is_of_the_rows_and_not_of_the_file(file):
    names = ("a.csv", "a.tsv", "a.jsonl", "a.parquet")
    columns = ["text", "label", "share"]
    found = {digest_rows(read_source(file(name)), columns) for name in names}
    assert len(found) == 1


def test_the_hash_sees_every_change_and_no_other_column():
    plain = [{"text": "a", "label": "x", "more": 1}, {"text": "b", "label": "y", "more": 2}]
    same = [{"more": 9, "label": r["label"], "text": r["text"]} for r in plain]
    columns = ["text", "label"]

    def of(rows: list[dict[str, Any]]) -> str:
        return digest_rows(Dataset.from_list(rows), columns)

    assert of(same) == of(plain)
    assert digest_rows(Dataset.from_list(plain), ["label", "text", "text"]) == of(plain)
    others = [
        plain[::-1],
        plain[:1],
        [plain[0], plain[1] | {"text": "c"}],
        [plain[0], plain[1] | {"label": "x"}],
        [{"text": "ab", "label": "x"}, {"text": "", "label": "y"}],
    ]
    assert len({of(rows) for rows in [plain, *others]}) == 6


def table(*labels: str) -> Dataset:
    return Dataset.from_list([{"text": "a", "label": label, "target": label} for label in labels])


def test_value_map_renames_values(file):
    """In every split, before labels are looked for; the same rows as without names."""
    words = {"0": "negative", "1": "positive"}
    data = {"train": file("a.csv"), "value_map": {"label": words}}
    plain = read_splits(DataConfig(train=file("a.csv")), seed=0)
    found = read_splits(DataConfig.model_validate(data), seed=0)
    for name, rows in plain.items():
        assert found[name]["label"] == [words[str(label)] for label in rows["label"]]
        assert found[name]["text"] == rows["text"]
    assert find_labels(Classify(), found["train"]) == ("negative", "positive")


def test_a_value_without_a_name_is_refused(file):
    data = {"train": file("a.csv"), "value_map": {"label": {"0": "negative"}}}
    with pytest.raises(DataError) as caught:
        read_splits(DataConfig.model_validate(data), seed=0)
    assert str(caught.value) == (
        "column 'label' of the train data has values without a name: '1' (15 rows). "
        "data.value_map.label has names for '0'. Add the others."
    )
    data["value_map"] = {"lable": {"0": "negative"}}
    with pytest.raises(
        DataError, match=r"has no column 'lable'.* Did you mean 'label' for 'lable'"
    ):
        read_splits(DataConfig.model_validate(data), seed=0)


def test_labels_come_from_data_verbalizer_or_list():
    data = table("b", "a", "b")
    assert find_labels(Classify(), data) == ("a", "b")
    assert find_labels(Classify(verbalizer={"b": "x", "a": "y", "c": "z"}), data) == ("b", "a", "c")
    assert find_labels(Generate(), data) == ()
    assert find_labels(Generate(choices="from-data"), data) == ("a", "b")
    assert find_labels(Generate(choices=["z", "a"]), data) == ("z", "a")


def test_labels_come_in_the_order_of_the_task():
    data = table("equivalent", "not", "not")
    assert find_labels(Classify(labels=["not", "equivalent"]), data) == ("not", "equivalent")
    for wrong in (["not"], ["not", "equal"], ["not", "not", "equivalent"]):
        with pytest.raises(DataError) as caught:
            find_labels(Classify(labels=wrong), data)
        assert str(caught.value) == (
            f"task.labels lists {', '.join(map(repr, wrong))}, but column 'label' of the training "
            "data has 'equivalent', 'not'. List each of these once, or leave task.labels out."
        )


def test_f1_is_that_of_the_second_label(backbone):
    """Six rows of two labels: the second label is the positive class; F1 by hand."""
    found = {}
    for labels in (["negative", "positive"], ["positive", "negative"]):
        order = find_labels(Classify(labels=labels), table("negative", "positive"))
        task = build_task(
            Classify(labels=labels), backbone("bert"), template="{text}", labels=order
        )
        right = ["positive", "negative", "negative", "negative", "positive", "positive"]
        predicted = ["positive", "positive", "negative", "positive", "positive", "negative"]
        predictions = tuple(Prediction(label, {}) for label in predicted)
        evaluated = EvaluatedRows(1.0, len(right), tuple(right), predictions)
        found[labels[1]] = make_report(task, [evaluated]).metrics["f1"]
    # positive: 2 right of 4 predicted and 3 true; negative: 1 of 2 and 3
    assert found == {"positive": pytest.approx(4 / 7), "negative": pytest.approx(2 / 5)}


def test_a_label_without_a_word_is_refused():
    with pytest.raises(DataError) as caught:
        find_labels(Classify(verbalizer={"a": "x", "c": "y"}), table("a", "b", "d"))
    assert str(caught.value) == (
        "column 'label' of the training data has labels without a word in the verbalizer: 'b', "
        "'d'. The verbalizer has 'a', 'c'. Add a word for each label."
    )


def test_one_label_only_is_refused():
    with pytest.raises(DataError, match="all 2 rows of the training data have the label 'a'"):
        find_labels(Classify(), table("a", "a"))


def test_a_label_that_is_not_in_the_training_data_is_refused():
    tables = {"train": table("a", "b"), "validation": table("a", "c")}
    with pytest.raises(DataError, match=r"the validation data has labels that the training data"):
        check_tables(tables, Classify(), labels=("a", "b"))


def test_unlabelled_rows_are_refused():
    bare = Dataset.from_list([{"text": "a"}])
    with pytest.raises(DataError, match="the test data has no column 'label'"):
        check_tables({"test": bare}, Classify(), labels=("a", "b"))
    with pytest.raises(DataError, match="the test data has no column 'answer'"):
        check_tables({"test": bare}, Generate(target_column="answer"), labels=())


def test_the_target_column():
    assert get_target_column(Classify(label_column="y")) == "y"
    assert get_target_column(Generate(target_column="z")) == "z"


def test_rows_are_rendered_with_their_answers_and_truncated_ones_are_counted(parts):
    short = {"text": "a film", "label": "positive", "answer": "good"}
    long = short | {"text": "film " * 200, "label": "negative"}
    prepared = parts("llama", tables={"train": [short, long, short, long, long]})
    found = prepared.rows["train"]
    assert found.truth == ["positive", "negative", "positive", "negative", "negative"]
    assert [e.target for e in found.examples] == [1, 0, 1, 0, 0]
    assert found.truncated == 3
    positions = prepared.backbone.geometry.max_positions
    assert Counter(e.length for e in found.examples)[positions] == 3


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_training_and_prediction_see_a_cell_alike(file, parts, name):
    backbone, cells = parts("llama").backbone, ("0.50", "007", "1E2")
    rows = [{"text": cell, "answer": answer} for cell, answer in zip(cells, CELLS, strict=True)]
    settings = Generate("{text} is{soft:2}", target_column="answer")
    task = build_task(settings, backbone, template="{text} is{soft:2}")
    found = render_table(task, read_source(file(name, rows)), where="the rows")
    assert found.truth == CELLS
    assert found.examples == [task.make_example(row) for row in rows]


CELLS = ["1.50", "1.5", "100"]


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "words") for family in ("llama", "bert", "t5")),
        *((family, "head") for family in ("llama", "bert")),
        *((family, "text") for family in ("llama", "t5")),
    ],
)
def test_rows_in_groups_are_the_rows_one_by_one(parts, family: str, kind: str, size: int):
    """Also where targets are tokenised here while another thread tokenises the next rows."""
    task = parts(family, "p-tuning-v2", task=kind).task
    most = 1 if kind == "text" else 9  # of which the longest are truncated
    rows = [
        row | {"text": row["text"] * (1 + n % most)}
        for n, row in enumerate(make_reviews(60, seed=7))
    ]
    groups = [rows[at : at + size] for at in range(0, len(rows), size)]
    assert [*task.iterate_examples(groups)] == [task.make_example(row) for row in rows]
    assert [*task.iterate_examples([])] == []


def test_the_first_bad_row_is_reported_though_a_later_one_is_read_before(parts):
    task = parts("llama").task
    [good] = make_reviews(1, seed=7)
    groups = [[good], [good | {"label": "nobody"}], [{"label": good["label"]}]]
    found = task.iterate_examples(groups)
    assert next(found) == task.make_example(good)
    with pytest.raises(DataError, match="nobody"):
        next(found)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("other", ["csv", "jsonl", "parquet"])
def test_the_same_labels_in_splits_of_any_format(file, kind, other):
    """A column of whole numbers has other types alone than with a fraction."""
    train = [{"text": f"film {n}", "label": (1, 2, 2.5)[n % 3]} for n in range(9)]
    test = [row for row in train if row["label"] != 2.5]
    settings = Classify(label_column="label")
    tables = {
        "train": read_source(file(f"train.{kind}", train)),
        "test": read_source(file(f"test.{other}", test)),
    }
    labels = find_labels(settings, tables["train"])
    assert labels == ("1", "2", "2.5")
    check_tables(tables, settings, labels=labels)


@pytest.mark.parametrize("gap", ["", " ", None])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_without_a_value_are_left_out_if_the_recipe_says_so(file, kind, gap):
    rows = [dict(row) for row in FILM]
    rows[3]["text"] = rows[4]["film"] = rows[5]["text"] = gap
    for columns, count in (([], 30), (["text"], 28), (["text", "film"], 27)):
        data = DataConfig(train=file(f"a.{kind}", rows), drop_missing=columns)
        found = [row for part in read_splits(data, seed=0).values() for row in part]
        assert len(found) == count
        assert all(row[column] and row[column].strip() for row in found for column in columns)
    data = DataConfig(train=file(f"a.{kind}", rows), drop_missing=["txt"])
    with pytest.raises(DataError, match=r"has no column 'txt'.*Did you mean 'text'"):
        read_splits(data, seed=0)


def test_a_missing_value_is_refused(parts):
    task = parts("llama").task
    rows = [{"text": "a", "label": "positive"}, {"text": None, "label": "negative"}]
    with pytest.raises(DataError, match="1 row has no value in column 'text' of the train data"):
        render_table(task, Dataset.from_list(rows), where="the train data")
