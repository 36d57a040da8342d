"""A model has the same fingerprint in every precision; other models have other fingerprints."""

from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing._internal.two_tensor import TwoTensor

from softprompt.backbone import is_same_model
from softprompt.backbone.fingerprint import compute_fingerprint, digest_tokenizer, digest_weights
from support.parametrize import for_each


def matrices(model) -> list[str]:
    return [name for name, p in model.base_model.named_parameters() if p.ndim == 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@for_each("family")
def test_precision_does_not_matter(new_model, tokenizer, family, dtype):
    words = tokenizer("causal")
    whole, half = new_model(family), new_model(family, dtype=dtype)
    assert compute_fingerprint(whole, words) == compute_fingerprint(half, words)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_too_small_for_a_precision_do_not_matter(new_model, tokenizer, dtype):
    words, model = tokenizer("causal"), new_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias.fill_(1e-9)
        model.transformer.h[0].attn.c_attn.weight.mul_(1e-8)
    before = compute_fingerprint(model, words)
    assert compute_fingerprint(model.to(dtype), words) == before


def test_a_little_training_of_any_matrix_matters(new_model, tokenizer):
    words, model = tokenizer("causal"), new_model("llama")
    seen = {compute_fingerprint(model, words)}
    generator = torch.Generator().manual_seed(0)
    for name in matrices(model):
        parameter = model.base_model.get_parameter(name)
        noise = torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.05
        with torch.no_grad():
            parameter += noise
        seen.add(compute_fingerprint(model, words))
    assert len(seen) == 1 + len(matrices(model))


def test_another_tokenizer_matters(new_model, tokenizer):
    model = new_model("llama")
    marks = {compute_fingerprint(model, tokenizer(kind)) for kind in ("causal", "encoder")}
    assert len(marks) == 2
    assert not is_same_model(*marks)


def test_another_size_or_family_matters(backbone):
    families = ("bert", "gpt2", "t5", "albert", "qwen3", "gemma3")
    assert len({backbone(family).fingerprint for family in families}) == len(families)


@pytest.mark.parametrize("family", ["llama", "t5", "gpt_neox", "opt"])
def test_the_embedding_table_is_in_the_stable_part(new_model, tokenizer, family):
    """T5 calls its table `shared`, GPT-NeoX `embed_in`."""
    words, model = tokenizer("causal"), new_model(family)
    before = compute_fingerprint(model, words)
    with torch.no_grad():
        model.get_input_embeddings().weight.neg_()
    stable, _, _ = compute_fingerprint(model, words).partition("-")
    assert stable != before.partition("-")[0]


def test_matrices_replaced_by_quantization_are_not_compared(new_model, tokenizer):
    words, model = tokenizer("causal"), new_model("llama")
    exact = compute_fingerprint(model, words)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    packed = compute_fingerprint(model, words)
    assert packed == f"{exact.partition('-')[0]}-quantized"
    assert is_same_model(exact, packed)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a-1", "a-1", True),
        ("a-1", "a-2", False),
        ("a-1", "b-1", False),
        ("a-quantized", "a-2", True),
        ("a-1", "a-quantized", True),
        ("a-quantized", "b-quantized", False),
    ],
)
def test_same_model(first, second, same):
    assert is_same_model(first, second) is same


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bit_of_any_weight_changes_the_digest(data, new_model):
    model = new_model(data.draw(st.sampled_from(("llama", "bert", "t5"))), dtype=torch.bfloat16)
    before = digest_weights(model)
    parameters = [*model.parameters()]
    chosen = parameters[data.draw(st.integers(0, len(parameters) - 1))]
    raw = chosen.data.view(torch.int16).view(-1)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 14))
    assert digest_weights(model) != before


def test_the_digest_depends_on_weights_and_settings_but_not_on_the_name(new_model):
    model, twin = new_model("llama"), new_model("llama")
    twin.config._name_or_path = "elsewhere"
    assert digest_weights(twin) == digest_weights(model)
    twin.config.rms_norm_eps *= 2
    assert digest_weights(twin) != digest_weights(model)


def test_any_change_of_a_tokenizer_changes_its_digest(tokenizer):
    usual = tokenizer("causal")
    one_more, other_end = deepcopy(usual), deepcopy(usual)
    one_more.add_tokens(["unheard-of"])
    other_end.eos_token = "film"  # noqa: S105  # no password
    marks = {digest_tokenizer(t) for t in (usual, one_more, other_end, tokenizer("encoder"))}
    assert len(marks) == 4
    assert digest_tokenizer(deepcopy(usual)) == digest_tokenizer(usual)


def test_the_digest_covers_tensors_inside_tensor_subclasses(new_model):
    """Such as torchao's."""
    model = new_model("llama")
    layer = model.base_model.layers[0].mlp.up_proj
    found = set()
    for factor in (1, 2, 1):
        plain = layer.weight.data
        layer.weight = torch.nn.Parameter(TwoTensor(plain, plain * factor), requires_grad=False)
        found.add(digest_weights(model))
        layer.weight = torch.nn.Parameter(plain, requires_grad=False)
    assert len(found) == 2
