"""Attention over the keys and values of a prefix and over the row's own.

By default torch's fused kernel is used. On CPUs its backward pass is slow for short sequences (in
bf16 up to three times as slow as plain matrix products), so there, in training, the products are
computed one by one, in fp32; `scripts/bench speed --only attention` measures both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The number of queries times keys up to which plain products are faster.
PLAIN = 1 << 14
# Entries of an additive mask above this are visible; real masks hide with the lowest finite number.
HIDDEN = -1e4


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The inputs of one attention call.

    Args:
        query: ``[B, heads, T, D]``.
        key: ``[B, N, Tk, D]``, after any rotary embedding, before grouped heads are repeated.
        value: ``[B, N, Tk, D]``.
        mask: ``[B or 1, 1, T, P + Tk]``, boolean or additive; None if nothing is masked
            except, with ``causal``, the future.
        causal: whether no mask means a causal mask.
        bias: T5's position bias ``[1 or B, heads, T, P + Tk]``.
        window: the size of the sliding window at this site; None if there is none.
        prefix_kv: keys and values ``[B or 1, N, P, D]`` that come before the row's own.
        scaling: the factor of the products; None for one over the square root of D.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    bias: Tensor | None
    window: int | None = None
    prefix_kv: tuple[Tensor, Tensor] | None = None
    scaling: float | None = None

    @property
    def has_mask(self) -> bool:
        """Whether anything is masked."""
        return self.mask is not None or (self.causal and self.query.shape[2] > 1)

    def make_explicit_mask(self) -> Tensor:
        """The mask ``[B or 1, 1, T, Tk]``, also where the call has none."""
        if self.mask is not None:
            return self.mask
        shape = (1, 1, self.query.shape[2], self.key.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=self.query.device)
        return mask.tril() if self.has_mask else mask

    def make_visible_mask(self) -> Tensor:
        """Which keys each query may see, a boolean ``[B or 1, 1, T, P + Tk]``."""
        length = 0 if self.prefix_kv is None else self.prefix_kv[0].shape[2]
        if not self.has_mask:
            shape = (1, 1, self.query.shape[2], length + self.key.shape[2])
            return torch.ones(shape, dtype=torch.bool, device=self.query.device)
        mask = self.make_explicit_mask()
        return mask if mask.dtype == torch.bool else mask > HIDDEN

    def compute_attention_weights(self) -> Tensor:
        """The attention weights ``[B, heads, T, P + Tk]``, in fp32."""
        batch, heads, queries, size = self.query.shape
        groups = self.key.shape[1]
        query = self.query.reshape(batch, groups, -1, size)
        options = _added(self, groups), size**-0.5 if self.scaling is None else self.scaling
        before = self.key[:1, :, :0] if self.prefix_kv is None else self.prefix_kv[0]
        weights = _weights(query, before, self.key, options=options).transpose(0, 1)
        return weights.reshape(batch, heads, queries, -1)


def attend(module: nn.Module, seen: AttentionCall, *, options: dict[str, Any]) -> Tensor:
    """Compute the attention's output.

    Args:
        module: the attention module.
        seen: what it attends to.
        options: transformers' own keyword arguments of the call.

    Returns:
        The output ``[B, T, heads, D]``.
    """
    # The plain products have no gradient for T5's bias, which only a trained backbone needs.
    biased = seen.bias is not None and any(p.requires_grad for p in module.parameters())
    if _is_short(seen, options) and not biased:
        return _plain(seen)
    key, value = seen.key, seen.value
    if seen.prefix_kv is not None:
        batch = key.shape[0]
        keys, values = (t.expand(batch, -1, -1, -1).to(key.dtype) for t in seen.prefix_kv)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    if seen.bias is not None:
        options = options | {"position_bias": seen.bias}
    output: Tensor
    output, _ = sdpa_attention_forward(module, seen.query, key, value, seen.mask, **options)
    return output


def _is_short(seen: AttentionCall, options: dict[str, Any]) -> bool:
    tensors = (seen.query, seen.key, seen.value, *(seen.prefix_kv or ()))
    if seen.query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if options.get("dropout") or options.get("softcap") is not None:
        return False
    length = 0 if seen.prefix_kv is None else seen.prefix_kv[0].shape[2]
    scores = seen.query.shape[2] * (length + seen.key.shape[2])
    return scores <= PLAIN and any(t.requires_grad for t in tensors)


def _plain(seen: AttentionCall) -> Tensor:
    batch, heads, queries, size = seen.query.shape
    groups = seen.key.shape[1]
    added = _added(seen, groups)
    before = seen.prefix_kv or (seen.key[:1, :, :0], seen.value[:1, :, :0])
    scale = size**-0.5 if seen.scaling is None else seen.scaling
    query = seen.query.reshape(batch, groups, -1, size)
    attended = _Plain.apply((added, scale), query, *before, seen.key, seen.value)  # type: ignore[no-untyped-call]  # torch's own
    output: Tensor = attended.unflatten(2, (heads // groups, queries))
    return output.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, -1)


def _added(seen: AttentionCall, groups: int) -> Tensor | None:
    """Mask and bias as one summand per score: ``[1 or N, B or 1, 1 or heads/N, T, P + Tk]``."""
    added: Tensor | None = None
    if seen.has_mask:
        mask = seen.make_explicit_mask()
        added = mask.float()
        if mask.dtype == torch.bool:
            added = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
        added = added[:, :, None].transpose(0, 1)
    if seen.bias is None:
        return added
    bias: Tensor = seen.bias.float().unflatten(1, (groups, -1)).transpose(0, 1)
    return bias if added is None else bias + added


class _Plain(torch.autograd.Function):
    """softmax(q kᵀ · scale + added) v in fp32, over two parts of keys and values.

    Inside, axes are ``[N, B, heads/N · T, D]``: a part that all rows share is one product.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        options: tuple[Tensor | None, float],
        *tensors: Tensor,
    ) -> Tensor:
        query, first_key, first_value, key, value = tensors
        weights = _weights(query, first_key, key, options=options)
        length = first_key.shape[2]
        parts = (weights[..., :length], first_value), (weights[..., length:], value)
        before, own = (_times(p, v) for p, v in parts)
        ctx.save_for_backward(*tensors, weights.to(query.dtype))
        ctx.scale = options[1]
        return (before + own).transpose(0, 1).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query, first_key, first_value, key, value, weights = ctx.saved_tensors
        length = first_key.shape[2]
        g, weights = grad.transpose(0, 1).float(), weights.float()
        q = query.transpose(0, 1).float() * ctx.scale
        slopes = torch.cat([_times(g, v, turn=True) for v in (first_value, value)], dim=-1)
        slopes = weights * (slopes - (slopes * weights).sum(dim=-1, keepdim=True))
        need, gradients = ctx.needs_input_grad, list[Tensor | None]()
        slope = _times(slopes[..., :length], first_key) + _times(slopes[..., length:], key)
        gradients.append((slope * ctx.scale).transpose(0, 1).to(query.dtype) if need[1] else None)
        cuts = slice(None, length), slice(length, None)
        for at, k, v, number in ((cuts[0], first_key, first_value, 2), (cuts[1], key, value, 4)):
            gradients.append(_summed(slopes[..., at], q, k) if need[number] else None)
            gradients.append(_summed(weights[..., at], g, v) if need[number + 1] else None)
        return (None, *gradients)


def _weights(
    query: Tensor, first_key: Tensor, key: Tensor, *, options: tuple[Tensor | None, float]
) -> Tensor:
    """The attention weights ``[N, B, heads/N · T, P + Tk]``."""
    added, scale = options
    q = query.transpose(0, 1).float() * scale
    scores = torch.cat([_times(q, k, turn=True) for k in (first_key, key)], dim=-1)
    if added is not None:
        scores = (scores.unflatten(2, (-1, added.shape[-2])) + added).flatten(2, 3)
    return scores.softmax(dim=-1)


def _times(left: Tensor, right: Tensor, *, turn: bool = False) -> Tensor:
    """``[N, B, S, x]`` times ``[B or 1, N, x, y]``, the latter transposed first with ``turn``."""
    right = right.transpose(0, 1).float()
    right = right.transpose(2, 3) if turn else right
    if right.shape[1] == 1:
        product: Tensor = (left.flatten(1, 2) @ right[:, 0]).unflatten(1, left.shape[1:3])
        return product
    return left @ right


def _summed(weights: Tensor, terms: Tensor, like: Tensor) -> Tensor:
    """``weightsᵀ terms`` as ``[B or 1, N, y, D]``; over all rows where they share it."""
    if len(like) == 1:
        weights, terms = (t.flatten(1, 2)[:, None] for t in (weights, terms))
    return (weights.transpose(2, 3) @ terms).transpose(0, 1).to(like.dtype)
