"""The geometry of each family is measured right, and the recorder sees every attention call."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from softprompt.backbone import make_example_inputs, wrap_model
from softprompt.backbone.hooks import Recorder, use_hook
from softprompt.errors import PromptError
from softprompt.injection import forward
from softprompt.methods import PTuningV2, build_method
from softprompt.methods.initializers import FromRandom
from softprompt.prompt import InputPrompt
from support.parametrize import for_each
from support.tiny_models import CONFIGS

# family: (kind, embedding width, width of the states, sites, heads, head size, positions, offset)
FACTS = {
    "bert": ("encoder", 32, 32, 2, 4, 8, 64, 0),
    "roberta": ("encoder", 32, 32, 2, 4, 8, 62, 2),  # two rows of its table are for padding
    "distilbert": ("encoder", 32, 32, 2, 4, 8, 64, 0),
    "electra": ("encoder", 16, 32, 2, 4, 8, 64, 0),
    "albert": ("encoder", 16, 32, 2, 4, 8, 64, 0),
    "modernbert": ("encoder", 32, 32, 2, 4, 8, 64, 0),
    "deberta_v2": ("encoder", 32, 32, 0, 0, 0, 64, 0),
    "gpt2": ("causal", 32, 32, 2, 4, 8, 64, 0),
    "opt": ("causal", 16, 16, 2, 4, 8, 64, 0),  # projected out again behind the layers
    "gpt_neox": ("causal", 32, 32, 2, 4, 8, 64, 0),
    "bloom": ("causal", 32, 32, 2, 4, 8, None, None),
    "llama": ("causal", 32, 32, 2, 2, 10, 64, 0),
    "mistral": ("causal", 32, 32, 2, 2, 10, 64, 0),
    "qwen3": ("causal", 32, 32, 2, 2, 10, 64, 0),
    "gemma3": ("causal", 32, 32, 2, 2, 10, 64, 0),
    "phi3": ("causal", 32, 32, 2, 2, 8, 64, 0),
    # two layers on either side: encoder, decoder and, in the decoder, cross-attention
    "t5": ("encoder-decoder", 32, 32, 6, 4, 6, None, None),
    "bart": ("encoder-decoder", 32, 32, 6, 4, 8, 64, None),
}
WINDOWS = {"mistral": 8, "gemma3": 8, "modernbert": 4}  # ModernBERT: half on either side


@for_each("family")
def test_the_geometry_of_a_family(backbone, family):
    g = backbone(family).geometry
    found = (
        g.architecture,
        g.embedding_size,
        g.hidden_size,
        g.num_attention_sites,
        g.num_kv_heads,
        g.head_dim,
        g.max_positions,
    )
    assert (*found, g.position_offset) == FACTS[family]
    assert g.vocab_size == 366
    assert g.sliding_window == WINDOWS.get(family)


@for_each("family")
def test_self_attention_sites(backbone, family):
    """T5 and BART call two layers of their encoder, then self- and cross-attention in turn."""
    g = backbone(family).geometry
    assert g.self_attention_sites == (
        (2, 4) if family in {"t5", "bart"} else tuple(range(g.num_attention_sites))
    )
    assert g.supports_position_shift


@for_each("family")
def test_the_rms_of_embeddings(backbone, family):
    """Gemma multiplies its embeddings by the root of the width, after the table."""
    own = backbone(family)
    rms = own.embed(torch.arange(own.geometry.vocab_size)).pow(2).mean().sqrt().item()
    assert own.geometry.embedding_rms == pytest.approx(rms, rel=1e-4)
    expected = 0.2 * (32**0.5 if family == "gemma3" else 1)
    assert rms == pytest.approx(expected, rel=0.05)


@for_each("family")
def test_embeddings_equal_the_models_own(backbone, plain, family):
    ids = torch.tensor([[5, 60, 300]])
    table = plain(family).get_input_embeddings()
    own = backbone(family).embed(ids)
    assert torch.equal(own, table(ids))
    assert not own.requires_grad


def test_albert_has_one_module_for_all_sites(backbone):
    assert list(backbone("albert").site_of.values()) == [(0, 1)]
    assert list(backbone("bert").site_of.values()) == [(0,), (1,)]


@for_each("kv")
def test_the_recorder_sees_every_site_once(backbone, kv):
    own, recorder = backbone(kv), Recorder()
    with torch.no_grad(), use_hook(recorder):
        own.compute_hidden_states(make_example_inputs(own))
    g = own.geometry
    assert len(recorder.calls) == g.num_attention_sites
    shapes = [(seen.key.shape, seen.value.shape) for _, seen in recorder.calls]
    assert shapes == [((1, g.num_kv_heads, 3, g.head_dim),) * 2] * g.num_attention_sites


def test_layers_of_different_shapes_take_no_prefix(tokenizer):
    """No prefix fits them all, but soft tokens among the inputs do."""
    model = LlamaForCausalLM(CONFIGS["llama"](head_dim=8))
    second = model.model.layers[1].self_attn
    second.k_proj, second.v_proj = (nn.Linear(32, 32, bias=False) for _ in range(2))
    second.num_key_value_groups = 1
    own = wrap_model("odd", model, tokenizer=tokenizer("causal"), kind="causal")
    assert own.geometry.limits.prefix == (
        "has attention layers of different shapes (2 heads of 8, 4 heads of 8)"
    )
    with pytest.raises(PromptError, match=r"different shapes .*, so it accepts no key/value pref"):
        build_method(own, PTuningV2(), soft_length=0, init=FromRandom(), seed=0)
    words = torch.tensor([70, 71, 72])
    soft = torch.cat([torch.arange(2) + own.geometry.vocab_size, words[2:]])
    prompt = InputPrompt(own.embed(words[:2]))
    found = forward(own, own.make_single_row(soft), prompts=[prompt])
    assert_close(found, forward(own, own.make_single_row(words), prompts=[None]))


@for_each("family")
def test_everything_is_frozen_and_in_eval_mode(backbone, family):
    model = backbone(family).model
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_special_ids(backbone):
    assert backbone("llama").eos_token_ids == (2,)
    assert backbone("llama").pad_token_id == 1
    assert backbone("t5").decoder_start_token_id == 1
    # An encoder has no generation settings; DistilBERT's config names no end either.
    assert backbone("distilbert").eos_token_ids == ()


def test_without_a_pad_token_the_pad_id_is_0(backbone, tokenizer):
    bare = tokenizer("causal")
    bare.pad_token = None
    assert replace(backbone("gpt2"), tokenizer=bare).pad_token_id == 0
