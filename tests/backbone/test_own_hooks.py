"""Families whose attention does not use transformers' interface: what a prefix is in them."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from softprompt import BatchInputs, InputPrompt, KVPrefix, forward, load_backbone
from softprompt.injection.capture import observe_attention
from softprompt.injection.state_cache import compute_keys_and_values
from softprompt.train.accelerator import use_gradient_checkpointing

HERE = Path(__file__).parents[2] / "benchmarks" / "families"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FALCON = {
    "multi-query": {"multi_query": True},
    "heads": {"multi_query": False, "num_kv_heads": 4},
    "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
}
RELATIVE = {"relative_attention": True, "position_biased_input": False}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a tiny random model of a family, with settings of its configuration."""
    monkeypatch.syspath_prepend(HERE)
    build = import_module("build")

    def make(family, change=None, **settings):
        monkeypatch.setitem(build.OWN, family, build.OWN.get(family, {}) | settings)
        model = build.build(family)
        if change is not None:
            change(model)
        model.save_pretrained(tmp_path)
        build.make_tokenizer().save_pretrained(tmp_path)
        return load_backbone(tmp_path, dtype="float32", device="cpu")

    yield make
    sys.modules.pop("build")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_prefix(own, length=3):
    g = own.geometry
    shape = (g.num_attention_sites, g.num_kv_heads, length, g.head_dim)
    return KVPrefix(draw(*shape), draw(*shape, seed=1), tuple(range(g.num_attention_sites)))


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("kind", FALCON)
def test_words_in_front_of_a_falcon(load, tmp_path, kind, alibi):
    """Keys and values of words, with positions, are those words, also with padding before a row.

    The right states are those of transformers' fused attention: its eager one adds alibi twice.
    """
    own = load("falcon", alibi=alibi, **FALCON[kind])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    words, rows = (
        torch.tensor([80, 90, 100]),
        [torch.tensor([101, 102, 99, 98, 97]), torch.tensor([70, 71])],
    )
    captured = compute_keys_and_values(own, own.make_single_row(words))
    keys, values = (torch.cat([pair[i] for pair in captured]) for i in range(2))
    prefix = KVPrefix(keys, values, tuple(range(len(keys))), shift_positions=True)
    ids = torch.tensor([rows[0].tolist(), [1, 1, 1, *rows[1].tolist()]])
    mask = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    with torch.no_grad():
        found = forward(own, BatchInputs(ids, mask), prompts=[prefix])
        for row, states in zip(rows, found, strict=True):
            whole = plain.transformer(torch.cat([words, row])[None]).last_hidden_state[0, 3:]
            assert_close(states[-len(row) :], whole, **CLOSE)


FAMILIES = (
    "bloom",
    "codegen",
    "deberta",
    "deberta-v2",
    "falcon",
    "gpt_neo",
    "gptj",
    "mpt",
    "stablelm",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_keeps_the_prefix(load, family):
    """A layer that is run again has the same prefix, though the pass has ended."""
    own = load(family)
    prefix, row = make_prefix(own), own.make_single_row(torch.arange(60, 69))
    tensors, found = (prefix.keys.requires_grad_(), prefix.values.requires_grad_()), []
    for wanted in (False, True):
        with use_gradient_checkpointing(own, wanted=wanted):
            own.model.train(wanted)
            states = forward(own, row, prompts=[prefix])
            found.append(torch.autograd.grad(states.pow(3).sum(), tensors))
    assert_close(found[1], found[0])


def read_bias(own, row, prompt):
    """The summands of the scores in the first layer."""
    calls = []
    observe_attention(own, row, prompt=prompt, callback=lambda _, call: calls.append(call))
    return calls[0].bias


@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_a_prefix_of_deberta_has_no_scores_by_position(load, family):
    own = load(family, **RELATIVE)
    row = own.make_single_row(torch.arange(60, 69))
    bare = read_bias(own, row, InputPrompt(torch.zeros(1, 64)))
    found = read_bias(own, row, make_prefix(own))
    assert bare.std() > 0.01
    assert torch.equal(found[..., 3:], bare)
    assert not found[..., :3].any()


def forget_positions(model):
    """Set the scores by relative position to zero; the products are still divided as with them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_embeddings" in name or ("pos_" in name and "bias" in name):
                parameter.zero_()


@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_content_in_front_of_a_deberta(load, family):
    """Keys and values of words that stand in a row act like these words, but for positions."""
    own = load(family, forget_positions, **RELATIVE)
    whole = own.make_single_row(torch.arange(60, 69))
    pairs = compute_keys_and_values(own, whole)
    keys, values = (torch.cat([pair[i][:, :, :4] for pair in pairs]) for i in range(2))
    prefix = KVPrefix(keys, values, tuple(range(len(pairs))))
    rest = replace(whole, input_ids=whole.input_ids[:, 4:], attention_mask=torch.ones(1, 5).long())
    with torch.no_grad():
        expected = forward(own, whole, prompts=[None])[:, 4:]
        assert_close(forward(own, rest, prompts=[prefix]), expected, **CLOSE)


def test_the_longest_row_of_an_mpt(load):
    """Its table of distances has one row for each of these positions."""
    assert load("mpt").geometry.max_positions == 128
