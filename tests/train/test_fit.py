"""Training from Python: any shape of rows, the same numbers as a recipe, warnings, progress."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import softprompt
from softprompt import (
    Classify,
    DataError,
    Evaluation,
    FromText,
    PhaseStarted,
    PTuningV2,
    RecipeError,
    SoftpromptWarning,
    Started,
    Step,
    TrainingConfig,
    TrainingError,
    fit,
    load_backbone,
    make_recipe,
    train_recipe,
)

quietly = pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
TASK = Classify("{soft:3}{text} movie", verbalizer={"negative": " bad", "positive": " good"})
CONFIG = TrainingConfig(seed=7, epochs=2, batch_size=4, learning_rate=0.05)


def assert_same(one, other) -> None:
    """Two models have the same prompt, bit for bit."""
    first, second = one.artifact.to_tensors(), other.artifact.to_tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def split(rows):
    """Training rows and validation rows."""
    return {"train": rows(11, 0), "validation": rows(5, 1)}


@quietly
def test_it_trains_as_a_recipe_does(saved, split, tmp_path) -> None:
    """The same events to the last bit, as the run's folder has them."""
    folder = str(saved("llama"))
    data = {}
    for name, part in split.items():
        data[name] = str(tmp_path / f"{name}.jsonl")
        Path(data[name]).write_text("\n".join(json.dumps(row) for row in part), "utf-8")
    recipe = make_recipe(
        {
            "seed": 7,
            "backbone": {"name": folder, "device": "cpu", "dtype": "float32"},
            "data": data,
            "task": {
                "kind": "classify",
                "template": TASK.template,
                "verbalizer": dict(TASK.verbalizer),
            },
            "method": {"name": "prompt-tuning"},
            "train": CONFIG.as_table(),
        }
    )
    ours, theirs = [], []
    model = fit(
        load_backbone(folder, device="cpu", dtype="float32"),
        TASK,
        split,
        config=CONFIG,
        callbacks=[ours.append],
    )
    again = train_recipe(recipe, tmp_path / "run", callbacks=[theirs.append])
    # Only a recipe reads files and loads the backbone.
    assert [event for event in ours if not isinstance(event, PhaseStarted)] == [
        event for event in theirs if not isinstance(event, PhaseStarted)
    ]
    assert [event.phase for event in theirs if isinstance(event, PhaseStarted)] == [
        "reading", "loading", "tokenizing", *["validating"] * 3,
    ]  # fmt: skip
    assert sum(isinstance(event, Step) for event in ours) == 6
    assert_same(model, again)


@quietly
def test_a_backbone_by_its_name_is_the_one_that_is_loaded(saved, split) -> None:
    folder = saved("gpt2")
    loaded = fit(load_backbone(folder), TASK, split, config=CONFIG)
    assert_same(fit(str(folder), TASK, split, config=CONFIG), loaded)
    assert_same(fit(folder, TASK, split, config=CONFIG), loaded)


def of_classes(rows) -> Dataset:
    """Labels as numbers that have names."""
    kinds = Features(
        text=Value("string"),
        label=ClassLabel(names=["negative", "positive"]),
        answer=Value("string"),
    )
    return Dataset.from_list(rows, features=kinds)


def of_polars(rows):
    return pytest.importorskip("polars").DataFrame(rows)


SHAPES = {
    "generator": iter,
    "pandas": pd.DataFrame,
    "polars": of_polars,
    "datasets": Dataset.from_list,
    "classes": of_classes,
    "arrow": lambda rows: Dataset.from_list(rows).data.table,
}


@quietly
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_rows_gives_the_same_prompt(backbone, split, shape) -> None:
    own = backbone("llama")
    wanted = fit(own, TASK, split, config=CONFIG)
    made = {name: shape(part) for name, part in split.items()}
    assert_same(fit(own, TASK, made, config=CONFIG), wanted)
    train, validation = (shape(split[name]) for name in ("train", "validation"))
    assert_same(fit(own, TASK, train, validation=validation, config=CONFIG), wanted)


@quietly
def test_splits_as_a_dataset_dict(backbone, split) -> None:
    own = backbone("llama")
    given = DatasetDict({name: Dataset.from_list(part) for name, part in split.items()})
    assert_same(fit(own, TASK, given, config=CONFIG), fit(own, TASK, split, config=CONFIG))


@quietly
def test_validation_rows_are_split_off(backbone, rows) -> None:
    counts = {}
    for name, more in (
        ("default", {}),
        ("a fifth", {"validation": 0.2}),
        ("none", {"validation": 0}),
    ):
        seen = []
        fit(backbone("llama"), TASK, rows(20), config=CONFIG, callbacks=[seen.append], **more)
        counts[name] = next(event.rows for event in seen if isinstance(event, Started))
    assert counts == {
        "default": {"train": 18, "validation": 2},
        "a fifth": {"train": 16, "validation": 4},
        "none": {"train": 20},
    }


@quietly
def test_the_best_prompt_is_the_one_that_is_returned(backbone, split) -> None:
    seen = []
    config = TrainingConfig(epochs=5, batch_size=4, learning_rate=2.0)
    model = fit(backbone("llama"), TASK, split, config=config, callbacks=[seen.append])
    found = [event for event in seen if isinstance(event, Evaluation)]
    best = min(found, key=lambda event: event.metrics["loss"])
    assert best is not found[-1]
    assert model.artifact.manifest.metrics["step"] == best.step
    loss = model.evaluate(split["validation"]).metrics["loss"]
    assert loss == pytest.approx(best.metrics["loss"], abs=1e-6)


@quietly
def test_methods_by_name_and_by_their_settings(backbone, split) -> None:
    own, task = backbone("bert"), Classify("{text}")
    named = fit(own, task, split, method="p-tuning-v2", config=CONFIG)
    assert_same(fit(own, task, split, method=PTuningV2(), config=CONFIG), named)
    assert named.prompt.length == PTuningV2().length


@quietly
def test_the_prompt_is_initialized_from_a_text(backbone, split) -> None:
    """With a negligible learning rate it stays the embeddings of the text."""
    own = backbone("llama")
    config = TrainingConfig(epochs=1, learning_rate=1e-30)
    model = fit(own, TASK, split, init=FromText("good bad film"), config=config)
    ids = own.tokenizer("good bad film", add_special_tokens=False)["input_ids"][:3]
    assert torch.equal(model.artifact.prompt.vectors, own.input_embeddings.weight[ids].float())


@quietly
def test_dropout_that_is_not_removed_changes_losses(saved, new_model, split) -> None:
    folder = saved("bert", new_model("bert", dropout=True))
    losses = {}
    for keep in (False, True):
        own, seen = load_backbone(folder, keep_dropout=keep, dtype="float32", device="cpu"), []
        fit(own, Classify("{soft:3}{text}"), split, config=CONFIG, callbacks=[seen.append])
        losses[keep] = next(event.loss for event in seen if isinstance(event, Step))
    assert losses[True] != losses[False]


def test_a_run_that_goes_wrong_warns_at_the_callers_line(backbone, split) -> None:
    seen = []
    config = TrainingConfig(epochs=1, learning_rate=1e-9)
    with pytest.warns(SoftpromptWarning) as caught:
        fit(backbone("llama"), TASK, split, config=config, callbacks=[seen.append])
    wanted = [event.message for event in seen if isinstance(event, softprompt.TrainingWarning)]
    assert [str(warning.message) for warning in caught] == wanted
    assert any("the learning rate is too low" in message for message in wanted)
    assert {warning.filename for warning in caught} == {__file__}


@quietly
def test_a_recipe_that_goes_wrong_warns_too(written, tmp_path) -> None:
    recipe = softprompt.read_recipe(written(), ["train.epochs=1", "train.learning_rate=1e-9"])
    with pytest.warns(SoftpromptWarning, match="the learning rate is too low") as caught:
        train_recipe(recipe, tmp_path / "run")
    assert {warning.filename for warning in caught} == {__file__}


@quietly
def test_nothing_is_shown_by_default(backbone, split, capsys) -> None:
    fit(backbone("llama"), TASK, split, config=CONFIG)
    assert capsys.readouterr() == ("", "")
    fit(backbone("llama"), TASK, split, config=CONFIG, progress=False)
    assert capsys.readouterr() == ("", "")


@quietly
def test_progress_goes_to_stderr_alone(backbone, split, capsys) -> None:
    seen = []
    fit(backbone("llama"), TASK, split, config=CONFIG, progress=True, callbacks=[seen.append])
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "tokenizing 16 rows …"
    assert lines[-1] == "finished after step 6: all 2 epochs done"
    found = [event for event in seen if isinstance(event, Evaluation)]
    head = next(at for at, line in enumerate(lines) if line.split()[:2] == ["epoch", "step"])
    shown = [line.split() for line in lines[head + 1 : -1]]
    assert [row[3] for row in shown] == [f"{event.metrics['loss']:.4f}" for event in found]
    assert [row[-1] == "*" for row in shown] == [event.best for event in found]


SCRIPT = """
import os, sys
import softprompt as sp

rows = [{"text": "good film", "label": "positive"}, {"text": "bad film", "label": "negative"}] * 10
task = sp.Classify("{soft:3}{text} movie", verbalizer={"negative": " bad", "positive": " good"})
config = sp.TrainingConfig(epochs=1, learning_rate=0.05)
sp.fit(sys.argv[1], task, rows, config=config)
os.dup2(int(sys.argv[2]), 2)
sp.fit(sys.argv[1], task, rows, config=config)
"""


def test_a_terminal_gets_a_bar_and_a_pipe_nothing(saved, tmp_path) -> None:
    """In a process of its own: its stderr is first a pipe, and then a pseudo-terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(saved("llama")), str(theirs)]
    around = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    around |= {"TERM": "xterm", "COLUMNS": "100"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=around, stdout=pipe, stderr=pipe, pass_fds=[theirs]
    ) as running:
        os.close(theirs)
        piped = running.stderr.read()  # until it is replaced
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert running.stdout.read() == b""
    os.close(ours)
    assert running.returncode == 0
    assert b"epoch" not in piped
    assert "finished after step 1" in shown.decode()
    assert "━" in shown.decode()  # of the bar


@quietly
def test_the_log_has_every_event(backbone, split, caplog) -> None:
    with caplog.at_level(logging.DEBUG, logger="softprompt"):
        fit(backbone("llama"), TASK, split, config=CONFIG)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert {record.name.split(".")[0] for record in caplog.records} == {"softprompt"}
    assert lines[0][0] == "INFO"
    assert lines[0][1].startswith("training starts at step 0 of 6: trainable 96 of ")
    assert sum(level == "DEBUG" and text.startswith("step ") for level, text in lines) == 6
    assert sum(text.startswith("validation at step ") for _, text in lines) == 3
    assert any(text.endswith("(best so far)") for _, text in lines)
    assert lines[-1] == ("INFO", "finished after step 6: all 2 epochs done")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"task": "classify"}, TrainingError, "task is 'classify', which is not a setting"),
        ({"init": "labels"}, TrainingError, "init is 'labels', which is not a setting"),
        ({"method": "p-tunin"}, TrainingError, "unknown method 'p-tunin'. Options: multitask-"),
        ({"validation": 1.5}, DataError, "validation is 1.5, but a fraction of the rows is at"),
        ({"validation": True}, DataError, "validation is True, but a fraction of the rows is"),
        ({"progress": "no"}, TrainingError, "progress is 'no', but must be True, False or"),
        ({"callbacks": print}, TrainingError, "callbacks is a single callback. Pass a list of"),
        ({"rows": ["a film"]}, DataError, "row 0 (counted from 0) is a text, which has no column"),
        ({"rows": {"train": [], "dev": []}}, DataError, "unknown split 'dev'. Options: test, "),
        (
            {"rows": {"trian": [{}], "test": [{}]}},
            DataError,
            "unknown split 'trian'. Options: test,",
        ),
        ({"rows": {"test": [{"text": "a"}]}}, DataError, "there are no training rows: the splits"),
        ({"rows": {"train": [], "validation": []}, "validation": 0.1}, DataError, "rows has a val"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(backbone, rows, given, error, message) -> None:
    more = {"backbone": backbone("llama"), "task": TASK, "rows": rows(8)} | given
    with pytest.raises(error) as caught:
        fit(**more)
    assert str(caught.value).startswith(message)


def test_a_config_reports_all_faults_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        TrainingConfig(epoch=3, batch_size=0, seed=-1)
    assert len(caught.value.faults) == 3
    message = str(caught.value)
    assert message.startswith("3 faults in TrainingConfig:\n  - ")
    assert "epoch: unknown key 'epoch'. Options: " in message
    assert "batch_size: input should be greater than 0, not 0." in message
    assert "seed: input should be greater than or equal to 0, not -1." in message


def test_trackers_are_refused_without_a_run_directory(backbone, split) -> None:
    """They would log nothing, and a setting without effect is not accepted in silence."""
    config = TrainingConfig(trackers=["tensorboard"])
    with pytest.raises(RecipeError) as caught:
        fit(backbone("llama"), TASK, split, config=config)
    assert str(caught.value) == (
        "1 fault in TrainingConfig:\n  - trackers: fit has no run directory, so it does not log to "
        "trackers. Leave them out and pass callbacks, or use train_recipe."
    )


def test_a_config_is_a_value() -> None:
    config = TrainingConfig(epochs=3)
    assert config == TrainingConfig(epochs=3) != TrainingConfig(epochs=4)
    assert config.as_table() == {"epochs": 3}
    with pytest.raises(Exception, match="frozen"):
        config.epochs = 4


@quietly
def test_an_interrupt_leaves_the_backbone_as_it_was(backbone, split) -> None:
    own = backbone("llama")

    def stop(event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(own, TASK, split, config=CONFIG, callbacks=[stop])
    assert not own.model.training
    assert_same(fit(own, TASK, split, config=CONFIG), fit(own, TASK, split, config=CONFIG))
