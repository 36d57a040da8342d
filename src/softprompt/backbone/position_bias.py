"""Positions in models that take no position ids: position tables, and biases by distance.

A prefix before a row can shift the row's positions. If the model takes no position ids, the hook
reads later rows of the decoder's position table, and computes the bias of the prefix's distance.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from softprompt.backbone.attention import AttentionCall


@runtime_checkable
class PositionBias(Protocol):
    """A bias by distance that attention sites add to their scores."""

    def __call__(
        self, attention: AttentionCall, columns: int, *, shift: Tensor, cached: Tensor
    ) -> Tensor:
        """The bias ``[B, heads, T, columns]`` of tokens at the positions 0, 1, 2 … before a row.

        Args:
            attention: the row's own attention call.
            columns: the number of these tokens.
            shift: the number of positions that each row is shifted by, ``[B or 1]``.
            cached: the number of each row's tokens that are in the cache already, ``[B or 1]``.
        """


class T5PositionBias:
    """T5's relative position bias, computed by the module that has the table."""

    def __init__(self, module: nn.Module) -> None:
        self.compute: Callable[..., Tensor] = module.compute_bias  # type: ignore[assignment]  # T5's own

    def __call__(
        self, attention: AttentionCall, columns: int, *, shift: Tensor, cached: Tensor
    ) -> Tensor:
        """Compute the bias of every distance once, then look it up."""
        queries, device = attention.query.shape[2], attention.query.device
        least = int(cached.min())
        width = columns + queries + int(cached.max()) - least
        # From the last possible position, the others are at the distances 0, 1, 2 …
        last = self.compute(1, width, device=device, past_seen_tokens=least + width - 1)[0, :, 0]
        query, column = torch.arange(queries, device=device), torch.arange(columns, device=device)
        before = shift + cached - least
        index = width - 1 - before[:, None, None] - query[:, None] + column
        return last[:, index.clamp(max=width - 1)].transpose(0, 1)


def find_position_bias(calls: Sequence[tuple[nn.Module, AttentionCall]]) -> nn.Module | None:
    """The module that computed the bias of the last of these calls, found by trial."""
    _, last = calls[-1]
    if last.bias is None:
        return None
    lengths = last.query.shape[2], last.key.shape[2]
    for module, _ in reversed(calls):
        # Layers without a table of their own receive the bias of the first one.
        if getattr(module, "relative_attention_bias", None) is None:
            continue
        compute: Any = module.compute_bias
        if torch.equal(compute(*lengths), last.bias):
            return module
    return None


def find_position_table(model: PreTrainedModel, *, run: Callable[[], object]) -> nn.Module | None:
    """Find a decoder's position table: the embedding that is called with position ids.

    Args:
        model: an encoder-decoder.
        run: a function that runs the model once.

    Returns:
        The table; None if there is not exactly one.
    """
    called: list[nn.Module] = []

    def record(module: nn.Module, *args: Any) -> None:  # noqa: ANN401  # the last are the keywords
        if args[-1].get("position_ids") is not None:
            called.append(module)

    tables = [m for m in model.get_decoder().modules() if isinstance(m, nn.Embedding)]
    hooks = [table.register_forward_pre_hook(record, with_kwargs=True) for table in tables]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return called[0] if len(called) == 1 else None
