"""Nothing that was trained is lost: locks, full disks, damaged files, and what is made again."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softprompt.artifact import load_artifact, save_artifact
from softprompt.errors import ArtifactError, RecipeError, TrainingError
from softprompt.prompt import InputPrompt
from softprompt.recipe import make_recipe
from softprompt.train import RunDir, make_run_artifact, run_recipe
from softprompt.train.trainer import Best

WAIT = """
import sys, time
from pathlib import Path
from softprompt.train import RunDir

with RunDir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked the run's folder."""
    command = [sys.executable, "-c", WAIT, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_process_is_refused_and_learns_of_the_first(holder, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(TrainingError) as caught, run.lock():
        pass
    who = re.search(
        r"is in use by process (\d+) on (\S+), since (\d{4}-\d\d-\d\dT[\d:]+\+00:00)\. Wait",
        str(caught.value),
    )
    assert who is not None, str(caught.value)
    assert int(who[1]) == holder.pid
    assert who[2] == os.uname().nodename
    command = str(caught.value).partition("resume the run: ")[2]
    assert shlex.split(command) == ["softprompt", "resume", str(run.path)]


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    run = RunDir(tmp_path / "run")
    leftover = run.path / ".checkpoint.softprompt-0123abcd"
    leftover.mkdir()
    (run.path / "mine.txt").write_text("mine")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(run.path) == {".lock", ".running.json", leftover.name, "mine.txt"}
    with run.lock():
        assert json.loads((run.path / ".running.json").read_text())["pid"] == os.getpid()
        assert not leftover.exists()
    assert names(run.path) == {"mine.txt"}


def test_a_run_is_locked_while_it_trains_and_resumes(parts, tmp_path):
    folder, refused = tmp_path / "run", []

    def check_locked(event) -> None:
        if event.step == 2:
            with pytest.raises(TrainingError, match=f"in use by process {os.getpid()} on"):
                run_recipe(prepared.recipe, folder, resume=True, prepared=prepared)
            refused.append(event)
            raise KeyboardInterrupt

    for resume in (False, True):
        prepared = parts()
        with pytest.raises(KeyboardInterrupt):
            run_recipe(
                prepared.recipe, folder, callbacks=[check_locked], resume=resume, prepared=prepared
            )
        assert not {".lock", ".running.json"} & names(folder)
    assert len(refused) == 2


def test_a_folder_that_could_not_be_created_is_not_left(parts, tmp_path, full_disk):
    prepared = parts()
    with full_disk("recipe.toml"), pytest.raises(TrainingError) as caught:
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert str(caught.value) == (
        f"{tmp_path / 'run' / 'recipe.toml'} could not be written: No space left on device. Free "
        "disk space or correct the permissions, then train again, or choose another folder "
        "(--output on the command line)."
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full as soon as one file is written, by its name."""

    @contextmanager
    def fill(name: str):
        fsync = os.fsync

        def fail(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.name.lstrip(".").startswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            yield

    return fill


def results(folder: Path) -> tuple[object, list[object], dict[str, list[float]]]:
    """Metrics, events without their times, and tensors."""
    run = RunDir(folder)
    events = [{k: v for k, v in e.items() if k != "seconds"} for e in run.read_events()]
    tensors = load_artifact(folder).to_tensors()
    return run.read_metrics(), events, {name: t.tolist() for name, t in tensors.items()}


@pytest.mark.parametrize("name", ["checkpoint", "artifact", "curve.png", "metrics.json"])
def test_a_full_disk_leaves_a_folder_that_resumes_to_the_same(parts, tmp_path, full_disk, name):
    prepared = parts()
    run_recipe(prepared.recipe, tmp_path / "whole", prepared=prepared)
    folder = tmp_path / "run"
    prepared = parts()
    with full_disk(name), pytest.raises((ArtifactError, TrainingError)) as caught:
        run_recipe(prepared.recipe, folder, prepared=prepared)
    assert str(folder / name) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    command = re.search(r"esume with: (softprompt resume .*)$", str(caught.value))
    assert command is not None, str(caught.value)
    assert shlex.split(command[1]) == ["softprompt", "resume", str(folder)]
    assert not RunDir(folder).is_finished() or name == "curve.png"
    prepared = parts()
    run_recipe(prepared.recipe, folder, resume=True, prepared=prepared)
    assert results(folder) == results(tmp_path / "whole")
    assert names(folder) == names(tmp_path / "whole")


def test_an_event_that_cannot_be_written_is_reported_with_its_file(parts, tmp_path):
    prepared, folder = parts(), tmp_path / "run"

    def replace(event) -> None:
        if event.step == 2:
            (folder / "events.jsonl").unlink()
            (folder / "events.jsonl").symlink_to("/dev/full")

    with pytest.raises(TrainingError) as caught:
        run_recipe(prepared.recipe, folder, callbacks=[replace], prepared=prepared)
    assert str(caught.value).startswith(
        f"{folder / 'events.jsonl'} could not be written: No space left on device. Free disk space"
    )


@pytest.fixture
def finished(parts, tmp_path):
    """The folder of a finished run, and what resumes it."""
    prepared = parts()
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)

    def resume() -> None:
        again = parts()
        run_recipe(again.recipe, tmp_path / "run", resume=True, prepared=again)

    return tmp_path / "run", resume


METRICS = {
    "missing": None,
    "empty table": b"{}",
    "a list": b"[]",
    "not JSON": b"{",
    "not UTF-8": b"\xff",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("how", METRICS)
def test_metrics_that_are_missing_or_damaged_are_made_again(finished, how):
    folder, resume = finished
    path, raw = folder / "metrics.json", METRICS[how]
    before = path.read_bytes()
    path.unlink()
    if raw is not None:
        path.write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"metrics\.json is not .* Resume the run"):
            RunDir(folder).read_metrics()
    assert not RunDir(folder).is_finished()
    if how in {"missing", "a list"}:  # resuming is the same for all
        resume()
        assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_an_artifact_that_is_missing_or_damaged_is_made_again(finished, how):
    folder, resume = finished
    before = load_artifact(folder)
    if how == "missing":
        shutil.rmtree(folder / "artifact")
    else:
        (folder / "artifact" / "prompt.safetensors").write_bytes(b"")
    assert not RunDir(folder).is_finished()
    resume()
    after = load_artifact(folder)
    assert after.manifest == before.manifest
    assert all(torch.equal(after.to_tensors()[n], t) for n, t in before.to_tensors().items())


def test_a_changed_metric_is_noticed(finished):
    folder, _ = finished
    path = folder / "metrics.json"
    content = json.loads(path.read_text())
    content["steps"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"metrics\.json has the SHA-256 .* Resume the run"):
        RunDir(folder).read_metrics()
    assert not RunDir(folder).is_finished()


def test_a_folder_in_the_place_of_the_events_is_told(finished):
    folder, _ = finished
    path = folder / "events.jsonl"
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"events\.jsonl is not a file. Move it away"):
        [*RunDir(folder).read_events()]
    assert path.is_dir()


DAMAGED_LINES = [
    b"5",
    b'"x"',
    b"\xff\xfe",
    b"[" * 5000,
    b'{"event": "step"}',
    b'{"event": 3, "seconds": 1}',
    b'{"event": "step", "step": 1, "seconds": 1, "epoch": "x", "loss": null}',
    b'{"event": "evaluation", "step": 1, "seconds": 1, "epoch": 1, "best": true, "metrics": 5}',
]


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_damaged_lines_of_events_are_left_out(finished, line):
    folder, _ = finished
    path, run = folder / "events.jsonl", RunDir(folder)
    before = [*run.read_events()]
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert [*run.read_events()] == before
    assert run.truncate_events(3) == before[2]["seconds"]
    assert [*run.read_events()] == before[:3]


def test_folds_that_were_changed_are_refused(tmp_path):
    run = RunDir(tmp_path)
    state = {"recipe": {"seed": 4}, "folds": [{"rows": 3, "metrics": [{"loss": 0.5}]}]}
    run.write_state("folds", state)
    assert run.read_state("folds") == state
    path = tmp_path / "folds.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(ArtifactError, match=r"folds\.json has the SHA-256 .* was changed"):
        run.read_state("folds")


UNSAVEABLE = {
    "train.max_grad_norm": float("inf"),
    "train.head_learning_rate": float("inf"),
    "train.learning_rate": float("nan"),
    "train.optimizer_args": {"eps": float("inf")},
    "train.weight_decay": 1e300,
    "cache.memory_gb": float("inf"),
    "cache.disk_gb": 1e300,
    "method.length": 10**12,
    "train.batch_size": 10**30,
    "backbone.quantization_config": {"x": [float("nan")]},
}


@pytest.mark.parametrize("key", UNSAVEABLE)
def test_numbers_that_cannot_be_used_or_written_are_faults_of_the_recipe(parts, key):
    data = parts().recipe.as_data()
    table, name = key.split(".")
    data.setdefault(table, {})[name] = UNSAVEABLE[key]
    with pytest.raises(RecipeError) as caught:
        make_recipe(data)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(key)


def test_metrics_that_overflow_do_not_prevent_saving(parts, tmp_path):
    """Vectors whose norm is beyond fp32, and a loss beyond any float."""
    prepared = parts()
    start = InputPrompt(torch.full((3, 32), 1e-3))
    metrics = {"loss": float("inf"), "accuracy": 0.5}
    best = Best(InputPrompt(torch.full((3, 32), 1e30)), {}, 0.5, 4, metrics, {})
    artifact = make_run_artifact(prepared, best, start=start)
    loaded = load_artifact(save_artifact(artifact, tmp_path / "a"))
    assert loaded.manifest.metrics == {
        "validation": {"accuracy": 0.5},
        "step": 4,
        "moved": {"each": [None] * 3},
    }
    assert (loaded.to_tensors()["prompt.vectors"] == 1e30).all()


def test_what_cannot_be_saved_is_refused_before_training(parts, tmp_path):
    prepared = replace(parts(), template="{text}")
    with pytest.raises(ArtifactError) as caught:
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert str(caught.value) == (
        "the artifact of this run: the template '{text}' has 0 soft tokens, but the prompt has 3. "
        "Correct the recipe; nothing was trained."
    )
    assert not (tmp_path / "run").exists()
