"""``train`` and ``resume``: their files and messages; a stopped run resumes exactly."""

import json
import re
import signal
import time
import tomllib
from pathlib import Path

from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe


def read_table(text: str) -> list[list[str]]:
    """The rows of the table of validations."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["epoch", "step"])
    return [
        lines[first].split(),
        *(li.split() for li in lines[first + 1 :] if re.match(r" +\d", li)),
    ]


def test_the_result_is_that_of_the_run_folder(trained) -> None:
    result = trained.result.json
    metrics = json.loads((trained.folder / "metrics.json").read_text("utf-8"))
    assert {key: result[key] for key in metrics} == metrics
    assert result["run"] == str(trained.folder)
    assert Path(result["artifact"]) == trained.folder / "artifact"
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert metrics["test"]["rows"] == 12


def test_the_recipe_as_run_is_the_recipe(trained) -> None:
    assert read_recipe(trained.folder / "recipe.toml") == read_recipe(trained.home.recipe)


def test_every_validation_is_a_row_with_its_numbers(home, run) -> None:
    result = run("train", home.recipe, "--output", "out", "--set", "train.best_metric=accuracy")
    head, *rows = read_table(result.err)
    found = [json.loads(line) for line in Path("out/events.jsonl").read_text().splitlines()]
    found = [event for event in found if event["event"] == "evaluation"]
    assert head == ["epoch", "step", "train", "loss", "valid.", "loss", "accuracy", "macro_f1"]
    assert len(rows) == len(found) == 3
    for row, event in zip(rows, found, strict=True):
        metrics = [event["metrics"][name] for name in ("loss", "accuracy", "macro_f1")]
        seen = "-" if event["train_loss"] is None else f"{event['train_loss']:.4f}"
        numbers = [
            f"{event['epoch']:.2f}",
            str(event["step"]),
            seen,
            *(f"{m:.4f}" for m in metrics),
        ]
        assert row == [*numbers, *(["*"] if event["best"] else [])]


def test_results_go_to_stdout_and_the_rest_to_stderr(home, run) -> None:
    result = run("train", home.recipe, "--output", "out")
    assert "test rows" in result.out
    assert "epoch" not in result.out
    assert "Next:" in result.err
    assert "softprompt predict out TEXT" in result.err
    quiet = run("train", home.recipe, "--output", "again", "--quiet")
    assert quiet.out == result.out.replace("out", "again")
    assert "epoch" not in quiet.err
    assert "\x1b[" not in result.err + result.out


def test_the_default_folder_is_named_after_the_recipe_and_always_new(home, run) -> None:
    first, second = (run("train", home.recipe, "--json", "--quiet").json for _ in range(2))
    assert (first["run"], second["run"]) == ("runs/recipe", "runs/recipe-2")
    assert first["test"] == second["test"]


def test_settings_can_be_overridden(home, run) -> None:
    changes = ["--set", "train.epochs=1", "--set", "seed=7", "--set", "train.optimizer=sgd"]
    assert run("train", home.recipe, "--output", "out", *changes, "--quiet").status == 0
    recipe = tomllib.loads(Path("out/recipe.toml").read_text("utf-8"))
    settings = recipe["train"]
    assert (recipe["seed"], settings["epochs"], settings["optimizer"]) == (7, 1, "sgd")


def test_a_folder_with_a_run_is_not_overwritten(home, run, trained) -> None:
    before = (trained.folder / "metrics.json").read_bytes()
    result = run("train", home.recipe, "--output", trained.folder)
    assert result.is_mistake("holds a run already", "softprompt resume", "--output")
    assert (trained.folder / "metrics.json").read_bytes() == before


def test_truncated_rows_are_counted(home, run) -> None:
    home.write("train", [*home.rows(), {"text": "film " * 90, "label": "positive"}])
    result = run("train", home.recipe, "--output", "out", "--set", "train.epochs=1")
    assert "warning: 1 of 41 training rows are too long and were truncated" in result.err


def test_a_loss_that_is_nan_ends_the_run(home, run, saved, new_model) -> None:
    model = new_model("llama")
    model.lm_head.weight.data *= 1e38
    home.data["backbone"]["name"] = str(saved("llama", model))
    result = run("train", home.recipe, "--output", "out", "--quiet")
    assert result.is_mistake("loss is NaN", 'backbone.dtype = "float32"')
    assert not Path("out/metrics.json").exists()


def test_a_finished_run_is_not_resumed(trained, run) -> None:
    result = run("resume", trained.folder, "--json")
    assert result.status == 0
    assert "finished already" in result.err
    assert result.json == trained.result.json


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, run) -> None:
    assert run("resume", tmp_path).is_mistake("is not a run directory", "recipe.toml")


def count_steps(folder: Path) -> int:
    path = folder / "events.jsonl"
    return path.read_text("utf-8").count('"event": "step"') if path.exists() else 0


def stop_run(home, start) -> str:
    """Stop a run of another process after its third step; the folder that its message names."""
    home.data["train"] |= {"epochs": 6, "batch_size": 2}
    out = home.path / "out"
    process = start("train", home.recipe, "--output", out)
    deadline = time.monotonic() + 120
    while count_steps(out) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    found = re.search(r"stopped at step (\d+) of 120; resume with: softprompt resume (\S+)", err)
    assert found
    assert 3 <= int(found[1]) < 120
    assert not (out / "metrics.json").exists()
    assert count_steps(out) == int(found[1])
    return found[2]


def test_a_stopped_run_resumes_to_the_same_numbers(home, start, run) -> None:
    resumed = run("resume", stop_run(home, start), "--json", "--quiet")
    whole = run("train", home.recipe, "--output", "whole", "--json", "--quiet")
    places = ("run", "artifact", "picture")
    one, other = (
        {k: v for k, v in result.json.items() if k not in places} for result in (resumed, whole)
    )
    assert one == other
    tensors = [
        (home.path / f / "artifact/prompt.safetensors").read_bytes() for f in ("out", "whole")
    ]
    assert tensors[0] == tensors[1]


def test_a_run_for_an_encoder_with_a_head(home, run, backbones) -> None:
    home.data["backbone"]["name"] = str(backbones["bert"])
    home.data["task"] = {"kind": "classify", "template": "{text}"}
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    result = run("train", home.recipe, "--output", "out", "--json", "--quiet")
    assert result.status == 0, result.err
    model = PromptModel.from_pretrained("out")
    assert model.labels == ("negative", "positive")
    assert result.json["test"]["accuracy"] == model.evaluate(home.rows("test")).metrics["accuracy"]
