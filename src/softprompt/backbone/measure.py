"""Read a model's shapes off the model itself: a dry forward where that can be, else its config."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention

from softprompt.backbone import seam
from softprompt.backbone.blocks import Block, find_blocks
from softprompt.backbone.bloom import ALIBI
from softprompt.backbone.model import Geometry, Kind, accepts
from softprompt.backbone.place import Bias, Buckets, find_bias, find_table
from softprompt.backbone.record import Recorder

_TOKENS = 3


@dataclass(frozen=True, eq=False)
class Site:
    """One attention call of a forward pass.

    Args:
        module: whose call it was.
        heads: N, key/value heads.
        head_size: D.
        window: how far back it sees, if it says so.
        own: whether a row's own tokens attend to one another, as in all but cross-attention; of
            an encoder-decoder, its decoder's.
        biased: whether there is a bias by distance.
        bias: what computes it, if that can be told.
    """

    module: nn.Module
    heads: int
    head_size: int
    window: int | None
    own: bool
    biased: bool
    bias: Bias | None


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
    return top - torch.arange(_TOKENS, device=weight.device)[None]


@torch.no_grad()
def dry_run(
    model: PreTrainedModel, kind: Kind, *, open_attention: bool
) -> tuple[list[Site], Float[Tensor, "1 3 H"]]:
    """Run the model once.

    Returns:
        Its attention calls in order (none where its attention is not open), and the last states.
    """
    recorder = Recorder()
    with seam.listening(recorder):
        states = _states(model, kind)
    if not open_attention:
        return [], states
    halves = kind == "encoder-decoder"
    inside = {id(m) for m in model.get_encoder().modules()} if halves else set()
    sites, biases = list[Site](), dict[nn.Module, Bias]()
    for number, (module, seen) in enumerate(recorder.calls, start=1):
        # A decoder's own tokens are one more than the encoder's, which cross-attention sees.
        own = not halves or (id(module) not in inside and seen.key.shape[2] == _TOKENS)
        table = find_bias(recorder.calls[:number]) if own else None
        bias = None if table is None else biases.setdefault(table, Buckets(table))
        bias = ALIBI if isinstance(module, BloomAttention) else bias
        shape = seen.key.shape[1], seen.key.shape[3]
        sites.append(Site(module, *shape, seen.window, own, seen.bias is not None, bias))
    return sites, states


@torch.no_grad()
def position_table(model: PreTrainedModel, kind: Kind) -> nn.Module | None:
    """Where a decoder that takes no position ids looks positions up, if it does."""
    if kind != "encoder-decoder":
        return None
    return find_table(model, run=lambda: _states(model, kind))


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
    table: nn.Module | None,
) -> Geometry:
    """The geometry of a model, from what a dry run gave and the decoder's position table."""
    vocabulary, embedding_size = table_of(model).weight.shape
    offset = _position_offset(model, kind)
    own = [site for site in calls if site.own]
    biased = [site for site in own if site.biased]
    placed = offset is not None or bool(own and (biased or table is not None))
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
        own_sites=tuple(number for number, site in enumerate(calls) if site.own),
        movable=placed and all(site.bias is not None for site in biased),
        embedding_rms=_embedding_rms(model),
    )


def _states(model: PreTrainedModel, kind: Kind, *, positions: Tensor | None = None) -> Tensor:
    ids = probe_ids(model)
    mask = torch.ones_like(ids)
    if kind == "encoder-decoder":
        given = {"input_ids": ids[:, 1:], "attention_mask": mask[:, 1:]}
        states = model.get_encoder()(**given).last_hidden_state
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
