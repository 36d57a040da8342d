"""Predictions in files: the rows' own columns, in order, with what Python predicts for them."""

import json
from pathlib import Path

import pytest

from softprompt.data.readers import read_file
from softprompt.data.writers import WRITTEN_FORMATS
from softprompt.inference import Ensemble, PromptModel

LABELS = ("negative", "positive")


def write_numbered(home, path: Path) -> list[dict]:
    """The test rows with identifiers and a further column, as a file of JSON lines."""
    rows = [{"id": f"r{n}", **row, "words": 6} for n, row in enumerate(home.rows("test"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read_probabilities(row: dict) -> dict[str, float]:
    """Of a row as read from a file of any format."""
    nested = row.get("probabilities")
    return nested or {label: float(row[f"probability_{label}"]) for label in LABELS}


def agree(found: list[dict], rows: list[dict], model: PromptModel | Ensemble) -> bool:
    """Whether the rows are whole and in order, with the predictions of Python."""
    own = ("id", "text", "label", "words")
    # A cell of csv is text.
    assert [{name: str(row[name]) for name in own} for row in found] == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    predictions = model.predict([{"text": row["text"]} for row in rows])
    for row, prediction in zip(found, predictions, strict=True):
        assert row["prediction"] == prediction.label
        assert read_probabilities(row) == pytest.approx(dict(prediction.probabilities), abs=2e-5)
        expected = prediction.probabilities[prediction.label]
        assert float(row["probability"]) == pytest.approx(expected, abs=2e-5)
    return True


def is_true(value: object) -> bool:
    return value in (True, "true")


@pytest.mark.parametrize("suffix", WRITTEN_FORMATS)
def test_predict_writes_whole_rows(trained, run, model, tmp_path: Path, suffix: str) -> None:
    rows = write_numbered(trained.home, tmp_path / "rows.jsonl")
    out = tmp_path / f"out{suffix}"
    result = run("predict", trained.folder, "--input", tmp_path / "rows.jsonl", "--output", out)
    assert (result.status, result.out) == (0, "")
    assert result.err == f"12 rows are written to {out}\n"
    found = read_file(out).to_list()
    assert agree(found, rows, model)
    assert "right" not in found[0]


@pytest.mark.parametrize("suffix", WRITTEN_FORMATS)
def test_evaluate_writes_whole_rows_and_what_is_right(
    trained, run, model, tmp_path: Path, suffix: str
) -> None:
    rows = write_numbered(trained.home, tmp_path / "rows.jsonl")
    out = tmp_path / f"out{suffix}"
    args = ("evaluate", trained.folder, tmp_path / "rows.jsonl", "--json")
    result = run(*args, "--predictions", out)
    assert result.json == run(*args).json
    found = read_file(out).to_list()
    assert agree(found, rows, model)
    right = [is_true(row["right"]) for row in found]
    assert right == [row["prediction"] == row["label"] for row in found]
    assert sum(right) / 12 == pytest.approx(result.json["accuracy"])


def test_evaluate_writes_the_recipes_split(trained, run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("evaluate", trained.folder, "--predictions", out).status == 0
    found = read_file(out).to_list()
    assert [{k: row[k] for k in ("text", "label")} for row in found] == trained.home.rows("test")


def test_an_ensemble_writes_its_votes(trained, run, model, tmp_path: Path) -> None:
    rows = write_numbered(trained.home, tmp_path / "rows.jsonl")
    args = ["evaluate", trained.folder, trained.folder, "--ensemble", "--vote", "mean"]
    args += ["--data", tmp_path / "rows.jsonl", "--predictions", tmp_path / "out.csv"]
    assert run(*args).status == 0
    ensemble = Ensemble([model, model], vote="mean")
    assert agree(read_file(tmp_path / "out.csv").to_list(), rows, ensemble)


def test_generated_text_is_right_where_exact_match_counts_it(home, run, tmp_path: Path) -> None:
    home.data["task"] = {
        "kind": "generate",
        "template": "{text}{soft:4}",
        "target_column": "label",
        "choices": "from-data",
        "max_new_tokens": 8,
    }
    assert run("train", home.recipe, "--output", "out", "--quiet").status == 0
    result = run("evaluate", "out", "--json", "--predictions", "answers.csv")
    found = read_file(tmp_path / "answers.csv").to_list()
    assert set(found[0]) == {"text", "label", "prediction", "right"}
    assert {row["prediction"] for row in found} <= {*LABELS}
    share = sum(is_true(row["right"]) for row in found) / 12
    assert share == pytest.approx(result.json["exact_match"])
    run("predict", "out", "--input", "test.jsonl", "--output", "predicted.jsonl")
    predicted = read_file(tmp_path / "predicted.jsonl").to_list()
    assert [row["prediction"] for row in predicted] == [row["prediction"] for row in found]


def test_the_lines_of_predict_have_the_rows_own_columns(trained, run, tmp_path: Path) -> None:
    write_numbered(trained.home, tmp_path / "rows.jsonl")
    lines = run("predict", trained.folder, "--input", tmp_path / "rows.jsonl").lines
    assert [line["id"] for line in lines] == [f"r{n}" for n in range(12)]
    (line,) = run(
        "predict", trained.folder, "--input", "-", given='{"text": "good", "id": 7}'
    ).lines
    assert line["id"] == 7
    assert set(line) == {"text", "id", "label", "probabilities"}


def test_rows_before_a_faulty_one_are_written(trained, run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    given = '{"id": 1, "text": "good"}\nbad\n{"id": 3}\nsad\n'
    result = run("predict", trained.folder, "--input", "-", "--output", out, given=given)
    assert result.is_mistake("line 3:", "no field 'text'", f"2 rows are written to {out}")
    assert [row["text"] for row in read_file(out).to_list()] == ["good", "bad"]


def test_nothing_of_the_user_is_replaced(trained, run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prediction,text,label\nx,good,positive\n")
    before = path.read_bytes()
    predict = ("predict", trained.folder, "--input", path, "--output")
    evaluate = ("evaluate", trained.folder, path, "--predictions")
    for args in (predict, evaluate):
        assert run(*args, path).is_mistake("would be replaced")
        taken = run(*args, tmp_path / "out.csv")
        assert taken.is_mistake("a column 'prediction' already", "Rename yours")
        assert run(*args, tmp_path / "out.xlsx").is_mistake("unknown file format '.xlsx'")
    test = trained.home.path / "test.jsonl"
    assert run("evaluate", trained.folder, "--predictions", test).is_mistake("would be replaced")
    assert path.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


def test_files_of_other_formats_are_read_by_their_options(trained, run, tmp_path: Path) -> None:
    """The answers are those of the same rows in UTF-8."""
    rows = [{"text": f"{row['text']} €", "label": row["label"]} for row in trained.home.rows()]
    expected = [
        json.loads(line)["probabilities"]
        for line in run("predict", trained.folder, *(row["text"] for row in rows)).out.splitlines()
    ]
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.txt"
    table.write_bytes("".join(f"{r['text']}^{r['label']}\n" for r in rows).encode("cp1252"))
    lines.write_bytes("".join(f"{row['text']}\n" for row in rows).encode("cp1252"))
    written = ["--separator", "^", "--encoding", "cp1252"]
    named = tmp_path / "named.csv"
    named.write_bytes(b"text^label\n" + table.read_bytes())
    for source, options in ((named, written), (lines, ["--encoding", "cp1252"])):
        assert run("predict", trained.folder, "--input", source).status == 2
        done = run("predict", trained.folder, "--input", source, *options)
        found = [json.loads(line)["probabilities"] for line in done.out.splitlines()]
        assert found == expected
    accuracy = run("evaluate", trained.folder, named, *written, "--json").json["accuracy"]
    labels = [max(scores, key=scores.get) for scores in expected]
    right = sum(label == row["label"] for label, row in zip(labels, rows, strict=True))
    assert accuracy == right / len(rows)
    # Without a header the columns have numbers, and the template's field is not among them.
    bare = run("predict", trained.folder, "--input", table, *written, "--no-header")
    assert bare.is_mistake("column_1")


def test_options_of_files_without_a_file_are_refused(trained, run, tmp_path: Path) -> None:
    lines = tmp_path / "rows.txt"
    lines.write_text("good\n")
    folder = trained.folder
    assert run("predict", folder, "good", "--encoding", "cp1252").is_mistake("--encoding is for")
    refused = run("predict", folder, "--input", lines, "--separator", ";")
    assert refused.is_mistake("not for lines of text")
    assert run("predict", folder, "--input", lines, "--encoding", "utf-16").is_mistake("cp1252")
