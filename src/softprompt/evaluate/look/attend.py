"""How much attention the rows pay to a prompt, layer by layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softprompt.backbone.attention import Attention
from softprompt.backbone.model import Backbone, Inputs
from softprompt.data.batch import like_length
from softprompt.errors import DataError
from softprompt.evaluate.model import Model
from softprompt.injection.observe import observe
from softprompt.prompt import InputPrompt, Prompt
from softprompt.tasks import Example
from softprompt.tasks.layout import padded, with_decoder

Part = Literal["row", "decoder", "cross"]


@dataclass(frozen=True)
class Attended:
    """What one attention site gives to the prompt, of 1 that every position has to give.

    Args:
        site: its number.
        part: which positions give: the ``row``'s, a ``decoder``'s to itself, or its ``cross``
            attention to the row.
        share: the mean over heads and all positions of all rows that are no padding and no soft
            tokens.
        scored: likewise over the positions that the answer is read from; None where there are none.
        even: what the share would be if every position attended alike to all that it sees.
        tokens: the share of each soft token; they sum to ``share``.
    """

    site: int
    part: Part
    share: float
    scored: float | None
    even: float
    tokens: tuple[float, ...]


def shares(
    model: Model, rows: Iterable[str | Mapping[str, object]], *, batch_size: int = 16
) -> list[Attended]:
    """How much attention rows pay to the prompt at every site that sees it.

    A row is run as it is answered: where words are scored in several continuations, in the first
    of them; where text is written, up to its first token; an encoder-decoder's decoder is fed its
    start.

    Args:
        rows: as `Model.predict` takes them.

    Raises:
        DataError: there are no rows, or one lacks a field.
        PromptError: the backbone has an attention of its own (DeBERTa).
    """
    examples = [model.example(row) for row in rows]
    if not examples:
        msg = "there are no rows whose attention could be looked at. Give at least one."
        raise DataError(msg)
    sums: dict[int, _Sums] = {}
    lengths = [len(e.variants[0].ids) for e in examples]
    for batch in like_length(lengths, size=batch_size, seed=None):
        looking = _Looking(model, [examples[i] for i in batch], sums=sums)
        observe(model.backbone, looking.inputs, prompt=model.prompt, told=looking.see)
    found = [_found(site, part_of(model.backbone, site), own) for site, own in sums.items()]
    return [one for one in found if one.even > 0]


def part_of(backbone: Backbone, site: int) -> Part:
    """Whose attention a site is. A decoder's layers call their own, then the one to the row."""
    behind = site - backbone.geometry.blocks
    if backbone.geometry.kind != "encoder-decoder" or behind < 0:
        return "row"
    return "cross" if behind % 2 else "decoder"


@dataclass
class _Sums:
    """Over positions, of their shares by soft token."""

    tokens: Float[Tensor, " P"]
    even: Float[Tensor, ""]
    count: int = 0
    scored: float = 0.0
    scores: int = 0


class _Looking:
    """A batch, and what is summed up of it as its sites are called."""

    def __init__(
        self, model: Model, examples: Sequence[Example], *, sums: dict[int, _Sums]
    ) -> None:
        self.backbone, self.prompt, self.sums = model.backbone, model.prompt, sums
        self.inputs = _laid(model.backbone, examples)
        ids = self.inputs.ids
        soft = ids - model.backbone.geometry.vocabulary
        self.real = (self.inputs.mask > 0) & (soft < 0)
        self.scored = torch.zeros_like(self.real)
        for row, example in enumerate(examples):
            self.scored[row, list(_points(example))] = True
        self.columns = _columns(model.prompt, soft)

    def see(self, site: int, attention: Attention) -> None:
        """Add what one site gives."""
        part = part_of(self.backbone, site)
        seen, weights = attention.visible()[:, 0].float(), attention.shares().mean(dim=1)
        own = self._own(attention, part)
        given = weights[..., : len(own[0])] @ own  # [B, T, P]
        even = (seen[..., : len(own[0])] @ own).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
        asking, scored = self._asking(part, given)
        total = self.sums.setdefault(
            site, _Sums(given.new_zeros(given.shape[-1]), even.new_zeros(()))
        )
        total.tokens += given[asking].sum(dim=0)
        total.even += even.expand(asking.shape)[asking].sum()
        total.count += int(asking.sum())
        total.scored += float(given[scored].sum())
        total.scores += int(scored.sum())

    def _own(self, attention: Attention, part: Part) -> Float[Tensor, "B K P"]:
        """Which of the columns, from the first on, are which soft token."""
        length = 0 if attention.before is None else attention.before[0].shape[2]
        if not isinstance(self.prompt, InputPrompt):
            eye = torch.eye(length, self.prompt.length, device=self.real.device)
            return eye.expand(len(self.real), -1, -1)
        return torch.zeros_like(self.columns[:, :0]) if part == "decoder" else self.columns

    def _asking(
        self, part: Part, given: Float[Tensor, "B T P"]
    ) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
        if part == "row":
            decodes = self.backbone.geometry.kind == "encoder-decoder"
            return self.real, torch.zeros_like(self.real) if decodes else self.scored
        every = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        return every, every


def _laid(backbone: Backbone, examples: Sequence[Example]) -> Inputs:
    inputs = padded(backbone, [e.variants[0] for e in examples])
    if backbone.geometry.kind != "encoder-decoder":
        return inputs
    return with_decoder(inputs, [[backbone.decoder_start]] * len(examples))


def _points(example: Example) -> Sequence[int]:
    """Where the answer is read from; before a text that is to be written, the last position."""
    return example.points[0] or (len(example.variants[0].ids) - 1,)


def _columns(prompt: Prompt, soft: Tensor) -> Float[Tensor, "B T P"]:
    numbers = torch.arange(prompt.length, device=soft.device)
    return (soft[..., None] == numbers).float()


def _found(site: int, part: Part, sums: _Sums) -> Attended:
    tokens = (sums.tokens / max(sums.count, 1)).tolist()
    return Attended(
        site=site,
        part=part,
        share=sum(tokens),
        scored=sums.scored / sums.scores if sums.scores else None,
        even=float(sums.even) / max(sums.count, 1),
        tokens=tuple(tokens),
    )
