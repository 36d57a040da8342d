"""Hooks into BLOOM, whose custom attention biases keys by their position (alibi).

Its layers receive no keyword arguments except alibi, so the pass is attached to that tensor, which
gradient checkpointing also keeps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import (
    BloomAttention,
    BloomModel,
    build_alibi_tensor,
    dropout_add,
)

from softprompt.backbone import hooks
from softprompt.backbone.attention import AttentionCall, attend
from softprompt.backbone.families.alibi import AlibiBias, make_relative, update_cache


def hook_bloom(model: nn.Module) -> bool:
    """Install the hook for attention if the model is a BLOOM; return whether it is."""
    body = next((m for m in model.modules() if isinstance(m, BloomModel)), None)
    if body is None:
        return False
    body.register_forward_pre_hook(_add_mask, with_kwargs=True)
    vars(body)["build_alibi_tensor"] = partial(_build_alibi, body.build_alibi_tensor)
    two = torch.ones(1, 2, dtype=torch.long)
    alibi = AlibiBias(build_alibi_tensor(two, body.num_heads, torch.float32)[:, 0, 1])
    modules = [module for module in body.modules() if isinstance(module, BloomAttention)]
    hooks.wrap_method(modules, "forward", function=_attend, arguments=[alibi])
    return True


def _add_mask(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Add a mask: without one BLOOM builds alibi in another function, which has no hook.

    The mask hides nothing.
    """
    if hooks.get_current_hook() is None or kwargs.get("attention_mask") is not None:
        return None
    inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    tokens = next(tensor for tensor in inputs if tensor is not None)
    (batch, length), cache = tokens.shape[:2], kwargs.get("past_key_values")
    if cache is not None:
        length, _ = cache.get_mask_sizes(length, 0)
    mask = torch.ones(batch, length, dtype=torch.long, device=tokens.device)
    return args, kwargs | {"attention_mask": mask}


def _build_alibi(build: Callable[..., Tensor], mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    alibi, hook = build(mask, *args, **kwargs), hooks.get_current_hook()
    if hook is not None:
        hooks.attach_pass(alibi, hook.begin_pass(mask.long().cumsum(dim=-1) - 1))
    return alibi


def _attend(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: BloomAttention,
    compute_bias: AlibiBias,
    states: Tensor,
    residual: Tensor,
    **kwargs: Any,  # noqa: ANN401  # transformers' own arguments
) -> tuple[Tensor, Tensor | None]:
    pass_hook = hooks.get_attached_pass(kwargs)
    if pass_hook is None:
        return forward(states, residual, **kwargs)
    cache, bias = kwargs["layer_past"], kwargs["alibi"].unflatten(0, (-1, module.num_heads))
    query, key, value = module._reshape(module.query_key_value(states))  # noqa: SLF001
    layer = cast("int", module.layer_idx)
    key, value, cached = update_cache(cache, layer, key=key, value=value)
    distance = make_relative(bias, queries=query.shape[2], cached=cached)
    mask = kwargs["attention_mask"]
    call = AttentionCall(
        query, key, value, mask, causal=True, bias=distance, compute_bias=compute_bias
    )
    call = pass_hook.attend(module, call)
    if call.prefix_kv is None:
        output = _attend_without_prefix(module, call, bias)
    else:
        rate = module.attention_dropout.p if module.training else 0.0
        options = {"dropout": rate, "scaling": module.inv_norm_factor}
        output = attend(module, call, options=options)
    output = module.dense(output.flatten(2))
    return dropout_add(output, residual, module.hidden_dropout, module.training), None


def _attend_without_prefix(module: BloomAttention, call: AttentionCall, bias: Tensor) -> Tensor:
    """BLOOM's own arithmetic, bit for bit, for rows without a prefix."""
    query, key, value = (t.flatten(0, 1) for t in (call.query, call.key, call.value))
    scores = bias.flatten(0, 1).baddbmm(query, key.transpose(1, 2), alpha=module.inv_norm_factor)
    weights, mask = scores.view(*call.query.shape[:3], -1), call.make_additive_mask(scores.dtype)
    weights = weights if mask is None else weights + mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.bmm(module.attention_dropout(weights).flatten(0, 1), value)
    return output.view(call.query.shape).transpose(1, 2)
