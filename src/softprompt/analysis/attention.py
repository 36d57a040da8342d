"""Attention to a prompt, by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softprompt.backbone.attention import AttentionCall
from softprompt.backbone.model import Backbone, BatchInputs
from softprompt.data import RowsLike, group_by_length, iterate_rows
from softprompt.errors import DataError
from softprompt.inference.model import PromptModel
from softprompt.injection.capture import observe_attention
from softprompt.prompt import InputPrompt, Prompt
from softprompt.tasks import Example
from softprompt.tasks.base import pad_rows, with_decoder_inputs

AttentionPart = Literal["row", "decoder", "cross"]


@dataclass(frozen=True)
class AttentionShare:
    """The share of attention that goes to the prompt at one attention site, from 0 to 1.

    Args:
        site: its number.
        part: which attention it is: ``row`` for self-attention of the row, ``decoder`` for
            self-attention of a decoder, ``cross`` for its cross-attention to the row.
        share: the mean over heads and over all positions of all rows, without padding and soft
            tokens.
        at_readout: the mean over the positions that the prediction is read from; None where there
            are none.
        uniform: the share under uniform attention to all visible positions.
        tokens: the share of each soft token; they sum to ``share``.

    Examples:
        >>> layer = AttentionShare(0, "row", 0.25, at_readout=0.5, uniform=0.2, tokens=(0.1, 0.15))
        >>> layer.share > layer.uniform
        True
    """

    site: int
    part: AttentionPart
    share: float
    at_readout: float | None
    uniform: float
    tokens: tuple[float, ...]


def compute_attention_shares(
    model: PromptModel, rows: RowsLike, *, batch_size: int = 16
) -> list[AttentionShare]:
    """The share of attention that goes to the prompt, at every site that can attend to it.

    A row is run as for a prediction: with the first continuation where label words need several;
    up to the first token where text is generated; with the start token as the decoder's input of an
    encoder-decoder.

    Args:
        model: the trained prompt with its backbone.
        rows: as `PromptModel.predict` takes them.
        batch_size: the most rows that are run at once.

    Returns:
        The share of each site; sites that cannot attend to the prompt are left out.

    Raises:
        DataError: there are no rows, or one lacks a field.
        PromptError: the backbone's attention cannot be read, such as RoFormer's.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{soft:2}{text} is", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> shares = compute_attention_shares(model, ["a good film", "dull"])
        >>> print(*(layer.site for layer in shares))
        0 1
    """
    lists = model.task.flexible_columns
    stream = iterate_rows(rows, fields=model.task.columns, lists=lists)
    examples = [model.render(row) for row in stream]
    if not examples:
        msg = "there are no rows to compute attention for. Give at least one."
        raise DataError(msg)
    sums: dict[int, _Sums] = {}
    lengths = [len(e.variants[0].input_ids) for e in examples]
    for batch in group_by_length(lengths, size=batch_size, seed=None):
        observer = _BatchObserver(model, [examples[i] for i in batch], sums=sums)
        observe_attention(
            model.backbone, observer.inputs, prompt=model.prompt, callback=observer.add
        )
    shares = [
        _make_share(site, find_part(model.backbone, site), total) for site, total in sums.items()
    ]
    return [share for share in shares if share.uniform > 0]


def find_part(backbone: Backbone, site: int) -> AttentionPart:
    """Find which attention a site is: a decoder layer has self-attention, then cross-attention."""
    decoder_site = site - backbone.geometry.num_layers
    if backbone.geometry.architecture != "encoder-decoder" or decoder_site < 0:
        return "row"
    return "cross" if decoder_site % 2 else "decoder"


@dataclass
class _Sums:
    """Sums over positions, for one site."""

    tokens: Float[Tensor, " P"]
    uniform: Float[Tensor, ""]
    count: int = 0
    at_readout: float = 0.0
    readouts: int = 0


class _BatchObserver:
    """Adds the attention of a batch to the sums, site by site, while the batch is run."""

    def __init__(
        self, model: PromptModel, examples: Sequence[Example], *, sums: dict[int, _Sums]
    ) -> None:
        self.backbone, self.prompt, self.sums = model.backbone, model.prompt, sums
        self.inputs = _make_inputs(model.backbone, examples)
        ids = self.inputs.input_ids
        soft = ids - model.backbone.geometry.vocab_size
        self.real = (self.inputs.attention_mask > 0) & (soft < 0)
        self.readouts = torch.zeros_like(self.real)
        for row, example in enumerate(examples):
            self.readouts[row, list(_read_positions(example))] = True
        self.soft_columns = _mark_soft_tokens(model.prompt, soft)

    def add(self, site: int, attention: AttentionCall) -> None:
        """Add the attention of one site."""
        part = find_part(self.backbone, site)
        visible = attention.make_visible_mask()[:, 0].float()
        weights = attention.compute_attention_weights().mean(dim=1)
        soft = self._locate_soft_tokens(attention, part)
        shares = weights[..., : len(soft[0])] @ soft  # [B, T, P]
        uniform = (visible[..., : len(soft[0])] @ soft).sum(dim=-1)
        uniform = uniform / visible.sum(dim=-1).clamp(min=1)
        queries, readouts = self._select_queries(part, shares)
        sums = self.sums.setdefault(
            site, _Sums(shares.new_zeros(shares.shape[-1]), uniform.new_zeros(()))
        )
        sums.tokens += shares[queries].sum(dim=0)
        sums.uniform += uniform.expand(queries.shape)[queries].sum()
        sums.count += int(queries.sum())
        sums.at_readout += float(shares[readouts].sum())
        sums.readouts += int(readouts.sum())

    def _locate_soft_tokens(
        self, attention: AttentionCall, part: AttentionPart
    ) -> Float[Tensor, "B K P"]:
        """Which of the first K keys are which soft token."""
        length = 0 if attention.prefix_kv is None else attention.prefix_kv[0].shape[2]
        if not isinstance(self.prompt, InputPrompt):
            eye = torch.eye(length, self.prompt.length, device=self.real.device)
            return eye.expand(len(self.real), -1, -1)
        return (
            torch.zeros_like(self.soft_columns[:, :0]) if part == "decoder" else self.soft_columns
        )

    def _select_queries(
        self, part: AttentionPart, shares: Float[Tensor, "B T P"]
    ) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """The positions whose attention counts, and those that the prediction is read from."""
        if part == "row":
            has_decoder = self.backbone.geometry.architecture == "encoder-decoder"
            return self.real, torch.zeros_like(self.real) if has_decoder else self.readouts
        every = torch.ones(shares.shape[:2], dtype=torch.bool, device=shares.device)
        return every, every


def _make_inputs(backbone: Backbone, examples: Sequence[Example]) -> BatchInputs:
    inputs = pad_rows(backbone, [e.variants[0] for e in examples])
    if backbone.geometry.architecture != "encoder-decoder":
        return inputs
    return with_decoder_inputs(inputs, [[backbone.decoder_start_token_id]] * len(examples))


def _read_positions(example: Example) -> Sequence[int]:
    """The positions that the prediction is read from; for text generation, the last one."""
    return example.read_positions[0] or (len(example.variants[0].input_ids) - 1,)


def _mark_soft_tokens(prompt: Prompt, soft: Tensor) -> Float[Tensor, "B T P"]:
    """A one at the soft token of each position; ``soft`` has its number, or a negative one."""
    numbers = torch.arange(prompt.length, device=soft.device)
    return (soft[..., None] == numbers).float()


def _make_share(site: int, part: AttentionPart, sums: _Sums) -> AttentionShare:
    tokens = (sums.tokens / max(sums.count, 1)).tolist()
    return AttentionShare(
        site=site,
        part=part,
        share=sum(tokens),
        at_readout=sums.at_readout / sums.readouts if sums.readouts else None,
        uniform=float(sums.uniform) / max(sums.count, 1),
        tokens=tuple(tokens),
    )
