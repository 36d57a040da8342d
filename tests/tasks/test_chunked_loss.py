"""The loss in chunks is the plain loss, and no chunk has more logits than the limit."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from softprompt.tasks import generation
from softprompt.tasks.generation import compute_chunked_cross_entropy
from support.parametrize import for_each


@pytest.fixture
def case(backbone, writer):
    own = backbone(writer)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, own.geometry.hidden_size, generator=generator).requires_grad_()
    targets = torch.randint(own.geometry.vocab_size, (7,), generator=generator)
    return own, states, targets


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@for_each("writer")
def test_loss_and_gradient(case, size, monkeypatch):
    own, states, targets = case
    vocabulary = own.geometry.vocab_size
    monkeypatch.setattr(generation, "LOGITS", size * vocabulary + 5)
    most = []
    hook = own.lm_head.register_forward_hook(lambda _m, _a, logits: most.append(logits.numel()))
    try:
        loss = compute_chunked_cross_entropy(
            own.lm_head, states, targets=targets, vocabulary=vocabulary
        )
    finally:
        hook.remove()
    assert max(most) <= min(size, 7) * vocabulary
    expected = F.cross_entropy(own.lm_head(states), targets, reduction="sum")
    assert_close(loss, expected)
    once, again = (torch.autograd.grad(2 * found, states)[0] for found in (loss, expected))
    assert_close(once, again, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        bare = compute_chunked_cross_entropy(
            own.lm_head, states, targets=targets, vocabulary=vocabulary
        )
    assert_close(bare, expected)
    assert not bare.requires_grad
