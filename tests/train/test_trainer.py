"""The training loop: its events, the best state, and what it must not change."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import RecipeError, TrainingError
from softprompt.inference.model import attach
from softprompt.prompt import InputPrompt
from softprompt.train import Evaluation, Finished, Step, TrainingWarning, make_run_artifact
from softprompt.train.datasets import RenderedRows

KINDS = [
    ("llama", "prompt-tuning", "words"),
    ("llama", "prefix-tuning", "generate"),
    ("bert", "p-tuning-v2", "head"),
    ("bert", "p-tuning", "head"),
    ("gpt2", "p-tuning", "head"),
    ("t5", "p-tuning-v2", "words"),
]


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_the_events_of_a_run(parts, trainer_of):
    events = list(trainer_of(parts(sizes=(11, 5))).run())
    names = [type(e).__name__ for e in events if not isinstance(e, TrainingWarning)]
    epoch = ["Step"] * 3 + ["Evaluation"]
    assert names == ["Evaluation", *epoch, *epoch, "Finished"]
    found = of(Evaluation, events)
    assert [(e.step, e.epoch) for e in found] == [(0, 0.0), (3, 1.0), (6, 2.0)]
    steps = of(Step, events)
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6]
    assert [e.epoch for e in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert sorted(e.rows for e in steps[:3]) == [3, 4, 4]
    assert events[-1] == Finished(6, "all 2 epochs done")


def test_the_train_loss_of_a_validation_is_that_of_the_steps_since(parts, trainer_of):
    events = list(trainer_of(parts(sizes=(11, 5))).run())
    first, second, third = of(Evaluation, events)
    steps = of(Step, events)
    assert first.train_loss is None
    for found, since in ((second, steps[:3]), (third, steps[3:])):
        total = sum(e.loss * e.rows for e in since)
        assert found.train_loss == pytest.approx(total / 11)


@pytest.mark.parametrize(
    ("changes", "validated", "last"),
    [
        ({"max_steps": 4}, [0, 3, 4], "all 4 steps done"),
        ({"eval_every_steps": 4}, [0, 4, 6], "all 2 epochs done"),
        ({"max_steps": 100}, [0, 3, 6], "all 2 epochs done"),
        ({"eval_every_steps": 2, "max_steps": 5}, [0, 2, 4, 5], "all 5 steps done"),
    ],
)
def test_when_it_validates_and_ends(parts, trainer_of, changes, validated, last):
    events = list(trainer_of(parts(**changes)).run())
    assert [e.step for e in of(Evaluation, events)] == validated
    assert events[-1].reason == last


def test_without_validation_rows_the_last_prompt_is_the_best(parts, trainer_of):
    trainer = trainer_of(parts(sizes=(11,)))
    events = list(trainer.run())
    assert of(Evaluation, events) == []
    best = trainer.get_best()
    assert torch.equal(best.prompt.vectors, trainer.method.vectors)
    assert (best.step, dict(best.metrics)) == (6, {})


@pytest.mark.parametrize(("family", "method", "task"), KINDS)
def test_only_the_prompt_and_the_head_change(parts, trainer_of, new_backbone, family, method, task):
    own = new_backbone(family)
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    trainer = trainer_of(parts(family, method, task=task, own=own))
    start = {k: v.clone() for k, v in trainer.modules.state_dict().items()}
    list(trainer.run())
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, parameter in own.model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
    for name, tensor in trainer.modules.state_dict().items():
        assert (tensor != start[name]).any(), f"{name} is new and not trained"
    if task == "head":
        assert {n for n in start if n.startswith("head.")} == {
            "head.output.weight",
            "head.output.bias",
        }


@pytest.mark.parametrize("select", ["loss", "accuracy", "macro_f1"])
def test_the_best_is_the_first_with_the_best_score(parts, trainer_of, select):
    trainer = trainer_of(parts(learning_rate=0.5, epochs=5, best_metric=select, sizes=(11, 7)))
    found = of(Evaluation, list(trainer.run()))
    scores = [e.metrics[select] for e in found]
    top = min(scores) if select == "loss" else max(scores)
    best = found[scores.index(top)]
    assert trainer.get_best().step == best.step
    assert dict(trainer.get_best().metrics) == dict(best.metrics)
    sign = -1 if select == "loss" else 1
    so_far = -math.inf
    for event, score in zip(found, scores, strict=True):
        assert event.best == (sign * score > so_far)
        so_far = max(so_far, sign * score)


def test_an_unknown_metric_is_refused_with_the_known_ones(parts, trainer_of):
    with pytest.raises(RecipeError) as caught:
        list(trainer_of(parts(best_metric="acuracy")).run())
    (fault,) = caught.value.faults
    assert fault == (
        "train.best_metric: unknown metric 'acuracy'. Options: accuracy, ece, f1, loss, "
        "macro_f1, matthews. Did you mean 'accuracy'?"
    )


@pytest.mark.parametrize(("family", "method", "task"), KINDS)
def test_the_best_prompt_has_its_own_loss(parts, trainer_of, monkeypatch, family, method, task):
    """Guarantee 5: the best prompt is the one that was validated, and not the last one."""
    monkeypatch.setattr(
        "softprompt.train.trainer.compute_selection_score",
        lambda _metrics, *, step, **_: -abs(step - 3),
    )
    prepared = parts(family, method, task=task, eval_every_steps=1)
    trainer = trainer_of(prepared)
    by_step = {e.step: e for e in of(Evaluation, list(trainer.run()))}
    model = attach(
        make_run_artifact(prepared, trainer.get_best(), start=trainer.start), prepared.backbone
    )
    rows = prepared.rows["validation"]
    again = model.evaluate_rendered(
        rows.examples, rows.truth, batch_size=prepared.training.batch_size
    )
    assert dict(again.metrics) == dict(by_step[3].metrics)
    assert again.metrics["loss"] != by_step[6].metrics["loss"]
    metrics = model.artifact.manifest.metrics
    assert metrics["step"] == 3
    assert metrics["moved"]["overall"] == pytest.approx(by_step[3].moved, rel=1e-5)
    parts_of = (
        model.prompt.length
        if isinstance(model.prompt, InputPrompt)
        else prepared.backbone.geometry.num_attention_sites
    )
    assert len(metrics["moved"]["each"]) == parts_of


def test_patience_stops_a_run_that_does_not_improve(parts, trainer_of):
    trainer = trainer_of(
        parts(optimizer="sgd", learning_rate=1e-30, epochs=9, early_stopping_patience=3)
    )
    events = list(trainer.run())
    assert [e.step for e in of(Evaluation, events)] == [0, 3, 6, 9]
    assert events[-1] == Finished(9, "no improvement in 3 validations")
    assert trainer.get_best().step == 0


def test_patience_counts_from_the_best_validation(parts, trainer_of):
    trainer = trainer_of(
        parts(learning_rate=0.3, epochs=30, early_stopping_patience=2, sizes=(11, 9))
    )
    found = of(Evaluation, list(trainer.run()))
    flags = [e.best for e in found]
    assert flags[-2:] == [False, False]
    pairs = itertools.pairwise(flags)
    assert (False, False) not in list(pairs)[:-1]


@pytest.mark.parametrize(("limit", "is_clipped"), [(0.01, True), (1e6, False), (0.0, False)])
def test_clipping(parts, trainer_of, limit, is_clipped):
    """With plain SGD a step is the rate times the gradient, whose norm clipping limits."""
    prepared = parts(
        optimizer="sgd",
        learning_rate=0.5,
        lr_scheduler="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=limit,
        sizes=(11,),
    )
    trainer = trainer_of(prepared)
    before = trainer.prompt().vectors.clone()
    step = next(iter(trainer.run()))
    moved = (trainer.prompt().vectors - before).norm().item() / 0.5
    assert moved == pytest.approx(limit if is_clipped else step.norm, rel=1e-4)
    assert step.norm > 0.01


def test_the_start_is_the_method_s_initialization(parts, trainer_of):
    prepared = parts("llama", "p-tuning-v2", settings={"prefix_dropout": 0.5})
    trainer = trainer_of(prepared)
    assert_close(trainer.start.keys, prepared.method.keys.detach(), atol=0, rtol=0)
    first = of(Evaluation, [next(iter(trainer.run()))])[0]
    assert (first.moved, first.prompt_norm) == (0.0, pytest.approx(1.0))


@torch.no_grad()
def overflow(trainer) -> None:
    for parameter in trainer.modules.parameters():
        parameter.fill_(math.inf)


def test_a_loss_that_is_not_finite_stops_the_run(parts, trainer_of):
    trainer = trainer_of(parts(sizes=(11,)))
    events = trainer.run()
    next(events)
    overflow(trainer)
    with pytest.raises(TrainingError) as caught:
        next(events)
    assert str(caught.value) == (
        "step 2: the loss is nan and the norm of its gradient nan. The learning rate 0.05 is too "
        'high, or the precision too low: try a third of the rate, or backbone.dtype = "float32".'
    )
    assert trainer.step == 1, "the optimizer made no step"


def test_a_validation_that_is_nan_stops_the_run(parts, trainer_of):
    trainer = trainer_of(parts(max_steps=1))
    events = trainer.run()
    next(events)
    next(events)
    overflow(trainer)
    with pytest.raises(
        TrainingError, match=r"validation after step 1: loss is NaN, so the best step"
    ):
        next(events)


def test_no_rows_are_refused(parts, trainer_of):
    prepared = parts()
    empty = {**prepared.rows, "train": RenderedRows((), (), 0)}
    object.__setattr__(prepared, "rows", empty)
    with pytest.raises(TrainingError, match="no rows to train on"):
        trainer_of(prepared)


def test_each_kind_of_warning_comes_once(parts, trainer_of):
    """A prompt that does not move keeps the predictions of its initialization."""
    row = {"text": "a film", "label": "positive", "answer": "good"}
    validation = [row, row | {"label": "negative"}, row]
    trainer = trainer_of(
        parts(optimizer="sgd", learning_rate=1e-30, epochs=3, tables={"validation": validation})
    )
    warnings = of(TrainingWarning, list(trainer.run()))
    assert [w.step for w in warnings] == [3, 3, 9]  # at the end: nothing was learned
    majority, still, untrained = (w.message for w in warnings)
    assert untrained.startswith("nothing was learned: the best validation loss, ")
    assert "the prediction is 'positive' for every validation row" in majority
    assert "the most frequent label has a share of 67%" in majority
    assert still.startswith("the prompt has changed by 0.00% of its norm since initialization")


def test_a_prompt_that_diverges_warns(parts, trainer_of):
    trainer = trainer_of(
        parts(
            optimizer="sgd", learning_rate=1e4, max_grad_norm=1.0, lr_scheduler="constant", epochs=3
        )
    )
    messages = [
        w.message
        for w in of(TrainingWarning, list(trainer.run()))
        if "it is diverging" in w.message
    ]
    assert len(messages) == 1
    assert "times that of its initialization" in messages[0]


def test_a_prompt_keeps_its_gradient_after_a_validation(parts, trainer_of):
    """Guarantee 4: no module keeps state from one step to the next."""
    trainer = trainer_of(parts("llama", "prefix-tuning", sizes=(11, 5), eval_every_steps=1))
    before = None
    for event in trainer.run():
        if isinstance(event, Evaluation):
            now = trainer.prompt().keys.clone()
            assert before is None or not torch.equal(now, before)
            before = now
        if isinstance(event, Step):
            assert event.norm > 0
