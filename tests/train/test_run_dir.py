"""A run directory: its files, and that none of them is lost."""

import errno
import json
import os
import re
import shlex
import struct
import zlib

import pytest
import tomli_w

from softprompt.artifact import load_artifact
from softprompt.errors import ArtifactError, MissingPackageError, TrainingError
from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe
from softprompt.train import Evaluation, PhaseStarted, RunDir, Step, find_free_dir, run_recipe
from softprompt.train.summary import summarize_run


@pytest.fixture
def done(parts, tmp_path):
    """A finished run: its folder, its parts and its events."""

    def run(*args, **changes):
        prepared = parts(*args, **changes)
        seen = []
        folder = tmp_path / "run"
        model = run_recipe(prepared.recipe, folder, callbacks=[seen.append], prepared=prepared)
        seen = [event for event in seen if not isinstance(event, PhaseStarted)]
        return folder, prepared, seen, model

    return run


def test_the_files_of_a_run(done):
    folder, prepared, (started, few, planned, *seen), _ = done()
    assert (started.step, started.total_steps, started.rows) == (
        0,
        6,
        {"train": 11, "validation": 5},
    )
    assert few.message.startswith("few rows: 5 validation rows to choose the best prompt by and 4 ")
    assert started.trainable_parameters == 3 * 32
    assert started.shapes == summarize_run(prepared, steps=1).shapes
    assert planned.savings == summarize_run(prepared, steps=1).savings
    assert any("words are scored" in line for line in planned.savings)
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml", "events.jsonl", "metrics.json", "curve.png", "artifact", "checkpoint",
    }  # fmt: skip
    assert read_recipe(folder / "recipe.toml") == prepared.recipe == RunDir(folder).read_recipe()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    names = [re.sub(r"(?<!^)(?=[A-Z])", "_", type(e).__name__).lower() for e in seen]
    assert [line["event"] for line in lines] == names
    for line, event in zip(lines, seen, strict=True):
        assert line["step"] == event.step
        assert line["seconds"] >= 0
        if isinstance(event, Step):
            assert (line["loss"], line["rows"], line["norm"]) == (
                event.loss,
                event.rows,
                event.norm,
            )
        if isinstance(event, Evaluation):
            assert line["metrics"] == dict(event.metrics)
            assert (line["rows"], line["best"]) == (5, event.best)
    assert lines[-1]["reason"] == "all 2 epochs done"


def test_the_numbers_of_a_run(done):
    folder, prepared, seen, model = done("bert", "p-tuning-v2", task="head")
    found = json.loads((folder / "metrics.json").read_text())
    validations = [e for e in seen if isinstance(e, Evaluation)]
    best = min(validations, key=lambda e: e.metrics["loss"])
    assert found["validation"] == dict(best.metrics)
    assert (found["best_step"], found["steps"]) == (best.step, 6)
    test = prepared.rows["test"]
    report = model.evaluate_rendered(test.examples, test.truth, batch_size=4)
    assert found["test"]["loss"] == report.metrics["loss"]
    assert found["test"]["accuracy"] == report.metrics["accuracy"]
    assert found["test"]["rows"] == 4
    assert sum(map(sum, found["test"]["confusion"]["counts"])) == 4
    geometry = prepared.backbone.geometry
    prefix = 2 * geometry.num_attention_sites * geometry.num_kv_heads * 3 * geometry.head_dim
    assert found["trainable_parameters"] == prefix + geometry.hidden_size * 2 + 2
    assert found["training"]["learning_rate"] == 0.05
    assert found["defaults_from"] == prepared.defaults.source
    assert found["template"] == "{text}"
    assert found["truncated_rows"] == {"train": 0, "validation": 0, "test": 0}


def test_the_artifact_records_how_it_was_trained(done, backbone):
    folder, prepared, _, model = done()
    manifest = load_artifact(folder).manifest
    assert manifest.recipe == prepared.recipe.as_data()
    assert manifest.data["train"] == {"rows": 11, "sha256": prepared.hashes["train"]}
    assert manifest.task["template"] == manifest.template == "{soft:3}{text} movie"
    assert manifest.labels == ["negative", "positive"]
    again = PromptModel.from_pretrained(folder, backbone=backbone("llama"))
    texts = ["a good film", "the plot was dull and bad"]
    assert list(again.predict(texts)) == list(model.predict(texts))


@pytest.mark.usefixtures("draws")
def test_the_picture_is_a_picture(done):
    """PNG's signature, its size, and image data that decompress to that size."""
    folder, *_ = done()
    raw = (folder / "curve.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", raw[16:24])
    assert (width, height) == (1200, 480)
    at, packed = 8, b""
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        if raw[at + 4 : at + 8] == b"IDAT":
            packed += raw[at + 8 : at + 8 + size]
        at += 12 + size
    pixels = zlib.decompress(packed)
    assert len(pixels) == height * (1 + 4 * width)
    assert len(set(pixels)) > 50, "an empty picture"


def test_a_folder_that_holds_a_run_is_refused(done, parts):
    folder, *_ = done()
    before = (folder / "metrics.json").read_bytes()
    prepared = parts()
    with pytest.raises(TrainingError) as caught:
        run_recipe(prepared.recipe, folder, prepared=prepared)
    assert str(caught.value) == (
        f"{folder} holds a run already. Resume it (softprompt resume {folder}, in Python "
        "resume=True), or choose another folder (--output on the command line)."
    )
    assert (folder / "metrics.json").read_bytes() == before


def test_the_command_that_resumes_can_be_pasted(tmp_path):
    run = RunDir(tmp_path / "my run")
    run.path.mkdir()
    (run.path / "recipe.toml").write_text("")
    with pytest.raises(TrainingError) as caught:
        run.check_free()
    command = re.search(r"\((softprompt resume .*), in Python", str(caught.value))[1]
    assert shlex.split(command) == ["softprompt", "resume", str(run.path)]


def test_a_file_in_place_of_the_folder_is_refused(parts, tmp_path):
    (tmp_path / "run").write_text("")
    prepared = parts()
    with pytest.raises(
        TrainingError, match=r"is a file, but a run needs a folder\. Choose another path \(--output"
    ):
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a run directory: it has no recipe\.toml"):
        RunDir(tmp_path).read_recipe()


def test_a_run_that_cannot_start_leaves_no_folder(written, tmp_path):
    path = written()
    (tmp_path / "train.jsonl").write_text('{"text": "a film"}\n')
    recipe = read_recipe(path)
    with pytest.raises(Exception, match="has no column 'label'"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_on_disk_runs_and_its_folder_runs_again(written, tmp_path):
    """From a recipe with relative paths, then with the same numbers from the copy in its folder."""
    path = written()
    run_recipe(read_recipe(path, ["train.max_steps=2"]), tmp_path / "run")
    again = RunDir(tmp_path / "run").read_recipe()
    assert again.train.max_steps == 2
    run_recipe(again, tmp_path / "again")
    first, second = (
        json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "again")
    )
    assert first == second


def test_a_loss_that_is_not_finite_leaves_the_checkpoint_complete(parts, tmp_path):
    prepared = parts()
    folder = tmp_path / "run"

    def watch(event) -> None:
        if event.step == 4:
            prepared.method.vectors.data.fill_(float("nan"))

    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        run_recipe(prepared.recipe, folder, callbacks=[watch], prepared=prepared)
    state = RunDir(folder).load_checkpoint()
    assert state["trainer"]["position"][0] == 3
    assert state["trainer"]["modules"]["method.vectors"].isfinite().all()
    assert len(list(RunDir(folder).read_events())) == 6


def test_a_full_disk_stops_the_run_with_the_old_checkpoint_complete(parts, tmp_path, monkeypatch):
    prepared = parts(eval_every_steps=1)
    folder = tmp_path / "run"
    original = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def watch(event) -> None:
        if event.step == 4:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ArtifactError) as caught:
        run_recipe(prepared.recipe, folder, callbacks=[watch], prepared=prepared)
    monkeypatch.setattr(os, "fsync", original)
    assert f"the checkpoint {folder / 'checkpoint'} could not be written" in str(caught.value)
    assert f"softprompt resume {folder}" in str(caught.value)
    assert RunDir(folder).load_checkpoint()["trainer"]["position"][0] == 3


def test_trackers_write_only_if_the_recipe_names_them(parts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, trackers in (("with", ["tensorboard"]), ("without", [])):
        prepared = parts(trackers=trackers)
        run_recipe(prepared.recipe, tmp_path / name, prepared=prepared)
    assert not list((tmp_path / "without").rglob("*tfevents*"))
    (file,) = (tmp_path / "with").rglob("*tfevents*")
    read = EventAccumulator(str(file)).Reload()
    events = list(RunDir(tmp_path / "with").read_events())
    for tag, kind, of in (
        ("train/loss", "step", lambda e: e["loss"]),
        ("train/learning_rate", "step", lambda e: e["learning_rate"]),
        ("validation/accuracy", "evaluation", lambda e: e["metrics"]["accuracy"]),
    ):
        wanted = [(e["step"], of(e)) for e in events if e["event"] == kind]
        found = [(e.step, e.value) for e in read.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [v for _, v in found] == pytest.approx([v for _, v in wanted], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_refused(parts, tmp_path):
    prepared = parts(trackers=["tensorboard", "trackio"])
    with pytest.raises(MissingPackageError) as caught:
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert str(caught.value) == (
        "train.trackers names trackio, which is not installed. Install it (pip install trackio), "
        "or remove it from the list."
    )
    assert not (tmp_path / "run").exists()


def test_the_next_free_folder(tmp_path):
    assert find_free_dir("demo", root=tmp_path) == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert find_free_dir("demo", root=tmp_path) == tmp_path / "demo-3"


def test_metrics_that_were_damaged_are_refused(done):
    folder, *_ = done()
    assert RunDir(folder).read_metrics()["steps"] == 6
    (folder / "metrics.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"metrics\.json is not JSON"):
        RunDir(folder).read_metrics()


def test_the_recipe_of_a_run_is_plain_toml(done):
    folder, prepared, *_ = done()
    assert (folder / "recipe.toml").read_text("utf-8") == tomli_w.dumps(prepared.recipe.as_data())
