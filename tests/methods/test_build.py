"""Building a method: the selection of layers, and the error of a warm start."""

import pytest
import torch

from softprompt.errors import PromptError
from softprompt.methods import (
    METHODS,
    PrefixTuning,
    PTuning,
    build_method,
    parse_layers,
    warm_start,
)
from softprompt.methods.initializers import FromText
from softprompt.prompt import InputPrompt, KVPrefix
from support.parametrize import for_each


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", range(24)),
        (":", range(24)),
        ("12:", range(12, 24)),
        (":6", range(6)),
        ("3:9", range(3, 9)),
        ("-4:", range(20, 24)),
        (":-20", range(4)),
        ("20::2", (20, 22)),
    ],
)
def test_layers_by_name(text, expected):
    assert parse_layers(text, 24) == tuple(expected)


@pytest.mark.parametrize(
    "text", ["24:", "9:3", "", "last", "3", "a:b", "1:2:3:4", "::-1", "::0", "all:", "-30:-25"]
)
def test_layers_that_are_none(text):
    with pytest.raises(PromptError) as error:
        parse_layers(text, 24)
    assert str(error.value) == (
        f'layers = {text!r} names none of the 24 layers of this backbone. Write "all", or a slice '
        'from 0 to 24, such as "12:".'
    )


def test_the_list_is_by_name():
    assert list(METHODS) == ["prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2"]
    assert all(settings.name == name for name, settings in METHODS.items())


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_an_encoder_of_vectors_reaches_its_target(backbone, encoder):
    geometry = backbone("gpt2").geometry
    target = InputPrompt(torch.randn(5, 32, generator=torch.Generator().manual_seed(3)) * 0.2)
    settings = PTuning(encoder=encoder, encoder_hidden_size=32)
    method = settings.build(geometry, target, generator=torch.Generator().manual_seed(0))
    left = warm_start(method, target)
    assert left < 0.01
    error = (method().vectors - target.vectors).pow(2).mean().sqrt()
    assert error / target.vectors.pow(2).mean().sqrt() < 0.01
    assert all(p.grad is None for p in method.parameters())


def test_the_error_that_is_left_is_what_it_says(backbone, maker):
    """Relative root mean square over keys and values together, before the last step."""
    target: KVPrefix = maker("llama").prefix(4)
    settings = PrefixTuning(length=4, encoder_hidden_size=64)
    generator = torch.Generator().manual_seed(0)
    method = settings.build(backbone("llama").geometry, target, generator=generator)
    before = method()
    left = warm_start(method, target, steps=1)
    wrong = (before.keys - target.keys).pow(2).mean() + (before.values - target.values).pow(
        2
    ).mean()
    scale = target.keys.pow(2).mean() + target.values.pow(2).mean()
    assert left == pytest.approx((wrong / scale).sqrt().item(), rel=1e-5)
    assert warm_start(method, target) < 0.02


def test_a_fit_also_where_no_gradient_is_wanted(backbone):
    with torch.no_grad():
        method = build_method(
            backbone("gpt2"),
            PTuning(encoder="mlp", encoder_hidden_size=16),
            soft_length=2,
            init=FromText("good"),
            seed=0,
        )
    wanted = backbone("gpt2").embed(torch.tensor(backbone("gpt2").tokenizer("good")["input_ids"]))
    assert wanted.isfinite().all()
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("made", [METHODS["prompt-tuning"], PTuning])
class TestLateSoftTokens:
    def build(self, own, made, layers: str):
        settings = made(layers=layers)
        start = FromText("the movie was great")
        return build_method(own, settings, soft_length=4, init=start, seed=0)

    @for_each("kv")
    def test_they_enter_at_the_first_selected_layer(self, backbone, made, kv):
        own = backbone(kv)
        prompt = self.build(own, made, "1:")()
        assert prompt.start_layer == 1
        assert prompt.vectors.shape == (4, own.geometry.layer_width)

    def test_once_in_they_stay(self, backbone, made):
        with pytest.raises(PromptError) as error:
            self.build(backbone("llama"), made, ":1")
        assert "layers = ':1' leaves out some of the backbone's 2 layers" in str(error.value)

    def test_a_backbone_with_its_own_attention_is_refused(self, backbone, made):
        with pytest.raises(PromptError) as error:
            self.build(backbone("deberta_v2"), made, "1:")
        assert "soft tokens cannot enter deberta-v2 at layer 1" in str(error.value)
