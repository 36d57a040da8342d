"""``train`` and ``resume``: their files and messages; a stopped run resumes exactly."""

import json
import re
import signal
import time
import tomllib
from pathlib import Path

import pytest
from scipy.stats import binomtest

from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe
from softprompt.train import Evaluation, load_best_prompt, run_recipe


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
    del metrics["sha256"]  # of the file
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


def interrupt_run(home) -> Path:
    """A run that is stopped in this process, after its first validation with training."""

    def stop(event) -> None:
        if isinstance(event, Evaluation) and event.step:
            raise KeyboardInterrupt

    out = home.path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_recipe(read_recipe(home.recipe), out, callbacks=[stop])
    return out


def test_a_stopped_run_predicts_with_its_best_prompt(home, run) -> None:
    out = interrupt_run(home)
    for command in (["predict", out, "a text"], ["evaluate", out], ["show", out]):
        message = f"the run in {out} is not finished, so it has no artifact yet. Resume it with: "
        assert run(*command).is_mistake(f"{message}softprompt resume {out}", "--best")
    best = load_best_prompt(out)
    (answer,) = run("predict", out, "a text", "--best").lines
    assert answer["label"] == best.predict("a text")[0].label
    scores = run("evaluate", out, "--best", "--json").json
    assert scores["accuracy"] == best.evaluate().metrics["accuracy"]
    assert run("resume", out, "--quiet").status == 0
    assert run("predict", out, "a text", "--best").lines == run("predict", out, "a text").lines


def test_an_edited_recipe_is_refused_with_its_keys(home, run) -> None:
    out = interrupt_run(home)
    path = out / "recipe.toml"
    before = path.read_text()
    path.write_text(before.replace("learning_rate = 0.05", "learning_rate = 0.5"))
    changed = f"the recipe of the run in {out} was changed since it started:\n"
    line = "  - train.learning_rate: 0.05, now 0.5\n"
    assert run("resume", out).is_mistake(f"{changed}{line}Restore these values, or train again.")
    path.write_text(before.replace("epochs = 2", "epochs = 3"))
    command = f"softprompt resume {out} --set train.epochs=3"
    assert run("resume", out).is_mistake(f"{changed}  - train.epochs: 2, now 3\n", command)
    fixed = run("resume", out, "--set", "train.learning_rate=0.5")
    assert fixed.is_mistake("train.learning_rate: cannot be changed in a run that has started")
    assert run("resume", out, "--set", "train.epochs=3", "--json").json["steps"] == 9
    assert "epochs = 3" in path.read_text()
    again = run("resume", out, "--set", "train.epochs=4")
    assert "not changed: train.epochs=4. Train again with them" in again.err


def test_a_run_that_learned_nothing_says_so_before_its_scores(home, run) -> None:
    home.data["train"] |= {"optimizer": "sgd", "learning_rate": 1e-30}
    result = run("train", home.recipe, "--output", "out", "--quiet")
    assert result.status == 0
    assert result.out.startswith("nothing was learned: the best validation loss, ")
    assert "nothing was learned" in result.err


def test_scores_are_printed_with_their_intervals(trained, run) -> None:
    result = run("resume", trained.folder)
    for split in ("validation", "test"):
        accuracy = trained.result.json[split]["accuracy"]
        low, high = binomtest(round(12 * accuracy), 12).proportion_ci(method="wilson")
        found = f"95 % interval {low:.2f} to {high:.2f}"
        (block,) = [b for b in result.out.split("\n\n") if b.startswith(f"{split} rows")]
        assert re.search(rf"accuracy +{accuracy:.4f} +{re.escape(found)}\n", block)
        assert re.search(r"rows +12$", block, re.MULTILINE)


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
