"""Prefixes with positions, without, and none, side by side: each row as if it were alone."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.injection import Decoding, forward, generate

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MIXED = ["llama", "mistral", "gemma3", "bloom", "t5", "bart"]


def cases(make) -> list[tuple[object, torch.Tensor]]:
    """Rows short and longer than the window of 8, and a prompt for each."""
    own = make.backbone.geometry.self_attention_sites
    return [
        (make.prefix(4, shift_positions=True, layers=own), make.words(13)),
        (make.prefix(3), make.words(12)),
        (None, make.words(11)),
        (make.prefix(2, shift_positions=True, layers=own[1:]), make.words(3)),
        (make.prefix(10, shift_positions=True, layers=own), make.words(5)),
    ]


@pytest.mark.parametrize("family", MIXED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mixed_batch_is_each_row_alone(backbone, maker, family, side):
    own, make = backbone(family), maker(family)
    prompts, rows = zip(*cases(make), strict=True)
    order = [*range(len(rows)), *reversed(range(len(rows)))]
    if make.decodes and side == "left":  # BART counts its encoder's positions from the first column
        side = "right"
    inputs = make.batch(*(rows[i] for i in order), side=side, extra=1)
    together = forward(own, inputs, prompts=prompts, rows=torch.tensor(order))
    for b, i in enumerate(order):
        alone = forward(own, make.batch(rows[i]), prompts=[prompts[i]])[0]
        real = together[b] if make.decodes else together[b][inputs.attention_mask[b].bool()]
        assert_close(real, alone, **CLOSE)


@pytest.mark.parametrize("family", MIXED)
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_batch_writes_as_each_row_alone(backbone, maker, family, cache, beams):
    own, make = backbone(family), maker(family)
    prompts, rows = zip(*cases(make), strict=True)
    inputs = make.batch(*rows, side="right" if make.decodes else "left", extra=1)
    decoding = Decoding(max_new_tokens=10, cache=cache, num_beams=beams)
    which = torch.arange(len(rows))
    together = generate(own, inputs, prompts=prompts, rows=which, decoding=decoding)
    alone = [
        generate(own, make.batch(row), prompts=[prompt], decoding=decoding)[0]
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    assert together == alone


@pytest.mark.parametrize("shifted", [True, False])
def test_a_window_applies_only_to_a_prefix_with_positions(backbone, maker, shifted):
    """Of 2 prefix tokens and a window of 8, the second is visible from the positions up to 8.

    Position 8 is that of the row's seventh token. Read in the last layer, because earlier ones pass
    on what they attended to.
    """
    own, make = backbone("mistral"), maker("mistral")
    prefix = make.prefix(2, shift_positions=shifted)
    prefix.values.requires_grad_()
    states = forward(own, make.batch(make.words(17)), prompts=[prefix])[0]
    seen = [
        bool(torch.autograd.grad(state.sum(), prefix.values, retain_graph=True)[0][-1].any())
        for state in states
    ]
    assert seen == [not shifted or at < 7 for at in range(17)]


@pytest.mark.parametrize("family", MIXED)
def test_layers_run_again_for_their_gradient_do_the_same(new_backbone, maker, family):
    own, make = new_backbone(family), maker(family)
    prompts, rows = zip(*cases(make), strict=True)
    inputs, which = make.batch(*rows), torch.arange(len(rows))
    values = [p.values.requires_grad_() for p in prompts if p is not None]

    def gradients() -> tuple[torch.Tensor, ...]:
        states = forward(own, inputs, prompts=prompts, rows=which)
        real = states if make.decodes else states[inputs.attention_mask.bool()]
        weights = torch.linspace(-1, 1, states.shape[-1])
        return torch.autograd.grad((real * weights).sum(), values)

    plain = gradients()
    own.model.train()
    own.model.activation_checkpointing_enable()
    assert all(gradient.flatten(1).any(dim=1).all() for gradient in plain)
    for again, once in zip(gradients(), plain, strict=True):
        assert_close(again, once, rtol=1e-4, atol=1e-6)
