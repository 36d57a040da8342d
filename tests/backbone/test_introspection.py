"""The geometry of each family is measured right, and the recorder sees every attention call."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from softprompt.backbone import make_example_inputs, wrap_model
from softprompt.backbone.hooks import Recorder, use_hook
from softprompt.errors import ArtifactError
from softprompt.injection import forward, to_kv_prefix
from softprompt.injection.prefix_sharing import RowSplit, run_split
from softprompt.injection.state_cache import compute_states
from softprompt.interop.kv_layout import unpack_kv
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
    "deberta_v2": ("encoder", 32, 32, 2, 4, 8, 64, 0),
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
    # DeBERTa's scores by relative position depend on the prefix itself.
    assert g.supports_position_shift == (family != "deberta_v2")


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


@pytest.fixture
def uneven(tokenizer):
    """Two layers, with two heads and with four; the values of the first are read in part."""
    model = LlamaForCausalLM(CONFIGS["llama"](head_dim=8))
    second = model.model.layers[1].self_attn
    second.k_proj, second.v_proj = (nn.Linear(32, 32, bias=False) for _ in range(2))
    second.num_key_value_groups = 1
    return wrap_model("odd", model, tokenizer=tokenizer("causal"), kind="causal")


def test_layers_of_different_shapes_read_their_part_of_a_prefix(uneven):
    """Baked words are these words; what a layer has no room for is zero, and never read."""
    g = uneven.geometry
    assert (g.num_kv_heads, g.head_dim) == (4, 8)
    assert g.site_shapes == ((2, 8, 8), (4, 8, 8))
    words, row = torch.tensor([70, 71, 72]), torch.tensor([73, 74])
    soft = torch.arange(3) + g.vocab_size
    prefix = to_kv_prefix(uneven, InputPrompt(uneven.embed(words)), head=soft)
    assert prefix.keys.shape == prefix.values.shape == (2, 4, 3, 8)
    assert not prefix.keys[0, 2:].any()
    whole = forward(uneven, uneven.make_single_row(torch.cat([words, row])), prompts=[None])
    inputs = uneven.make_single_row(row)
    assert_close(forward(uneven, inputs, prompts=[prefix]), whole[:, 3:])
    garbage = prefix.map_tensors(torch.clone)
    garbage.keys[0, 2:], garbage.values[0, 2:] = 7, 7
    found = forward(uneven, inputs, prompts=[garbage])
    assert torch.equal(found, forward(uneven, inputs, prompts=[prefix]))


def test_kept_keys_and_values_of_different_shapes(uneven):
    """They are one vector per token in a file, and of each layer's own shape when they are used."""
    row = torch.tensor([70, 71, 72, uneven.geometry.vocab_size, 73])
    prompt = InputPrompt(uneven.embed(torch.tensor([80])))
    states = compute_states(uneven, uneven.make_single_row(row[:3]), layer=None, prompt=None)
    assert states.shape == (1, 3, 2 * 2 * 4 * 8)
    split = RowSplit((3,), shared=False, prompt=prompt, states=states)
    whole = forward(uneven, uneven.make_single_row(row), prompts=[prompt])
    assert_close(run_split(uneven, [row.tolist()], split=split), whole[:, 3:])


def test_a_random_prefix_is_zero_where_no_layer_reads_it(uneven):
    prompt = build_method(uneven, PTuningV2(), soft_length=0, init=FromRandom(), seed=0)()
    assert not prompt.keys[0, 2:].any()
    assert prompt.keys[0, :2].any()


def test_rows_of_one_shape_cannot_hold_layers_of_two(uneven):
    with pytest.raises(ArtifactError, match="llama differ in shape, but this format has one shape"):
        unpack_kv(torch.zeros(3, 2 * 2 * 4 * 8), uneven)


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
