"""Hooks into GPT-J, CodeGen and GPT-Neo, whose attention is a method of theirs, ``_attn``.

It receives queries, keys and values after any rotary embedding and after the cache, and an additive
mask. GPT-Neo adds the causal mask, or that of its sliding window, by itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention

from softprompt.backbone import hooks
from softprompt.backbone.attention import AttentionCall, attend


def hook_gptj(model: PreTrainedModel) -> bool:
    """Install the hook for attention if the model is one of these; return whether it is."""
    kinds = GPTJAttention | CodeGenAttention | GPTNeoSelfAttention
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    hooks.wrap_method(modules, "_attn", function=_attend)
    if modules:
        hooks.hook_entry_modules(model)
    return bool(modules)


def _attend(
    method: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    pass_hook = hooks.get_attached_pass({})
    if pass_hook is None:
        return method(query, key, value, attention_mask)
    mask, scale, window = attention_mask, 1.0, None
    if isinstance(module, GPTNeoSelfAttention):
        mask = _add_own_mask(module, query, key, attention_mask)
        window = module.config.window_size if module.attention_type == "local" else None
    else:
        scale = 1 / float(module.scale_attn)  # type: ignore[arg-type]  # a number or a tensor
    call = AttentionCall(
        query, key, value, mask, causal=True, bias=None, window=window, scaling=scale
    )
    extended = pass_hook.attend(module, call)
    if extended.prefix_kv is None and extended.mask is mask:
        return method(query, key, value, attention_mask)
    rate = module.attn_dropout.p if module.training else 0.0  # type: ignore[union-attr]  # dropout
    output = attend(module, extended, options={"scaling": scale, "dropout": rate})
    return output.transpose(1, 2).to(value.dtype), None


def _add_own_mask(
    module: GPTNeoSelfAttention, query: Tensor, key: Tensor, mask: Tensor | None
) -> Tensor:
    """GPT-Neo's causal mask, with the window of its local layers, and the mask of padding."""
    queries, keys = query.shape[2], key.shape[2]
    visible = module.bias[:, :, keys - queries : keys, :keys]
    lowest = torch.finfo(query.dtype).min
    own = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    own = own.masked_fill(~visible, lowest)
    return own if mask is None else (own + mask).clamp(min=lowest)
