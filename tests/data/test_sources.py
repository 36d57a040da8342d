# A message is easiest to check on one line.
# ruff: noqa: E501

import bz2
import csv
import gzip
import json
import lzma
import math
import os
import re
from collections import Counter

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from softprompt.data.readers import FORMATS
from softprompt.data.sources import read_data
from softprompt.data.table import check_columns
from softprompt.errors import DataError

TABLE = {
    "text": ['a "good" film', "naïve, but\nfine 😀", "None", "NA", "1984"],
    "label": [1, 0, 1, 0, 1],
    "score": [0.5, -2.0, 1e-3, 3.25, 10.0],
}
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\ufeff"), min_size=1)


def as_csv(table, separator=","):
    return pd.DataFrame(table).to_csv(index=False, sep=separator)


def as_lines(table):
    return "".join(f"{json.dumps(row)}\n" for row in pd.DataFrame(table).to_dict("records"))


def as_list(table):
    return json.dumps(pd.DataFrame(table).to_dict("records"), indent=2)


def message(source, **options):
    with pytest.raises(DataError) as caught:
        read_data(str(source), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", as_csv(TABLE)),
        ("t.CSV", as_csv(TABLE)),
        ("t.tsv", as_csv(TABLE, "\t")),
        ("t.jsonl", as_lines(TABLE)),
        ("t.ndjson", as_lines(TABLE)),
        ("t.json", as_lines(TABLE)),
        ("t.json", as_list(TABLE)),
    ],
)
@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()])
@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_files_of_another_library_are_read(tmp_path, name, content, mark, ending, pack):
    path = tmp_path / (name + ending)
    path.write_bytes(pack(mark + content.encode()))
    expected = TABLE
    if path.name.lower().startswith(("t.csv", "t.tsv")):
        expected = {column: [str(value) for value in values] for column, values in TABLE.items()}
    assert read_data(str(path)).to_dict() == expected
    assert read_data(str(path), split="train").to_dict() == expected


def test_parquet_is_read(tmp_path):
    pd.DataFrame(TABLE).to_parquet(tmp_path / "t.parquet")
    assert read_data(str(tmp_path / "t.parquet")).to_dict() == TABLE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(CELLS, min_size=1), st.sampled_from([("c.csv", ","), ("c.tsv", "\t")]))
def test_text_survives_csv(tmp_path, cells, form):
    name, separator = form
    words = [f"w{cell}" for cell in cells]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=separator).writerows([["x"], *([w] for w in words)])
    assert read_data(str(tmp_path / name)).to_dict() == {"x": words}


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "-2", "0"],
        ["1", "2.5", "1e3"],
        ["3.1", "3.10", "3.100"],
        ["1E2", "100", "100.0"],
        ["1.50", "007", "+1", ".5"],
        ["NA", "nan", "None", "null", "True", "false"],
        ["123456789012345678901234567890", "1"],
        [" a", "a ", "a\u00a0b"],
    ],
)
@pytest.mark.parametrize(
    ("name", "separator"), [("n.csv", ","), ("n.tsv", "\t"), ("n.csv.gz", ",")]
)
def test_a_cell_stays_the_text_that_it_is(tmp_path, cells, name, separator):
    """Whatever the other cells are: alone, with a gap, and beside text."""
    for others in ([], [""], ["word"], ["2.5"]):
        column = [*cells, *others]
        text = "".join(f"a{separator}{cell}\n" for cell in column)
        raw = f"k{separator}x\n{text}".encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        assert read_data(str(tmp_path / name))["x"][:] == [cell or None for cell in column]


def test_python_words_for_numbers_in_json(tmp_path):
    """`json.dumps` writes NaN for a missing value of pandas, also in a column of texts."""
    rows = [{"a": math.nan, "b": 1.5}, {"a": "x", "b": math.inf}, {"a": "y", "b": -math.inf}]
    (tmp_path / "n.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_data(str(tmp_path / "n.jsonl")).to_dict() == {
        "a": [None, "x", "y"],
        "b": [1.5, math.inf, -math.inf],
    }


def test_a_missing_key_is_a_missing_value(tmp_path):
    (tmp_path / "n.jsonl").write_text('{"a": 1}\n\n{"b": "x\u2028y"}\n')
    assert read_data(str(tmp_path / "n.jsonl")).to_dict() == {
        "a": [1, None],
        "b": [None, "x\u2028y"],
    }


def test_a_document_may_be_long(tmp_path):
    (tmp_path / "long.csv").write_text(f"text\n{'word ' * 50_000}\n")
    assert len(read_data(str(tmp_path / "long.csv"))[0]["text"]) == 250_000
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.parquet"])
def test_an_edited_file_is_read_again_and_nothing_is_cached(tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for words in (["one"], ["two"]):
        frame = pd.DataFrame({"text": words})
        match name:
            case "e.csv":
                frame.to_csv(name, index=False)
            case "e.jsonl":
                frame.to_json(name, orient="records", lines=True)
            case _:
                frame.to_parquet(name)
        os.utime(name, (1, 1))  # the modification time does not show the edit
        rows = read_data(name)
        assert rows["text"][:] == words
        assert rows.cache_files == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_reading_a_file_is_silent(tmp_path, capfd):
    (tmp_path / "t.csv").write_text(as_csv(TABLE))
    read_data(str(tmp_path / "t.csv"))
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_suggests_similar_names(tmp_path):
    (tmp_path / "reviews.csv").write_text("text\na\n")
    said = message(tmp_path / "review.csv")
    assert said.startswith(f"there is no file {tmp_path / 'review.csv'} (looked in {tmp_path})")
    assert said.endswith("Did you mean reviews.csv?")


def test_a_missing_file_without_similar_names(tmp_path):
    assert message(tmp_path / "zzz.jsonl").endswith("No file there has a similar name.")


def test_a_missing_folder(tmp_path):
    said = message(tmp_path / "no" / "t.csv")
    assert said.endswith(f"its folder {tmp_path / 'no'} does not exist either.")


@pytest.mark.parametrize(
    "name", ["./reviews", "~/no-such-file-here", "a/b/c", "reviews.txt", "t.csv"]
)
def test_a_name_that_the_hub_cannot_have_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert message(name).startswith("there is no file")


def test_a_folder_is_refused(tmp_path):
    assert message(tmp_path).startswith(f"{tmp_path} is a folder. Name one file in it (.csv, .tsv,")


@pytest.mark.parametrize("name", ["t.txt", "t.xls", "t", "t.csv.zip", "t.csv.zst"])
def test_an_unknown_extension_lists_the_known(tmp_path, name):
    (tmp_path / name).write_text("text\na\n")
    said = message(tmp_path / name)
    assert "unknown file format" in said
    assert all(known in said for known in FORMATS)
    assert ".gz, .bz2, .xz" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", ""),
        ("t.csv", "text,label\n"),
        ("t.csv", "\n \n"),
        ("t.tsv", "text\n\n\n"),
        ("t.jsonl", ""),
        ("t.jsonl", "\n\n"),
        ("t.json", "[]"),
        ("t.json", "[{}, {}]"),
    ],
)
def test_a_file_without_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert message(tmp_path / name) == f"{tmp_path / name} has no rows. At least one row is needed."


def test_categories_in_parquet_are_text(tmp_path):
    labels = ["good", "bad", "good"]
    frame = pd.DataFrame({"label": pd.Categorical(labels)})
    frame.to_parquet(tmp_path / "t.parquet")
    rows = read_data(str(tmp_path / "t.parquet"))
    check_columns(rows, ["label"], where="t.parquet")
    assert rows["label"][:] == labels


def test_a_parquet_column_of_an_unsupported_type(tmp_path):
    pairs = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    parquet.write_table(pa.table({"text": ["a"], "more": pairs}), tmp_path / "t.parquet")
    said = message(tmp_path / "t.parquet")
    assert said.startswith(f"a column of {tmp_path / 't.parquet'} cannot be read: ")
    assert "map<string, string" in said
    assert said.endswith(". Write the file without this column.")


def test_a_parquet_file_without_rows(tmp_path):
    pd.DataFrame({"text": []}).to_parquet(tmp_path / "t.parquet")
    assert "has no rows" in message(tmp_path / "t.parquet")


@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_invalid_utf8_is_reported_with_its_offset(tmp_path, mark, pack):
    path = tmp_path / ("t.csv" if pack is bytes else "t.csv.gz")
    raw = mark + b"text\ngood\n" + "na\u00efve".encode("latin-1")
    path.write_bytes(pack(raw))
    offset = raw.index(b"\xef", len(mark))
    assert message(path) == (
        f"{path} is not valid UTF-8: byte 0xef at offset {offset} (line 3) cannot be read. "
        "Save the file as UTF-8, or set data.encoding in the recipe (on the command line: "
        "--encoding); it may be \"cp1252\" (Windows, Latin-1, in which it reads 'naïve')."
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"a": 1}\n\n{"a": 2\n', "line 3 of {} is not valid JSON: Expecting ',' delimiter at column 8."),
        ("t.jsonl", '{"a": 1} {"a": 2}\n', "line 1 of {} is not valid JSON: Extra data at column 10."),
        ("t.jsonl", '{"a": 1}\n[1]\n', "line 2 of {} is of type list, but an object"),
        ("t.json", '[{"a": 1},\n {"a": }]', "line 2 of {} is not valid JSON: Expecting value at column 8."),
        ("t.json", '[{"a": 1}, "b"]', "{} is of type str, but an object"),
        ("t.json", '{\n "a": 1,\n}', "line 3 of {} is not valid JSON"),
        ("t.jsonl", '{"a": 1}\n{"a": "x"}\n{"a": 2}\n', "column 'a' of {} mixes int (row 0), str (row 1). Write"),
        ("t.jsonl", '{"a": "\\ud83d"}\n', "{} cannot be converted to a table:"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "line 3 of {} has 3 cells, but the header has 2 columns (a, b). Put cells"),
        ("t.csv", 'a,b\n"x\ny",2\n1\n', "line 4 of {} has 1 cells, but the header has 2 columns"),
        ("t.csv", "a,b,a\n1,2,3\n", "{} has two columns called 'a'. Rename one of them."),
        ("t.csv", 'a\n"x" y\n', "line 2 of {} cannot be read: ',' expected after '\"'. Inside a quoted cell"),
        ("t.csv", 'a\n"x\n', "of {} cannot be read: unexpected end of data."),
        ("t.parquet", "zzz", "{} is not a readable parquet file ("),
        ("t.csv.gz", "zzz", "{} cannot be unpacked (Not a gzipped file"),
        ("t.csv.bz2", "zzz", "{} cannot be unpacked (Invalid data stream). It is damaged, or not a .bz2 file."),
        ("t.csv.xz", "zzz", "{} cannot be unpacked ("),
    ],
)  # fmt: skip
def test_a_damaged_file(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    assert said.replace("{}", str(path)) in message(path)


def test_a_truncated_archive(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + os.urandom(500).hex().encode())[:-40])
    assert "cannot be unpacked" in message(path)


def test_a_file_has_no_splits(tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n")
    assert message(tmp_path / "t.csv", split="test").startswith(
        f"{tmp_path / 't.csv'} is one table and has no split 'test'. Leave the split out, or put"
    )


def test_the_film_reviews():
    rows = read_data("builtin:rotten-tomatoes")
    assert rows.column_names == ["text", "label", "film"]
    assert Counter(rows["label"]) == {"fresh": 7403, "rotten": 5405}
    assert len(rows) == 12_808
    assert rows[0] == {
        "text": "A three-hour cinema master class.",
        "label": "fresh",
        "film": "a_grin_without_a_cat",
    }
    check_columns(rows, rows.column_names, where="the reviews")


class Hub:
    """A replacement of `datasets.load_dataset`."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = None

    def __call__(self, name, config, *, split, revision):
        self.asked = (name, config, split, revision)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if split is None else self.answer[split]


@pytest.fixture
def hub(monkeypatch):
    def stand_in(answer):
        made = Hub(answer)
        monkeypatch.setattr(datasets, "load_dataset", made)
        return made

    return stand_in


def classed(numbers):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    columns = {"text": ["x"] * len(numbers), "label": numbers}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_hub_data_set_has_its_classes_by_name(hub):
    asked = hub(datasets.DatasetDict(train=classed([1, 0]), test=classed([-1])))
    assert read_data("glue:sst2", split="train").to_dict() == {
        "text": ["x", "x"],
        "label": ["yes", "no"],
    }
    assert asked.asked == ("glue", "sst2", "train", None)
    assert read_data("org/name", split="test")["label"][:] == [None]
    assert asked.asked == ("org/name", None, "test", None)
    read_data("org/name@refs/convert/parquet:sst2", split="test")
    assert asked.asked == ("org/name", "sst2", "test", "refs/convert/parquet")


def test_the_only_split_of_a_hub_data_set_needs_no_name(hub):
    hub(datasets.DatasetDict(train=classed([1, 0])))
    assert read_data("org/name")["label"][:] == ["yes", "no"]


def test_one_of_several_splits_must_be_named(hub):
    hub(datasets.DatasetDict(train=classed([1]), test=classed([0])))
    assert message("org/name") == (
        "data set 'org/name' has the splits test, train. Name one of them."
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no"), "the Hub cannot be reached and nothing is cached on this machine. Connect once, or use a local file"),
        (datasets.exceptions.DatasetNotFoundError("no"), "there is no data set 'org/name' on the Hub, or it is private."),
        (ValueError("Unknown split \"trian\". Should be one of ['train']."), "cannot be loaded: Unknown split \"trian\". Should be one of ['train']. Check name, configuration"),
    ],
)  # fmt: skip
def test_an_error_of_the_hub(hub, error, said):
    hub(error)
    assert said in message("org/name", split="train")
    assert "'org/name'" in message("org/name", split="train")


def test_offline_with_the_library_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    said = message("no-such-org/no-such-data")
    assert "'no-such-org/no-such-data'" in said
    assert "cannot be reached and nothing is cached" in said


def columns_message(columns, names):
    with pytest.raises(DataError) as caught:
        check_columns(datasets.Dataset.from_dict(columns), names, where="t.csv")
    return str(caught.value)


def test_missing_columns_suggest_similar_names():
    columns = {"review": ["a"], "label": ["b"]}
    assert columns_message(columns, ["reviews", "zzz", "label"]) == (
        "t.csv has no columns 'reviews', 'zzz'. It has: label, review. "
        "Did you mean 'review' for 'reviews'?"
    )
    assert columns_message(columns, ["zzz"]) == (
        "t.csv has no column 'zzz'. It has: label, review. Rename a column or the field."
    )


def test_empty_cells_are_counted():
    columns = {"text": ["a", None, "b", None], "label": ["x", "x", "y", "y"]}
    assert columns_message(columns, ["label", "text"]) == (
        "2 rows have no value in column 'text' of t.csv (4 rows); the first is row 1 "
        "(counted from 0). Fill the cells or leave those rows out (in a "
        'recipe: data.drop_missing = ["text"]).'
    )


def test_nan_is_an_empty_cell():
    columns = {"score": [0.5, math.nan, 1.0], "label": ["x", "x", "y"]}
    assert columns_message(columns, ["label", "score"]) == (
        "1 row has no value in column 'score' of t.csv (3 rows); the first is row 1 "
        "(counted from 0). Fill the cells or leave those rows out (in a "
        'recipe: data.drop_missing = ["score"]).'
    )


@pytest.mark.parametrize("gap", ["", " ", "\t\n", "\u00a0"])
@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_blank_text_is_no_value(gap, kind):
    features = datasets.Features({"text": datasets.Value(kind)})
    rows = datasets.Dataset.from_dict({"text": ["a", gap, "b", gap]}, features=features)
    check_columns(rows.select([0, 2]), ["text"], where="t.csv")
    with pytest.raises(DataError) as caught:
        check_columns(rows, ["text"], where="t.csv")
    assert str(caught.value) == (
        "2 rows have no value in column 'text' of t.csv (4 rows); the first is row 1 "
        "(counted from 0). Blank text is not a value. Fill the cells or leave those rows out (in a "
        'recipe: data.drop_missing = ["text"]).'
    )


# Every form in which a value is missing in a file, as the second of two rows.
GAPS = {
    "csv": ("g.csv", "text,label\na,x\n,y\n"),
    "csv quoted": ("g.csv", 'text,label\na,x\n"",y\n'),
    "csv blank": ("g.csv", "text,label\na,x\n  ,y\n"),
    "tsv": ("g.tsv", "text\tlabel\na\tx\n\ty\n"),
    "null": ("g.jsonl", '{"text": "a", "label": "x"}\n{"text": null, "label": "y"}'),
    "NaN": ("g.jsonl", '{"text": "a", "label": "x"}\n{"text": NaN, "label": "y"}'),
    "empty": ("g.jsonl", '{"text": "a", "label": "x"}\n{"text": "", "label": "y"}'),
    "blank": ("g.json", '[{"text": "a", "label": "x"}, {"text": " ", "label": "y"}]'),
    "absent": ("g.jsonl", '{"text": "a", "label": "x"}\n{"label": "y"}'),
    "null in parquet": ("g.parquet", pa.array(["a", None])),
    "NaN in parquet": ("g.parquet", pa.array([1.5, math.nan])),
    "blank in parquet": ("g.parquet", pa.array(["a", ""])),
}


@pytest.mark.parametrize("form", GAPS)
def test_missing_values_of_every_kind_are_told_with_their_row(tmp_path, form):
    name, content = GAPS[form]
    if isinstance(content, str):
        (tmp_path / name).write_text(content, "utf-8")
    else:
        parquet.write_table(pa.table({"text": content, "label": ["x", "y"]}), tmp_path / name)
    with pytest.raises(DataError, match=r"1 row has no value in column 'text' of g .2 rows.; the"):
        check_columns(read_data(str(tmp_path / name)), ["text", "label"], where="g")


def test_empty_cells_outside_a_selection_are_ignored():
    rows = datasets.Dataset.from_dict({"text": ["a", None, "b"]})
    check_columns(rows.select([2, 0]), ["text"], where="t.csv")
    with pytest.raises(DataError, match=r"1 row has no value .* the first is row 0"):
        check_columns(rows.select([1, 0]), ["text"], where="t.csv")


def test_columns_of_lists_are_refused():
    said = columns_message({"tokens": [["a", "b"]]}, ["tokens"])
    assert re.match(
        r"column 'tokens' of t.csv has the type list<.*>, but only text and numbers", said
    )
    assert said.endswith("Make one text column of it first.")
