"""Files of other programs are read as they are, or refused with the option that reads them."""

import codecs
import json
import sys

import pytest

from softprompt.data import DataConfig, TextFormat, read_data, read_source, read_splits
from softprompt.errors import DataError, MissingPackageError

ROWS = [
    {"text": "schön, aber lang", "label": "good"},
    {"text": 'das „Ende“ ist "gut"; ja', "label": "good"},
    {"text": "öde | leer", "label": "bad"},
    {"text": "1,50 €", "label": "bad"},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def separated(separator, rows=ROWS, *, header=True):
    lines = [[*rows[0]]] * header + [[*row.values()] for row in rows]
    cells = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in line] for line in lines]
    if header:
        cells[0] = lines[0]
    return "".join(separator.join(line) + "\n" for line in cells)


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_data(str(path), text_format=TextFormat(**options))
    return str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_separators_and_byte_order_marks_are_recognised(tmp_path, name, separator, encoding):
    path = tmp_path / name
    path.write_text(separated(separator), encoding)
    assert read_data(str(path)).to_dict() == COLUMNS
    (tmp_path / "e.csv").write_text(f"sep={separator}\r\n{separated(separator)}", encoding)
    assert read_data(str(tmp_path / "e.csv")).to_dict() == COLUMNS


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "^"])
def test_a_separator_that_is_given_is_used(tmp_path, separator):
    (tmp_path / "t.csv").write_text(separated(separator))
    found = read_data(str(tmp_path / "t.csv"), text_format=TextFormat(separator=separator))
    assert found.to_dict() == COLUMNS
    header = "text" if separator == "^" else "text;x"
    (tmp_path / "t.csv").write_text(f"{header}\na;b\nc;d\n")
    found = read_data(str(tmp_path / "t.csv"), text_format=TextFormat(separator="^"))
    assert found.to_dict() == {header: ["a;b", "c;d"]}


def test_a_single_column_of_text_is_not_divided(tmp_path):
    (tmp_path / "t.csv").write_text("text\na;b\nc;d\n")
    assert read_data(str(tmp_path / "t.csv")).to_dict() == {"text": ["a;b", "c;d"]}


def test_rows_that_another_separator_divides_unevenly_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text;label\na;good\nb; c;bad\n")
    said = refusal(tmp_path / "t.csv")
    assert "line 3 of" in said
    assert "has 3 cells, but the header has 2 columns (text, label)" in said
    assert "data.separator" in said
    for wrong in ("\n", '"'):
        assert "which cannot separate cells" in refusal(tmp_path / "t.csv", separator=wrong)


@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_an_encoding_is_refused_without_its_name_and_read_with_it(tmp_path, encoding, name):
    rows = [row | {"text": "映画" if encoding == "shift_jis" else row["text"]} for row in ROWS]
    text = separated(",", rows)
    if name == "t.jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / name).write_bytes(text.encode(encoding))
    said = refusal(tmp_path / name)
    assert "data.encoding" in said
    assert encoding in said or encoding == "shift_jis"
    found = read_data(str(tmp_path / name), text_format=TextFormat(encoding=encoding))
    assert found.to_list() == rows
    # A byte order mark is never wrong.
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
    found = read_data(str(tmp_path / name), text_format=TextFormat(encoding=encoding))
    assert found.to_list() == rows


@pytest.mark.parametrize("encoding", ["utf8x", "rot13", "zlib", "a\0b"])
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "t.csv").write_text("text\na\n")
    said = refusal(tmp_path / "t.csv", encoding=encoding)
    assert said.startswith(f"data.encoding is {encoding!r}, which is not an encoding of text.")


def test_a_wrong_encoding_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("text\nschön\n".encode("cp1252"))
    said = refusal(tmp_path / "t.csv", encoding="ascii")
    assert "is not valid ASCII: byte 0xf6" in said
    assert said.endswith("or correct data.encoding in the recipe.")


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_first_line_that_is_a_row_is_refused(tmp_path, separator):
    (tmp_path / "t.csv").write_text(separated(separator, [*ROWS, *ROWS[:2]], header=False))
    said = refusal(tmp_path / "t.csv")
    assert "'schön, aber lang', 'good') seems to be a row" in said
    assert "'good' is a value of 3 rows" in said
    assert "data.header" in said
    found = read_data(str(tmp_path / "t.csv"), text_format=TextFormat(header=False))
    assert found.to_list() == [
        {"column_1": row["text"], "column_2": row["label"]} for row in [*ROWS, *ROWS[:2]]
    ]


def test_a_header_that_is_a_value_too(tmp_path):
    """A tag may be called as its column; and many words of a text may be."""
    (tmp_path / "t.csv").write_text("word,tag\nx,tag\nthe,tag\na,no\n")
    assert "'tag' is a value of 2 rows" in refusal(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("word,tag\na,tag\nthe,tag\na,no\n")
    found = read_data(str(tmp_path / "t.csv"), text_format=TextFormat(header=True))
    assert found["tag"][:] == ["tag", "tag", "no"]
    words = "".join(f"word {n % 60},x\n" for n in range(200)) + "word,x\nword,x\n"
    (tmp_path / "t.csv").write_text("word,tag\n" + words)
    assert len(read_data(str(tmp_path / "t.csv"))) == 202


def test_joined_files_are_refused(tmp_path):
    part = separated(",")
    (tmp_path / "t.csv").write_text(part * 3)
    for header in (None, True):
        said = refusal(tmp_path / "t.csv", header=header)
        assert said.startswith(f"line {len(ROWS) + 2} of {tmp_path / 't.csv'} repeats the names")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_objects_over_several_lines_are_rows(tmp_path, name, indent):
    one = json.dumps(ROWS[0], indent=indent)
    (tmp_path / name).write_text(one)
    assert read_data(str(tmp_path / name)).to_list() == ROWS[:1]
    (tmp_path / name).write_text("\n\n".join(json.dumps(row, indent=indent) for row in ROWS))
    assert read_data(str(tmp_path / name)).to_list() == ROWS
    (tmp_path / name).write_text(json.dumps(ROWS, indent=indent or 1))
    assert read_data(str(tmp_path / name)).to_list() == ROWS
    (tmp_path / name).write_text(json.dumps(ROWS[0], indent=2) + '\n{\n  "text": 1,,\n}')
    assert "line 6 of" in refusal(tmp_path / name)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"version": 1, "data": ROWS}, "whose rows seem to be the list under 'data'"),
        (COLUMNS, "is one object with a list for each column (text, label)"),
        (
            {name: dict(enumerate(cells)) for name, cells in COLUMNS.items()},
            "is one object with a dict for each column (text, label)",
        ),
    ],
)
def test_a_table_in_one_object_is_refused_with_what_it_seems_to_be(tmp_path, content, said, indent):
    (tmp_path / "t.json").write_text(json.dumps(content, indent=indent))
    assert said in refusal(tmp_path / "t.json")


def test_a_line_that_is_one_conversation_is_a_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hello?"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert read_data(str(tmp_path / "t.jsonl")).to_list() == [row]


def test_a_recipe_says_how_its_files_are_written(tmp_path):
    rows = [ROWS[n % 4] | {"text": f"{ROWS[n % 4]['text']} {n}"} for n in range(20)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes(separated("^", rows, header=False).encode("cp1252"))
    data = DataConfig(
        train=str(tmp_path / "train.csv"),
        test=str(tmp_path / "test.csv"),
        separator="^",
        encoding="cp1252",
        header=False,
    )
    found = read_splits(data, seed=0)
    assert found["test"]["column_1"][:] == [row["text"] for row in rows]
    assert sum(map(len, found.values())) == 40


def write_workbook(path, sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_a_workbook_is_read(tmp_path):
    lines = [["text", "stars", None], ["schön", 1], [None, None], ["öde", 2.5], ["na ja", True]]
    path = tmp_path / "t.xlsx"
    write_workbook(path, {"first": lines, "empty": []})
    expected = {"text": ["schön", "öde", "na ja"], "stars": ["1", "2.5", "True"]}
    assert read_data(str(path)).to_dict() == expected
    assert read_source(f"{path}[first]").to_dict() == expected
    write_workbook(path, {"train": lines, "test": [["text"], ["a"]]})
    assert read_source(f"{path}[test]").to_dict() == {"text": ["a"]}
    assert read_data(str(path), split="train").to_dict() == expected
    said = f"{path} has several sheets: train, test. Name one of them, such as {path}[train]."
    assert refusal(path) == said
    with pytest.raises(DataError, match="has no sheet 'dev'; it has train, test"):
        read_source(f"{path}[dev]")
    path.write_bytes(b"PK zzz")
    assert "is not a readable Excel workbook" in refusal(path)


def test_a_workbook_needs_its_reader(tmp_path, monkeypatch):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'softprompt\[excel\]', or save"):
        read_data(str(tmp_path / "t.xlsx"))
