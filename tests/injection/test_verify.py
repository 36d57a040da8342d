"""A backbone on which prompts have no effect is refused, and the message names the part."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM

from softprompt.backbone import make_example_inputs, wrap_model
from softprompt.backbone.devices import choose_dtype, select_device
from softprompt.errors import BackboneError, PromptError
from softprompt.injection import forward, load_backbone, verify_backbone
from softprompt.injection.verify import _compute_gradients
from softprompt.methods import PTuningV2, build_method
from softprompt.methods.initializers import FromRandom
from softprompt.prompt import InputPrompt
from softprompt.recipe import BackboneConfig
from softprompt.train.recipe_backbone import load_recipe_backbone
from support.parametrize import for_each


def message(own) -> str:
    with pytest.raises(BackboneError) as error:
        verify_backbone(own)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@for_each("family")
def test_every_family_passes(backbone, family, dtype):
    verify_backbone(backbone(family, dtype))


@for_each("family")
def test_verifying_leaves_no_trace(backbone, family):
    own = backbone(family)
    before = forward(own, make_example_inputs(own), prompts=[None])
    verify_backbone(own)
    assert torch.equal(forward(own, make_example_inputs(own), prompts=[None]), before)
    assert all(p.grad is None for p in own.model.parameters())


def test_also_under_no_grad(backbone):
    with torch.no_grad():
        verify_backbone(backbone("llama"))


def expect_soft_tokens_alone(own, fact) -> None:
    """Prefixes are refused by name, and soft tokens among the inputs still work."""
    narrow = verify_backbone(own)
    assert narrow.geometry.limits.prefix == f"has attention layers in which a prefix {fact}"
    assert narrow.geometry.num_attention_sites == 0
    with pytest.raises(PromptError, match=f"{fact}, so it accepts no key/value prefixes"):
        build_method(narrow, PTuningV2(), soft_length=0, init=FromRandom(), seed=0)
    ids = torch.tensor([70, 71, 72])
    soft = torch.cat([torch.arange(2) + own.geometry.vocab_size, ids[2:]])
    prompt = InputPrompt(own.embed(ids[:2]))
    found = forward(narrow, own.make_single_row(soft), prompts=[prompt])
    assert_close(found, forward(narrow, own.make_single_row(ids), prompts=[None]))


def test_an_attention_that_ignores_prefixes(new_backbone):
    own = new_backbone("llama")
    for module in own.model.modules():
        module._forward_pre_hooks.clear()
    expect_soft_tokens_alone(own, "does not change the output")


def test_one_layer_that_ignores_prefixes(new_backbone):
    own = new_backbone("bert")
    first = dict(list(own.site_of.items())[:1])
    expect_soft_tokens_alone(replace(own, site_of=first), "receives no gradient at its keys")


def test_a_table_that_ignores_vectors(new_backbone):
    own = new_backbone("gpt2")
    own.input_embeddings.forward = lambda ids: torch.nn.functional.embedding(
        ids.clamp(max=own.geometry.vocab_size - 1), own.input_embeddings.weight
    )
    assert "a random InputPrompt receives no gradient at its vectors" in message(own)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@for_each("family")
def test_states_that_are_not_finite(new_backbone, family, number):
    """One damaged number in a table reaches all that attend to its token."""
    own = new_backbone(family)
    with torch.no_grad():
        own.input_embeddings.weight[make_example_inputs(own).input_ids[0]] = number
    assert message(own) == (
        f"backbone {family!r} ({own.geometry.model_type}) computes states that are NaN or infinite "
        'from a few tokens, in float32. Load it in another dtype (backbone.dtype = "float32" in a '
        "recipe). If they are not finite there either, its files are damaged: fetch it again."
    )


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda t: t * 0 + t.detach()])
def test_a_gradient_that_is_cut(new_backbone, cut):
    """Cut completely, as by no_grad in a model's code, or multiplied by zero."""
    own = new_backbone("llama")
    own.model.model.layers[0].register_forward_hook(lambda _module, _args, output: cut(output))
    assert "a random InputPrompt receives no gradient at its vectors" in message(own)


def test_a_new_layer_norm_hides_no_gradient(tokenizer):
    """Squares after a LayerNorm of ones add up to a constant, whose gradient is rounding error."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=366,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    own = wrap_model(
        "fresh", BertForMaskedLM(config), tokenizer=tokenizer("encoder"), kind="encoder"
    )
    inputs, vectors = make_example_inputs(own), torch.randn(2, 32, requires_grad=True)
    inputs.input_ids[0, :2] = torch.arange(2) + 366
    states = forward(own, inputs, prompts=[InputPrompt(vectors * own.geometry.embedding_rms)])
    (found,) = _compute_gradients(states, [vectors])
    assert found.abs().max() > 1e-2


def test_loading_verifies(saved, monkeypatch):
    folder = saved("gpt2")
    monkeypatch.setattr("softprompt.backbone.hooks._embed", lambda table, ids: table(ids % 366))
    with pytest.raises(
        BackboneError, match="failed verification: a random InputPrompt receives no grad"
    ):
        load_backbone(str(folder), dtype="float32", device="cpu")


def test_the_defaults_are_those_of_a_recipe(saved):
    """The defaults in Python and in a recipe are the same: the best of this machine."""
    folder = str(saved("llama"))
    own, of_recipe = load_backbone(folder), load_recipe_backbone(BackboneConfig(name=folder))
    best = select_device()
    assert own.device.type == of_recipe.device.type == torch.device(best).type
    assert own.dtype == of_recipe.dtype == choose_dtype("auto", best)
    assert own.dropout is of_recipe.dropout is False


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_precision_by_its_name_or_as_torch_has_it(saved, dtype):
    assert load_backbone(str(saved("gpt2")), dtype=dtype, device="cpu").dtype == torch.bfloat16


def test_without_a_precision_it_is_the_checkpoints(saved, new_model):
    half = saved("gpt2", new_model("gpt2", dtype=torch.bfloat16))
    assert load_backbone(str(half), dtype=None, device="cpu").dtype == torch.bfloat16
    whole = saved("llama")
    assert load_backbone(str(whole), dtype=None, device="cpu").dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dtype": "float31"},
            (
                "unknown dtype 'float31'. Options: auto, bfloat16, float16, float32. "
                "Did you mean 'float32'?"
            ),
        ),
        (
            {"dtype": torch.int8},
            "unknown dtype 'int8'. Options: auto, bfloat16, float16, float32.",
        ),
        ({"device": "cpv"}, "unknown device 'cpv'. Options: auto, cpu. Did you mean 'cpu'?"),
        (
            {"device": torch.device("cuda:1")},
            "device 'cuda:1' is not on this machine. It has: cpu. Give one of these, or 'auto'.",
        ),
    ],
)
def test_misspelt_options_are_reported_before_anything_is_read(monkeypatch, given, message):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(BackboneError) as caught:
        load_backbone("there is no such folder", **given)
    assert str(caught.value) == message


def test_dropout_is_kept_when_asked(saved, new_model):
    folder = str(saved("bert", new_model("bert", dropout=True)))
    assert not load_backbone(folder, device="cpu").dropout
    assert load_backbone(folder, device="cpu", keep_dropout=True).dropout


def test_loading_is_logged_and_prints_nothing(saved, caplog, capsys):
    folder = str(saved("llama"))
    capsys.readouterr()
    with caplog.at_level(logging.INFO, logger="softprompt"):
        load_backbone(folder, dtype="float32", device="cpu")
    said = f"loaded {folder} (llama, causal) in torch.float32 on cpu"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert capsys.readouterr() == ("", "")
