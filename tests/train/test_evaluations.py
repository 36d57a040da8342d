"""Validation on a sample, evaluation of training rows, and counts of parameters."""

import json

import pytest

from softprompt.errors import RecipeError
from softprompt.inference import evaluate_rows, make_report
from softprompt.train import Evaluation, run_recipe
from softprompt.train.datasets import sample_rows
from softprompt.train.plots import draw_run
from softprompt.train.summary import compute_trainable_share, summarize_run


def evaluations(trainer):
    return [event for event in trainer.run() if isinstance(event, Evaluation)]


@pytest.mark.parametrize("task", ["words", "head"])
def test_a_sample_validates_and_all_rows_evaluate_the_best_prompt(parts, tmp_path, task):
    made = parts("llama", "prompt-tuning", task=task, sizes=(11, 9, 4), max_eval_rows=4)
    rows, seen = made.rows["validation"], []
    model = run_recipe(made.recipe, tmp_path / "run", prepared=made, callbacks=[seen.append])
    validations = [event for event in seen if isinstance(event, Evaluation)]
    assert {event.report.rows for event in validations} == {4}
    found = evaluate_rows(model.task, rows.examples, truth=rows.truth, prompt=model.prompt)
    wanted = make_report(model.task, [found]).metrics
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["validation"] == pytest.approx(wanted)
    assert model.artifact.manifest.metrics["validation"] == pytest.approx(wanted)
    best = min(validations, key=lambda event: event.metrics["loss"])
    assert numbers["best_step"] == best.step


def test_the_sample_of_validation_rows_is_always_the_same(parts):
    rows = parts(sizes=(11, 9)).rows["validation"]
    first, again = (sample_rows(rows, 4) for _ in range(2))
    assert first == again
    assert len(first.truth) == 4
    pairs = list(zip(rows.examples, rows.truth, strict=True))
    assert all(pair in pairs for pair in zip(first.examples, first.truth, strict=True))
    assert sample_rows(rows, None) is rows
    assert sample_rows(rows, 99) is rows


def test_training_rows_are_evaluated_at_each_validation(parts, trainer_of):
    made = parts(sizes=(11, 5), eval_train_rows=6)
    trainer = trainer_of(made)
    rows = sample_rows(made.rows["train"], 6)
    first, *_, last = evaluations(trainer)
    assert first.train.rows == 6
    found = evaluate_rows(made.task, rows.examples, truth=rows.truth, prompt=trainer.prompt())
    assert last.train.metrics == pytest.approx(make_report(made.task, [found]).metrics)
    assert evaluations(trainer_of(parts(sizes=(11, 5))))[0].train is None


@pytest.mark.parametrize("name", ["max_eval_rows", "eval_train_rows"])
def test_without_validation_rows_their_settings_are_refused(parts, trainer_of, name):
    with pytest.raises(RecipeError) as caught:
        trainer_of(parts(sizes=(11,), **{name: 3}))
    (fault,) = caught.value.faults
    assert fault == (
        f"train.{name}: there are no validation rows, so nothing is evaluated during training. "
        "Give some (data.validation or data.split_sizes in a recipe), or leave this setting out."
    )


def test_evaluating_more_rows_changes_no_step(parts, trainer_of):
    plain, more_rows = (
        [e.metrics for e in evaluations(trainer_of(parts(sizes=(11, 5), **more)))]
        for more in ({}, {"eval_train_rows": 6})
    )
    assert plain == more_rows


def test_both_curves_are_drawn(parts, tmp_path):
    made = parts(sizes=(11, 5), eval_train_rows=6)
    run_recipe(made.recipe, tmp_path / "run", prepared=made)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    of_train = [event["train"] for event in events if event["event"] == "evaluation"]
    assert all({"loss", "accuracy"} <= {*metrics} for metrics in of_train)
    draw_run(events, tmp_path / "both.png", title="both")
    for event in events:
        event.pop("train", None)
    draw_run(events, tmp_path / "one.png", title="both")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_parameters_that_are_run_are_counted(parts):
    """A trained head replaces the language-model head, which is then not run."""
    made = parts("bert", "p-tuning-v2", task="head", sizes=(11, 5))
    model = made.backbone.model
    body = sum(p.numel() for p in model.bert.parameters())
    summary = summarize_run(made, steps=3)
    assert summary.parameters == body < sum(p.numel() for p in model.parameters())
    assert summary.trainable == 2 * 2 * 3 * 32 + 2 * 33
    assert "2 layers, hidden size 32" in summary.shapes
    assert "keys [2, 4, 3, 8], values [2, 4, 3, 8]" in summary.shapes
    words = parts("llama", sizes=(11, 5))
    whole = sum(p.numel() for p in words.backbone.model.parameters())
    assert summarize_run(words, steps=3).parameters == whole
    assert "prompt: vectors [3, 32]" in summarize_run(words, steps=3).shapes


def test_the_trainable_share_is_written_as_peft_writes_it():
    text = compute_trainable_share(76_800, 247_577_856)
    assert text == "trainable 76,800 of 247,654,656 (0.031 %)", "Lester et al. 2021: 0.031 % of T5"


def test_settings_have_their_source(parts):
    """Each setting that the recipe has is the recipe's, whichever of its tables it is in."""
    changes = {"backbone": {"keep_dropout": True}, "weight_decay": 0.5}
    settings = summarize_run(parts(sizes=(11, 5), **changes), steps=3).settings
    assert (settings["keep_dropout"].value, settings["keep_dropout"].source) == (True, "recipe")
    assert (settings["weight_decay"].value, settings["weight_decay"].source) == (0.5, "recipe")
    assert (settings["seed"].value, settings["seed"].source) == (7, "recipe")
    assert settings["max_steps"].source == "default"
    plain = summarize_run(parts(sizes=(11, 5)), steps=3).settings
    assert (plain["keep_dropout"].value, plain["keep_dropout"].source) == (False, "default")
