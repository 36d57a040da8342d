"""Attention over the keys and values of a prefix and over the row's own.

By default torch's fused kernel is used. On CPUs its backward pass is slow for short sequences (in
bf16 up to three times as slow as plain matrix products), so there, in training, the products are
computed one by one, in fp32; `scripts/bench speed --only attention` measures both.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The number of queries times keys up to which plain products are faster.
PLAIN_LIMIT = 1 << 14
# Entries of an additive mask above this are visible; real masks hide with the lowest finite number.
_VISIBLE_ABOVE = -1e4


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The inputs of one attention call.

    Args:
        query: ``[B, heads, T, D]``.
        key: ``[B, N, Tk, D]``, after any rotary embedding, before grouped heads are repeated.
        value: ``[B, N, Tk, D]``.
        mask: ``[B or 1, 1, T, P + Tk]``, boolean or additive; None if nothing is masked
            except, with ``causal``, the future.
        causal: whether ``mask`` None means a causal mask.
        bias: T5's position bias ``[1 or B, heads, T, P + Tk]``.
        window: the size of the sliding window at this site; None if there is none.
        prefix_kv: keys and values ``[B or 1, N, P, D]`` that come before the row's own.
        scaling: the factor of the products; None for one over the square root of D.
        selects_keys: whether the attention selects keys by their index.
        compute_bias: the function that computes the bias of tokens before the row, where a family
            has a hook of its own that knows it.
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
    selects_keys: bool = False
    compute_bias: Callable[..., Tensor] | None = None

    @property
    def has_mask(self) -> bool:
        """Whether anything is masked."""
        return self.mask is not None or (self.causal and self.query.shape[2] > 1)

    def join_prefix(self) -> tuple[Tensor, Tensor]:
        """The keys and values of the prefix, if there is one, and of the row."""
        if self.prefix_kv is None:
            return self.key, self.value
        shape = len(self.key), -1, -1, -1
        keys, values = (t.expand(shape).to(self.key.dtype) for t in self.prefix_kv)
        return torch.cat([keys, self.key], dim=2), torch.cat([values, self.value], dim=2)

    def make_explicit_mask(self) -> Tensor:
        """The mask ``[B or 1, 1, T, Tk]``, also where the call has none."""
        if self.mask is not None:
            return self.mask
        shape = (1, 1, self.query.shape[2], self.key.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=self.query.device)
        return mask.tril() if self.has_mask else mask

    def make_additive_mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as a summand of the scores; None if nothing is masked."""
        if not self.has_mask:
            return None
        mask = self.make_explicit_mask()
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return added.masked_fill_(~mask, torch.finfo(dtype).min)

    def make_visible_mask(self) -> Tensor:
        """Which keys each query may see, a boolean ``[B or 1, 1, T, P + Tk]``."""
        length = 0 if self.prefix_kv is None else self.prefix_kv[0].shape[2]
        if not self.has_mask:
            shape = (1, 1, self.query.shape[2], length + self.key.shape[2])
            return torch.ones(shape, dtype=torch.bool, device=self.query.device)
        mask = self.make_explicit_mask()
        return mask if mask.dtype == torch.bool else mask > _VISIBLE_ABOVE

    def compute_attention_weights(self) -> Tensor:
        """The attention weights ``[B, heads, T, P + Tk]``, in fp32."""
        batch, heads, queries, size = self.query.shape
        groups = self.key.shape[1]
        query = self.query.reshape(batch, groups, -1, size)
        options = _combine_masks(self, groups), size**-0.5 if self.scaling is None else self.scaling
        prefix_key = self.key[:1, :, :0] if self.prefix_kv is None else self.prefix_kv[0]
        weights = _compute_weights(query, prefix_key, self.key, options=options).transpose(0, 1)
        return weights.reshape(batch, heads, queries, -1)


def attend(module: nn.Module, call: AttentionCall, *, options: dict[str, Any]) -> Tensor:
    """Compute the attention's output.

    Args:
        module: the attention module.
        call: its inputs.
        options: transformers' own keyword arguments of the call.

    Returns:
        The output ``[B, T, heads, D]``.
    """
    # The plain products have no gradient for a bias, such as T5's in a trained backbone.
    trains_bias = call.bias is not None and (
        call.bias.requires_grad or any(p.requires_grad for p in module.parameters())
    )
    if _is_plain_faster(module, call, options) and not trains_bias:
        return _attend_plain(call)
    key, value = call.join_prefix()
    whole = replace(call, key=key, value=value, prefix_kv=None)
    return run_kernel(module, whole, options=options)


def run_kernel(module: nn.Module, call: AttentionCall, *, options: dict[str, Any]) -> Tensor:
    """Run torch's fused kernel or, where the family computes more than it can, the family's own.

    Args:
        module: the attention module.
        call: its inputs; a prefix must be among the keys and values already.
        options: transformers' own keyword arguments of the call.

    Returns:
        The output ``[B, T, heads, D]``.
    """
    if call.bias is not None:
        options = options | {"position_bias": call.bias}
    kernel, mask = _find_own_kernel(module, options), call.mask
    if kernel is None:
        kernel = sdpa_attention_forward
    else:
        mask = call.make_additive_mask(call.query.dtype)
        options = {"scaling": None} | options
    output: Tensor
    output, _ = kernel(module, call.query, call.key, call.value, mask, **options)
    return output


# Keyword arguments by which an attention selects keys by their index.
SELECTING_KEYWORDS = ("indices", "block_indices")
# Keyword arguments that change the scores, of which torch's kernel knows nothing.
_BEYOND_SDPA = ("softcap", "s_aux", "sinks", *SELECTING_KEYWORDS)


def _find_own_kernel(module: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The family's own attention function, if torch's kernel cannot compute this call."""
    if all(options.get(name) is None for name in _BEYOND_SDPA):
        return None
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _is_plain_faster(module: nn.Module, call: AttentionCall, options: dict[str, Any]) -> bool:
    """Whether plain products support a call and are faster: in training, on a CPU, if it is short.

    They have no dropout, no mask for each head, and nothing that some family adds to the scores.
    """
    tensors = (call.query, call.key, call.value, *(call.prefix_kv or ()))
    if call.query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if options.get("dropout") or _find_own_kernel(module, options) is not None:
        return False
    if call.mask is not None and call.mask.shape[1] != 1:
        return False
    length = 0 if call.prefix_kv is None else call.prefix_kv[0].shape[2]
    scores = call.query.shape[2] * (length + call.key.shape[2])
    return scores <= PLAIN_LIMIT and any(t.requires_grad for t in tensors)


def _attend_plain(call: AttentionCall) -> Tensor:
    batch, heads, queries, size = call.query.shape
    groups = call.key.shape[1]
    added = _combine_masks(call, groups)
    prefix = call.prefix_kv or (call.key[:1, :, :0], call.value[:1, :, :0])
    scale = size**-0.5 if call.scaling is None else call.scaling
    query = call.query.reshape(batch, groups, -1, size)
    attended = _PlainAttention.apply((added, scale), query, *prefix, call.key, call.value)  # type: ignore[no-untyped-call]  # torch's own
    output: Tensor = attended.unflatten(2, (heads // groups, queries))
    return output.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, -1).contiguous()


def _combine_masks(call: AttentionCall, groups: int) -> Tensor | None:
    """Mask and bias as one summand per score: ``[1 or N, B or 1, 1 or heads/N, T, P + Tk]``."""
    added = call.make_additive_mask(torch.float32)
    if added is not None:
        added = added[:, :, None].transpose(0, 1)
    if call.bias is None:
        return added
    bias: Tensor = call.bias.float().unflatten(1, (groups, -1)).transpose(0, 1)
    return bias if added is None else bias + added


class _PlainAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + added) v in fp32, over the prefix's and the row's keys and values.

    Inside, axes are ``[N, B, heads/N · T, D]``: a part that all rows share is one product.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        options: tuple[Tensor | None, float],
        *tensors: Tensor,
    ) -> Tensor:
        query, prefix_key, prefix_value, key, value = tensors
        weights = _compute_weights(query, prefix_key, key, options=options)
        length = prefix_key.shape[2]
        parts = (weights[..., :length], prefix_value), (weights[..., length:], value)
        from_prefix, from_row = (_multiply(w, v) for w, v in parts)
        ctx.save_for_backward(*tensors, weights.to(query.dtype))
        ctx.scale = options[1]
        return (from_prefix + from_row).transpose(0, 1).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query, prefix_key, prefix_value, key, value, weights = ctx.saved_tensors
        length = prefix_key.shape[2]
        g, weights = grad.transpose(0, 1).float(), weights.float()
        q = query.transpose(0, 1).float() * ctx.scale
        # The gradients of the weights, then of the scores, by the derivative of the softmax.
        slopes = torch.cat([_multiply(g, v, transpose=True) for v in (prefix_value, value)], dim=-1)
        slopes = weights * (slopes - (slopes * weights).sum(dim=-1, keepdim=True))
        needed, gradients = ctx.needs_input_grad, list[Tensor | None]()
        slope = _multiply(slopes[..., :length], prefix_key) + _multiply(slopes[..., length:], key)
        gradients.append((slope * ctx.scale).transpose(0, 1).to(query.dtype) if needed[1] else None)
        of_prefix, of_row = slice(None, length), slice(length, None)
        for part, k, v, at in ((of_prefix, prefix_key, prefix_value, 2), (of_row, key, value, 4)):
            gradients.append(_sum_products(slopes[..., part], q, k) if needed[at] else None)
            gradients.append(_sum_products(weights[..., part], g, v) if needed[at + 1] else None)
        return (None, *gradients)


def _compute_weights(
    query: Tensor, prefix_key: Tensor, key: Tensor, *, options: tuple[Tensor | None, float]
) -> Tensor:
    """The attention weights ``[N, B, heads/N · T, P + Tk]``."""
    added, scale = options
    q = query.transpose(0, 1).float() * scale
    scores = torch.cat([_multiply(q, k, transpose=True) for k in (prefix_key, key)], dim=-1)
    if added is not None:
        scores = (scores.unflatten(2, (-1, added.shape[-2])) + added).flatten(2, 3)
    return scores.softmax(dim=-1)


def _multiply(left: Tensor, right: Tensor, *, transpose: bool = False) -> Tensor:
    """``[N, B, S, x]`` times ``[B or 1, N, x, y]``, the latter transposed first on request."""
    right = right.transpose(0, 1).float()
    right = right.transpose(2, 3) if transpose else right
    if right.shape[1] == 1:
        product: Tensor = (left.flatten(1, 2) @ right[:, 0]).unflatten(1, left.shape[1:3])
        return product
    return left @ right


def _sum_products(weights: Tensor, terms: Tensor, like: Tensor) -> Tensor:
    """``weightsᵀ terms`` as ``[B, N, y, D]``: the gradient of ``like``.

    It is summed over the batch if ``like`` has one row, which all rows share.
    """
    if len(like) == 1:
        weights, terms = (t.flatten(1, 2)[:, None] for t in (weights, terms))
    return (weights.transpose(2, 3) @ terms).transpose(0, 1).to(like.dtype)
