"""Attention over what stands before a row and over the row itself.

torch's fused kernel is the rule. Its backward pass on CPUs is slow where the sequences are short
(in bf16 up to three times as slow as plain products), so there, in training, the products are made
one by one, in fp32; `scripts/bench speed --only attention` measures both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Queries times keys up to which plain products are the faster.
PLAIN = 1 << 14
# What an additive mask adds at most to what is hidden; real ones add the lowest number there is.
HIDDEN = -1e4


@dataclass(frozen=True, eq=False)
class Attention:
    """What one attention site is about to attend to.

    Args:
        query: ``[B, heads, T, D]``.
        key: ``[B, N, Tk, D]``, after any rotary embedding, before grouped heads are repeated.
        value: likewise.
        mask: ``[B or 1, 1, T, P + Tk]``, boolean or additive; None where nothing need be masked
            but, if ``causal``, the future.
        causal: whether a missing mask stands for a causal one.
        bias: T5's position bias ``[1 or B, heads, T, P + Tk]``.
        window: how far back a position sees at this site; None for all the way.
        before: keys and values ``[B or 1, N, P, D]`` that stand before the row's own.
        scaling: of the products; None for one over the root of D.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    bias: Tensor | None
    window: int | None = None
    before: tuple[Tensor, Tensor] | None = None
    scaling: float | None = None

    @property
    def hides(self) -> bool:
        """Whether anything is masked."""
        return self.mask is not None or (self.causal and self.query.shape[2] > 1)

    def written(self) -> Tensor:
        """The mask, also where it goes without saying: ``[B or 1, 1, T, Tk]``."""
        if self.mask is not None:
            return self.mask
        shape = (1, 1, self.query.shape[2], self.key.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=self.query.device)
        return mask.tril() if self.hides else mask

    def visible(self) -> Tensor:
        """What each query may see, ``[B or 1, 1, T, P + Tk]``, as truth values."""
        length = 0 if self.before is None else self.before[0].shape[2]
        if not self.hides:
            shape = (1, 1, self.query.shape[2], length + self.key.shape[2])
            return torch.ones(shape, dtype=torch.bool, device=self.query.device)
        mask = self.written()
        return mask if mask.dtype == torch.bool else mask > HIDDEN

    def shares(self) -> Tensor:
        """How much of each value every query takes, ``[B, heads, T, P + Tk]``, in fp32."""
        batch, heads, queries, size = self.query.shape
        groups = self.key.shape[1]
        query = self.query.reshape(batch, groups, -1, size)
        options = _added(self, groups), size**-0.5 if self.scaling is None else self.scaling
        before = self.key[:1, :, :0] if self.before is None else self.before[0]
        found = _shares(query, before, self.key, options=options).transpose(0, 1)
        return found.reshape(batch, heads, queries, -1)


def attend(module: nn.Module, seen: Attention, *, options: dict[str, Any]) -> Tensor:
    """The attention's output ``[B, T, heads, D]``.

    Args:
        options: transformers' own keyword arguments of the call.
    """
    # The plain products have no gradient for T5's bias, which only a trained backbone needs.
    biased = seen.bias is not None and any(p.requires_grad for p in module.parameters())
    if _is_short(seen, options) and not biased:
        return _plain(seen)
    key, value = seen.key, seen.value
    if seen.before is not None:
        batch = key.shape[0]
        keys, values = (t.expand(batch, -1, -1, -1).to(key.dtype) for t in seen.before)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    if seen.bias is not None:
        options = options | {"position_bias": seen.bias}
    output: Tensor
    output, _ = sdpa_attention_forward(module, seen.query, key, value, seen.mask, **options)
    return output


def _is_short(seen: Attention, options: dict[str, Any]) -> bool:
    tensors = (seen.query, seen.key, seen.value, *(seen.before or ()))
    if seen.query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if options.get("dropout") or options.get("softcap") is not None:
        return False
    length = 0 if seen.before is None else seen.before[0].shape[2]
    scores = seen.query.shape[2] * (length + seen.key.shape[2])
    return scores <= PLAIN and any(t.requires_grad for t in tensors)


def _plain(seen: Attention) -> Tensor:
    batch, heads, queries, size = seen.query.shape
    groups = seen.key.shape[1]
    added = _added(seen, groups)
    before = seen.before or (seen.key[:1, :, :0], seen.value[:1, :, :0])
    scale = size**-0.5 if seen.scaling is None else seen.scaling
    query = seen.query.reshape(batch, groups, -1, size)
    made = _Plain.apply((added, scale), query, *before, seen.key, seen.value)  # type: ignore[no-untyped-call]  # torch's own
    found: Tensor = made.unflatten(2, (heads // groups, queries))
    return found.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, -1)


def _added(seen: Attention, groups: int) -> Tensor | None:
    """Mask and bias as one number for each score: ``[1 or N, B or 1, 1 or heads/N, T, P + Tk]``."""
    added: Tensor | None = None
    if seen.hides:
        mask = seen.written()
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

    Inside, axes are ``[N, B, heads/N · T, D]``: what all rows share is one product for the batch.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        options: tuple[Tensor | None, float],
        *tensors: Tensor,
    ) -> Tensor:
        query, first_key, first_value, key, value = tensors
        shares = _shares(query, first_key, key, options=options)
        length = first_key.shape[2]
        parts = (shares[..., :length], first_value), (shares[..., length:], value)
        before, own = (_times(p, v) for p, v in parts)
        ctx.save_for_backward(*tensors, shares.to(query.dtype))
        ctx.scale = options[1]
        return (before + own).transpose(0, 1).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query, first_key, first_value, key, value, shares = ctx.saved_tensors
        length = first_key.shape[2]
        g, shares = grad.transpose(0, 1).float(), shares.float()
        q = query.transpose(0, 1).float() * ctx.scale
        slopes = torch.cat([_times(g, v, turn=True) for v in (first_value, value)], dim=-1)
        slopes = shares * (slopes - (slopes * shares).sum(dim=-1, keepdim=True))
        need, found = ctx.needs_input_grad, list[Tensor | None]()
        slope = _times(slopes[..., :length], first_key) + _times(slopes[..., length:], key)
        found.append((slope * ctx.scale).transpose(0, 1).to(query.dtype) if need[1] else None)
        cuts = slice(None, length), slice(length, None)
        for at, k, v, number in ((cuts[0], first_key, first_value, 2), (cuts[1], key, value, 4)):
            found.append(_summed(slopes[..., at], q, k) if need[number] else None)
            found.append(_summed(shares[..., at], g, v) if need[number + 1] else None)
        return (None, *found)


def _shares(
    query: Tensor, first_key: Tensor, key: Tensor, *, options: tuple[Tensor | None, float]
) -> Tensor:
    """How much of each value every query takes."""
    added, scale = options
    q = query.transpose(0, 1).float() * scale
    scores = torch.cat([_times(q, k, turn=True) for k in (first_key, key)], dim=-1)
    if added is not None:
        scores = (scores.unflatten(2, (-1, added.shape[-2])) + added).flatten(2, 3)
    return scores.softmax(dim=-1)


def _times(left: Tensor, right: Tensor, *, turn: bool = False) -> Tensor:
    """``[N, B, S, x]`` times ``[B or 1, N, x, y]``, the latter transposed first if asked."""
    right = right.transpose(0, 1).float()
    right = right.transpose(2, 3) if turn else right
    if right.shape[1] == 1:
        made: Tensor = (left.flatten(1, 2) @ right[:, 0]).unflatten(1, left.shape[1:3])
        return made
    return left @ right


def _summed(weights: Tensor, given: Tensor, like: Tensor) -> Tensor:
    """``weightsᵀ given`` as ``[B or 1, N, y, D]``; over all rows where they share it."""
    if len(like) == 1:
        weights, given = (t.flatten(1, 2)[:, None] for t in (weights, given))
    return (weights.transpose(2, 3) @ given).transpose(0, 1).to(like.dtype)
