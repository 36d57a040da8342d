"""Alibi: a bias that falls with the distance by a slope per head (BLOOM, MPT, Falcon)."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from softprompt.backbone.attention import AttentionCall


class AlibiBias:
    """The bias of tokens before a row, relative to that of each query itself, which is 0.

    Args:
        slopes: the slope of each head.
    """

    def __init__(self, slopes: Float[Tensor, " heads"]) -> None:
        self.slopes = slopes

    def __call__(
        self, attention: AttentionCall, columns: int, *, shift: Tensor, **_: Tensor
    ) -> Tensor:
        """Multiply the slopes by the distances.

        A query's own position is the number of tokens that it sees, but for itself: neither padding
        nor the cache changes it.
        """
        position = attention.make_visible_mask().sum(dim=-1, keepdim=True) - 1
        column = torch.arange(columns, device=position.device)
        slopes = self.slopes.to(attention.query)[:, None, None]
        return slopes * (column - shift.to(position.device)[:, None, None, None] - position)


def update_cache(
    cache: Cache | None, layer: int, *, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, int | Tensor]:
    """The keys and values with those of the cache, and the number of tokens that it had before.

    Args:
        cache: None where there is none.
        layer: whose keys and values they are.
        key: of the new tokens.
        value: of the new tokens.
    """
    if cache is None:
        return key, value, 0
    # Read before the update, which may change it in place.
    cached = cache.get_seq_length(layer) + 0
    return (*cache.update(key, value, layer), cached)


def make_relative(bias: Tensor, *, queries: int, cached: int | Tensor) -> Tensor:
    """A bias by column, ``[…, 1, Tk]``, as one by the distance from each query, ``[…, T, Tk]``.

    A softmax does not depend on where distances start.
    """
    positions = torch.arange(queries, device=bias.device) + cached
    return bias - bias[..., positions].transpose(-1, -2)
