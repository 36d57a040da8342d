"""The nearest words to the soft tokens of an input prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from softprompt.analysis.trained import get_prompt
from softprompt.artifact import Artifact, check_backbone
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

if TYPE_CHECKING:
    from softprompt.backbone.model import Backbone
    from softprompt.inference.model import PromptModel

_CHUNK = 16384  # rows of the embedding table


@dataclass(frozen=True)
class SoftToken:
    """One vector of an input prompt.

    Args:
        words: the nearest tokens of the vocabulary, nearest first.
        cosines: the cosine similarity to each of them, -1 to 1.
        norm: relative to the root mean square norm of the embedding table's rows.

    Examples:
        >>> SoftToken(words=(" good", " great"), cosines=(0.9, 0.8), norm=1.2).words[0]
        ' good'
    """

    words: tuple[str, ...]
    cosines: tuple[float, ...]
    norm: float


def find_nearest_words(
    trained: "Prompt | Artifact | PromptModel",
    backbone: "Backbone | None" = None,
    *,
    count: int = 5,
) -> list[SoftToken]:
    """The words whose embeddings have the highest cosine similarity to each soft token.

    Source: Lester et al. 2021, section 7.2 (nearest neighbours by cosine).

    Args:
        trained: an input prompt, or an artifact or a model with one.
        backbone: that it was trained on; not needed for a model.
        count: the number of words for each soft token.

    Returns:
        A value for each soft token, in order.

    Raises:
        PromptError: the prompt is not among the input embeddings, or the backbone is missing.
        ArtifactError: the artifact was trained on another backbone.

    Examples:
        >>> good = backbone.tokenizer(" good", add_special_tokens=False)["input_ids"]
        >>> prompt = InputPrompt(backbone.embed(torch.tensor(good)))
        >>> find_nearest_words(prompt, backbone, count=3)[0].words[0]
        ' good'
    """
    prompt = get_prompt(trained)
    if not isinstance(prompt, InputPrompt) or prompt.start_layer:
        msg = (
            f"{prompt!r} is not among the input embeddings, so it has no nearest words. "
            "Choose an input prompt on layer 0."
        )
        raise PromptError(msg)
    if not isinstance(trained, InputPrompt | KVPrefix | Artifact):
        backbone = trained.backbone
    if backbone is None:
        msg = "the words are those of a backbone, which is missing. Give the prompt's backbone."
        raise PromptError(msg)
    if isinstance(trained, Artifact):
        check_backbone(trained, backbone)
    vectors = prompt.vectors.detach().float().to(backbone.device)
    cosines, ids = _find_closest(vectors, backbone, count=count)
    table_norm = backbone.geometry.embedding_rms * backbone.geometry.embedding_size**0.5
    norms = (vectors.norm(dim=1) / table_norm).tolist()
    return [
        SoftToken(tuple(str(backbone.tokenizer.decode([i])) for i in row), tuple(near), norm)
        for row, near, norm in zip(ids.tolist(), cosines.tolist(), norms, strict=True)
    ]


def _find_closest(
    vectors: Float[Tensor, "P E"], backbone: "Backbone", *, count: int
) -> tuple[Float[Tensor, "P k"], Int[Tensor, "P k"]]:
    """Search the embedding table in chunks, since the whole in fp32 may take gigabytes."""
    unit = F.normalize(vectors, dim=1)
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for start, rows in _iterate_table(backbone):
        cosines = unit @ F.normalize(rows, dim=1).T
        top = cosines.topk(min(count, cosines.shape[1]), dim=1)
        values.append(top.values)
        indices.append(top.indices + start)
    candidates = torch.cat(values, dim=1)
    best = candidates.topk(min(count, candidates.shape[1]), dim=1)
    return best.values, torch.cat(indices, dim=1).gather(1, best.indices)


def _iterate_table(backbone: "Backbone") -> Iterator[tuple[int, Float[Tensor, "C E"]]]:
    """The rows of the embedding table that belong to tokens, in chunks."""
    rows = min(backbone.geometry.vocab_size, len(backbone.tokenizer))
    for start in range(0, rows, _CHUNK):
        yield start, backbone.embed(torch.arange(start, min(start + _CHUNK, rows)))
