"""Questions in files of SQuAD, from `init` to answers in files, on a tiny encoder."""

import csv
import json

import pytest

from support.questions import make_questions
from support.reviews import write_rows


@pytest.fixture
def folder(backbones, tmp_path):
    for seed, (name, count) in enumerate({"train": 24, "validation": 10, "test": 8}.items()):
        write_rows(tmp_path / f"{name}.jsonl", make_questions(count, seed=seed))
    return tmp_path, backbones["bert"]


def test_from_a_file_to_answers(run, folder) -> None:
    path, backbone = folder

    def call(*args):
        result = run(*args)
        assert result.status == 0, result.err
        return result.out + result.err

    recipe, out = path / "recipe.toml", path / "run"
    call("init", path / "train.jsonl", "--backbone", backbone, "--output", recipe)
    changes = ["--set", "backbone.device=cpu", "--set", "backbone.dtype=float32",
               "--set", "data.max_length=40", "--set", "train.epochs=1"]  # fmt: skip
    assert "no faults" in call("check", recipe, *changes)
    call("train", recipe, "--output", out, *changes)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"exact_match", "f1", "unanswerable_exact_match"} <= {*metrics["test"]}
    assert {"null_threshold", "before", "after"} <= {*metrics["calibration"]}
    questions = [{n: row[n] for n in ("question", "context")} for row in make_questions(3, seed=5)]
    asked = write_rows(path / "asked.jsonl", questions)
    answers = path / "answers.jsonl"
    call("predict", out, "--input", asked, "--output", answers,
        "--set", "task.null_threshold=never")  # fmt: skip
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    for row in rows:
        assert (
            row["context"][row["prediction_start"] : row["prediction_end"]]
            == row["prediction"]
            != ""
        )
        assert row["prediction_candidates"][0]["text"] == row["prediction"]
    flat = path / "answers.csv"
    call("predict", out, "--input", asked, "--output", flat)
    with flat.open(encoding="utf-8", newline="") as file:
        assert len([*csv.DictReader(file)]) == 3
    shown = call("evaluate", out, path / "test.jsonl", "--json")
    assert "answerable_f1" in shown
    assert "the tokens of the context" in call("show", out)
