"""Mixed precision, gradient checkpointing and dropout: what each changes, and what it does not."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import RecipeError, TrainingError
from softprompt.inference.model import attach
from softprompt.injection import load_backbone
from softprompt.train import Evaluation, Step, make_run_artifact, run_recipe
from softprompt.train.accelerator import make_accelerator, use_gradient_checkpointing
from softprompt.train.api import make_trainer
from support.scaling import use_loss_scale


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_mixed_precision_computes_in_bf16_and_trains_in_fp32(parts, trainer_of, method):
    full = list(trainer_of(parts("llama", method)).run())
    prepared = parts("llama", method, mixed_precision="bf16")
    trainer = trainer_of(prepared)
    mixed = list(trainer.run())
    assert {p.dtype for p in trainer.modules.parameters()} == {torch.float32}
    assert {t.dtype for t in trainer.get_best().prompt.to_tensors().values()} == {torch.float32}
    first, same = of(Step, full)[0].loss, of(Step, mixed)[0].loss
    assert same == pytest.approx(first, rel=0.03)
    assert same != first, "the forward pass was not in bf16"
    # A prompt is evaluated as it will be used: without autocast.
    assert of(Evaluation, mixed)[0].metrics == of(Evaluation, full)[0].metrics
    model = attach(
        make_run_artifact(prepared, trainer.get_best(), start=trainer.start), prepared.backbone
    )
    rows = prepared.rows["validation"]
    found = model.evaluate_rendered(rows.examples, rows.truth, batch_size=4).metrics
    assert dict(found) == dict(trainer.get_best().metrics)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning-v2"])
def test_the_prompt_is_fp32_under_a_bf16_backbone(parts, trainer_of, backbone, method):
    """A step of 1e-4 on a value near 1 is lost in bf16, whose next number is 1.0078."""
    own = backbone("llama", torch.bfloat16)
    prepared = parts(
        "llama", method, own=own, optimizer="sgd", learning_rate=1e-4, max_grad_norm=1.0
    )
    trainer = trainer_of(prepared)
    before = {n: p.detach().clone() for n, p in trainer.modules.named_parameters()}
    list(trainer.run())
    for name, parameter in trainer.modules.named_parameters():
        assert parameter.dtype == torch.float32
        assert (parameter != before[name]).float().mean() > 0.9, name


def test_fp16_needs_a_gpu(parts, tmp_path):
    prepared = parts(mixed_precision="fp16")
    with pytest.raises(RecipeError) as caught:
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert caught.value.faults == (
        'train.mixed_precision: fp16 needs a GPU, but this runs on cpu. Use "bf16", or "no".',
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def scaled(parts):
    """A trainer with fp16's loss scaler."""

    def make(scale: float):
        prepared = parts(sizes=(11, 5))
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        return make_trainer(prepared, use_loss_scale(accelerator, scale))

    return make


def test_fp16_s_scale_changes_no_number(scaled, parts, trainer_of):
    plain = of(Step, list(trainer_of(parts(sizes=(11, 5))).run()))
    found = of(Step, list(scaled(1024.0).run()))
    assert [e.loss for e in found] == pytest.approx([e.loss for e in plain], abs=1e-5)
    assert [e.norm for e in found] == pytest.approx([e.norm for e in plain], rel=1e-4)


def test_trainers_before_it_change_no_number(scaled, parts, trainer_of):
    """A search for the rate makes several on one accelerator, whose scaler unscales once."""
    plain = of(Step, list(trainer_of(parts(sizes=(11, 5))).run()))
    trainer = scaled(1024.0)
    prepared = parts(sizes=(11, 5))
    for _ in range(2):
        trainer = make_trainer(prepared, trainer.accelerator)
    found = of(Step, list(trainer.run()))
    assert [e.norm for e in found] == pytest.approx([e.norm for e in plain], rel=1e-4)


def test_a_step_that_overflows_at_a_high_scale_is_skipped(scaled):
    trainer = scaled(1e38)
    events = trainer.run()
    next(events)
    before = trainer.prompt().vectors.detach().clone()
    step = next(events)
    assert step.norm == float("inf")
    assert torch.equal(trainer.prompt().vectors, before)
    assert trainer.accelerator.scaler.get_scale() == pytest.approx(5e37)
    assert trainer.schedule.last_epoch == 0, "the schedule does not count a skipped step"


def test_an_overflow_at_a_low_scale_stops_the_run(scaled):
    trainer = scaled(0.5)
    events = trainer.run()
    next(events)
    with torch.no_grad():
        trainer.method.vectors.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        next(events)


def test_the_scale_is_resumed(scaled):
    first = scaled(1e38)
    events = first.run()
    next(events), next(events)
    second = scaled(2.0)
    second.load_state_dict(first.state_dict())
    assert second.accelerator.scaler.get_scale() == pytest.approx(5e37)


@pytest.fixture
def loaded(saved, new_model):
    """A backbone as users load it: from a folder whose configuration has dropout."""

    def load(family: str, *, dropout: bool = False):
        folder = saved(family, new_model(family, dropout=True))
        return load_backbone(str(folder), device="cpu", dtype="float32", keep_dropout=dropout)

    return load


def run_counted(own, prepared) -> tuple[list[Any], int, Any]:
    """The events of a run, how often a layer's attention ran in backward passes, the trainer."""
    calls, in_backward = 0, False

    def count(*_args: Any) -> None:
        nonlocal calls
        calls += in_backward

    hook = next(iter(own.site_of)).register_forward_hook(count)
    wanted = prepared.recipe.train.gradient_checkpointing
    with use_gradient_checkpointing(own, wanted=wanted):
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        plain = accelerator.backward

        def backward(loss: torch.Tensor) -> None:
            nonlocal in_backward
            in_backward = True
            plain(loss)
            in_backward = False

        accelerator.backward = backward
        trainer = make_trainer(prepared, accelerator)
        events = list(trainer.run())
    hook.remove()
    return events, calls, trainer


@pytest.mark.parametrize(
    ("family", "method", "task"),
    [
        ("bert", "p-tuning-v2", "head"),
        ("distilbert", "prefix-tuning", "head"),
        ("modernbert", "p-tuning", "head"),
        ("llama", "prompt-tuning", "words"),
        ("gpt2", "p-tuning-v2", "generate"),
        ("t5", "prefix-tuning", "generate"),
    ],
)
def test_gradient_checkpointing_changes_no_number(parts, loaded, family, method, task):
    """Guarantee 4: with it, PEFT's prefix on BERT trains the head only, without a warning."""
    own = loaded(family)
    plain, once, first = run_counted(own, parts(family, method, task=task, own=own))
    again, twice, second = run_counted(
        own, parts(family, method, task=task, own=own, gradient_checkpointing=True)
    )
    steps, same = of(Step, plain), of(Step, again)
    # A beginning that all rows share is run in a pass by itself.
    passes = 2 if (method, own.geometry.architecture) == ("prompt-tuning", "causal") else 1
    assert (once, twice) == (0, passes * len(steps)), "each layer is run again once per pass"
    assert [e.loss for e in same] == pytest.approx([e.loss for e in steps], abs=1e-6)
    assert [e.norm for e in same] == pytest.approx([e.norm for e in steps], abs=1e-5)
    for name, parameter in first.modules.named_parameters():
        other = dict(second.modules.named_parameters())[name]
        assert_close(other, parameter, atol=1e-5, rtol=1e-4, msg=name)
    for tensor, start in zip(
        second.prompt().to_tensors().values(), second.start.to_tensors().values(), strict=True
    ):
        assert (tensor != start).flatten(1).any(dim=1).all(), "part of the prompt did not move"
    assert not own.model.is_activation_checkpointing
    assert not own.model.training


def test_a_family_that_cannot_checkpoint_is_refused(parts, tmp_path):
    prepared = parts("albert", "p-tuning-v2", task="head", gradient_checkpointing=True)
    with pytest.raises(RecipeError) as caught:
        run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert caught.value.faults == (
        (
            "train.gradient_checkpointing: albert does not support it. Set it to false, and "
            "raise train.gradient_accumulation_steps if memory is short."
        ),
    )
    assert not (tmp_path / "run").exists()


def test_dropout_is_off_by_default_seeded_and_never_in_validation(parts, loaded, saved):
    def run(*, dropout: bool, seed: int = 0) -> list[Any]:
        own = loaded("bert", dropout=dropout)
        changes = {"backbone": {"keep_dropout": dropout}}
        prepared = parts("bert", "p-tuning-v2", task="head", own=own, **changes)
        torch.manual_seed(seed)
        return run_counted(own, prepared)[0]

    bare, first, second = run(dropout=False), run(dropout=True), run(dropout=True, seed=5)
    assert [e.loss for e in of(Step, second)] == [e.loss for e in of(Step, first)]
    for without, with_it in zip(of(Step, bare), of(Step, first), strict=True):
        assert without.loss != with_it.loss
    assert of(Evaluation, first)[0].metrics == of(Evaluation, bare)[0].metrics


def test_runs_of_different_precision_follow_each_other(parts, tmp_path):
    """Accelerate keeps its precision for the life of a process, and refuses another."""
    for number, precision in enumerate(["no", "bf16", "no"]):
        prepared = parts(mixed_precision=precision, max_steps=1)
        run_recipe(prepared.recipe, tmp_path / str(number), prepared=prepared)
        assert (tmp_path / str(number) / "metrics.json").exists()
