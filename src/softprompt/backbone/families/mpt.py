"""Hooks into MPT, which computes its attention itself, with a bias by position (alibi)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from softprompt.backbone import hooks
from softprompt.backbone.attention import AttentionCall, attend
from softprompt.backbone.families.alibi import AlibiBias, make_relative, update_cache


def hook_mpt(model: PreTrainedModel) -> bool:
    """Install the hook for attention if the model is an MPT; return whether it is."""
    modules = [module for module in model.modules() if isinstance(module, MptAttention)]
    if not modules:
        return False
    # The last of its columns is that of the last token, the one before it a step away.
    alibi = AlibiBias(-build_mpt_alibi_tensor(modules[0].n_heads, 2)[:, 0, 0])
    hooks.wrap_method(modules, "forward", function=_attend, arguments=[alibi])
    hooks.hook_entry_modules(model)
    return True


def _attend(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: MptAttention,
    alibi: AlibiBias,
    states: Tensor,
    **kwargs: Any,  # noqa: ANN401  # transformers' own arguments
) -> tuple[Tensor, Tensor | None]:
    pass_hook = hooks.get_attached_pass(kwargs)
    if pass_hook is None:
        return forward(states, **kwargs)
    scale = cast("float", module.softmax_scale)
    (query, key, value), cache = _project(module, states), kwargs.get("past_key_values")
    layer = cast("int", module.layer_idx)
    key, value, cached = update_cache(cache, layer, key=key, value=value)
    by_column = kwargs["position_bias"][..., -key.shape[2] :]
    call = AttentionCall(
        query,
        key,
        value,
        ~kwargs["attention_mask"],
        causal=True,
        bias=make_relative(by_column, queries=query.shape[2], cached=cached)[None],
        scaling=scale,
        compute_bias=alibi,
    )
    extended = pass_hook.attend(module, call)
    rate = module.attn_dropout_p if module.training else 0.0
    if extended is call:
        output = _attend_alone(call, by_column, scale=scale, dropout=rate)
    else:
        options = {"dropout": rate, "scaling": scale}
        output = attend(module, extended, options=options)
    return module.out_proj(output.flatten(2).to(states.dtype)), None


def _project(module: MptAttention, states: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values."""
    mixed = module.Wqkv(states)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    shape = module.n_heads, module.head_dim
    return tuple(part.unflatten(-1, shape).transpose(1, 2) for part in mixed.chunk(3, dim=2))


def _attend_alone(call: AttentionCall, bias: Tensor, *, scale: float, dropout: float) -> Tensor:
    """MPT's own arithmetic, bit for bit, for rows without a prefix."""
    scores = call.query @ call.key.transpose(-1, -2) * scale + bias
    scores = scores.masked_fill(~call.make_visible_mask(), torch.finfo(call.query.dtype).min)
    weights = scores.float().softmax(dim=-1).to(call.value.dtype)
    weights = nn.functional.dropout(weights, p=dropout)
    return (weights @ call.value).transpose(1, 2)
