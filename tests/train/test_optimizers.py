"""Optimizers, their groups and their learning rates."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Adam
from transformers.optimization import Adafactor, get_scheduler

from softprompt.errors import RecipeError
from softprompt.train.config import ResolvedTraining
from softprompt.train.optimizers import build_lr_scheduler, build_optimizer, list_optimizers


def make_optimizer(training: ResolvedTraining, *, head: bool = True) -> torch.optim.Optimizer:
    prompt = [nn.Parameter(torch.ones(3, 2))]
    return build_optimizer(prompt, [nn.Parameter(torch.ones(2))] if head else [], training=training)


def test_two_rates_reach_their_groups():
    training = ResolvedTraining(
        optimizer="sgd", learning_rate=0.5, head_learning_rate=0.125, weight_decay=0.25
    )
    prompt, head = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([prompt], [head], training=training)
    prompt.grad, head.grad = torch.full((3, 2), 2.0), torch.full((2,), 4.0)
    optimizer.step()
    assert torch.equal(prompt.detach(), torch.full((3, 2), 1 - 0.5 * (2 + 0.25)))
    assert torch.equal(head.detach(), torch.full((2,), 1 - 0.125 * 4)), "a head does not decay"


def test_without_a_head_there_is_one_group():
    assert len(make_optimizer(ResolvedTraining(), head=False).param_groups) == 1


def test_a_run_trains_the_method_and_the_head_each_at_its_rate(parts, trainer_of):
    prepared = parts("bert", "p-tuning-v2", task="head", learning_rate=0.25)
    prepared.training.__dict__["head_learning_rate"] = 0.0625
    trainer = trainer_of(prepared)
    prompt, head = trainer.optimizer.param_groups
    assert {id(p) for p in prompt["params"]} == {id(p) for p in prepared.method.parameters()}
    assert {id(p) for p in head["params"]} == {id(p) for p in prepared.task.head.parameters()}
    assert (prompt["initial_lr"], head["initial_lr"]) == (0.25, 0.0625)


def test_adafactor_is_lester_s():
    group = make_optimizer(ResolvedTraining(optimizer="adafactor", learning_rate=0.3)).param_groups[
        0
    ]
    assert isinstance(make_optimizer(ResolvedTraining(optimizer="adafactor")), Adafactor)
    assert (group["lr"], group["scale_parameter"], group["relative_step"]) == (0.3, False, False)
    assert group["decay_rate"] == -0.8


def test_every_name_makes_an_optimizer_that_descends():
    """Down the slope of x²/2, at any rate that a recipe may name."""
    assert {"adamw", "adafactor", "sgd", "adam", "rmsprop"} <= {*list_optimizers()}
    for name in list_optimizers():
        training = ResolvedTraining(optimizer=name, learning_rate=1e-2, head_learning_rate=1e-2)
        matrix = nn.Parameter(torch.ones(3, 2))
        optimizer = build_optimizer([matrix], [], training=training)
        for _ in range(3):
            optimizer.zero_grad()
            (matrix**2).sum().div(2).backward()
            optimizer.step()
        assert float((matrix.detach() ** 2).sum()) < 6, name


def test_options_reach_the_class():
    training = ResolvedTraining(
        optimizer="adam", optimizer_args={"betas": [0.5, 0.6], "amsgrad": True}
    )
    found = make_optimizer(training)
    assert isinstance(found, Adam)
    assert list(found.param_groups[0]["betas"]) == [0.5, 0.6]
    assert found.param_groups[1]["amsgrad"] is True


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        (
            ResolvedTraining(optimizer="adamv"),
            "train.optimizer: unknown optimizer 'adamv'. Options: ",
        ),
        (
            ResolvedTraining(optimizer_args={"beta": 1}),
            "train.optimizer_args: unknown argument of adamw 'beta'. Options: amsgrad, betas, ",
        ),
        (
            ResolvedTraining(optimizer_args={"lr": 1}),
            "train.optimizer_args: unknown argument of adamw 'lr'. Options: amsgrad, betas, ",
        ),
        (
            ResolvedTraining(optimizer_args={"betas": [2.0, 0.9]}),
            "train.optimizer: cannot use adamw (ValueError: Invalid beta parameter",
        ),
        (
            ResolvedTraining(optimizer_args={"foreach": True, "fused": True}),
            "train.optimizer: cannot use adamw (RuntimeError: `fused` and `foreach`",
        ),
    ],
)
def test_faults_are_named(training, fault):
    with pytest.raises(RecipeError) as caught:
        make_optimizer(training)
    assert caught.value.faults[0].startswith(fault)


def factor(kind: str, step: int, *, warmup: int, steps: int) -> float:
    """The fraction of the highest rate, as the papers define it."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    match kind:
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_rates_follow_their_formula(kind, warmup):
    steps = 20
    training = ResolvedTraining(
        lr_scheduler=kind,
        warmup_ratio=warmup,
        learning_rate=0.5,
        head_learning_rate=0.25,
        optimizer="sgd",
    )
    optimizer = make_optimizer(training)
    scheduler = build_lr_scheduler(optimizer, training=training, steps=steps)
    for step in range(steps):
        wanted = factor(kind, step, warmup=round(warmup * steps), steps=steps)
        prompt, head = (group["lr"] for group in optimizer.param_groups)
        assert prompt == pytest.approx(0.5 * wanted)
        assert head == pytest.approx(0.25 * wanted)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_rates_are_those_of_transformers(kind, warmup, steps):
    training = ResolvedTraining(lr_scheduler=kind, warmup_ratio=warmup, optimizer="sgd")
    ours, theirs = make_optimizer(training), make_optimizer(training)
    name = "constant_with_warmup" if kind == "constant" else kind
    warmup_steps = round(warmup * steps)
    schedules = (
        build_lr_scheduler(ours, training=training, steps=steps),
        get_scheduler(name, theirs, num_warmup_steps=warmup_steps, num_training_steps=steps),
    )
    for _ in range(steps + 2):
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()


def test_a_step_reports_its_learning_rate(parts, trainer_of):
    trainer = trainer_of(
        parts(sizes=(11,), lr_scheduler="linear", warmup_ratio=0.0, learning_rate=0.5)
    )
    rates = [e.learning_rate for e in trainer.run() if type(e).__name__ == "Step"]
    assert rates == pytest.approx([0.5 * (1 - step / 6) for step in range(6)])


@pytest.mark.parametrize(
    ("name", "args", "fault"),
    [
        ("adamw", {"capturable": True}, "AssertionError: If capturable=True"),
        ("adamw", {"betas": [2, 3]}, "ValueError: Invalid beta parameter"),
        ("adamw", {"eps": "x"}, "TypeError"),
        ("sgd", {"momentum": "x"}, "TypeError"),
        ("rmsprop", {"alpha": [1]}, "TypeError"),
        ("adafactor", {"eps": 5}, "TypeError"),
    ],
)
def test_arguments_that_fail_at_the_first_step_are_a_fault_of_the_recipe(name, args, fault):
    with pytest.raises(RecipeError) as caught:
        make_optimizer(ResolvedTraining(optimizer=name, optimizer_args=args))
    (message,) = caught.value.faults
    assert message.startswith(f"train.optimizer: cannot use {name} ({fault}")
    assert message.endswith("Correct train.optimizer_args.")


def test_the_step_that_is_tried_changes_nothing():
    prompt = nn.Parameter(torch.ones(3, 2))
    optimizer = build_optimizer([prompt], [], training=ResolvedTraining())
    assert torch.equal(prompt.detach(), torch.ones(3, 2))
    assert prompt.grad is None
    assert not optimizer.state
