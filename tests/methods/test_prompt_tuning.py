"""Prompt tuning and P-tuning v2: the prompt itself is the parameter."""

import pytest
import torch

from softprompt.methods import PrefixTuning, PromptTuning, PTuningV2, build_method
from softprompt.methods.initializers import FromPrompt, FromRandom, FromText
from support.parametrize import for_each


def made(backbone, settings, initial, *, length: int = 3, seed: int = 0):
    return build_method(backbone, settings, soft_length=length, init=initial, seed=seed)


def test_prompt_tuning_is_the_identity(backbone):
    own = backbone("gpt2")
    method = made(own, PromptTuning(), FromText("a good movie"))
    ids = own.tokenizer("a good movie", add_special_tokens=False)["input_ids"]
    (name,) = dict(method.named_parameters())
    assert name == "vectors"
    assert method().vectors is method.vectors
    assert torch.equal(method.vectors, own.embed(torch.tensor(ids[:3])))


@for_each("kv")
def test_p_tuning_v2_is_the_identity(backbone, maker, kv):
    prefix = maker(kv).prefix(4)
    method = made(backbone(kv), PTuningV2(length=4), FromPrompt(prefix))
    assert sorted(dict(method.named_parameters())) == ["keys", "values"]
    assert torch.equal(method().keys, prefix.keys)
    assert torch.equal(method().values, prefix.values)
    assert method().sites == prefix.sites


def test_training_does_not_reach_the_start(backbone, maker):
    """The parameters are copies: the initial prompt does not change."""
    prefix = maker("llama").prefix(4)
    keys = prefix.keys.clone()
    method = made(backbone("llama"), PTuningV2(length=4), FromPrompt(prefix))
    with torch.no_grad():
        method.keys += 1
    assert torch.equal(prefix.keys, keys)


@pytest.mark.parametrize(
    "settings", [PTuningV2(length=4), PrefixTuning(length=4, encoder_hidden_size=4)]
)
@pytest.mark.parametrize("shifted", [True, False])
def test_positions_stay_where_the_start_has_them(backbone, maker, settings, shifted):
    start = FromPrompt(maker("llama").prefix(4, shift_positions=shifted))
    assert made(backbone("llama"), settings, start)().shift_positions is shifted


def test_p_tuning_v2_on_some_layers(backbone, maker):
    prefix = maker("t5").prefix(2)
    method = made(backbone("t5"), PTuningV2(length=2, layers="-2:"), FromPrompt(prefix))
    assert method().sites == (4, 5)
    assert torch.equal(method().keys, prefix.keys[4:])


def test_p_tuning_v2_drops_if_asked(backbone):
    method = made(backbone("gpt2"), PTuningV2(length=50, prefix_dropout=0.5), FromRandom())
    method.train()
    keys = method().keys
    assert ((keys == 0) | torch.isclose(keys, 2 * method.keys)).all()
    assert (keys == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    method.eval()
    assert torch.equal(method().keys, method.keys)
