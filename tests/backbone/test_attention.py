"""Plain attention has the output and the gradients of the formula, with and without a prefix."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from softprompt.backbone import attention as module
from softprompt.backbone.attention import AttentionCall, attend

BATCH, HEADS, GROUPS, LENGTH, OWN, SIZE = 3, 4, 2, 5, 6, 8


def make_call(
    *, prefix: int, mask: str, bias: bool, dtype: torch.dtype = torch.float64
) -> AttentionCall:
    """An attention call whose inputs require gradients; ``prefix``: the number of prefixes."""
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


def compute_reference(call: AttentionCall) -> torch.Tensor:
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
def test_weighted_values_are_the_output_and_masked_keys_have_no_weight(prefix, mask, bias):
    call = make_call(prefix=prefix, mask=mask, bias=bias)
    value = call.value
    if call.prefix_kv is not None:
        value = torch.cat([call.prefix_kv[1].expand(BATCH, -1, -1, -1), value], dim=2)
    weights = call.compute_attention_weights()
    mixed = weights.double() @ value.repeat_interleave(HEADS // GROUPS, dim=1)
    assert_close(mixed.transpose(1, 2), compute_reference(call), atol=1e-5, rtol=1e-5)
    assert_close(weights.sum(dim=-1), torch.ones(BATCH, HEADS, OWN), atol=1e-5, rtol=0)
    visible = call.make_visible_mask().expand(BATCH, HEADS, OWN, -1)
    assert torch.equal(weights > 0, visible)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("mask", ["none", "shared", "rows", "added"])
@pytest.mark.parametrize("prefix", [0, 1, BATCH], ids=["alone", "one prefix", "prefixes"])
def test_output_and_gradients_equal_the_formula(prefix, mask, bias):
    call = make_call(prefix=prefix, mask=mask, bias=bias)
    assert module._is_plain_faster(torch.nn.Module(), call, {})
    output, expected_output = attend(torch.nn.Module(), call, options={}), compute_reference(call)
    assert_close(output, expected_output, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).double()
    gradients = torch.autograd.grad((output * weights).sum(), leaves(call))
    expected = torch.autograd.grad((expected_output * weights).sum(), leaves(call))
    assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_the_fused_kernel_gives_the_same_output_and_gradients(monkeypatch):
    call = make_call(prefix=1, mask="rows", bias=False, dtype=torch.float32)
    plain = attend(torch.nn.Module(), call, options={})
    monkeypatch.setattr(module, "PLAIN_LIMIT", 0)
    grouped = torch.nn.Module()
    grouped.num_key_value_groups = HEADS // GROUPS
    fused = attend(grouped, call, options={})
    assert_close(plain, fused, rtol=1e-5, atol=1e-5)
    once, again = (torch.autograd.grad(o.square().sum(), leaves(call)) for o in (plain, fused))
    assert_close(once, again, rtol=1e-4, atol=1e-5)


def test_bf16_is_closer_to_fp64_than_the_fused_kernel():
    call = make_call(prefix=0, mask="none", bias=False, dtype=torch.bfloat16)
    output = attend(torch.nn.Module(), call, options={})
    key, value = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (call.key, call.value))
    fused = F.scaled_dot_product_attention(call.query, key, value, is_causal=True).transpose(1, 2)
    exact = make_call(prefix=0, mask="none", bias=False, dtype=torch.bfloat16)
    wide = [t.detach().double() for t in (exact.query, exact.key, exact.value)]
    truth = compute_reference(AttentionCall(*wide, None, causal=True, bias=None))
    assert output.dtype == torch.bfloat16
    assert (output - truth).abs().max() <= (fused - truth).abs().max() * 1.01


def test_cases_that_are_left_to_the_fused_kernel(monkeypatch):
    call = make_call(prefix=1, mask="shared", bias=False)
    assert not module._is_plain_faster(torch.nn.Module(), call, {"dropout": 0.1})
    with torch.no_grad():
        assert not module._is_plain_faster(torch.nn.Module(), call, {})
    monkeypatch.setattr(module, "PLAIN_LIMIT", OWN * (OWN + LENGTH) - 1)
    assert not module._is_plain_faster(torch.nn.Module(), call, {})
