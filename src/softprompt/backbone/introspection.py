"""Measure the geometry of a model in a trial forward pass, and wrap it as a frozen backbone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # torch's own convention
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone import hooks
from softprompt.backbone.families import hook_family
from softprompt.backbone.fingerprint import compute_fingerprint
from softprompt.backbone.hooks import Recorder
from softprompt.backbone.layers import Layer, find_body, find_layers
from softprompt.backbone.lm_head import LMHead, explain_head_failure, pack_head_input
from softprompt.backbone.model import (
    Backbone,
    BatchInputs,
    Geometry,
    Limits,
    can_accept,
)
from softprompt.backbone.position_bias import (
    PositionBias,
    T5PositionBias,
    find_position_bias,
    find_position_table,
)
from softprompt.backbone.references import Architecture
from softprompt.errors import BackboneError

_PROBE_LENGTH = 3


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One attention call of a forward pass.

    Args:
        module: the attention module.
        num_kv_heads: N, key/value heads.
        head_dim: D.
        value_dim: the size of the values' heads, mostly D.
        selects_keys: whether it selects keys by their index.
        sliding_window: the size of its sliding window, if it reports one.
        is_self_attention: whether a row's own tokens attend to one another, as everywhere except
            in cross-attention; of an encoder-decoder, only in the decoder.
        has_bias: whether there is a bias by distance.
        bias: the function that computes the bias, if it is known.
    """

    module: nn.Module
    num_kv_heads: int
    head_dim: int
    value_dim: int
    selects_keys: bool
    sliding_window: int | None
    is_self_attention: bool
    has_bias: bool
    bias: PositionBias | None


def find_input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """The input embedding table."""
    return cast("nn.Embedding", model.get_input_embeddings())


def make_probe_ids(model: PreTrainedModel, length: int = _PROBE_LENGTH) -> Int[Tensor, "1 T"]:
    """Ordinary token ids: the highest below 100, because most special ids are lower."""
    weight = find_input_embeddings(model).weight
    top = min(100, weight.shape[0]) - 1
    return (top - torch.arange(length, device=weight.device)).clamp(min=0)[None]


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
        bias = call.compute_bias or bias
        sites.append(
            AttentionSite(
                module,
                num_kv_heads=call.key.shape[1],
                head_dim=call.key.shape[3],
                value_dim=call.value.shape[3],
                selects_keys=call.selects_keys,
                sliding_window=call.window,
                is_self_attention=is_self,
                has_bias=call.bias is not None,
                bias=bias,
            )
        )
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
    shapes = [(site.num_kv_heads, site.head_dim, site.value_dim) for site in sites]
    heads = max((count for count, *_ in shapes), default=0)
    head_dim = max((max(sizes) for _, *sizes in shapes), default=0)
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
        num_kv_heads=heads,
        head_dim=head_dim,
        sliding_window=_sliding_window(model, sites),
        reports_window=any(site.sliding_window is not None for site in sites),
        position_offset=offset,
        self_attention_sites=tuple(
            number for number, site in enumerate(sites) if site.is_self_attention
        ),
        supports_position_shift=has_positions and all(site.bias is not None for site in biased),
        embedding_rms=_measure_embedding_rms(model),
        site_shapes=() if {*shapes} <= {(heads, head_dim, head_dim)} else tuple(shapes),
    )


def _run_probe(
    model: PreTrainedModel,
    kind: Architecture,
    *,
    positions: Tensor | None = None,
    padding: int = 0,
) -> Tensor:
    """The last hidden states of the probe ids; of an encoder-decoder those of its decoder.

    The row may be padded on the right; of an encoder-decoder the encoder's.
    """
    ids = make_probe_ids(model)
    explicit = {} if positions is None else {"position_ids": positions}
    with keep_attributes(model):
        if kind != "encoder-decoder":
            states = _last_hidden_state(find_body(model)(**_pad(ids, padding), **explicit))
            return states[:, : ids.shape[1]]
        inputs = _pad(ids[:, 1:], padding)
        output = model.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=_last_hidden_state(model.get_encoder()(**inputs)),
            encoder_attention_mask=inputs["attention_mask"],
        )
        return _last_hidden_state(output)


def _pad(ids: Tensor, count: int) -> dict[str, Tensor]:
    """A row with padding on the right, which repeats the row's first token."""
    return {
        "input_ids": F.pad(ids, (0, count), value=int(ids[0, 0])),
        "attention_mask": F.pad(torch.ones_like(ids), (0, count)),
    }


def _last_hidden_state(output: object) -> Tensor:
    states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]  # transformers' output
    return states


@torch.no_grad()
def _find_position_offset(model: PreTrainedModel, kind: Architecture) -> int | None:
    """The first position id, found by trial: explicit ids from it on change nothing."""
    if kind == "encoder-decoder" or not can_accept(find_body(model), "position_ids"):
        return None
    bare = _run_probe(model, kind)
    pad = getattr(model.config, "pad_token_id", None)
    for offset in (0, (pad or 0) + 1):
        ids = torch.arange(bare.shape[1], device=bare.device)[None] + offset
        if torch.equal(bare, _run_probe(model, kind, positions=ids)):
            return offset
    return None


def _max_positions(model: PreTrainedModel, offset: int) -> int | None:
    """The number of positions at which a row's result does not depend on longer rows."""
    config = _get_text_config(model)
    # MPT has the latter.
    limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if not isinstance(limit, int) or limit <= 0 or config.model_type in {"t5", "mt5", "bloom"}:
        return None
    # The position tables of RoBERTa and MPNet begin with rows for padding.
    limits = [limit - offset]
    rope = getattr(config, "rope_parameters", None) or {}
    for options in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        # Above its original length, the longest row of a batch decides how all are rotated.
        if options.get("rope_type") in {"longrope", "dynamic"}:
            original = getattr(config, "original_max_position_embeddings", limit)
            limits.append(int(options.get("original_max_position_embeddings") or original))
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(config.attention_chunk_size)
    return min(limits)


def _sliding_window(model: PreTrainedModel, sites: Sequence[AttentionSite]) -> int | None:
    config = _get_text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    try:
        window = getattr(config, "sliding_window", None)
    except Exception:  # noqa: BLE001  # transformers' own, where layers have different windows
        return max((site.sliding_window for site in sites if site.sliding_window), default=None)
    return int(window) if isinstance(window, int) else None


def _get_text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the text model, of an encoder-decoder the whole."""
    if model.config.is_encoder_decoder:
        return model.config
    return model.config.get_text_config()


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
        BackboneError: with the hooks it computes something else than without them.
    """
    model.requires_grad_(requires_grad=False)
    model.eval()
    _clear_generation_defaults(model)
    body = model if kind == "encoder-decoder" else find_body(model)
    fingerprint = compute_fingerprint(body, tokenizer)
    has_hooks, reason = _install(name, model, kind)
    sites, states = run_dry(model, kind, has_hooks=has_hooks)
    reason = reason or _explain_no_prefix(sites)
    sites = [] if reason else sites
    layers = find_row_layers(model, kind, sites=sites)
    hooks.hook_layers(layers)
    if (table := find_position_embeddings(model, kind)) is not None:
        hooks.hook_positions(table)
    geometry = measure_geometry(model, kind, sites=sites, layers=layers, states=states, table=table)
    head, failure = (None, None) if headless else _wrap_head(model, geometry.hidden_size)
    return Backbone(
        name=name,
        revision=revision,
        model=model,
        tokenizer=tokenizer,
        geometry=replace(geometry, limits=Limits(prefix=reason, head=failure)),
        fingerprint=fingerprint,
        lm_head=head,
        site_of=_number_calls([site.module for site in sites]),
        layer_of=_number_calls([layer.module for layer in layers]),
        bias_of={site.module: site.bias for site in sites if site.bias is not None},
    )


@torch.no_grad()
def _install(name: str, model: PreTrainedModel, kind: Architecture) -> tuple[bool, str | None]:
    """Install the hooks, and check that they change nothing by themselves.

    Returns:
        Whether the attention has hooks; and if they had to be taken out again, why.
    """
    before = _run_both(model, kind)
    original = model.config._attn_implementation  # noqa: SLF001  # transformers' only way to ask
    tables = find_token_tables(model, kind)
    has_hooks = hooks.install_hooks(model, tables=tables) or hook_family(model)
    if is_close(_run_both(model, kind), before):
        return has_hooks, None
    if has_hooks and model._can_set_attn_implementation():  # noqa: SLF001
        model.set_attn_implementation(original)
        if is_close(_run_both(model, kind), before):
            return False, "computes its attention in a way that the hooks for prompts change"
    msg = (
        f"backbone {name!r} ({model.config.model_type}) computes something else with softprompt's "
        "hooks than without them, so no prompt could be trusted. Choose another backbone, or "
        "report its family."
    )
    raise BackboneError(msg)


def _run_both(model: PreTrainedModel, kind: Architecture) -> Tensor:
    """The states of a short row, alone and padded."""
    with hooks.use_hook(Recorder()):
        return torch.cat([_run_probe(model, kind), _run_probe(model, kind, padding=2)])


def _explain_no_prefix(sites: Sequence[AttentionSite]) -> str | None:
    """Why no prefix can be put before the keys and values of these attention calls."""
    if any(site.selects_keys for site in sites):
        return "selects keys by their index, which a prefix would shift"
    return None if sites else "uses a custom attention implementation"


def _wrap_head(model: PreTrainedModel, width: int) -> tuple[LMHead | None, str | None]:
    """The language-model head, or why it cannot be run alone."""
    pack_head_input(model)
    try:
        return LMHead(model, hidden_size=width), None
    except Exception as error:  # noqa: BLE001  # any family's own code
        return None, explain_head_failure(error)


@torch.no_grad()
def find_token_tables(model: PreTrainedModel, kind: Architecture) -> list[nn.Module]:
    """The modules other than the input embeddings that look up a row's token ids in a table."""
    ids, found = make_probe_ids(model), list[nn.Module]()

    def record(module: nn.Module, *inputs: Any) -> None:  # noqa: ANN401  # arguments, keywords
        args, kwargs = inputs
        # BART's position table gets the ids too, for their shape, and position ids with them.
        if isinstance(module, nn.Embedding) and (len(args) != 1 or kwargs):
            return
        given = (*args, *kwargs.values())
        looked_up = [t for t in given if isinstance(t, Tensor) and t.numel() == ids.numel()]
        if any(torch.equal(tensor.flatten(), ids.flatten()) for tensor in looked_up):
            found.append(module)

    rows = len(find_input_embeddings(model).weight)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) or _has_table(m, rows)]
    handles = [table.register_forward_pre_hook(record, with_kwargs=True) for table in tables]
    try:
        _run_probe(model, kind)
    finally:
        for handle in handles:
            handle.remove()
    known = {id(table) for table in hooks.list_input_tables(model)}
    return [table for table in found if id(table) not in known]


def _has_table(module: nn.Module, rows: int) -> bool:
    """Whether a module has whole numbers for each token, as DeepSeek-V4's routers have experts."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(not t.is_floating_point() and t.ndim and len(t) == rows for t in tensors)


# The greatest difference between two results that are the same but for rounding, relative to the
# length of a state. Faults are ten times as large (measured on all families: benchmarks/families).
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def is_close(left: Float[Tensor, "*S H"], right: Float[Tensor, "*S H"]) -> bool:
    """Whether states are the same but for rounding in their dtype."""
    tolerance = _TOLERANCE.get(right.dtype, 1e-3)
    a, b = left.float(), right.float()
    distance, length = (a - b).norm(dim=-1), b.norm(dim=-1)
    # Weights that are not finite say nothing about the two ways; training refuses them.
    return bool(((distance <= tolerance * length + 1e-6) | ~length.isfinite()).all())


@contextmanager
def keep_attributes(model: nn.Module) -> Iterator[None]:
    """Restore numbers, flags and names that a model stores on its modules while it runs.

    BigBird, for one, switches its attention for good when it meets a short row.
    """
    before = {
        module: {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
        for module in model.modules()
    }
    try:
        yield
    finally:
        for module, values in before.items():
            vars(module).update(values)


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
