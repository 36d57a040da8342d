"""torch's fused attention beside plain products, forward and backward, on the CPU in bf16."""

from typing import Any

import torch
from arms import timed

from softprompt.backbone import attention as own
from softprompt.backbone.attention import AttentionCall, attend

SIZES = ((10, 37), (30, 30), (30, 130), (64, 64), (128, 128), (256, 256))


def attention(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Milliseconds of one site of SmolLM2-135M with sixteen rows, by queries and keys."""
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    found: dict[str, dict[str, float]] = {}
    usual = own.PLAIN
    for queries, keys in SIZES:
        call = _call(queries, keys)
        spent: dict[str, list[float]] = {"fused": [], "plain": []}
        for _ in range(6):
            for name, limit in (("fused", 0), ("plain", queries * keys)):
                own.PLAIN = limit
                with timed() as seconds:
                    attend(module, call, options={}).float().sum().backward()
                spent[name].append(seconds[0])
        middle = {name: sorted(values[1:])[2] * 1000 for name, values in spent.items()}
        found[f"{queries}x{keys}"] = {name: round(value, 3) for name, value in middle.items()}
    own.PLAIN = usual
    return {"milliseconds": found}


def _call(queries: int, keys: int) -> AttentionCall:
    def leaf(heads: int, length: int) -> torch.Tensor:
        return torch.randn(16, heads, length, 64, dtype=torch.bfloat16).requires_grad_()

    mask = torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    return AttentionCall(
        leaf(9, queries), leaf(3, keys), leaf(3, keys), mask, causal=True, bias=None
    )
