"""Positions where a model takes no position ids: a decoder's table of them, biases by distance.

A prefix that stands in front of a row moves it up. Where that cannot be told to the model, the
table is asked for later rows, and what stands in front is given the bias of its distance.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from softprompt.backbone.attention import Attention


@runtime_checkable
class Bias(Protocol):
    """What attention sites add to their scores by distance."""

    def __call__(
        self, attention: Attention, columns: int, *, shift: Tensor, held: Tensor
    ) -> Tensor:
        """The bias ``[B, heads, T, columns]`` of tokens at the positions 0, 1, 2 … before a row.

        Args:
            attention: what the row attends to by itself.
            columns: how many such tokens.
            shift: for each row, by how much they move it up, ``[B or 1]``.
            held: how many of the row's tokens a cache holds already.
        """


class Buckets:
    """T5's relative position bias, read off the module that has the table."""

    def __init__(self, module: nn.Module) -> None:
        self.compute: Callable[..., Tensor] = module.compute_bias  # type: ignore[assignment]  # its own

    def __call__(
        self, attention: Attention, columns: int, *, shift: Tensor, held: Tensor
    ) -> Tensor:
        """One line for all distances, then looked up."""
        queries, device = attention.query.shape[2], attention.query.device
        width = columns + queries
        # Seen from the last position that any row has, the others are 0, 1, 2 … columns away.
        line = self.compute(1, width, device=device, past_seen_tokens=held + width - 1)[0, :, 0]
        rows, columns_ = torch.arange(queries, device=device), torch.arange(columns, device=device)
        index = width - 1 - shift[:, None, None] - rows[:, None] + columns_
        return line[:, index.clamp(max=width - 1)].transpose(0, 1)


def find_bias(calls: Sequence[tuple[nn.Module, Attention]]) -> nn.Module | None:
    """The module that computed the bias of the last of these calls, found by trial."""
    _, seen = calls[-1]
    if seen.bias is None:
        return None
    lengths = seen.query.shape[2], seen.key.shape[2]
    for module, _ in reversed(calls):
        # Layers without a table of their own are given what the first one computed.
        if getattr(module, "relative_attention_bias", None) is None:
            continue
        compute: Any = module.compute_bias
        if torch.equal(compute(*lengths), seen.bias):
            return module
    return None


def find_table(model: PreTrainedModel, *, run: Callable[[], object]) -> nn.Module | None:
    """A decoder's position table: what it asks, by position ids, for embeddings.

    Args:
        run: runs the model once.
    """
    found: list[nn.Module] = []

    def note(module: nn.Module, *given: Any) -> None:  # noqa: ANN401  # arguments of all kinds
        if given[-1].get("position_ids") is not None:
            found.append(module)

    tables = [m for m in model.get_decoder().modules() if isinstance(m, nn.Embedding)]
    hooks = [table.register_forward_pre_hook(note, with_kwargs=True) for table in tables]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if len(found) == 1 else None
