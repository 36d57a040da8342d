"""Damaged and lying files are a DataError that names them, whatever the library below raises."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path
from types import SimpleNamespace

import datasets
import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from softprompt.cli.streaming import InputRow
from softprompt.data import read_data
from softprompt.errors import DataError

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}
ROWS = [{"text": f"a film of {n} hours", "label": "good" if n % 2 else "bad"} for n in range(40)]


def write_parquet(path: Path, metadata: bytes | None = None) -> Path:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    rows = [{**row, "label": ["bad", "good"].index(row["label"])} for row in ROWS]
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    if metadata is not None:
        table = parquet.read_table(path).replace_schema_metadata({b"huggingface": metadata})
        parquet.write_table(table, path)
    return path


def make_content(ending: str) -> bytes:
    if ending.startswith(".csv"):
        text = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    elif ending.startswith(".json."):
        text = json.dumps(ROWS, indent=1)
    else:
        text = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    return PACK["." + ending.split(".")[2] if ending.count(".") > 1 else ""](text.encode())


def damage(raw: bytes, draw: random.Random) -> bytes:
    """A file with bytes changed, cut out, doubled or cut off."""
    at, size = draw.randrange(len(raw)), draw.randrange(1, 30)
    changed = bytes(draw.randrange(256) for _ in range(size))
    return draw.choice(
        [
            raw[:at],
            raw[:at] + changed + raw[at + size :],
            raw[:at] + raw[at + size :],
            raw[:at] + raw[at : at + size] * 2 + raw[at + size :],
            raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :],
        ]
    )


def read_or_refuse(path: Path) -> datasets.Dataset | None:
    """The rows; None if they are refused with the name of the file."""
    try:
        return read_data(str(path))
    except DataError as error:
        if str(path) not in str(error):
            raise
        return None


@pytest.mark.parametrize(
    "ending", [".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".jsonl", ".jsonl.gz", ".json.gz"]
)
def test_a_damaged_file_of_text_is_read_or_refused(tmp_path, ending):
    draw, raw, path = random.Random(7), make_content(ending), tmp_path / f"t{ending}"  # noqa: S311
    refused = 0
    for _ in range(150):
        path.write_bytes(damage(raw, draw))
        refused += read_or_refuse(path) is None
    assert refused > (100 if ending.endswith(("z", "2")) else 20)


def test_a_damaged_parquet_file_is_read_or_refused(tmp_path):
    draw, path = random.Random(7), write_parquet(tmp_path / "t.parquet")  # noqa: S311
    raw, refused = path.read_bytes(), 0
    for _ in range(150):
        path.write_bytes(damage(raw, draw))
        refused += read_or_refuse(path) is None
    assert refused > 50


def test_class_labels_of_a_local_parquet_file_are_their_names(tmp_path):
    table = read_data(str(write_parquet(tmp_path / "t.parquet")))
    assert table["label"][:] == [row["label"] for row in ROWS]


def describe_features(feature: object) -> bytes:
    text = {"dtype": "string", "_type": "Value"}
    return json.dumps({"info": {"features": {"text": text, "label": feature}}}).encode()


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"\xff\xfe",
        b"not JSON",
        b"[]",
        b"5",
        b"null",
        b'{"info": 5}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"text": 5}}}',
        b"[" * 5000,
        describe_features({"_type": "Nonsense"}),
        describe_features({"_type": "ClassLabel", "names": ["bad"]}),
        describe_features({"_type": "ClassLabel", "names": 5}),
        describe_features({"_type": "Image"}),
        describe_features({"dtype": "nonsense", "_type": "Value"}),
    ],
)
def test_odd_metadata_of_a_parquet_file_is_refused_or_of_no_effect(tmp_path, metadata):
    path = write_parquet(tmp_path / "t.parquet", metadata)
    table = read_or_refuse(path)
    assert table is None or table["label"][:] == [
        ["bad", "good"].index(row["label"]) for row in ROWS
    ]


DEEP = "[" * 900 + "]" * 900
BEYOND = {
    "twice": ('{"text": "a", "label": "x", "label": "y"}', "the key 'label' appears twice"),
    "digits": ('{"text": "a", "label": 1' + "0" * 5000 + "}", "a number has 5,001 digits"),
    "deep": ('{"text": "a", "label": ' + DEEP + "}", "it is nested more than 100 levels deep"),
    "deeper": ('{"text": ' * 9000, "it is nested more than 100 levels deep"),
    "overflow": ('{"text": "a", "label": 1e999}', "1e999 overflows a float"),
}


@pytest.mark.parametrize("kind", BEYOND)
@pytest.mark.parametrize("layout", ["lines", "list", "objects"])
def test_json_beyond_reason_is_refused(tmp_path, kind, layout):
    row, fault = BEYOND[kind]
    good = '{"text": "a", "label": "x"}'
    if layout == "lines":
        (tmp_path / "t.jsonl").write_text(f"{good}\n{row}\n{good}\n")
        place = "in the JSON that begins on line 2 of"
    elif layout == "list":
        (tmp_path / "t.jsonl").write_text(f"[\n{good},\n{row},\n{good}]\n")
        place = "in the JSON that begins on line 1 of"
    else:
        (tmp_path / "t.jsonl").write_text("{\n" + f"{good[1:]}\n{row}\n{good}\n")
        place = "in the JSON that begins on line 3 of"
    with pytest.raises(DataError) as caught:
        read_data(str(tmp_path / "t.jsonl"))
    assert str(caught.value) == f"{place} {tmp_path / 't.jsonl'}: {fault}. Correct it."


@pytest.mark.parametrize("kind", BEYOND)
def test_a_row_beyond_reason_on_stdin_is_refused(kind):
    row, fault = BEYOND[kind]
    with pytest.raises(DataError) as caught:
        InputRow("line 1", row.encode()).read_content()
    assert str(caught.value) == f"it cannot be read: {fault}. Correct it."


@pytest.mark.parametrize("ending", PACK)
def test_more_text_than_memory_is_refused(tmp_path, monkeypatch, ending):
    """As a bomb: a small file that unpacks to more than there is."""
    path = tmp_path / f"t.csv{ending}"
    path.write_bytes(PACK[ending](b"text\n" + b"a\n" * 2_000_000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4_000_000))
    with pytest.raises(DataError, match="has more than 1,000,000 bytes of text, and more rows"):
        read_data(str(path))


@pytest.mark.parametrize(
    "value", [[[[1]], [["a"]]], 2**70, {"a": [{"b": "c"}, {"b": 3}]}, b"x" * 3]
)
def test_a_value_that_no_table_has_is_refused(tmp_path, value):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"x": value}, default=str) + "\n" + json.dumps({"x": 1}) + "\n"
    )
    table = read_or_refuse(tmp_path / "t.jsonl")
    assert table is None or table["x"][1] == 1


def test_a_file_of_numbers_of_arrow_is_read(tmp_path):
    parquet.write_table(pa.table({"x": [1, 2]}), tmp_path / "t.parquet")
    assert read_data(str(tmp_path / "t.parquet")).to_dict() == {"x": [1, 2]}
