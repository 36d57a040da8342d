"""Reparametrizations of prompt tuning: the exact start, the published formulas, and folding."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from softprompt.errors import PromptError, RecipeError
from softprompt.injection import forward
from softprompt.methods import PromptTuning, build_method
from softprompt.methods.defaults import choose_defaults
from softprompt.methods.initializers import (
    FromLabels,
    FromPrompt,
    FromRandom,
    FromText,
    FromVocabulary,
    initialize_prompt,
)
from softprompt.prompt import InputPrompt
from support.parametrize import for_each

SOFT = 3
KINDS = {
    "residual": PromptTuning(reparametrization="residual", bottleneck_size=8),
    "residual per token": PromptTuning(
        reparametrization="residual", bottleneck_size=8, mlp_per_token=True
    ),
    "superposition": PromptTuning(reparametrization="superposition", num_words=9),
}
STARTS = {
    "text": FromText("the movie was great"),
    "labels": FromLabels((" wonderful", " bad")),
    "vocabulary": FromVocabulary(),
    "random": FromRandom(),
    "prompt": FromPrompt(InputPrompt(torch.randn(SOFT, 32))),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


def built(own, settings, init=STARTS["text"], *, seed: int = 0):
    return build_method(own, settings, soft_length=SOFT, init=init, seed=seed)


def vectors_of(method) -> torch.Tensor:
    return method().vectors.detach()


@each_kind
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("layers", ["all", "1:"])
def test_it_starts_exactly_at_the_initialization(backbone, kind, start, layers):
    own, init = backbone("llama"), STARTS[start]
    if isinstance(init, FromPrompt):
        init = FromPrompt(replace(init.prompt, start_layer=0 if layers == "all" else 1))
    plain = built(own, PromptTuning(layers=layers), init)
    method = built(own, replace(KINDS[kind], layers=layers), init)
    assert torch.equal(vectors_of(method), vectors_of(plain))
    assert method().start_layer == plain().start_layer
    assert method().vectors.dtype == torch.float32


@each_kind
@for_each("family")
def test_all_its_parameters_learn_and_nothing_else(backbone, maker, kind, family):
    """The gain of the MLP starts at 0, so its weights have a gradient from the second step on."""
    own, make = backbone(family), maker(family)
    method, inputs = built(own, KINDS[kind]), make.batch(*make.rows("input", 8, 6, length=SOFT))
    begin = {name: p.detach().clone() for name, p in method.named_parameters()}
    fixed = {name: b.clone() for name, b in method.named_buffers()}
    before = {name: t.clone() for name, t in own.model.state_dict().items()}
    optimiser = torch.optim.AdamW(method.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        states = forward(own, inputs, prompts=[method()])
        loss = nn.functional.mse_loss(states, torch.ones_like(states))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    for name, p in method.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
        assert not torch.equal(p, begin[name]), name
    assert losses[-1] < losses[0]
    assert all(torch.equal(b, fixed[name]) for name, b in method.named_buffers())
    after = own.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("per_token", [False, True])
def test_residual_is_the_published_formula(backbone, per_token):
    """Θ + LN(W₂ ReLU(W₁ Θ)), token by token, with torch's own layers."""
    settings = PromptTuning(
        reparametrization="residual", bottleneck_size=8, mlp_per_token=per_token
    )
    method = built(backbone("llama"), settings)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    for index, vector in enumerate(method.vectors):
        at = index if per_token else 0
        down, up = nn.Linear(32, 8), nn.Linear(8, 32)
        down.weight, down.bias = (
            nn.Parameter(method.down[at].T),
            nn.Parameter(method.down_bias[at, 0]),
        )
        up.weight, up.bias = nn.Parameter(method.up[at].T), nn.Parameter(method.up_bias[at, 0])
        inner = nn.functional.layer_norm(
            up(down(vector).relu()), (32,), method.norm.weight, method.norm.bias
        )
        assert_close(method().vectors[index], vector + inner)
    mlps = SOFT if per_token else 1
    assert sum(p.numel() for p in method.parameters()) == (
        SOFT * 32 + mlps * (2 * 32 * 8 + 32 + 8) + 2 * 32
    )


@for_each("family")
def test_superposition_is_in_the_span_of_its_words(backbone, family):
    """W·E: of the start's vectors and of rows of the embedding table, which stay as they are."""
    own = backbone(family)
    method = built(own, KINDS["superposition"])
    start = initialize_prompt(
        own, STARTS["text"], kind="input", length=SOFT, generator=torch.Generator()
    )
    table = own.embed(torch.arange(own.geometry.vocab_size))
    words = method.fixed[SOFT:]
    assert torch.equal(method.fixed[:SOFT], start.vectors)
    assert len(words) == 9
    for word in words:
        assert torch.isclose(table, word).all(dim=1).any()
    with torch.no_grad():
        method.weights.normal_()
    by_hand = sum(method.weights[:, at, None] * method.fixed[at] for at in range(len(method.fixed)))
    assert_close(method().vectors, by_hand, rtol=1e-4, atol=1e-5)
    assert [p.shape for p in method.parameters()] == [(SOFT, SOFT + 9)]


@each_kind
def test_a_seed_decides_the_start(backbone, kind):
    own = backbone("gpt2")
    torch.manual_seed(1)
    first = built(own, KINDS[kind]).state_dict()
    torch.manual_seed(2)
    again, other = (
        built(own, KINDS[kind]).state_dict(),
        built(own, KINDS[kind], seed=1).state_dict(),
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_the_defaults_are_the_published_sizes(backbone):
    own = backbone("gpt2")
    residual = built(own, PromptTuning(reparametrization="residual"))
    superposed = built(own, PromptTuning(reparametrization="superposition"))
    assert residual.down.shape == (1, 32, 800)
    assert superposed.weights.shape == (SOFT, SOFT + 128)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            PromptTuning(bottleneck_size=8),
            (
                "bottleneck_size = 8: means nothing with reparametrization = 'none'. Take it "
                "out, or set reparametrization = 'residual'."
            ),
        ),
        (
            PromptTuning(reparametrization="residual", num_words=8),
            (
                "num_words = 8: means nothing with reparametrization = 'residual'. Take it out, "
                "or set reparametrization = 'superposition'."
            ),
        ),
        (
            PromptTuning(reparametrization="superposition", mlp_per_token=False),
            (
                "mlp_per_token = False: means nothing with reparametrization = 'superposition'. "
                "Take it out, or set reparametrization = 'residual'."
            ),
        ),
        (
            PromptTuning(reparametrization="residual", bottleneck_size=0),
            "bottleneck_size = 0: from 1 to 65,536.",
        ),
        (
            PromptTuning(reparametrization="superposition", num_words=0),
            "num_words = 0: from 1 to 100,000.",
        ),
    ],
)
def test_settings_that_are_not_possible_are_faults(backbone, settings, fault):
    with pytest.raises(RecipeError) as error:
        built(backbone("gpt2"), settings)
    assert error.value.faults == (fault,)


def test_a_reparametrization_that_memory_cannot_hold_is_explained(backbone):
    huge = PromptTuning(reparametrization="residual", bottleneck_size=1 << 16, mlp_per_token=True)
    with pytest.raises(PromptError, match="do not fit into memory"):
        build_method(backbone("gpt2"), huge, soft_length=1 << 20, init=FromRandom(), seed=0)


@pytest.mark.parametrize(
    ("family", "kind", "rate"),
    [
        ("t5", "residual", 0.3),
        ("llama", "residual", 1e-2),
        ("t5", "superposition", 3e-3),
        ("bert", "superposition", 3e-3),
    ],
)
def test_its_default_rate_has_a_source(backbone, family, kind, rate):
    defaults = choose_defaults("prompt-tuning", backbone(family).geometry, reparametrization=kind)
    assert (defaults.optimizer, defaults.learning_rate) == ("adamw", rate)
    assert defaults.source.startswith("Razdaibiedina" if kind == "residual" else "measured here")
