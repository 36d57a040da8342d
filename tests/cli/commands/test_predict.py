"""``predict`` gives the predictions of the model, row by row and in order."""

import json
import subprocess
from pathlib import Path

import pytest

from softprompt.inference import PromptModel


def expected(model: PromptModel, texts: list[str]) -> list[tuple[str, dict[str, float]]]:
    """Each text alone, as Python answers it."""
    return [
        (answer.label, dict(answer.probabilities))
        for text in texts
        for answer in model.predict([text])
    ]


def agree(lines: list[dict], texts: list[str], model: PromptModel) -> bool:
    assert [line["text"] for line in lines] == texts
    for line, (label, probabilities) in zip(lines, expected(model, texts), strict=True):
        assert line["label"] == label
        assert line["probabilities"] == pytest.approx(probabilities, abs=1e-5)
    return True


TEXTS = ["a good film", "sad", "the music is dull and the story is slow", 'quote " é 日', "good"]


def test_texts_are_answered_in_order(trained, run, model) -> None:
    result = run("predict", trained.folder, *TEXTS)
    assert result.status == 0
    assert agree(result.lines, TEXTS, model)


def test_lines_of_stdin_are_texts_or_objects(trained, run, model) -> None:
    lines = [TEXTS[0], "", json.dumps({"text": TEXTS[2], "id": 7}), "  spaces stay  "]
    result = run("predict", trained.folder, "--input", "-", given="\n".join(lines) + "\n")
    assert agree(result.lines, [TEXTS[0], "", TEXTS[2], "  spaces stay  "], model)


def test_the_last_line_may_lack_its_end_and_windows_may_end_lines(trained, run, model) -> None:
    result = run("predict", trained.folder, "--input", "-", given=b"\xef\xbb\xbfgood\r\nbad")
    assert agree(result.lines, ["good", "bad"], model)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.txt"])
def test_a_file_is_answered_row_by_row(trained, run, model, tmp_path: Path, name: str) -> None:
    from datasets import Dataset

    path, texts = tmp_path / name, [row["text"] for row in trained.home.rows("test")]
    rows = Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            path.write_text("id,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(texts)))
        case ".parquet":
            rows.to_parquet(path)
        case ".txt":
            path.write_text("\n".join(texts))
    result = run("predict", trained.folder, "--input", path, "--batch-size", "5")
    assert agree(result.lines, texts, model)


FAULTY = [
    (b"good\nbad\n{oops\nsad\n", 2, ("line 3:", "not valid JSON", "column 2")),
    (b"good\n\xff\xfe\nsad\n", 1, ("line 2:", "not valid UTF-8", "0xff")),
    (b'good\nbad\nsad\n{"txt": "good"}\n', 3, ("line 4:", "no field 'text'", "It has: txt")),
    (b'{"text": ["good"]}\n', 0, ("line 1:", "'text' is a list", "text or a number")),
    (b'good\n{"text": null}\n', 1, ("line 2:", "no value")),
    (b"", 0, ("stdin has no lines",)),
]


@pytest.mark.parametrize(("given", "answered", "fragments"), FAULTY)
def test_a_faulty_line_is_named_and_those_before_it_are_answered(
    trained, run, given: bytes, answered: int, fragments: tuple[str, ...]
) -> None:
    result = run("predict", trained.folder, "--input", "-", given=given)
    assert result.is_mistake(*fragments)
    assert len(result.lines) == answered


def test_input_that_is_not_there_is_named(trained, run, tmp_path: Path) -> None:
    folder = trained.folder
    assert run("predict", folder).is_mistake("give texts, or --input FILE")
    assert run("predict", folder, "a", "--input", "-").is_mistake("not both")
    assert run("predict", folder, "--input", tmp_path / "no.txt").is_mistake("no file", "no.txt")
    assert run("predict", folder, "--input", tmp_path / "no.csv").is_mistake("no file", "no.csv")
    (tmp_path / "named.csv").write_text("txt,id\ngood,1\n")
    result = run("predict", folder, "--input", tmp_path / "named.csv")
    assert result.is_mistake("has no column 'text'", "Did you mean 'txt'")


def test_rows_of_several_fields_need_objects(home, run) -> None:
    for split in ("train", "validation", "test"):
        home.write(
            split, [{"a": r["text"], "b": "film", "label": r["label"]} for r in home.rows(split)]
        )
    home.data["task"]["template"] = "{a} and {b}{soft:4}"
    run("train", home.recipe, "--output", "out", "--quiet")
    result = run("predict", "out", "--input", "-", given='{"a": "good", "b": 3, "c": 1}\ngood\n')
    assert result.is_mistake("line 2:", "the fields a, b", '{"a": …, "b": …}')
    (line,) = result.lines
    assert {key: line[key] for key in ("a", "b")} == {"a": "good", "b": 3}
    assert line["c"] == 1


def test_a_generator_answers_in_text(home, run) -> None:
    home.data["task"] = {
        "kind": "generate",
        "template": "{text}{soft:4}",
        "target_column": "label",
        "choices": "from-data",
        "max_new_tokens": 8,
    }
    assert run("train", home.recipe, "--output", "out", "--quiet").status == 0
    result = run("predict", "out", "good film", "bad film")
    assert [set(line) for line in result.lines] == [{"text", "answer"}] * 2
    assert {line["answer"] for line in result.lines} <= {"negative", "positive"}
    scored = run("evaluate", "out", "--json").json
    assert {"loss", "accuracy", "exact_match"} <= set(scored)
    assert scored["accuracy"] == scored["exact_match"]


def test_a_reader_that_leaves_is_no_fault(trained, start, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("a good film\n" * 20_000)
    process: subprocess.Popen[str] = start("predict", trained.folder, "--input", path)
    assert json.loads(process.stdout.readline())["text"] == "a good film"
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_slow_writer_is_answered_before_it_is_done(trained, start) -> None:
    process = start("predict", trained.folder, "--input", "-", stdin=subprocess.PIPE)
    for text in ("good film", "bad film"):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    process.communicate(timeout=60)
    assert process.returncode == 0
