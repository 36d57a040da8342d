"""torch's fused attention compared with plain products: forward and backward, bf16, on the CPU."""

from typing import Any

import torch
from arms import measure_time

# An inner module: one attention call is timed, and the limit between the two ways is overridden.
from softprompt.backbone import attention as attention_module
from softprompt.backbone.attention import AttentionCall, attend

SIZES = ((10, 37), (30, 30), (30, 130), (64, 64), (128, 128), (256, 256))


def measure_attention(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Milliseconds at one layer of SmolLM2-135M with sixteen rows, by queries and keys."""
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    result: dict[str, dict[str, float]] = {}
    default = attention_module.PLAIN_LIMIT
    for queries, keys in SIZES:
        call = _make_call(queries, keys)
        times: dict[str, list[float]] = {"fused": [], "plain": []}
        for _ in range(6):
            for name, limit in (("fused", 0), ("plain", queries * keys)):
                attention_module.PLAIN_LIMIT = limit
                with measure_time() as elapsed:
                    attend(module, call, options={}).float().sum().backward()
                times[name].append(elapsed[0])
        medians = {name: sorted(values[1:])[2] * 1000 for name, values in times.items()}
        result[f"{queries}x{keys}"] = {name: round(value, 3) for name, value in medians.items()}
    attention_module.PLAIN_LIMIT = default
    return {"milliseconds": result}


def _make_call(queries: int, keys: int) -> AttentionCall:
    def draw(heads: int, length: int) -> torch.Tensor:
        return torch.randn(16, heads, length, 64, dtype=torch.bfloat16).requires_grad_()

    mask = torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    return AttentionCall(
        draw(9, queries), draw(3, keys), draw(3, keys), mask, causal=True, bias=None
    )
