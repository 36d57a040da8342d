"""Building a method: the selection of layers, and the error of a warm start."""

import math
from functools import partial

import pytest
import torch

from softprompt.errors import PromptError, RecipeError
from softprompt.methods import (
    METHODS,
    PrefixTuning,
    PTuning,
    PTuningV2,
    build_method,
    parse_layers,
    warm_start,
)
from softprompt.methods.initializers import FromRandom, FromText
from softprompt.prompt import InputPrompt, KVPrefix
from support.parametrize import for_each
from support.tiny_models import REFUSED


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


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        *(
            (kind(**{name: value}), f"{name} = {value}: from 1 to {most}.")
            for kind, name, most in (
                (PrefixTuning, "length", "100,000"),
                (PTuningV2, "length", "100,000"),
                (PrefixTuning, "encoder_hidden_size", "65,536"),
                (PTuning, "encoder_hidden_size", "65,536"),
                (partial(PTuning, encoder="mlp"), "encoder_hidden_size", "65,536"),
                (PTuning, "encoder_num_layers", "100"),
                (partial(PTuning, encoder="mlp"), "encoder_num_layers", "100"),
            )
            for value in (0, -1, 10**9, 2**70)
        ),
        *(
            (
                PTuning(encoder_dropout=rate),
                f"encoder_dropout = {rate}: at least 0 and less than 1.",
            )
            for rate in (-0.1, 1.0, math.nan)
        ),
    ],
)
def test_sizes_that_are_not_possible(backbone, settings, fault):
    with pytest.raises(RecipeError) as error:
        build_method(backbone("gpt2"), settings, soft_length=3, init=FromRandom(), seed=0)
    assert error.value.faults == (fault,)


def test_an_encoder_beyond_memory(backbone, monkeypatch):
    def allocate(*_args, **_more) -> None:
        message = "can't allocate memory: you tried to allocate 137438953472 bytes"
        raise RuntimeError(message)

    monkeypatch.setattr(PTuning, "build", allocate)
    with pytest.raises(PromptError) as error:
        build_method(backbone("gpt2"), PTuning(), soft_length=3, init=FromRandom(), seed=0)
    assert str(error.value) == (
        "the parameters of p-tuning with 3 soft tokens do not fit into memory (RuntimeError: can't "
        "allocate memory: you tried to allocate 137438953472 bytes). Use fewer soft tokens, or a "
        "smaller encoder."
    )


def test_the_list_is_by_name():
    assert list(METHODS) == [
        "prompt-tuning",
        "p-tuning",
        "prefix-tuning",
        "p-tuning-v2",
        "multitask-prompt-tuning",
    ]
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
            self.build(backbone(REFUSED), made, "1:")
        assert "soft tokens cannot enter roformer at layer 1" in str(error.value)


@pytest.mark.parametrize("settings", [PTuningV2(length=10**13), PrefixTuning(length=10**13)])
def test_a_prompt_beyond_memory_is_refused(backbone, settings, monkeypatch):
    """Where the limits of the sizes are far above the memory of the machine."""
    monkeypatch.setattr("softprompt.methods._MOST", {})
    with pytest.raises(PromptError, match=r"10,000,000,000,000 soft tokens do not fit into memory"):
        build_method(backbone("llama"), settings, soft_length=0, init=FromRandom(), seed=0)
