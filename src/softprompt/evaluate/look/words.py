"""Which words the soft tokens of an input prompt are nearest to."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from softprompt.backbone.model import Backbone
from softprompt.prompt import InputPrompt

_CHUNK = 16384


@dataclass(frozen=True)
class SoftToken:
    """One vector of an input prompt.

    Args:
        words: the vocabulary's nearest entries, nearest first.
        cosines: of the angles to them, -1 to 1.
        norm: relative to the root mean square norm of the embedding table's rows.
    """

    words: tuple[str, ...]
    cosines: tuple[float, ...]
    norm: float


def nearest(prompt: InputPrompt, backbone: Backbone, *, count: int = 5) -> list[SoftToken]:
    """For each soft token the words whose embeddings point its way.

    Source: Lester et al. 2021, section 7.2 (nearest neighbours by cosine).

    Args:
        prompt: trained on this backbone.
        count: how many words for each.
    """
    vectors = prompt.vectors.detach().float().to(backbone.device)
    cosines, ids = _closest(vectors, backbone, count=count)
    usual = backbone.geometry.embedding_rms * backbone.geometry.embedding_size**0.5
    norms = (vectors.norm(dim=1) / usual).tolist()
    return [
        SoftToken(tuple(str(backbone.tokenizer.decode([i])) for i in row), tuple(near), norm)
        for row, near, norm in zip(ids.tolist(), cosines.tolist(), norms, strict=True)
    ]


def _closest(
    vectors: Float[Tensor, "P E"], backbone: Backbone, *, count: int
) -> tuple[Float[Tensor, "P k"], Int[Tensor, "P k"]]:
    """The best of the whole table, a part of it at a time: in fp32 it may be gigabytes."""
    unit = F.normalize(vectors, dim=1)
    best: list[Tensor] = []
    where: list[Tensor] = []
    for start, rows in _table(backbone):
        found = unit @ F.normalize(rows, dim=1).T
        top = found.topk(min(count, found.shape[1]), dim=1)
        best.append(top.values)
        where.append(top.indices + start)
    chosen = torch.cat(best, dim=1).topk(min(count, sum(b.shape[1] for b in best)), dim=1)
    return chosen.values, torch.cat(where, dim=1).gather(1, chosen.indices)


def _table(backbone: Backbone) -> Iterator[tuple[int, Float[Tensor, "C E"]]]:
    """The rows of the table that the tokenizer can write, in parts."""
    rows = min(backbone.geometry.vocabulary, len(backbone.tokenizer))
    for start in range(0, rows, _CHUNK):
        yield start, backbone.embed(torch.arange(start, min(start + _CHUNK, rows)))
