"""Damaged data files: of text in several forms, packed, parquet and Excel."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import pyarrow as pa
from damage import ODD_VALUES, damage_bytes, damage_json_text, damage_tree, dump_json
from judge import require
from openpyxl import Workbook
from pyarrow import parquet
from tiny import make_rows, train
from trials import Given, Kind, Trial

from softprompt.data import Table, read_source
from softprompt.data.table import to_text
from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe
from softprompt.recipe.drafting import draft_recipe

Rows = Sequence[Mapping[str, Any]]
ORIGINAL: list[dict[str, Any]] = [
    *make_rows(8),
    {"text": 'a "quoted", long\nfilm; with | and \t in it', "label": "no", "target": "né\u2028"},
    {"text": "1.50", "label": "yes", "target": None},
]


def list_kinds() -> list[Kind]:
    """A kind for each format, and for each packer."""
    counts = {"csv": 700, "tsv": 200, "jsonl": 600, "json": 400, "parquet": 500, "xlsx": 300}
    counts |= {"csv.gz": 250, "jsonl.bz2": 200, "tsv.xz": 200}
    return [Kind(f"data: {name}", n, partial(_prepare, name)) for name, n in counts.items()]


def _prepare(suffix: str, place: Path) -> Trial:
    model = train(place, "vectors")
    raw = _write(suffix)
    form, _, packer = suffix.partition(".")

    def trial(given: Given) -> Literal["refused", "answered"]:
        path = given.folder / f"train.{suffix}"
        content, given.damage = _damage(raw, form, bool(packer), given.random)
        path.write_bytes(content)
        table = read_source(str(path))
        rows = [dict(row) for row in table]
        _require_table(table, rows)
        _check_cells(form, packer, content, rows)
        if given.random.random() < 0.25:  # noqa: PLR2004  # the rest of the way takes longer
            _use(path, table, model)
        return "answered"

    return trial


def _use(path: Path, table: Table, model: PromptModel) -> None:
    """Draft a recipe for the file, which must be one; and predict its rows."""
    draft = draft_recipe(path, backbone=model.backbone.name, directory=path.parent)
    recipe = path.with_name("recipe.toml")
    recipe.write_text(draft.text, encoding="utf-8")
    read_recipe(recipe)
    require(len(model.predict(table)) == len(table), "a row has no prediction")


def _write(suffix: str) -> bytes:
    """The original rows in a format, perhaps packed."""
    form, _, packer = suffix.partition(".")
    names = [*ORIGINAL[0]]
    match form:
        case "csv" | "tsv":
            text = io.StringIO(newline="")
            writer = csv.writer(text, delimiter="," if form == "csv" else "\t")
            writer.writerows([names, *([row[n] for n in names] for row in ORIGINAL)])
            raw = text.getvalue().encode()
        case "jsonl":
            lines = (json.dumps(row, ensure_ascii=False) for row in ORIGINAL)
            raw = "".join(f"{line}\n" for line in lines).encode()
        case "json":
            raw = json.dumps(ORIGINAL, indent=1).encode()
        case "parquet":
            buffer = io.BytesIO()
            table = pa.Table.from_pylist(ORIGINAL)
            features = {n: {"dtype": "string", "_type": "Value"} for n in names}
            note = json.dumps({"info": {"features": features}})
            parquet.write_table(table.replace_schema_metadata({"huggingface": note}), buffer)
            raw = buffer.getvalue()
        case _:
            raw = _write_workbook(names)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    return packers[packer](raw) if packer else raw


def _write_workbook(names: Sequence[str]) -> bytes:
    book, buffer = Workbook(), io.BytesIO()
    book.active.append(names)
    for row in ORIGINAL:
        book.active.append([row[name] for name in names])
    book.save(buffer)
    return buffer.getvalue()


def _damage(raw: bytes, form: str, packed: bool, chance: Random) -> tuple[bytes, str]:  # noqa: FBT001
    way = chance.random()
    if packed or form == "xlsx" or way < 0.35:  # noqa: PLR2004
        return damage_bytes(raw, chance)
    if form == "parquet":
        return _write_odd_parquet(chance) if way < 0.7 else damage_bytes(raw, chance)  # noqa: PLR2004
    if form == "json" and way < 0.7:  # noqa: PLR2004
        tree, what = damage_tree(ORIGINAL, chance, odd=(*ODD_VALUES, 3.1, 1e2, "3.10", "007"))
        return dump_json(tree), what
    if form == "jsonl" and way < 0.7:  # noqa: PLR2004
        lines = raw.split(b"\n")
        at = chance.randrange(len(ORIGINAL))
        lines[at], what = _damage_line(ORIGINAL[at], chance)
        return b"\n".join(lines), f"line {at + 1}: {what}"
    return _damage_text(raw, chance)


def _damage_line(row: Mapping[str, Any], chance: Random) -> tuple[bytes, str]:
    if chance.random() < 0.5:  # noqa: PLR2004
        return damage_json_text(dump_json(row), chance)
    tree, what = damage_tree(dict(row), chance)
    return dump_json(tree), what


def _damage_text(raw: bytes, chance: Random) -> tuple[bytes, str]:
    """What editors, programs and joins do to a file of text."""
    text = raw.decode()
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    changes: dict[str, Callable[[], bytes]] = {
        "a byte order mark": lambda: b"\xef\xbb\xbf" + raw,
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-16 without its mark": lambda: text.encode("utf-16-le"),
        "UTF-32": lambda: text.encode("utf-32"),
        "Latin-1": lambda: text.encode("latin-1", "replace"),
        "lines of Windows": lambda: text.replace("\n", "\r\n").encode(),
        "lines of old Macs": lambda: text.replace("\n", "\r").encode(),
        "semicolons": lambda: text.replace(",", ";").encode(),
        "tabs": lambda: text.replace(",", "\t").encode(),
        "another separator's declaration": lambda: b"sep=;\n" + raw,
        "no quotes": lambda: text.replace('"', "").encode(),
        "quotes inside": lambda: text.replace(" ", ' "', 1).encode(),
        "no header": lambda: "\n".join(lines[1:]).encode(),
        "the header twice": lambda: lines[0].encode() + b"\n" + raw,
        "a name twice": lambda: text.replace("target", "label").encode(),
        "a name that is empty": lambda: text.replace("target", "").encode(),
        "a name of zero": lambda: text.replace("target", "a\x00b").encode(),
        "a line twice": lambda: "\n".join([*lines[:at], lines[at], *lines[at:]]).encode(),
        "a blank line": lambda: "\n".join([*lines[:at], "", " ", *lines[at:]]).encode(),
        "a ragged line": lambda: "\n".join([*lines[:at], "a,b", *lines[at:]]).encode(),
        "a line of zeros": lambda: "\n".join([*lines[:at], "\x00" * 9, *lines[at:]]).encode(),
        "a huge cell": lambda: text.replace("film", "film " * 200_000, 1).encode(),
        "gaps": lambda: text.replace("yes", "").replace("no", "NaN").encode(),
        "nothing": lambda: b"",
        "blanks": lambda: b" \n\t\n",
        "a page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "an archive": lambda: b"PK\x03\x04" + raw,
        "half a character": lambda: raw.replace(b"film", b"\xed\xa0\x80", 1),
        "one column": lambda: "\n".join(line.partition(",")[0] for line in lines).encode(),
    }
    name = chance.choice(list(changes))
    return changes[name](), f"{name} (line {at + 1})"


_TYPES = (
    *(
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.int64(),
        pa.uint64(),
        pa.float16(),
        pa.null(),
    ),
    *(pa.bool_(), pa.date32(), pa.timestamp("ns"), pa.decimal128(10, 2), pa.duration("s")),
    *(pa.list_(pa.string()), pa.struct([("a", pa.int8())]), pa.dictionary(pa.int8(), pa.string())),
)
_NOTES = (
    *(
        "",
        "x",
        "[]",
        "{}",
        "null",
        "1",
        '{"info": 1}',
        '{"info": {"features": []}}',
        "\xff",
        "[" * 5000,
    ),
    '{"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}',
    '{"info": {"features": {"label": {"names": ["no"], "_type": "ClassLabel"}}}}',
    '{"info": {"features": {"label": {"names": 5, "_type": "ClassLabel"}}}}',
    '{"info": {"features": {"label": {"_type": "Nothing"}}}}',
    '{"info": {"features": {"text": {"_type": "Image"}, "label": {"_type": "Audio"}}}}',
    '{"info": {"features": {"text": {"dtype": "int64", "_type": "Value"}}}}',
    '{"info": {"features": {"text": {"dtype": "x", "_type": "Value"}}}}',
)


def _write_odd_parquet(chance: Random) -> tuple[bytes, str]:
    """A sound file with an odd type of column, or an odd note of the library ``datasets``."""
    kind, note = chance.choice(_TYPES), chance.choice((None, *_NOTES))
    values: dict[str, Any] = {
        "text": [f"the film {n}" for n in range(6)],
        "label": [n % 2 for n in range(6)] if note else ["no", "yes"] * 3,
    }
    name = chance.choice(("text", "label", "x"))
    cells = [None, None, *([None] * 4)]
    with_type = pa.array(cells if pa.types.is_nested(kind) else _fill(kind), type=kind)
    table = pa.table(values | {name: with_type})
    if note is not None:
        table = table.replace_schema_metadata({"huggingface": note.encode("latin-1")})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue(), f"column {name} of {kind}, note {note and note[:80]!r}"


def _fill(kind: pa.DataType) -> list[Any]:
    numbers = pa.array([0, 1, 2, 1, 0, None])
    try:
        return numbers.cast(kind).to_pylist()
    except (pa.ArrowException, ValueError):
        return [None] * 6


def _require_table(table: Table, rows: Rows) -> None:
    names = table.column_names
    require(bool(rows), "a table without rows")
    require(len({*names}) == len(names), f"columns {names}")
    require(all([*row] == names for row in rows), "rows of several shapes")


def _check_cells(form: str, packer: str, content: bytes, rows: Rows) -> None:
    """Require the cells that a plain reader finds, or for what has checksums the original's."""
    if packer or form == "xlsx":
        twice = [_to_texts(row) for row in [*ORIGINAL, *ORIGINAL]]
        read = [_to_texts(row) for row in rows]
        require(read in (twice[: len(ORIGINAL)], twice), f"other rows than the original: {read}")
        return
    match form:
        case "csv" | "tsv":
            found = [_to_texts(row) for row in rows]
            require(found in _split(content), f"cells {found[:2]}")
        case "jsonl" | "json":
            _require_records(content, rows)
        case _:
            count = parquet.read_table(io.BytesIO(content)).num_rows
            require(count == len(rows), f"{len(rows)} rows instead of {count}")


def _to_texts(row: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: None if value in (None, "") else str(value) for name, value in row.items()}


def _decode(content: bytes) -> str:
    for mark, name in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\xff\xfe", "utf-16")):
        if content.startswith(mark):
            return content.decode(name)
    return content.decode("utf-8-sig").removeprefix("\ufeff")


def _split(content: bytes) -> list[list[dict[str, str | None]]]:
    """The rows of a file with each of the separators."""
    text, found = _decode(content), []
    for separator in ",;\t|":
        body = text.partition("\n")[2] if text.startswith("sep=") else text
        csv.field_size_limit(1 << 30)
        try:
            header, *lines = filter(
                None, csv.reader(io.StringIO(body, newline=""), delimiter=separator)
            )
        except (csv.Error, ValueError):
            continue
        found.append([{n: c or None for n, c in zip(header, line, strict=False)} for line in lines])
    return found


def _require_records(content: bytes, rows: Rows) -> None:
    text = _decode(content)
    decoder = json.JSONDecoder(object_pairs_hook=_make_object)
    records: list[Any] = []
    at = 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        record, at = decoder.raw_decode(text, at)
        records += record if isinstance(record, list) else [record]
    require(len(records) == len(rows), f"{len(rows)} rows instead of {len(records)}")
    for row, record in zip(rows, records, strict=True):
        for name, value in record.items():
            if isinstance(value, list | dict) or value is None:
                continue
            cell = row[name]
            same = cell is None or cell == value or str(cell) == to_text(value)
            gap = cell is None and (value == "" or value != value)  # noqa: PLR0124  # NaN
            require(gap or (cell is not None and same), f"{name}: {cell!r} instead of {value!r}")


def _make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    require(len({key for key, _ in pairs}) == len(pairs), "a key twice")
    return dict(pairs)
