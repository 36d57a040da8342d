"""P-tuning v1: the encoders by hand, their sizes and their initial weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt.methods import PTuning, warm_start
from softprompt.prompt import InputPrompt


def made(settings: PTuning, backbone, *, length: int = 5, seed: int = 0):
    start = InputPrompt(torch.zeros(length, backbone.geometry.embedding_size))
    generator = torch.Generator().manual_seed(seed)
    return settings.build(backbone.geometry, start, generator=generator)


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def lstm(state: dict[str, Tensor], x: Tensor, *, layer: int, backwards: bool) -> Tensor:
    """One direction of one layer, with its gates in torch's order: i, f, g, o."""
    end = f"l{layer}{'_reverse' if backwards else ''}"
    w, u, b, c = (
        state[f"lstm.{n}_{end}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = cell = torch.zeros(u.shape[1])
    found = []
    for step in reversed(x) if backwards else x:
        i, f, g, o = (w @ step + b + u @ hidden + c).chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        found.append(hidden)
    return torch.stack(found[::-1] if backwards else found)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_mlp_by_hand(backbone, layers):
    method = made(
        PTuning(encoder="mlp", encoder_hidden_size=7, encoder_num_layers=layers), backbone("gpt2")
    )
    state = method.state_dict()
    x = state["embedding"]
    for layer in range(layers):
        x = linear(state, f"mlp.{2 * layer}", x).relu()
    assert_close(method().vectors, linear(state, f"mlp.{2 * layers}", x))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lstm_by_hand(backbone, layers):
    method = made(PTuning(encoder_hidden_size=7, encoder_num_layers=layers), backbone("albert"))
    state = method.state_dict()
    x = state["embedding"]
    for layer in range(layers):
        both = [lstm(state, x, layer=layer, backwards=b) for b in (False, True)]
        x = torch.cat(both, dim=-1)
    assert_close(method().vectors, linear(state, "mlp.2", linear(state, "mlp.0", x).relu()))


def test_the_number_of_parameters_is_pefts(backbone):
    """20 soft tokens on a width of 1,024, an MLP of 128: 300,288."""
    method = PTuning(encoder="mlp", encoder_hidden_size=128)
    wide = InputPrompt(torch.zeros(20, 1024))
    geometry = backbone("gpt2").geometry
    built = method.build(
        replace(geometry, embedding_size=1024), wide, generator=torch.Generator().manual_seed(0)
    )
    parts = [20 * 1024, 1024 * 128 + 128, 128 * 128 + 128, 128 * 1024 + 1024]
    assert sum(p.numel() for p in built.parameters()) == sum(parts) == 300_288


def test_sizes_that_are_not_given_are_the_papers(backbone):
    """LAMA code: half the width per direction; the MLP the whole width."""
    own = backbone("gpt2")
    recurrent, plain = made(PTuning(), own), made(PTuning(encoder="mlp"), own)
    assert (recurrent.lstm.hidden_size, recurrent.lstm.num_layers) == (16, 2)
    assert recurrent.lstm.bidirectional
    assert [m.out_features for m in plain.mlp if isinstance(m, nn.Linear)] == [32, 32, 32]


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_weights_are_drawn_as_torch_draws_them(backbone, encoder):
    """Uniform within ±1/sqrt(number of inputs); the embedding is N(0, 1)."""
    method = made(PTuning(encoder=encoder, encoder_hidden_size=200), backbone("gpt2"), length=300)
    bounds = {"mlp.0": 1 / math.sqrt(32 if encoder == "mlp" else 400), "lstm": 1 / math.sqrt(200)}
    for name, parameter in method.named_parameters():
        bound = next((b for start, b in bounds.items() if name.startswith(start)), None)
        if bound is not None:
            assert parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert method.embedding.std().item() == pytest.approx(1, rel=0.05)


def test_fitting_ignores_dropout_and_the_global_seed(backbone):
    """The fit depends on the seed alone, although the encoder has dropout in training."""
    target = InputPrompt(torch.ones(5, 32))
    found = []
    for seed in (1, 2):
        method = made(PTuning(encoder_hidden_size=8, encoder_dropout=0.5), backbone("gpt2"))
        torch.manual_seed(seed)
        warm_start(method, target, steps=5)
        assert method.training
        found.append(method.eval()().vectors)
    assert torch.equal(*found)


def test_dropout_drops_in_training_only(backbone):
    method = made(PTuning(encoder_hidden_size=8, encoder_dropout=0.5), backbone("gpt2"))
    method.train()
    assert not torch.equal(method().vectors, method().vectors)
    method.eval()
    assert torch.equal(method().vectors, method().vectors)


def test_every_soft_token_sees_every_other_in_an_lstm(backbone):
    method = made(PTuning(encoder_hidden_size=8), backbone("gpt2"))
    (gradient,) = torch.autograd.grad(method().vectors[2].sum(), [method.embedding])
    assert gradient.any(dim=1).all()
    apart = made(PTuning(encoder="mlp", encoder_hidden_size=8), backbone("gpt2"))
    (gradient,) = torch.autograd.grad(apart().vectors[2].sum(), [apart.embedding])
    assert gradient.any(dim=1).tolist() == [False, False, True, False, False]
