"""Guarantee 4, for every method and family: an effect and a gradient, and nothing else moves."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt.backbone import BatchInputs
from softprompt.errors import PromptError
from softprompt.injection import forward
from softprompt.methods import Method, build_method
from softprompt.methods.initializers import FromRandom, FromText
from softprompt.prompt import InputPrompt, KVPrefix
from softprompt.train.accelerator import use_gradient_checkpointing
from support.parametrize import for_each
from support.tiny_models import REFUSED

SOFT = 3


def built(own, settings, *, seed: int = 0) -> Method:
    return build_method(own, settings, soft_length=SOFT, init=FromRandom(), seed=seed)


def batch(make, settings) -> BatchInputs:
    return make.batch(*make.rows(settings.prompt_kind, 8, 6, length=SOFT))


def loss_of(own, method: Method, inputs: BatchInputs) -> Tensor:
    """A plain cross-entropy against one word at the real tokens, through the head."""
    states = forward(own, inputs, prompts=[method()])
    real = (
        states.flatten(0, 1)
        if inputs.decoder_input_ids is not None
        else states[inputs.attention_mask.bool()]
    )
    logits = own.lm_head(real).float()
    return nn.functional.cross_entropy(logits, torch.full((len(logits),), 30))


def gradients(own, method: Method, inputs: BatchInputs) -> dict[str, Tensor]:
    method.zero_grad()
    loss_of(own, method, inputs).backward()
    return {name: p.grad.clone() for name, p in method.named_parameters()}


@for_each("method", "family")
def test_it_has_an_effect_and_a_gradient_everywhere(backbone, maker, settings, method, family):
    own, make, chosen = backbone(family), maker(family), settings[method]
    made, inputs = built(own, chosen), batch(make, chosen)
    first = forward(own, inputs, prompts=[made()])
    other = forward(own, inputs, prompts=[built(own, chosen, seed=1)()])
    assert (first - other).abs().max() > 1e-4
    found = gradients(own, made, inputs)
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    # Every soft token on every layer has a gradient.
    prompt = made()
    wanted = torch.autograd.grad(
        nn.functional.mse_loss(forward(own, inputs, prompts=[prompt]), torch.ones_like(first)),
        list(prompt.to_tensors().values()),
    )
    for gradient in wanted:
        assert gradient.flatten(-1).any(dim=-1).all()


@for_each("method", "family")
def test_one_step_moves_the_method_alone(backbone, maker, settings, method, family):
    own, make, chosen = backbone(family), maker(family), settings[method]
    made, inputs = built(own, chosen), batch(make, chosen)
    before = {name: t.clone() for name, t in own.model.state_dict().items()}
    start = {name: p.detach().clone() for name, p in made.named_parameters()}
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    at_start = loss_of(own, made, inputs)
    at_start.backward()
    optimiser.step()
    assert all(p.grad is None and not p.requires_grad for p in own.model.parameters())
    after = own.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(not torch.equal(p, start[name]) for name, p in made.named_parameters())


@for_each("method", "family")
def test_a_pass_without_gradient_leaves_no_trace(backbone, maker, settings, method, family):
    own, make, chosen = backbone(family), maker(family), settings[method]
    made, inputs = built(own, chosen), batch(make, chosen)
    before = gradients(own, made, inputs)
    with torch.no_grad():
        forward(own, inputs, prompts=[made()])
    with torch.inference_mode():
        loss_of(own, made, batch(make, chosen))
    after = gradients(own, made, inputs)
    assert all(torch.equal(before[name], after[name]) for name in before)


@contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def inner_part(model: nn.Module) -> nn.Module:
    """A module of the second layer that runs once per pass."""
    return next(
        module
        for name, module in model.named_modules()
        if re.search(r"\.(layer|layers|h|block)\.1\.", name)
        and not list(module.children())
        and list(module.parameters())
    )


@for_each("method", "family")
def test_gradient_checkpointing_changes_nothing(backbone, maker, settings, method, family):
    own, make, chosen = backbone(family), maker(family), settings[method]
    if not own.model.supports_gradient_checkpointing:
        assert family == "albert"
        return
    made, inputs = built(own, chosen).eval(), batch(make, chosen)
    loss, plain = loss_of(own, made, inputs).item(), gradients(own, made, inputs)
    with use_gradient_checkpointing(own, wanted=True), counting(inner_part(own.model)) as calls:
        own.model.train()
        again = loss_of(own, made, inputs).item()
        before = len(calls)
        checked = gradients(own, made, inputs)
        # Transformers makes embeddings require a gradient now; those of an initial prompt must not.
        assert not own.embed(make.words(3)).requires_grad
    assert len(calls) == 3 * before, "the layers were not run a second time"
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in plain.items():
        assert_close(checked[name], gradient, rtol=1e-4, atol=1e-6)


@for_each("method", "family")
def test_in_bf16_it_learns_in_the_same_direction(backbone, maker, settings, method, family):
    """With the backbone in bf16 and the method in fp32 the gradient is about that of fp32."""
    whole, half = backbone(family), backbone(family, torch.bfloat16)
    make, chosen = maker(family), settings[method]
    inputs = batch(make, chosen)
    made = built(whole, chosen)
    exact, rounded = gradients(whole, made, inputs), gradients(half, made, inputs)
    assert half.dtype == torch.bfloat16
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        assert gradient.any(), name
    one, two = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, rounded))
    assert torch.cosine_similarity(one, two, dim=0) > 0.97


@for_each("method")
def test_a_seed_decides_the_start(backbone, settings, method):
    own = backbone("gpt2")
    torch.manual_seed(1)
    first = built(own, settings[method]).state_dict()
    torch.manual_seed(2)
    again = built(own, settings[method]).state_dict()
    other = built(own, settings[method], seed=1).state_dict()
    assert first
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        is_constant = bool((tensor == 1).all())  # the matrix of a task
        assert torch.equal(tensor, other[name]) == is_constant
        assert tensor.dtype == torch.float32


@for_each("method")
def test_it_starts_at_what_it_was_given(backbone, settings, method):
    """Direct methods exactly, the others up to the error of the fit."""
    own, chosen = backbone("llama"), settings[method]
    start = FromText("the movie was great")
    direct = {"input": "prompt-tuning", "kv": "p-tuning-v2"}[chosen.prompt_kind]
    given = {"soft_length": SOFT, "init": start, "seed": 0}
    wanted = build_method(own, settings[direct], **given)().to_tensors()
    got = build_method(own, chosen, **given)()
    assert isinstance(got, InputPrompt if chosen.prompt_kind == "input" else KVPrefix)
    for name, tensor in got.to_tensors().items():
        error = (tensor - wanted[name]).pow(2).mean().sqrt() / wanted[name].pow(2).mean().sqrt()
        assert error <= (0 if chosen.is_direct else 0.15)


@for_each("method")
def test_its_settings_are_listed_under_its_name(settings, method):
    assert settings[method].name == method


@pytest.mark.parametrize("method", ["prefix-tuning", "p-tuning-v2"])
def test_keys_and_values_are_refused_where_they_cannot_enter(backbone, settings, method):
    own = backbone(REFUSED)
    with pytest.raises(PromptError) as error:
        built(own, settings[method])
    assert str(error.value) == (
        f"{method} trains keys and values, but {own.geometry.model_type} uses a custom attention "
        "implementation, so it accepts no key/value prefixes. Use prompt-tuning or p-tuning, or "
        "another backbone."
    )
