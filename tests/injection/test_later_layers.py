"""Soft tokens that enter at a later layer are invisible to the layers below it."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import PromptError
from softprompt.injection import forward, to_kv_prefix
from softprompt.injection.row_prompts import CachedInput
from softprompt.injection.state_cache import compute_states
from softprompt.prompt import InputPrompt
from support.parametrize import for_each
from support.tiny_models import REFUSED

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LAYER = 1


def block(own, plain, layer: int):
    """The layer of the plain model that has the same name as in ours."""
    names = {module: name for name, module in own.model.named_modules()}
    module = next(m for m, numbers in own.layer_of.items() if layer in numbers)
    return plain.get_submodule(names[module])


def passed(own, plain, inputs, *, mask, change, layer: int = LAYER):
    """The last states of transformers' own model, with ``change`` applied to a layer's input."""
    calls = []
    shared = len(own.layer_of) < own.geometry.num_layers  # ALBERT calls one module for every layer

    def enter(_module, args):
        calls.append(args[0])
        if not shared or len(calls) == layer + 1:
            return (change(args[0]), *args[1:])
        return None

    ids = inputs.input_ids.where(inputs.input_ids < own.geometry.vocab_size, 7)
    given = {"attention_mask": mask}
    offset = own.geometry.position_offset
    if offset is not None:
        given["position_ids"] = (torch.arange(ids.shape[1]) + offset).expand_as(ids)
    hook = block(own, plain, layer).register_forward_pre_hook(enter)
    if own.geometry.model_type == "bloom":  # its positions follow from the mask only
        body = plain.base_model
        body.build_alibi_tensor = lambda mask, *rest, **more: type(body).build_alibi_tensor(
            body, torch.ones_like(mask), *rest, **more
        )
    try:
        if inputs.decoder_input_ids is None:
            return plain.base_model(input_ids=ids, **given)[0]
        states = plain.get_encoder()(input_ids=ids, attention_mask=mask)[0]
        return plain.get_decoder()(
            input_ids=inputs.decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones_like(mask),
        )[0]
    finally:
        hook.remove()
        vars(plain.base_model).pop("build_alibi_tensor", None)


@torch.no_grad()
@for_each("kv")
def test_it_is_the_plain_model_in_two_halves(backbone, plain, maker, kv):
    """Below the layer the soft tokens are masked; from it on they are visible, as their vectors."""
    own, make = backbone(kv), maker(kv)
    prompt = make.late_prompt(3, layer=LAYER)
    inputs = make.batch(make.rows("input", 9, length=3)[0])
    soft = inputs.input_ids >= own.geometry.vocab_size
    below = []
    passed(own, plain(kv), inputs, mask=(~soft).long(), change=lambda s: below.append(s) or s)
    entered = below[0].clone()
    entered[soft] = prompt.vectors
    whole = torch.ones_like(inputs.attention_mask)
    wanted = passed(own, plain(kv), inputs, mask=whole, change=lambda _: entered)
    assert_close(forward(own, inputs, prompts=[prompt]), wanted, **CLOSE)


@pytest.mark.parametrize("causal", ["gpt2", "opt", "gpt_neox", "llama", "mistral", "gemma3"])
def test_words_that_enter_as_they_would_stand_change_nothing(backbone, maker, causal):
    """At the end of a causal row no other state depends on them."""
    own, make = backbone(causal), maker(causal)
    row = make.words(9)
    words = make.batch(row)
    states = compute_states(own, words, layer=LAYER, prompt=None)
    prompt = InputPrompt(states[0, 6:], LAYER)
    row = torch.cat([row[:6], make.soft(3)])
    found = forward(own, make.batch(row), prompts=[prompt])
    assert_close(found, forward(own, words, prompts=[None]), **CLOSE)


@for_each("kv")
def test_given_states_are_those_that_would_be_computed(backbone, maker, kv):
    own, make = backbone(kv), maker(kv)
    for shape in ("late", "kv"):
        prompt = make.prompt(shape)
        if shape == "kv":
            prompt = make.prefix(layers=tuple(range(LAYER, own.geometry.num_attention_sites)))
        prompt = prompt.map_tensors(lambda t: t.requires_grad_())
        inputs = make.batch(*make.rows(shape, 9, 6))
        whole = forward(own, inputs, prompts=[prompt])
        states = compute_states(own, inputs, layer=LAYER, prompt=prompt)
        found = forward(own, inputs, prompts=[prompt], cached=CachedInput(LAYER, states))
        real = ... if make.decodes else inputs.attention_mask.bool()
        assert_close(found[real], whole[real], **CLOSE)
        leaves = list(prompt.to_tensors().values())
        once = torch.autograd.grad(found[real].square().sum(), leaves)
        again = torch.autograd.grad(whole[real].square().sum(), leaves)
        assert all(g.any() for g in again)
        assert_close(once, again, rtol=1e-4, atol=1e-4)


@for_each("kv")
def test_the_layers_below_are_not_run(backbone, maker, kv):
    """T5's and BLOOM's first layers are: later layers use their other outputs."""
    own, make = backbone(kv), maker(kv)
    prompt, inputs = make.late_prompt(), make.batch(*make.rows("late", 9, 6))
    given = CachedInput(LAYER, compute_states(own, inputs, layer=LAYER, prompt=prompt))
    calls = []
    first = next(module for module, sites in own.site_of.items() if 0 in sites)
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    try:
        forward(own, inputs, prompts=[prompt], cached=given)
    finally:
        hook.remove()
    assert len(calls) == (1 if kv in {"t5", "albert", "bloom"} else 0)


@pytest.mark.parametrize(
    ("family", "layer", "message"),
    [
        (
            REFUSED,
            1,
            "soft tokens cannot enter roformer at layer 1: it uses a custom attention",
        ),
        ("llama", 2, "soft tokens cannot enter at layer 2: llama has the layers 0 to 1."),
    ],
)
def test_where_they_cannot_enter(backbone, maker, family, layer, message):
    own, make = backbone(family), maker(family)
    prompt = InputPrompt(torch.zeros(3, 32), layer)
    with pytest.raises(PromptError) as error:
        forward(own, make.batch(make.rows("input", 6)[0]), prompts=[prompt])
    assert message in str(error.value)


def test_vectors_of_another_width_are_refused(backbone, maker):
    own, make = backbone("llama"), maker("llama")
    with pytest.raises(PromptError) as error:
        forward(
            own, make.batch(make.rows("input", 6)[0]), prompts=[InputPrompt(torch.zeros(3, 8), 1)]
        )
    assert "8 wide, but llama has hidden states of 32" in str(error.value)


def test_it_cannot_be_baked(backbone, maker):
    own, make = backbone("llama"), maker("llama")
    with pytest.raises(PromptError) as error:
        to_kv_prefix(own, make.late_prompt(), head=make.soft(3))
    assert "enters at layer 1 cannot be baked" in str(error.value)
