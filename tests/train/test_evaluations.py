"""Validations on some rows, training rows judged too, and what is run counted."""

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
def test_some_rows_validate_and_all_of_them_judge_what_was_chosen(parts, tmp_path, task):
    made = parts("llama", "prompt-tuning", task=task, sizes=(11, 9, 4), max_eval_rows=4)
    rows, seen = made.rows["validation"], []
    model = run_recipe(made.recipe, tmp_path / "run", prepared=made, callbacks=[seen.append])
    judged = [event for event in seen if isinstance(event, Evaluation)]
    assert {event.report.rows for event in judged} == {4}
    found = evaluate_rows(model.task, rows.examples, truth=rows.truth, prompt=model.prompt)
    wanted = make_report(model.task, [found]).metrics
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["validation"] == pytest.approx(wanted)
    assert model.artifact.manifest.metrics["validation"] == pytest.approx(wanted)
    best = min(judged, key=lambda event: event.metrics["loss"])
    assert numbers["best_step"] == best.step


def test_the_rows_that_validate_are_always_the_same(parts):
    rows = parts(sizes=(11, 9)).rows["validation"]
    first, again = (sample_rows(rows, 4) for _ in range(2))
    assert first == again
    assert len(first.truth) == 4
    pairs = list(zip(rows.examples, rows.truth, strict=True))
    assert all(pair in pairs for pair in zip(first.examples, first.truth, strict=True))
    assert sample_rows(rows, None) is rows
    assert sample_rows(rows, 99) is rows


def test_training_rows_are_judged_at_each_validation(parts, trainer_of):
    made = parts(sizes=(11, 5), eval_train_rows=6)
    trainer = trainer_of(made)
    rows = sample_rows(made.rows["train"], 6)
    first, *_, last = evaluations(trainer)
    assert first.train.rows == 6
    found = evaluate_rows(made.task, rows.examples, truth=rows.truth, prompt=trainer.prompt())
    assert last.train.metrics == pytest.approx(make_report(made.task, [found]).metrics)
    assert evaluations(trainer_of(parts(sizes=(11, 5))))[0].train is None


@pytest.mark.parametrize("name", ["max_eval_rows", "eval_train_rows"])
def test_without_validation_rows_nothing_can_be_judged(parts, trainer_of, name):
    with pytest.raises(RecipeError, match=rf"train\.{name}: there are no validation rows"):
        trainer_of(parts(sizes=(11,), **{name: 3}))


def test_judging_more_rows_changes_no_step(parts, trainer_of):
    plain, judged = (
        [e.metrics for e in evaluations(trainer_of(parts(sizes=(11, 5), **more)))]
        for more in ({}, {"eval_train_rows": 6})
    )
    assert plain == judged


def test_both_curves_are_drawn(parts, tmp_path):
    made = parts(sizes=(11, 5), eval_train_rows=6)
    run_recipe(made.recipe, tmp_path / "run", prepared=made)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    judged = [event["train"] for event in events if event["event"] == "evaluation"]
    assert all({"loss", "accuracy"} <= {*one} for one in judged)
    draw_run(events, tmp_path / "both.png", title="both")
    for event in events:
        event.pop("train", None)
    draw_run(events, tmp_path / "one.png", title="both")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_what_is_run_is_counted(parts):
    """A trained head answers in place of the language-model head, which is then not run."""
    made = parts("bert", "p-tuning-v2", task="head", sizes=(11, 5))
    model = made.backbone.model
    body = sum(p.numel() for p in model.bert.parameters())
    said = summarize_run(made, steps=3)
    assert said.parameters == body < sum(p.numel() for p in model.parameters())
    assert said.trainable == 2 * 2 * 3 * 32 + 2 * 33
    assert "2 layers, hidden size 32" in said.shapes
    assert "keys [2, 4, 3, 8], values [2, 4, 3, 8]" in said.shapes
    words = parts("llama", sizes=(11, 5))
    whole = sum(p.numel() for p in words.backbone.model.parameters())
    assert summarize_run(words, steps=3).parameters == whole
    assert "prompt: vectors [3, 32]" in summarize_run(words, steps=3).shapes


def test_the_share_is_said_as_peft_says_it():
    said = compute_trainable_share(76_800, 247_577_856)
    assert said == "trainable 76,800 of 247,654,656 (0.031 %)", "Lester et al. 2021: 0.031 % of T5"
