"""Rows that are written are read again as they were, in every format; files are not lost."""

import csv
import datetime as dt
import json
from pathlib import Path

import pytest
from pyarrow import parquet

from softprompt.data.readers import read_file
from softprompt.data.writers import WRITTEN_FORMATS, check_writable, write_rows
from softprompt.errors import DataError

ROWS = [
    {"id": "a-7", "text": 'one, "two"\nthree; é 日 😀', "share": 0.1, "count": 3},
    {"id": "b", "text": " spaces\tand tabs ", "share": 2.5, "count": 40},
    {"id": "c", "text": "last", "share": None, "count": 5},
]


@pytest.mark.parametrize("suffix", WRITTEN_FORMATS)
def test_rows_are_read_again_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(path, ROWS)
    table = read_file(path)
    assert table.column_names == ["id", "text", "share", "count"]
    found = table.to_list()
    # The cells of csv and tsv are text or numbers; the text is what this is about.
    assert [[str(value) for value in row.values()] for row in found] == [
        [str(value) for value in row.values()] for row in ROWS
    ]
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("suffix", WRITTEN_FORMATS)
def test_columns_that_only_some_rows_have_are_empty_in_the_others(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(path, [{"text": "a"}, {"text": "b", "id": "x"}])
    assert read_file(path).to_list() == [{"text": "a", "id": None}, {"text": "b", "id": "x"}]


ODD = {
    "bool": (True, "true"),
    "list": ([1, "a"], '[1, "a"]'),
    "date": (dt.date(2026, 1, 2), "2026-01-02"),
    "surrogate": ("\ud800", "\\ud800"),
}


@pytest.mark.parametrize(("value", "cell"), ODD.values(), ids=ODD)
def test_other_values_can_be_written_to_every_format(
    tmp_path: Path, value: object, cell: str
) -> None:
    rows = [{"text": "x", "odd": value}]
    for suffix in WRITTEN_FORMATS:
        write_rows(tmp_path / f"rows{suffix}", rows)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["odd"] == cell
    line = json.loads((tmp_path / "rows.jsonl").read_text("utf-8"))
    assert line["odd"] in (value, cell)
    (stored,) = parquet.read_table(tmp_path / "rows.parquet")["odd"].to_pylist()
    assert stored in (value, cell)


def test_a_column_of_parquet_with_different_types_is_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", [{"id": 7}, {"id": "seven"}, {"id": None}])
    assert parquet.read_table(tmp_path / "rows.parquet")["id"].to_pylist() == ["7", "seven", None]


def test_nan_is_null_in_json_lines(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"a": float("nan"), "b": 1.5}])
    assert (tmp_path / "rows.jsonl").read_text("utf-8") == '{"a": null, "b": 1.5}\n'


@pytest.mark.parametrize("suffix", WRITTEN_FORMATS)
def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path, suffix: str, monkeypatch) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("mine")
    monkeypatch.setattr(Path, "replace", lambda *_args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_rows(path, ROWS)
    assert path.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [path]


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("text\nx\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    cases = {
        tmp_path / "out.xlsx": "unknown file format '.xlsx'",
        tmp_path / "out": "unknown file format ''",
        tmp_path / "folder.csv": "is a folder",
        tmp_path / "none" / "out.csv": "no folder",
        source: "would be replaced",
        tmp_path / "link.csv": "would be replaced",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            check_writable(path, sources=["", "org/data", "~nosuch/x", str(source)])
    check_writable(tmp_path / "new.csv", sources=[str(source)])
