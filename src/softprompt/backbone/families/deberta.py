"""Hooks into DeBERTa (all versions), whose attention has relative positions among its scores.

The scores of a row's own tokens are sums of three products: content by content, content by relative
position, and relative position by content. A prefix has the first alone, as in the code of P-tuning
v2 (Liu et al. 2022): its keys are content without a place, at the same score for every distance.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.deberta import modeling_deberta as v1
from transformers.models.deberta_v2 import modeling_deberta_v2 as v2

from softprompt.backbone import hooks
from softprompt.backbone.attention import AttentionCall

_Attention = v1.DisentangledSelfAttention | v2.DisentangledSelfAttention


def hook_deberta(model: PreTrainedModel) -> bool:
    """Install the hook for attention if the model is a DeBERTa; return whether it is.

    Talking heads, which mix the scores of all heads, are left alone.
    """
    modules = [module for module in model.modules() if isinstance(module, _Attention)]
    if not modules or getattr(modules[0], "talking_head", False):
        return False
    hooks.wrap_method(modules, "forward", function=_attend)
    for encoder in model.modules():
        if isinstance(encoder, v1.DebertaEncoder | v2.DebertaV2Encoder):
            vars(encoder)["get_attention_mask"] = partial(_make_mask, encoder.get_attention_mask)
    hooks.hook_entry_modules(model)
    return True


def _make_mask(make: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The mask that all layers share, boolean."""
    return make(mask).bool()


def _attend(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: _Attention,
    states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,  # noqa: FBT001, FBT002  # transformers' own arguments
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    pass_hook = hooks.get_attached_pass(kwargs)
    if pass_hook is None or kwargs.get("query_states") is not None:
        return forward(states, attention_mask, output_attentions, **kwargs)
    if isinstance(module, v1.DisentangledSelfAttention):
        (query, key, value), bias, scale = _project_v1(module, states, **kwargs)
    else:
        (query, key, value), bias, scale = _project_v2(module, states, **kwargs)
    if not isinstance(bias, Tensor):  # there are no relative positions
        bias = query.new_zeros(1, query.shape[1], 1, key.shape[2])
    call = AttentionCall(
        query, key, value, attention_mask, causal=False, bias=bias, scaling=1 / scale
    )
    call = pass_hook.attend(module, call)
    key, value = call.join_prefix()
    scores = query @ (key.transpose(-1, -2) / torch.tensor(scale, dtype=key.dtype))
    scores = scores if call.bias is None else scores + call.bias
    scores = scores.masked_fill(~call.make_visible_mask(), torch.finfo(scores.dtype).min)
    output = module.dropout(scores.softmax(dim=-1)) @ value
    return output.transpose(1, 2).flatten(2), None


_Projected = tuple[tuple[Tensor, Tensor, Tensor], Tensor | int | None, float]


def _project_v1(
    module: v1.DisentangledSelfAttention,
    states: Tensor,
    *,
    relative_pos: Tensor | None,
    rel_embeddings: Tensor | None,
    **_: object,
) -> _Projected:
    """Queries, keys and values; the scores of relative positions; what divides the products."""
    query, key, value = module.transpose_for_scores(module.in_proj(states)).chunk(3, dim=-1)
    query = query + module.transpose_for_scores(module.q_bias[None, None])
    value = value + module.transpose_for_scores(module.v_bias[None, None])
    factor = 1 + len(module.pos_att_type)
    query = query / v1.scaled_size_sqrt(query, factor).to(query.dtype)
    if not module.relative_attention or rel_embeddings is None or relative_pos is None:
        return (query, key, value), None, 1.0
    embedded = module.pos_dropout(rel_embeddings)
    bias = module.disentangled_att_bias(query, key, relative_pos, embedded, factor)
    return (query, key, value), bias, 1.0


def _project_v2(
    module: v2.DisentangledSelfAttention,
    states: Tensor,
    *,
    relative_pos: Tensor | None,
    rel_embeddings: Tensor | None,
    **_: object,
) -> _Projected:
    """Queries, keys and values; the scores of relative positions; what divides the products."""
    heads = module.num_attention_heads
    layers = module.query_proj, module.key_proj, module.value_proj
    flat = [module.transpose_for_scores(layer(states), heads) for layer in layers]
    query, key, value = (part.unflatten(0, (-1, heads)) for part in flat)
    factor = 1 + len({"c2p", "p2c"} & {*module.pos_att_type})
    scale = math.sqrt(query.shape[-1] * factor)
    if not module.relative_attention:
        return (query, key, value), None, scale
    embedded = module.pos_dropout(rel_embeddings)
    bias = module.disentangled_attention_bias(flat[0], flat[1], relative_pos, embedded, factor)
    if isinstance(bias, Tensor):
        bias = bias.unflatten(0, (-1, heads))
    return (query, key, value), bias, scale
