"""Guarantee 5: a run that is stopped anywhere and resumed has the same numbers, bit for bit."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.artifact import load_artifact
from softprompt.backbone import Backbone, wrap_model
from softprompt.errors import ArtifactError, TrainingError
from softprompt.inference import PromptModel
from softprompt.recipe import Recipe, make_recipe, read_recipe
from softprompt.train import (
    PhaseStarted,
    RunDir,
    Started,
    load_best_prompt,
    run_recipe,
    setup_run,
)
from softprompt.train.checkpoint import load_state, save_state
from support.recipes import read_numbers

KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "prompt-tuning": (("llama", "prompt-tuning"), {}),
    "residual": (
        ("llama", "prompt-tuning"),
        {"settings": {"reparametrization": "residual", "bottleneck_size": 8}},
    ),
    "superposition": (
        ("llama", "prompt-tuning"),
        {"settings": {"reparametrization": "superposition", "num_words": 9}},
    ),
    "lstm with dropout": (
        ("llama", "p-tuning"),
        {
            "settings": {"encoder_dropout": 0.4},
            "gradient_accumulation_steps": 2,
            "eval_every_steps": 2,
        },
    ),
    "prefix, adafactor": (
        ("llama", "prefix-tuning"),
        {
            "task": "generate",
            "optimizer": "adafactor",
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.3,
        },
    ),
    "v2 with a head, dropout in the backbone": (
        ("bert", "p-tuning-v2"),
        {"task": "head", "backbone": {"keep_dropout": True}, "settings": {"prefix_dropout": 0.3}},
    ),
    "head, adafactor": (("bert", "p-tuning"), {"task": "head", "optimizer": "adafactor"}),
    "best early, stopped early": (
        ("llama", "prompt-tuning"),
        {"learning_rate": 3.0, "epochs": 9, "early_stopping_patience": 2},
    ),
    "cached text": (("llama", "prompt-tuning"), {"task": "generate", "cache": {"disk_gb": 0.0}}),
    "cached layers": (
        ("bert", "p-tuning-v2"),
        {"task": "head", "settings": {"layers": "1:"}, "cache": {"disk_gb": 0.0}},
    ),
    "late": (
        ("llama", "prompt-tuning"),
        {"settings": {"layers": "1:"}, "cache": {"disk_gb": 0.0}},
    ),
    "shifted positions": (
        ("gpt2", "prefix-tuning"),
        {
            "settings": {"shift_positions": True},
            "gradient_accumulation_steps": 2,
            "eval_every_steps": 2,
        },
    ),
    "warnings": (("llama", "prompt-tuning"), {"optimizer": "sgd", "learning_rate": 1e-30}),
}


class CrashError(Exception):
    """An unexpected error."""


@pytest.fixture
def new(parts, new_model, tokenizer):
    """The parts of one of the kinds, new each time."""

    @cache
    def with_dropout(family: str) -> Backbone:
        model = new_model(family, dropout=True)
        return wrap_model(family, model, tokenizer=tokenizer("encoder"), kind="encoder")

    def make(name: str, **changes: Any) -> Any:
        args, settings = KINDS[name]
        own = {"own": with_dropout(args[0])} if "backbone" in settings else {}
        return parts(*args, **{**settings, **own, **changes})

    return make


def go(
    prepared,
    folder: Path,
    *,
    stop: int | None = None,
    fault: type[BaseException] = KeyboardInterrupt,
    resume: bool = False,
) -> int:
    """Train until the event with this number; returns the number of events.

    Started is not counted: a resumed run has one too. Phases are not, as no file records them.
    """
    seen = 0

    def watch(event: Any) -> None:
        nonlocal seen
        seen += not isinstance(event, Started | PhaseStarted)
        if seen == stop:
            raise fault

    if stop is None:
        run_recipe(prepared.recipe, folder, callbacks=[watch], resume=resume, prepared=prepared)
    else:
        with pytest.raises(fault):
            run_recipe(prepared.recipe, folder, callbacks=[watch], resume=resume, prepared=prepared)
    return seen


def assert_same(folder: Path, whole: Path) -> None:
    """Every number of two finished runs is equal, not only close."""
    assert read_numbers(folder) == read_numbers(whole)
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(
        (whole / "metrics.json").read_text()
    )
    first, second = load_artifact(folder), load_artifact(whole)
    assert first.manifest == second.manifest
    for name, tensor in second.to_tensors().items():
        assert torch.equal(first.to_tensors()[name], tensor), name


@pytest.mark.parametrize("name", KINDS)
def test_stopped_after_any_event_and_resumed(new, tmp_path, name):
    count = go(new(name), tmp_path / "whole")
    for stop in range(1, count + 1):
        folder = tmp_path / f"stopped-{stop}"
        go(new(name), folder, stop=stop)
        assert not (folder / "artifact").exists()
        go(new(name), folder, resume=True)
        assert_same(folder, tmp_path / "whole")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, CrashError])
def test_stopped_in_any_phase_and_resumed(new, tmp_path, fault):
    """In a validation, and in the test after the last step."""
    go(new("warnings"), tmp_path / "whole")
    phases: list[PhaseStarted] = []
    stop = 0

    def watch(event: Any) -> None:
        if isinstance(event, PhaseStarted):
            phases.append(event)
            if len(phases) == stop:
                raise fault

    while True:
        phases.clear()
        stop, folder, prepared = stop + 1, tmp_path / f"stopped-{stop}", new("warnings")
        try:
            run_recipe(prepared.recipe, folder, callbacks=[watch], prepared=prepared)
        except fault:
            go(new("warnings"), folder, resume=True)
            assert_same(folder, tmp_path / "whole")
        else:
            break
    assert {phase.phase for phase in phases} >= {"validating"}


@pytest.mark.parametrize("name", ["lstm with dropout", "warnings"])
def test_crashed_after_any_event_and_resumed(new, tmp_path, name):
    """Nothing is saved then: the run resumes from its last checkpoint, with the same numbers."""
    count = go(new(name), tmp_path / "whole")
    for stop in range(1, count + 1):
        folder = tmp_path / f"crashed-{stop}"
        go(new(name), folder, stop=stop, fault=CrashError)
        go(new(name), folder, resume=True)
        assert_same(folder, tmp_path / "whole")


def test_stopped_again_and_again(new, tmp_path):
    name = "lstm with dropout"
    count = go(new(name), tmp_path / "whole")
    folder = tmp_path / "stopped"
    go(new(name), folder, stop=1)
    for _ in range(count - 1):
        go(new(name), folder, stop=1, resume=True)
    go(new(name), folder, resume=True)
    assert_same(folder, tmp_path / "whole")


@pytest.mark.parametrize("name", ["prefix, adafactor", "v2 with a head, dropout in the backbone"])
def test_a_stopped_loop_continues_in_another(new, trainer_of, tmp_path, name):
    """The trainer without a run directory, its state saved and loaded, after every event."""

    def run(trainer) -> Iterator[Any]:
        yield from trainer.run()
        trainer.task.backbone.model.eval()

    whole = list(run(trainer_of(new(name))))
    for stop in range(1, len(whole)):
        first = trainer_of(new(name))
        events = run(first)
        seen = [next(events) for _ in range(stop)]
        save_state(first.state_dict(), tmp_path / "state")
        events.close()
        torch.rand(stop)
        second = trainer_of(new(name))
        second.load_state_dict(load_state(tmp_path / "state"))
        assert [*seen, *run(second)] == whole


def test_a_finished_run_ends_again_the_same(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "whole")
    go(new("prompt-tuning"), tmp_path / "again")
    seen = go(new("prompt-tuning"), tmp_path / "again", resume=True)
    assert seen == 2  # nothing was learned, and Finished: nothing is planned or computed
    assert_same(tmp_path / "again", tmp_path / "whole")


def test_two_runs_of_one_recipe_are_the_same(new, tmp_path):
    """Whatever was drawn from torch's generators before."""
    go(new("lstm with dropout"), tmp_path / "first")
    torch.rand(17)
    go(new("lstm with dropout"), tmp_path / "second")
    assert_same(tmp_path / "second", tmp_path / "first")


def test_stopped_before_its_first_checkpoint_a_run_starts_again(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "whole")
    folder = tmp_path / "stopped"
    RunDir(folder).create(new("prompt-tuning").recipe)
    go(new("prompt-tuning"), folder, resume=True)
    assert_same(folder, tmp_path / "whole")


def test_the_seconds_continue(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "run", stop=6)
    go(new("prompt-tuning"), tmp_path / "run", resume=True)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_a_line_cut_off_by_a_kill_is_dropped(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "whole")
    folder = tmp_path / "stopped"
    go(new("prompt-tuning"), folder, stop=4)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    go(new("prompt-tuning"), folder, resume=True)
    assert_same(folder, tmp_path / "whole")


def test_other_data_are_refused(new, tmp_path):
    folder = tmp_path / "run"
    go(new("prompt-tuning"), folder, stop=4)
    row = {"text": "a film", "label": "positive", "answer": "good"}
    changed = new("prompt-tuning", tables={"train": [row, row | {"label": "negative"}] * 5 + [row]})
    with pytest.raises(ArtifactError) as caught:
        run_recipe(changed.recipe, folder, resume=True, prepared=changed)
    assert str(caught.value) == (
        f"the train data is not what the run in {folder} started with, so it cannot resume with "
        "the same numbers. Restore the data, or train again."
    )
    missing = new("prompt-tuning", sizes=(11, 5))
    with pytest.raises(ArtifactError, match="the test data is not what the run in"):
        run_recipe(missing.recipe, folder, resume=True, prepared=missing)


def test_another_backbone_is_refused(new, tmp_path, new_model, new_backbone, tokenizer):
    folder = tmp_path / "run"
    go(new("prompt-tuning"), folder, stop=4)
    model = new_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.neg_()
    other = wrap_model("tuned", model, tokenizer=tokenizer("causal"), kind="causal")
    prepared = new("prompt-tuning", own=other)
    with pytest.raises(ArtifactError) as caught:
        run_recipe(prepared.recipe, folder, resume=True, prepared=prepared)
    message = str(caught.value)
    assert message.startswith(f"tuned (fingerprint {other.fingerprint}) is not the backbone that")
    assert message.endswith("Use the same revision, or train again.")


def test_a_checkpoint_of_another_method_is_refused(new, parts, tmp_path):
    folder = tmp_path / "run"
    go(new("prompt-tuning"), folder, stop=4)
    other = parts("llama", "p-tuning")
    with pytest.raises(ArtifactError) as caught:
        run_recipe(other.recipe, folder, resume=True, prepared=other)
    assert str(caught.value) == (
        f"the recipe of the run in {folder} was changed since it started:\n"
        "  - method.encoder_hidden_size: left out, now 8\n"
        "  - method.name: prompt-tuning, now p-tuning\n"
        "Restore these values, or train again."
    )


EDITS = {
    "seed": ({"seed": 8}, "seed: 7, now 8"),
    "template": (
        {"task": {"template": "{soft:3}the {text} movie"}},
        "task.template: {soft:3}{text} movie, now {soft:3}the {text} movie",
    ),
    "rate": ({"train": {"learning_rate": 0.5}}, "train.learning_rate: 0.05, now 0.5"),
    "batch": ({"train": {"batch_size": 2}}, "train.batch_size: 4, now 2"),
    "added": ({"train": {"warmup_ratio": 0.1}}, "train.warmup_ratio: left out, now 0.1"),
}


def edit(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    data = recipe.as_data()
    for table, value in changes.items():
        data[table] = data[table] | value if isinstance(value, dict) else value
    return make_recipe(data)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_recipe_is_refused(new, tmp_path, name):
    """The steps so far were made with other settings, and the artifact would claim the new ones."""
    folder, (changes, line) = tmp_path / "run", EDITS[name]
    prepared = new("prompt-tuning")
    go(prepared, folder, stop=4)
    edited = edit(prepared.recipe, changes)
    wanted = (
        f"the recipe of the run in {folder} was changed since it started:\n  - {line}\nRestore "
        "these values, or train again."
    )
    fresh = replace(new("prompt-tuning"), recipe=edited)
    with pytest.raises(ArtifactError) as caught:
        run_recipe(edited, folder, resume=True, prepared=fresh)
    assert str(caught.value) == wanted
    run = RunDir(folder)
    run.check_unedited()
    run.write_recipe(edited)
    with pytest.raises(ArtifactError) as caught:
        run.check_unedited()
    assert str(caught.value) == wanted


def test_a_run_may_be_extended(new, tmp_path):
    """It is the longer run from the first step on, if the learning rate is constant."""
    folder, constant = tmp_path / "run", {"lr_scheduler": "constant"}
    go(new("prompt-tuning", **constant), folder, stop=5)
    longer = new("prompt-tuning", **constant, epochs=4)
    go(longer, folder, resume=True)
    go(new("prompt-tuning", **constant, epochs=4), tmp_path / "whole")
    assert_same(folder, tmp_path / "whole")
    assert RunDir(folder).read_recipe().train.epochs == 4
    assert load_artifact(folder).manifest.recipe["train"]["epochs"] == 4


def test_an_extended_run_has_the_rates_of_the_longer_schedule(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "run", stop=5)
    go(new("prompt-tuning", epochs=4), tmp_path / "run", resume=True)
    steps = [event for event in read_numbers(tmp_path / "run") if event["event"] == "step"]
    wanted = [0.05 * (1 - done / 12) for done in range(12)]
    resumed_at = 3
    assert [s["learning_rate"] for s in steps[resumed_at:]] == pytest.approx(wanted[resumed_at:])
    assert steps[0]["learning_rate"] == pytest.approx(0.05)


def test_an_end_that_is_past_is_refused(new, tmp_path):
    go(new("prompt-tuning"), tmp_path / "run", stop=5)
    shorter = new("prompt-tuning", max_steps=1)
    with pytest.raises(ArtifactError, match=r"is at step 2 already, but .* end it at step 1"):
        run_recipe(shorter.recipe, tmp_path / "run", resume=True, prepared=shorter)


def test_files_under_other_names_are_the_same_run(written, tmp_path):
    """Data and backbone are compared by their contents."""
    recipe = read_recipe(written("llama"))
    go(setup_run(recipe), tmp_path / "run", stop=4)
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / f"moved-{name}.jsonl")
    (tmp_path / "llama").rename(tmp_path / "moved")
    data = recipe.as_data()
    data["backbone"]["name"] = str(tmp_path / "moved")
    data["data"] |= {n: str(tmp_path / f"moved-{n}.jsonl") for n in ("train", "validation", "test")}
    RunDir(tmp_path / "run").write_recipe(make_recipe(data))
    RunDir(tmp_path / "run").check_unedited()
    moved = RunDir(tmp_path / "run").read_recipe()
    go(setup_run(moved), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "artifact").is_dir()


@pytest.mark.parametrize("name", ["lstm with dropout", "v2 with a head, dropout in the backbone"])
def test_the_best_prompt_so_far_is_that_of_the_best_validation(written, tmp_path, name):
    (family, method), settings = KINDS[name]
    path = written(family, method, **settings, epochs=3)
    recipe = read_recipe(path)
    count = go(setup_run(recipe), tmp_path / "whole")
    folder = tmp_path / "run"
    go(setup_run(recipe), folder, stop=count // 2)
    found = [e for e in read_numbers(folder) if e["event"] == "evaluation"]
    best = [e for e in found if e["best"]][-1]
    model = load_best_prompt(folder)
    assert model.artifact.manifest.metrics["step"] == best["step"]
    assert model.evaluate(split="validation").metrics == pytest.approx(best["metrics"], rel=1e-5)
    assert not (folder / "artifact").exists()
    with pytest.raises(ArtifactError, match="is not finished, so it has no artifact yet"):
        PromptModel.from_pretrained(folder)
    done = load_best_prompt(tmp_path / "whole").artifact.to_tensors()
    for key, tensor in load_artifact(tmp_path / "whole").to_tensors().items():
        assert torch.equal(done[key], tensor)


def test_a_run_without_a_checkpoint_has_no_best_prompt(written, tmp_path):
    recipe = read_recipe(written("llama"))
    RunDir(tmp_path / "run").create(recipe)
    with pytest.raises(TrainingError, match=r"stopped before its first checkpoint.*resume"):
        load_best_prompt(tmp_path / "run")


@pytest.mark.parametrize("text", ["{", '{"dict": []}', '{"dict": [["hashes", {"value": 3}]]}'])
def test_a_damaged_checkpoint_is_refused(new, tmp_path, text):
    folder = tmp_path / "run"
    go(new("prompt-tuning"), folder, stop=4)
    (folder / "checkpoint" / "state.json").write_text(text)
    prepared = new("prompt-tuning")
    with pytest.raises(ArtifactError, match=r"train.* again"):
        run_recipe(prepared.recipe, folder, resume=True, prepared=prepared)


def test_a_checkpoint_of_an_older_version_is_refused(new, tmp_path):
    """Its trainer's state has other keys."""
    folder = tmp_path / "run"
    go(new("prompt-tuning"), folder, stop=4)
    state = load_state(folder / "checkpoint")
    state["trainer"]["told"] = state["trainer"].pop("warned")
    save_state(state, folder / "checkpoint")
    prepared = new("prompt-tuning")
    with pytest.raises(ArtifactError) as caught:
        run_recipe(prepared.recipe, folder, resume=True, prepared=prepared)
    assert str(caught.value) == (
        f"the checkpoint in {folder} does not fit its recipe (KeyError: 'warned'): one of the two "
        "was changed, or another version of softprompt wrote the checkpoint. Restore it, or train "
        "again."
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from softprompt.recipe import read_recipe
from softprompt.train import run_recipe

seen = 0
def watch(event):
    global seen
    seen += type(event).__name__ != "PhaseStarted"
    if seen == 9:  # three of them, Started, a warning and PrecomputePlanned, are not written
        os.kill(os.getpid(), signal.SIGKILL)

run_recipe(read_recipe(Path(sys.argv[1])), Path(sys.argv[2]), callbacks=[watch])
"""


def test_killed_outright_and_resumed_in_another_process(written, tmp_path):
    """From files only, with a prompt encoder that has dropout."""
    path = written("llama", "p-tuning", settings={"encoder_dropout": 0.4}, epochs=3)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_numbers(tmp_path / "killed")) == 6
    stopped = RunDir(tmp_path / "killed")
    run_recipe(stopped.read_recipe(), stopped.path, resume=True)
    run_recipe(read_recipe(path), tmp_path / "whole")
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("stop", [None, 7])
def test_the_best_of_a_run_has_its_own_loss_after_all(new, backbone, tmp_path, stop):
    """P-tuning's best prompt, validated early, stopped or not, saved and read again."""
    prepared = new("lstm with dropout", learning_rate=2.0, epochs=4)
    folder = tmp_path / "run"
    if stop is not None:
        go(new("lstm with dropout", learning_rate=2.0, epochs=4), folder, stop=stop)
    go(prepared, folder, resume=stop is not None)
    found = [e for e in read_numbers(folder) if e["event"] == "evaluation"]
    best = min(found, key=lambda e: e["metrics"]["loss"])
    rows = prepared.rows["validation"]
    model = PromptModel.from_pretrained(folder, backbone=backbone("llama"))
    size = prepared.training.batch_size
    assert (
        dict(model.evaluate_rendered(rows.examples, rows.truth, batch_size=size).metrics)
        == best["metrics"]
    )
    assert model.artifact.manifest.metrics["step"] == best["step"]
