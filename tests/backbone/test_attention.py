"""Plain attention is torch's, gradient and all, whatever stands before the row."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from softprompt.backbone import attention as module
from softprompt.backbone.attention import AttentionCall, attend

BATCH, HEADS, GROUPS, LENGTH, OWN, SIZE = 3, 4, 2, 5, 6, 8


def seen(
    *, prefix: int, mask: str, bias: bool, dtype: torch.dtype = torch.float64
) -> AttentionCall:
    """One call, whose leaves ask for a gradient; ``prefix`` says how many there are."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype).requires_grad_()

    before = None
    if prefix:
        before = leaf(prefix, GROUPS, LENGTH, SIZE), leaf(prefix, GROUPS, LENGTH, SIZE)
    keys = OWN + (LENGTH if prefix else 0)
    past = torch.ones(OWN, keys, dtype=torch.bool).tril(keys - OWN)
    hidden = past.expand(BATCH, 1, -1, -1).clone()
    hidden[1, :, :, 0] = False
    hidden[1, :, 0, :] = past[0]
    masks = {
        "none": None,
        "shared": past[None, None],
        "rows": hidden,
        "added": torch.zeros(hidden.shape, dtype=dtype).masked_fill(~hidden, -1e9),
    }
    return AttentionCall(
        query=leaf(BATCH, HEADS, OWN, SIZE),
        key=leaf(BATCH, GROUPS, OWN, SIZE),
        value=leaf(BATCH, GROUPS, OWN, SIZE),
        mask=masks[mask],
        causal=mask == "none" and not prefix,
        bias=torch.randn(1, HEADS, OWN, keys, generator=generator).to(dtype) if bias else None,
        prefix_kv=before,
    )


def by_torch(call: AttentionCall) -> torch.Tensor:
    key, value = call.key, call.value
    if call.prefix_kv is not None:
        keys, values = (t.expand(BATCH, -1, -1, -1) for t in call.prefix_kv)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    key, value = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (key, value))
    scores = call.query @ key.transpose(2, 3) / SIZE**0.5
    if call.bias is not None:
        scores = scores + call.bias
    mask = call.mask
    if call.causal:
        mask = torch.ones(OWN, OWN, dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def leaves(call: AttentionCall) -> list[torch.Tensor]:
    return [call.query, call.key, call.value, *(call.prefix_kv or ())]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("mask", ["none", "shared", "rows", "added"])
@pytest.mark.parametrize("prefix", [0, 1, BATCH], ids=["alone", "one prefix", "prefixes"])
def test_shares_of_the_values_are_the_output_and_what_is_hidden_has_none(prefix, mask, bias):
    call = seen(prefix=prefix, mask=mask, bias=bias)
    value = call.value
    if call.prefix_kv is not None:
        value = torch.cat([call.prefix_kv[1].expand(BATCH, -1, -1, -1), value], dim=2)
    shares = call.compute_attention_weights()
    made = shares.double() @ value.repeat_interleave(HEADS // GROUPS, dim=1)
    assert_close(made.transpose(1, 2), by_torch(call), atol=1e-5, rtol=1e-5)
    assert_close(shares.sum(dim=-1), torch.ones(BATCH, HEADS, OWN), atol=1e-5, rtol=0)
    visible = call.make_visible_mask().expand(BATCH, HEADS, OWN, -1)
    assert torch.equal(shares > 0, visible)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("mask", ["none", "shared", "rows", "added"])
@pytest.mark.parametrize("prefix", [0, 1, BATCH], ids=["alone", "one prefix", "prefixes"])
def test_output_and_gradient_are_those_of_the_formula(prefix, mask, bias):
    call = seen(prefix=prefix, mask=mask, bias=bias)
    assert module._is_short(call, {})
    found, wanted = attend(torch.nn.Module(), call, options={}), by_torch(call)
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found).double()
    gradients = torch.autograd.grad((found * weights).sum(), leaves(call))
    expected = torch.autograd.grad((wanted * weights).sum(), leaves(call))
    assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_the_fused_kernel_gives_the_same(monkeypatch):
    call = seen(prefix=1, mask="rows", bias=False, dtype=torch.float32)
    plain = attend(torch.nn.Module(), call, options={})
    monkeypatch.setattr(module, "PLAIN", 0)
    grouped = torch.nn.Module()
    grouped.num_key_value_groups = HEADS // GROUPS
    fused = attend(grouped, call, options={})
    assert_close(plain, fused, rtol=1e-5, atol=1e-5)
    once, again = (torch.autograd.grad(o.square().sum(), leaves(call)) for o in (plain, fused))
    assert_close(once, again, rtol=1e-4, atol=1e-5)


def test_bf16_is_nearer_to_the_truth_than_the_fused_kernel():
    call = seen(prefix=0, mask="none", bias=False, dtype=torch.bfloat16)
    found = attend(torch.nn.Module(), call, options={})
    key, value = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (call.key, call.value))
    fused = F.scaled_dot_product_attention(call.query, key, value, is_causal=True).transpose(1, 2)
    exact = seen(prefix=0, mask="none", bias=False, dtype=torch.bfloat16)
    wide = [t.detach().double() for t in (exact.query, exact.key, exact.value)]
    truth = by_torch(AttentionCall(*wide, None, causal=True, bias=None))
    assert found.dtype == torch.bfloat16
    assert (found - truth).abs().max() <= (fused - truth).abs().max() * 1.01


def test_what_the_fused_kernel_does_better_is_left_to_it(monkeypatch):
    call = seen(prefix=1, mask="shared", bias=False)
    assert not module._is_short(call, {"dropout": 0.1})
    with torch.no_grad():
        assert not module._is_short(call, {})
    monkeypatch.setattr(module, "PLAIN", OWN * (OWN + LENGTH) - 1)
    assert not module._is_short(call, {})
