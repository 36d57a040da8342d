"""Measure the geometry of a model in a trial forward pass, and wrap it as a frozen backbone."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone import hooks
from softprompt.backbone.families.bloom import ALIBI, hook_bloom
from softprompt.backbone.fingerprint import compute_fingerprint
from softprompt.backbone.hooks import Recorder
from softprompt.backbone.layers import Layer, find_layers
from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Architecture, Backbone, BatchInputs, Geometry, can_accept
from softprompt.backbone.position_bias import (
    PositionBias,
    T5PositionBias,
    find_position_bias,
    find_position_table,
)
from softprompt.errors import BackboneError

_PROBE_LENGTH = 3


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One attention call of a forward pass.

    Args:
        module: the attention module.
        num_kv_heads: N, key/value heads.
        head_dim: D.
        sliding_window: the size of its sliding window, if it reports one.
        is_self_attention: whether a row's own tokens attend to one another, as everywhere except
            in cross-attention; of an encoder-decoder, only in the decoder.
        has_bias: whether there is a bias by distance.
        bias: the function that computes the bias, if it is known.
    """

    module: nn.Module
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None
    is_self_attention: bool
    has_bias: bool
    bias: PositionBias | None


def find_body(model: PreTrainedModel, kind: Architecture) -> PreTrainedModel:
    """The model without its head; an encoder-decoder is returned whole."""
    return model if kind == "encoder-decoder" else cast("PreTrainedModel", model.base_model)


def find_input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """The input embedding table."""
    return cast("nn.Embedding", model.get_input_embeddings())


def make_probe_ids(model: PreTrainedModel) -> Int[Tensor, "1 3"]:
    """Three ordinary token ids: the highest below 100, because most special ids are lower."""
    weight = find_input_embeddings(model).weight
    top = min(100, weight.shape[0]) - 1
    return top - torch.arange(_PROBE_LENGTH, device=weight.device)[None]


@torch.no_grad()
def run_dry(
    model: PreTrainedModel, kind: Architecture, *, has_hooks: bool
) -> tuple[list[AttentionSite], Float[Tensor, "1 3 H"]]:
    """Run the model once on a few tokens.

    Args:
        model: the model, with hooks.
        kind: its architecture.
        has_hooks: whether its attention has hooks.

    Returns:
        Its attention calls in order (none without hooks), and the last hidden states.
    """
    recorder = Recorder()
    with hooks.use_hook(recorder):
        states = _run_probe(model, kind)
    if not has_hooks:
        return [], states
    is_encoder_decoder = kind == "encoder-decoder"
    encoder = {id(m) for m in model.get_encoder().modules()} if is_encoder_decoder else set()
    sites, biases = list[AttentionSite](), dict[nn.Module, PositionBias]()
    for number, (module, call) in enumerate(recorder.calls, start=1):
        # The decoder runs on one token more than the encoder, so cross-attention has fewer keys.
        is_full = call.key.shape[2] == _PROBE_LENGTH
        is_self = not is_encoder_decoder or (id(module) not in encoder and is_full)
        table = find_position_bias(recorder.calls[:number]) if is_self else None
        bias = None if table is None else biases.setdefault(table, T5PositionBias(table))
        bias = ALIBI if isinstance(module, BloomAttention) else bias
        heads, size, has_bias = call.key.shape[1], call.key.shape[3], call.bias is not None
        sites.append(AttentionSite(module, heads, size, call.window, is_self, has_bias, bias))
    return sites, states


@torch.no_grad()
def find_position_embeddings(model: PreTrainedModel, kind: Architecture) -> nn.Module | None:
    """The position table of a decoder that takes no position ids, if it has one."""
    if kind != "encoder-decoder":
        return None
    return find_position_table(model, run=lambda: _run_probe(model, kind))


@torch.no_grad()
def find_row_layers(
    model: PreTrainedModel, kind: Architecture, *, sites: list[AttentionSite]
) -> list[Layer]:
    """The layers that a row goes through, in order; of an encoder-decoder its encoder's.

    An empty list if they cannot be determined, or there is not one for each attention call.
    """
    body = model.get_encoder() if kind == "encoder-decoder" else model.base_model
    modules = {id(module) for module in body.modules()}
    attentions = [site.module for site in sites if id(site.module) in modules]
    return find_layers(body, attentions, run=lambda: _run_probe(model, kind))


def measure_geometry(
    model: PreTrainedModel,
    kind: Architecture,
    *,
    sites: list[AttentionSite],
    layers: list[Layer],
    states: Float[Tensor, "1 3 H"],
    table: nn.Module | None,
) -> Geometry:
    """The geometry of a model, from its trial run and the decoder's position table."""
    vocabulary, embedding_size = find_input_embeddings(model).weight.shape
    offset = _find_position_offset(model, kind)
    self_attention = [site for site in sites if site.is_self_attention]
    biased = [site for site in self_attention if site.has_bias]
    has_positions = offset is not None or bool(self_attention and (biased or table is not None))
    return Geometry(
        architecture=kind,
        model_type=model.config.model_type,
        hidden_size=states.shape[-1],
        embedding_size=embedding_size,
        vocab_size=vocabulary,
        max_positions=_max_positions(model, offset or 0),
        num_attention_sites=len(sites),
        num_layers=len(layers),
        layer_width=layers[0].width if layers else 0,
        num_kv_heads=sites[0].num_kv_heads if sites else 0,
        head_dim=sites[0].head_dim if sites else 0,
        sliding_window=_sliding_window(model),
        reports_window=any(site.sliding_window is not None for site in sites),
        position_offset=offset,
        self_attention_sites=tuple(
            number for number, site in enumerate(sites) if site.is_self_attention
        ),
        supports_position_shift=has_positions and all(site.bias is not None for site in biased),
        embedding_rms=_measure_embedding_rms(model),
    )


def _run_probe(
    model: PreTrainedModel, kind: Architecture, *, positions: Tensor | None = None
) -> Tensor:
    """The last hidden states of the probe ids; of an encoder-decoder those of its decoder."""
    ids = make_probe_ids(model)
    mask = torch.ones_like(ids)
    if kind == "encoder-decoder":
        inputs = {"input_ids": ids[:, 1:], "attention_mask": mask[:, 1:]}
        states = model.get_encoder()(**inputs).last_hidden_state
        return _last_hidden_state(model.get_decoder()(input_ids=ids, encoder_hidden_states=states))
    explicit = {} if positions is None else {"position_ids": positions}
    return _last_hidden_state(model.base_model(input_ids=ids, attention_mask=mask, **explicit))


def _last_hidden_state(output: object) -> Tensor:
    states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]  # transformers' output
    return states


@torch.no_grad()
def _find_position_offset(model: PreTrainedModel, kind: Architecture) -> int | None:
    """The first position id, found by trial: explicit ids from it on change nothing."""
    if kind == "encoder-decoder" or not can_accept(model.base_model, "position_ids"):
        return None
    bare = _run_probe(model, kind)
    pad = getattr(model.config, "pad_token_id", None)
    for offset in (0, (pad or 0) + 1):
        ids = torch.arange(bare.shape[1], device=bare.device)[None] + offset
        if torch.equal(bare, _run_probe(model, kind, positions=ids)):
            return offset
    return None


def _max_positions(model: PreTrainedModel, offset: int) -> int | None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or model.config.model_type in {"t5", "mt5", "bloom"}:
        return None
    # The position tables of RoBERTa and MPNet begin with rows for padding.
    return limit - offset


def _sliding_window(model: PreTrainedModel) -> int | None:
    config = model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return int(window) if isinstance(window, int) else None


@torch.no_grad()
def _measure_embedding_rms(model: PreTrainedModel) -> float:
    """Over the first rows of a large table, to avoid a copy of the table."""
    table = find_input_embeddings(model)
    rows = torch.arange(min(4096, table.num_embeddings), device=table.weight.device)
    embedded: Tensor = table(rows)
    return math.sqrt(embedded.float().pow(2).mean().item())


_SPECIAL_IDS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}


def wrap_model(
    name: str,
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    kind: Architecture,
    revision: str | None = None,
    headless: bool = False,
) -> Backbone:
    """Freeze a model, install the hooks and measure its geometry.

    Args:
        name: its name in messages and artifacts.
        model: it is changed: frozen, in eval mode, with hooks for prompts.
        tokenizer: its tokenizer.
        kind: ``"causal"``, ``"encoder"`` or ``"encoder-decoder"``.
        revision: the Hub commit, if there is one.
        headless: whether the checkpoint has no language-model head, so the model's is random.

    Returns:
        The backbone.

    Raises:
        BackboneError: its attention sites have different shapes.
    """
    model.requires_grad_(requires_grad=False)
    model.eval()
    _clear_generation_defaults(model)
    fingerprint = compute_fingerprint(find_body(model, kind), tokenizer)
    has_hooks = hooks.install_hooks(model) or hook_bloom(model)
    sites, states = run_dry(model, kind, has_hooks=has_hooks)
    shapes = sorted({(site.num_kv_heads, site.head_dim) for site in sites})
    if len(shapes) > 1:
        msg = (
            f"backbone {name!r} has attention layers of different shapes (heads, head size): "
            f"{shapes}. A prefix needs one shape on all layers; this family is not supported yet. "
            "Choose another backbone."
        )
        raise BackboneError(msg)
    layers = find_row_layers(model, kind, sites=sites)
    hooks.hook_layers(layers)
    if (table := find_position_embeddings(model, kind)) is not None:
        hooks.hook_positions(table)
    geometry = measure_geometry(model, kind, sites=sites, layers=layers, states=states, table=table)
    return Backbone(
        name=name,
        revision=revision,
        model=model,
        tokenizer=tokenizer,
        geometry=geometry,
        fingerprint=fingerprint,
        lm_head=None if headless else LMHead(model),
        site_of=_number_calls([site.module for site in sites]),
        layer_of=_number_calls([layer.module for layer in layers]),
        bias_of={site.module: site.bias for site in sites if site.bias is not None},
    )


def _clear_generation_defaults(model: PreTrainedModel) -> None:
    """Keep only the special ids of the checkpoint's generation settings.

    transformers takes every setting that is not given from there, so a checkpoint's defaults
    (Qwen's repetition penalty) would change answers unnoticed.
    """
    defaults = getattr(model, "generation_config", None)  # encoders have none
    if defaults is not None:
        ids = {name: value for name, value in defaults.to_dict().items() if name in _SPECIAL_IDS}
        model.generation_config = GenerationConfig(**ids)


def _number_calls(modules: list[nn.Module]) -> dict[nn.Module, tuple[int, ...]]:
    """The numbers of each module's calls; ALBERT calls one module for many layers."""
    numbers: dict[nn.Module, tuple[int, ...]] = {}
    for number, module in enumerate(modules):
        numbers[module] = (*numbers.get(module, ()), number)
    return numbers


def make_example_inputs(backbone: Backbone) -> BatchInputs:
    """A short row that every backbone can run, for verification."""
    return backbone.make_single_row(make_probe_ids(backbone.model)[0])
