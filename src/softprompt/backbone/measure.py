"""Read a model's shapes off the model itself: a dry forward where that can be, else its config."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from softprompt.backbone import seam
from softprompt.backbone.blocks import Block, find_blocks
from softprompt.backbone.model import Geometry, Kind, accepts


@dataclass(frozen=True, eq=False)
class Site:
    """One attention call of a forward pass.

    Args:
        module: whose call it was.
        heads: N, key/value heads.
        head_size: D.
        window: how far back it sees, if it says so.
    """

    module: nn.Module
    heads: int
    head_size: int
    window: int | None


def body_of(model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """What is run to fingerprint and to measure; the whole, where the body has two halves."""
    return model if kind == "encoder-decoder" else cast("PreTrainedModel", model.base_model)


def table_of(model: PreTrainedModel) -> nn.Embedding:
    """The input embedding table."""
    return cast("nn.Embedding", model.get_input_embeddings())


def probe_ids(model: PreTrainedModel) -> Int[Tensor, "1 3"]:
    """Three ordinary ids; the highest of the first hundred, clear of most special ones."""
    weight = table_of(model).weight
    top = min(100, weight.shape[0]) - 1
    return torch.tensor([[top, top - 1, top - 2]], device=weight.device)


@torch.no_grad()
def dry_run(
    model: PreTrainedModel, kind: Kind, *, open_attention: bool
) -> tuple[list[Site], Float[Tensor, "1 3 H"]]:
    """Run the model once.

    Returns:
        Its attention calls in order (none where its attention is not open), and the last states.
    """
    recorder = seam.Recorder()
    with seam.listening(recorder):
        states = _states(model, kind)
    sites = [
        Site(module, seen.key.shape[1], seen.key.shape[3], seen.window)
        for module, seen in recorder.calls
    ]
    return sites if open_attention else [], states


@torch.no_grad()
def layers(model: PreTrainedModel, kind: Kind, *, calls: list[Site]) -> list[Block]:
    """The layers that a row goes through, an encoder-decoder's encoder's, in order.

    None where they cannot be told, or are not one for each attention call.
    """
    body = model.get_encoder() if kind == "encoder-decoder" else model.base_model
    inside = {id(module) for module in body.modules()}
    attentions = [site.module for site in calls if id(site.module) in inside]
    return find_blocks(body, attentions, run=lambda: _states(model, kind))


def measure(
    model: PreTrainedModel,
    kind: Kind,
    *,
    calls: list[Site],
    blocks: list[Block],
    states: Float[Tensor, "1 3 H"],
) -> Geometry:
    """The geometry of a model, from what a dry run gave."""
    offset = _position_offset(model, kind)
    vocabulary, embedding_size = table_of(model).weight.shape
    return Geometry(
        kind=kind,
        family=model.config.model_type,
        hidden_size=states.shape[-1],
        embedding_size=embedding_size,
        vocabulary=vocabulary,
        positions=_positions(model, offset or 0),
        sites=len(calls),
        blocks=len(blocks),
        block_size=blocks[0].width if blocks else 0,
        heads=calls[0].heads if calls else 0,
        head_size=calls[0].head_size if calls else 0,
        window=_window(model),
        window_told=any(site.window is not None for site in calls),
        position_offset=offset,
        embedding_rms=_embedding_rms(model),
    )


def _states(model: PreTrainedModel, kind: Kind, *, positions: Tensor | None = None) -> Tensor:
    ids = probe_ids(model)
    mask = torch.ones_like(ids)
    if kind == "encoder-decoder":
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return _last(model.get_decoder()(input_ids=ids, encoder_hidden_states=states))
    explicit = {} if positions is None else {"position_ids": positions}
    return _last(model.base_model(input_ids=ids, attention_mask=mask, **explicit))


def _last(output: object) -> Tensor:
    states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]  # transformers' output
    return states


@torch.no_grad()
def _position_offset(model: PreTrainedModel, kind: Kind) -> int | None:
    """Found by trial: which explicit position ids give what none give."""
    if kind == "encoder-decoder" or not accepts(model.base_model, "position_ids"):
        return None
    bare = _states(model, kind)
    pad = getattr(model.config, "pad_token_id", None)
    for offset in (0, (pad or 0) + 1):
        ids = torch.arange(bare.shape[1], device=bare.device)[None] + offset
        if torch.equal(bare, _states(model, kind, positions=ids)):
            return offset
    return None


def _positions(model: PreTrainedModel, offset: int) -> int | None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or model.config.model_type in {"t5", "mt5", "bloom"}:
        return None
    # RoBERTa's table, and MPNet's, begin with rows for padding that no token may use.
    return limit - offset


def _window(model: PreTrainedModel) -> int | None:
    config = model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return int(window) if isinstance(window, int) else None


@torch.no_grad()
def _embedding_rms(model: PreTrainedModel) -> float:
    """Over the first rows of a large table: enough for a scale, without a copy of the table."""
    table = table_of(model)
    rows = torch.arange(min(4096, table.num_embeddings), device=table.weight.device)
    embedded: Tensor = table(rows)
    return math.sqrt(embedded.float().pow(2).mean().item())
