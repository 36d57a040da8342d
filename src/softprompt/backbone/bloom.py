"""BLOOM's attention, opened: it is its own, and biases keys by their position (alibi).

Its layers are handed nothing but alibi, so the pass rides on that tensor, which gradient
checkpointing keeps too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import (
    BloomAttention,
    BloomModel,
    build_alibi_tensor,
    dropout_add,
)

from softprompt.backbone import seam
from softprompt.backbone.attention import Attention, attend


def open_bloom(model: nn.Module) -> bool:
    """Let listeners change the attention of a BLOOM; whether it is one."""
    body = next((m for m in model.modules() if isinstance(m, BloomModel)), None)
    if body is None:
        return False
    body.register_forward_pre_hook(_with_mask, with_kwargs=True)
    vars(body)["build_alibi_tensor"] = partial(_alibi, body.build_alibi_tensor)
    for module in body.modules():
        if isinstance(module, BloomAttention):
            vars(module)["forward"] = partial(_attention, module.forward, module)
    return True


class Alibi:
    """BLOOM's bias, falling with the distance by a slope of each head's own."""

    def __call__(self, attention: Attention, columns: int, *, shift: Tensor, **_: Tensor) -> Tensor:
        """From the bias of the row's first position on, further down."""
        if attention.bias is None:
            msg = "BLOOM's attention always has a bias."
            raise AssertionError(msg)
        heads, first = attention.query.shape[1], attention.bias[..., :1]
        two = torch.ones(1, 2, dtype=torch.long, device=first.device)
        slopes = build_alibi_tensor(two, heads, first.dtype)[:, 0, 1]
        steps = torch.arange(columns, device=shift.device) - shift[:, None, None, None]
        return first + slopes[:, None, None] * steps


ALIBI = Alibi()


def _with_mask(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Without a mask BLOOM makes the same alibi another way, where no pass could begin."""
    if seam.current() is None or kwargs.get("attention_mask") is not None:
        return None
    given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    tokens = next(tensor for tensor in given if tensor is not None)
    (batch, length), cache = tokens.shape[:2], kwargs.get("past_key_values")
    if cache is not None:
        length, _ = cache.get_mask_sizes(length, 0)
    whole = torch.ones(batch, length, dtype=torch.long, device=tokens.device)
    return args, kwargs | {"attention_mask": whole}


def _alibi(build: Callable[..., Tensor], mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    made, listener = build(mask, *args, **kwargs), seam.current()
    if listener is not None:
        seam.ride(made, listener.call(mask.long().cumsum(dim=-1) - 1))
    return made


def _attention(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    module: BloomAttention,
    states: Tensor,
    residual: Tensor,
    **given: Any,  # noqa: ANN401  # transformers' own arguments
) -> tuple[Tensor, Tensor | None]:
    call = seam.riding(given)
    if call is None:
        return forward(states, residual, **given)
    cache, bias = given["layer_past"], given["alibi"].unflatten(0, (-1, module.num_heads))
    query, key, value = module._reshape(module.query_key_value(states))  # noqa: SLF001
    # Asked before it grows, which it may do in place.
    held = 0 if cache is None else cache.get_seq_length(module.layer_idx) + 0
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx)
    own = torch.arange(query.shape[2], device=bias.device) + held
    # A softmax is the same from wherever distances are counted: here, from each query.
    distance = bias - bias[..., own].transpose(-1, -2)
    plain = Attention(query, key, value, given["attention_mask"], causal=True, bias=distance)
    seen = call.attend(module, plain)
    if seen.before is None:
        output = _as_ever(module, seen, bias)
    else:
        rate = module.attention_dropout.p if module.training else 0.0
        options = {"dropout": rate, "scaling": module.inv_norm_factor}
        output = attend(module, seen, options=options)
    output = module.dense(output.flatten(2))
    return dropout_add(output, residual, module.hidden_dropout, module.training), None


def _as_ever(module: BloomAttention, seen: Attention, bias: Tensor) -> Tensor:
    """BLOOM's own arithmetic, to the bit: nothing stands before the row."""
    query, key, value = (t.flatten(0, 1) for t in (seen.query, seen.key, seen.value))
    scores = bias.flatten(0, 1).baddbmm(query, key.transpose(1, 2), alpha=module.inv_norm_factor)
    mask = seen.written()
    if mask.dtype == torch.bool:
        lowest = torch.finfo(scores.dtype).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    weights = scores.view(*seen.query.shape[:3], -1) + mask
    shares = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    found = torch.bmm(module.attention_dropout(shares).flatten(0, 1), value)
    return found.view(seen.query.shape).transpose(1, 2)
