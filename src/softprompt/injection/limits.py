"""What a backbone cannot do with prompts, found by trials on a few tokens when it is loaded.

Each trial compares two ways to compute the same states. If they differ, the backbone is limited by
name (:class:`~softprompt.backbone.Limits`), instead of giving wrong answers unnoticed. State-space
and convolution layers, for one, read a row's earlier tokens by other ways than keys and values.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.hooks import use_hook
from softprompt.backbone.introspection import is_close, keep_attributes, make_probe_ids
from softprompt.backbone.model import Backbone, BatchInputs, Limits
from softprompt.errors import BackboneError, summarize_error
from softprompt.injection.capture import capture_keys_and_values
from softprompt.injection.compatibility import explain_no_late_entry, explain_unsplittable
from softprompt.injection.forward import assign_prompts, compute_position_ids, forward
from softprompt.prompt import InputPrompt, KVPrefix

_PADDING = 2


@torch.no_grad()
def measure_limits(backbone: Backbone) -> Backbone:
    """Find what a backbone cannot do, in trials on a few tokens.

    Args:
        backbone: the backbone, with hooks for prompts.

    Returns:
        The same backbone, whose geometry has its limits.

    Raises:
        BackboneError: it is loaded as a causal language model and is not one.

    Examples:
        >>> measure_limits(backbone).geometry.limits.split is None
        True
    """
    with keep_attributes(backbone.model):
        _check_causal(backbone)
        _run_with_token_types(backbone)
        backbone = _limit(backbone, padding=_explain_padding(backbone))
        backbone = _limit(backbone, words=_explain_words(backbone))
        if explain_no_late_entry(backbone.geometry) is None and backbone.geometry.num_layers > 1:
            backbone = _limit(backbone, late=_explain_late(backbone))
        causal = backbone.geometry.architecture == "causal"
        if causal and explain_unsplittable(backbone.geometry) is None:
            backbone = _limit(backbone, split=_explain_split(backbone))
        if backbone.lm_head is not None and (reason := _explain_head(backbone)) is not None:
            backbone = replace(_limit(backbone, head=reason), lm_head=None)
    return backbone


def _check_causal(backbone: Backbone) -> None:
    """Check that later tokens do not change the states of earlier ones, as generation needs."""
    if backbone.geometry.architecture != "causal":
        return
    ids = make_probe_ids(backbone.model)[0]
    whole, begin = (
        forward(backbone, backbone.make_single_row(row), prompts=[None]) for row in (ids, ids[:-1])
    )
    if not is_close(whole[:, :-1], begin):
        msg = (
            f"backbone {backbone.name!r} ({backbone.geometry.model_type}) is loaded as a causal "
            "language model, but its tokens see what comes after them. Set is_decoder to true in "
            "its config.json if it was trained as one, or choose another backbone."
        )
        raise BackboneError(msg)


def _run_with_token_types(backbone: Backbone) -> None:
    """Run a row with token types, which fails where these have several parts (TAPAS)."""
    inputs = backbone.make_single_row(make_probe_ids(backbone.model)[0])
    types = torch.zeros_like(inputs.input_ids)
    forward(backbone, replace(inputs, token_type_ids=types), prompts=[None])


def _limit(backbone: Backbone, **found: str | None) -> Backbone:
    limits: Limits = replace(backbone.geometry.limits, **found)
    return replace(backbone, geometry=replace(backbone.geometry, limits=limits))


def _explain_padding(backbone: Backbone) -> str | None:
    """Run a row alone and with padding on either side."""
    ids = make_probe_ids(backbone.model)[0]
    alone = forward(backbone, backbone.make_single_row(ids), prompts=[None])
    # An encoder-decoder's rows are padded on the right alone.
    is_left = backbone.geometry.architecture != "encoder-decoder"
    sides = ("right", "left") if is_left else ("right",)
    for side in sides:
        whole = forward(backbone, _pad(backbone, ids, side), prompts=[None])
        if backbone.geometry.architecture != "encoder-decoder":
            whole = whole[:, : len(ids)] if side == "right" else whole[:, -len(ids) :]
        if not is_close(whole, alone):
            return "mixes padding into a row's states"
    return None


def _pad(backbone: Backbone, ids: Int[Tensor, " T"], side: str) -> BatchInputs:
    pad = ids.new_full((_PADDING,), backbone.pad_token_id)
    mask = torch.ones_like(ids)
    parts = (ids, pad) if side == "right" else (pad, ids)
    masks = (mask, pad * 0) if side == "right" else (pad * 0, mask)
    decoder = ids[None] if backbone.geometry.architecture == "encoder-decoder" else None
    return BatchInputs(torch.cat(parts)[None], torch.cat(masks)[None], decoder_input_ids=decoder)


def _explain_words(backbone: Backbone) -> str | None:
    """Run words, and soft tokens that have their embeddings."""
    ids = make_probe_ids(backbone.model)[0]
    words = backbone.make_single_row(ids)
    prompt = InputPrompt(backbone.embed(ids[:2]))
    soft = torch.cat([torch.arange(2, device=ids.device) + backbone.geometry.vocab_size, ids[2:]])
    inputs = replace(words, input_ids=soft[None])
    same = is_close(
        forward(backbone, inputs, prompts=[prompt]), forward(backbone, words, prompts=[None])
    )
    return None if same else "reads more of a word than its input embedding"


def _explain_late(backbone: Backbone) -> str | None:
    """Run soft tokens that enter late, with two different tokens in their place below."""
    ids = make_probe_ids(backbone.model)[0]
    geometry = backbone.geometry
    vectors = torch.ones(1, geometry.layer_width, device=ids.device)
    prompt = InputPrompt(vectors, start_layer=geometry.num_layers - 1)
    soft = torch.cat([torch.full_like(ids[:1], geometry.vocab_size), ids])
    decoder = ids[None] if geometry.architecture == "encoder-decoder" else None
    inputs = replace(backbone.make_single_row(soft), decoder_input_ids=decoder)
    first, second = (_run_with_stand_in(backbone, inputs, prompt, t) for t in ids[:2].tolist())
    return None if is_close(first, second) else "has layers that no attention mask reaches"


def _run_with_stand_in(
    backbone: Backbone, inputs: BatchInputs, prompt: InputPrompt, token: int
) -> Float[Tensor, "B T H"]:
    hook = replace(assign_prompts(backbone, inputs, prompts=[prompt]), stand_in=token)
    positions = compute_position_ids(backbone, inputs, hook=hook)
    with use_hook(hook):
        return backbone.compute_hidden_states(inputs, positions=positions)


def _explain_split(backbone: Backbone) -> str | None:
    """Run a row whole, and its last token after the keys and values of the others."""
    ids = make_probe_ids(backbone.model)[0]
    whole = forward(backbone, backbone.make_single_row(ids), prompts=[None])
    captured = capture_keys_and_values(backbone, ids[:-1])
    prefix = KVPrefix(captured.keys, captured.values, captured.sites, shift_positions=True)
    last = forward(backbone, backbone.make_single_row(ids[-1:]), prompts=[prefix])
    same = is_close(last[:, -1], whole[:, -1])
    return None if same else "hands on more than keys and values from token to token"


def _explain_head(backbone: Backbone) -> str | None:
    """Run the language-model head alone, and the model whole."""
    inputs = backbone.make_single_row(make_probe_ids(backbone.model)[0])
    states = forward(backbone, inputs, prompts=[None])
    arguments = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    if inputs.decoder_input_ids is not None:
        arguments["decoder_input_ids"] = inputs.decoder_input_ids
    try:
        alone = backbone.lm_head(states)  # type: ignore[misc]  # the caller has checked it
        whole: Tensor = backbone.model(**arguments).logits
    except Exception as error:  # noqa: BLE001  # any family's own code
        return f"has a language-model head that cannot be run alone ({summarize_error(error)})"
    same = is_close(alone, whole)
    return None if same else "has a language-model head that does more than read the last states"
