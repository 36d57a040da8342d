"""Questions with options of their own in files, from `init` to answers in files."""

import csv
import json

import pytest

from support.options import make_options
from support.reviews import write_rows


def write_cells(path, rows):
    """A csv file with | between options."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"options": " | ".join(row["options"])} for row in rows)
    return path


@pytest.fixture
def call(run):
    def make(*args):
        result = run(*args)
        assert result.status == 0, result.err
        return result.out + result.err

    return make


SMALL = ["--set", "backbone.device=cpu", "--set", "backbone.dtype=float32",
         "--set", "train.epochs=1", "--set", "data.max_length=90"]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_from_a_file_to_answers(call, backbones, tmp_path, family, form) -> None:
    write = {"jsonl": write_rows, "csv": write_cells}[form]
    for seed, (name, count) in enumerate({"train": 24, "validation": 10, "test": 8}.items()):
        write(tmp_path / f"{name}.{form}", make_options(count, seed=seed, form="index"))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    said = call("init", tmp_path / f"train.{form}", "--backbone", backbones[family],
                "--output", recipe)  # fmt: skip
    assert "'question' to choose 'target'" in said
    assert "names the right one by its index" in said
    assert "no faults" in call("check", recipe, *SMALL)
    call("train", recipe, "--output", out, *SMALL)
    metrics = json.loads((out / "metrics.json").read_text())
    names = {"accuracy", "ece"} | ({"accuracy_normalized"} if family != "bert" else set())
    assert {*metrics["test"]} >= names
    rows = make_options(5, seed=9)
    asked = write(tmp_path / f"asked.{form}", [
        {name: row[name] for name in ("question", "options")} for row in rows
    ])  # fmt: skip
    answers, flat = tmp_path / "answers.jsonl", tmp_path / "answers.csv"
    call("predict", out, "--input", asked, "--output", answers)
    found = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    for row, one in zip(rows, found, strict=True):
        assert row["options"][one["prediction_choice"]] == one["prediction"]
        assert len(one["prediction_scores"]) == len(row["options"])
        assert {*one["probabilities"]} == {*row["options"]}
    call("predict", out, "--input", asked, "--output", flat)
    with flat.open(encoding="utf-8", newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [
            one["prediction"] for one in found
        ]
    assert "accuracy" in call("evaluate", out, tmp_path / f"test.{form}", "--json")
    shown = call("show", out)
    assert "choose" in shown
    assert "options of each row" in shown
    if family != "bert" and form == "jsonl":
        changed = call("evaluate", out, tmp_path / "test.jsonl", "--json",
                       "--set", "task.length_normalization=characters")  # fmt: skip
        assert "accuracy_unnormalized" in changed


def test_fit_learns_from_a_file_and_resumes(call, run, backbones, tmp_path) -> None:
    train = write_rows(tmp_path / "train.jsonl", make_options(24, seed=0, form="label"))
    out = tmp_path / "run"
    arguments = ["fit", train, "--backbone", backbones["llama"], "--output", out]
    said = call(*arguments, *SMALL, "--set", "train.learning_rate=0.01", "--set", "data.folds=2")
    assert "accuracy" in said
    assert (out / "artifact" / "manifest.json").exists()
    assert json.loads((out / "artifact" / "manifest.json").read_text())["task"]["kind"] == "choose"


def test_explain_is_refused_by_name(call, run, backbones, tmp_path) -> None:
    write_rows(tmp_path / "train.jsonl", make_options(24, seed=0))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    call("init", tmp_path / "train.jsonl", "--backbone", backbones["llama"], "--output", recipe)
    call("train", recipe, "--output", out, *SMALL)
    row = json.dumps(make_options(1, seed=3)[0])
    result = run("explain", out, "--row", row)
    assert result.status == 2
    assert "each row has its own options" in result.err


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_comparison_has_all_baselines(call, backbones, tmp_path, family) -> None:
    for seed, (name, count) in enumerate({"train": 24, "validation": 10, "test": 8}.items()):
        write_rows(tmp_path / f"{name}.jsonl", make_options(count, seed=seed, form="index"))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "compared"
    call("init", tmp_path / "train.jsonl", "--backbone", backbones[family], "--output", recipe)
    names = ["majority", "linear-probe", "fine-tuning", "lora"]
    names += ["hard-prompt"] if family == "llama" else []
    said = call("compare", recipe, "--methods", "prompt-tuning,p-tuning-v2", "--seeds", 1,
                "--lr-multipliers", "1", "--baselines", ",".join(names), "--output", out,
                *SMALL)  # fmt: skip
    lines = said.splitlines()
    for name in ["prompt-tuning", "p-tuning-v2", *names]:
        assert any(name in line for line in lines), name
    assert "accuracy" in said
