"""Hooks into Falcon, which computes its attention itself, rotary or with a bias (alibi)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.falcon.modeling_falcon import (
    FalconAttention,
    apply_rotary_pos_emb,
    build_alibi_tensor,
)

from softprompt.backbone import hooks
from softprompt.backbone.attention import AttentionCall, attend
from softprompt.backbone.families.alibi import AlibiBias, make_relative, update_cache


def hook_falcon(model: PreTrainedModel) -> bool:
    """Install the hook for attention if the model is a Falcon; return whether it is.

    In its eager attention alibi counts twice, so that is left alone.
    """
    modules = [module for module in model.modules() if isinstance(module, FalconAttention)]
    if not modules or model.config._attn_implementation != "sdpa":  # noqa: SLF001  # transformers' only way to ask
        return False
    first, two = modules[0], torch.ones(1, 2, dtype=torch.long)
    slopes = build_alibi_tensor(two, first.num_heads, torch.float32)[:, 0, 1]
    alibi = AlibiBias(slopes * first.inv_norm_factor)
    hooks.wrap_method(modules, "forward", function=_attend, arguments=[alibi])
    hooks.hook_entry_modules(model)
    return True


def _attend(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: FalconAttention,
    compute_bias: AlibiBias,
    states: Tensor,
    **kwargs: Any,  # noqa: ANN401  # transformers' own arguments
) -> tuple[Tensor, Tensor | None]:
    pass_hook = hooks.get_attached_pass(kwargs)
    if pass_hook is None:
        return forward(states, **kwargs)
    query, key, value = (
        part.transpose(1, 2)
        for part in module._split_heads(module.query_key_value(states))  # noqa: SLF001  # its own
    )
    alibi, cache, mask = kwargs["alibi"], kwargs.get("layer_past"), kwargs["attention_mask"]
    if alibi is None:
        query, key = apply_rotary_pos_emb(query, key, *kwargs["position_embeddings"])
    layer = cast("int", module.layer_idx)
    key, value, cached = update_cache(cache, layer, key=key, value=value)
    call = AttentionCall(query, key, value, mask, causal=True, bias=None)
    rate = 0.0
    if alibi is not None:
        rate = module.attention_dropout.p if module.training else 0.0
        # Falcon's mask contains the bias.
        bias = alibi.reshape(len(states), module.num_heads, 1, -1) * module.inv_norm_factor
        bias = make_relative(bias, queries=query.shape[2], cached=cached)
        call = replace(call, mask=call.make_visible_mask()[:, :1], bias=bias)
        call = replace(call, compute_bias=compute_bias)
    extended = pass_hook.attend(module, call)
    if extended is call:
        extended = replace(call, mask=mask, bias=None)
    output = attend(module, extended, options={"dropout": rate})
    return module.dense(output.flatten(2)), None
