"""A backbone that does not listen is refused at load, with the part that is deaf."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from softprompt.backbone import example, wrap
from softprompt.errors import BackboneError
from softprompt.injection import load_backbone, prove, run
from softprompt.injection.load import _gradients
from softprompt.prompt import InputPrompt


def message(own) -> str:
    with pytest.raises(BackboneError) as error:
        prove(own)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_listens(backbone, family, dtype):
    prove(backbone(family, dtype))


def test_proving_leaves_no_trace(backbone, family):
    own = backbone(family)
    before = run(own, example(own), prompts=[None])
    prove(own)
    assert torch.equal(run(own, example(own), prompts=[None]), before)
    assert all(p.grad is None for p in own.model.parameters())


def test_also_where_no_gradient_is_wanted(backbone):
    with torch.no_grad():
        prove(backbone("llama"))


def test_an_attention_that_ignores_prefixes(new_backbone):
    own = new_backbone("llama")
    for module in own.model.modules():
        module._forward_pre_hooks.clear()
    assert message(own) == (
        "backbone 'llama' (llama) does not listen: a random KVPrefix changes nothing in its "
        "output, so training could not work. Choose another backbone, or report its family."
    )


def test_one_layer_that_ignores_prefixes(new_backbone):
    own = new_backbone("bert")
    first = dict(list(own.site_of.items())[:1])
    assert "a random KVPrefix gets no gradient at its keys" in message(replace(own, site_of=first))


def test_a_table_that_ignores_vectors(new_backbone):
    own = new_backbone("gpt2")
    own.table.forward = lambda ids: torch.nn.functional.embedding(
        ids.clamp(max=own.geometry.vocabulary - 1), own.table.weight
    )
    assert "a random InputPrompt gets no gradient at its vectors" in message(own)


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda t: t * 0 + t.detach()])
def test_a_gradient_that_is_cut(new_backbone, cut):
    """Wholly, as under no_grad inside a model's code, or multiplied away."""
    own = new_backbone("llama")
    own.model.model.layers[0].register_forward_hook(lambda _module, _args, output: cut(output))
    assert "a random InputPrompt gets no gradient at its vectors" in message(own)


def test_a_fresh_normalisation_hides_no_gradient(tokenizer):
    """The squares behind a LayerNorm of ones add up to a constant: a gradient of rounding only."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=366,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    own = wrap("fresh", BertForMaskedLM(config), tokenizer=tokenizer("encoder"), kind="encoder")
    inputs, vectors = example(own), torch.randn(2, 32, requires_grad=True)
    inputs.ids[0, :2] = torch.arange(2) + 366
    states = run(own, inputs, prompts=[InputPrompt(vectors * own.geometry.embedding_rms)])
    (found,) = _gradients(states, [vectors])
    assert found.abs().max() > 1e-2


def test_loading_proves(saved, monkeypatch):
    folder = saved("gpt2")
    monkeypatch.setattr("softprompt.backbone.seam._embed", lambda table, ids: table(ids % 366))
    with pytest.raises(BackboneError, match="does not listen: a random InputPrompt gets no grad"):
        load_backbone(str(folder))
