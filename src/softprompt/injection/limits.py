"""What a backbone cannot do with prompts, found by trials on a few tokens when it is loaded.

Each trial compares two ways to compute the same states. If they differ, the backbone is limited by
name (:class:`~softprompt.backbone.Limits`), instead of giving wrong answers unnoticed. State-space
and convolution layers, for one, read a row's earlier tokens by other ways than keys and values.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.hooks import use_hook
from softprompt.backbone.introspection import is_close, keep_attributes, make_probe_ids
from softprompt.backbone.lm_head import LMHead, explain_head_failure
from softprompt.backbone.model import Backbone, BatchInputs, Limits
from softprompt.errors import BackboneError, PromptError
from softprompt.injection.capture import capture_keys_and_values
from softprompt.injection.compatibility import explain_no_late_entry, explain_unsplittable
from softprompt.injection.forward import assign_prompts, compute_position_ids, forward
from softprompt.prompt import InputPrompt

# More than the blocks of tokens that some attention puts together (DeepSeek-V4: 4).
_ROW_LENGTH = 9

_Ids = Int[Tensor, " T"]
_States = Float[Tensor, "1 T H"]


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
    ids = make_probe_ids(backbone.model, _ROW_LENGTH)[0]
    row, causal = backbone.make_single_row(ids), backbone.geometry.architecture == "causal"
    with keep_attributes(backbone.model):
        states = forward(backbone, row, prompts=[None])
        if causal:
            _check_causal(backbone, ids, states)
        if backbone.geometry.architecture == "encoder":
            # It fails where token types have several parts (TAPAS).
            typed = forward(backbone, replace(row, token_type_ids=ids[None] * 0), prompts=[None])
            geometry = replace(backbone.geometry, has_token_types=is_close(typed, states))
            backbone = replace(backbone, geometry=geometry)
        backbone = _limit(backbone, padding=_explain_padding(backbone, row, states))
        backbone = _limit(backbone, words=_explain_words(backbone, ids, states))
        if explain_no_late_entry(backbone.geometry) is None and backbone.geometry.num_layers > 1:
            backbone = _limit(backbone, late=_explain_late(backbone, ids))
        if causal and explain_unsplittable(backbone.geometry) is None:
            backbone = _limit(backbone, split=_explain_split(backbone, ids, states))
        if backbone.lm_head is not None:
            reason = _explain_head(backbone, row, alone=backbone.lm_head, states=states)
            backbone = _limit(backbone, head=reason)
    return backbone if backbone.geometry.limits.head is None else replace(backbone, lm_head=None)


def _check_causal(backbone: Backbone, ids: _Ids, states: _States) -> None:
    """Check that later tokens do not change the states of earlier ones, as generation needs."""
    begin = forward(backbone, backbone.make_single_row(ids[:-1]), prompts=[None])
    if not is_close(states[:, :-1], begin):
        msg = (
            f"backbone {backbone.name!r} ({backbone.geometry.model_type}) is loaded as a causal "
            "language model, but its tokens see what comes after them. Set is_decoder to true in "
            "its config.json if it was trained as one, or choose another backbone."
        )
        raise BackboneError(msg)


def _limit(backbone: Backbone, **found: str | None) -> Backbone:
    limits: Limits = replace(backbone.geometry.limits, **found)
    return replace(backbone, geometry=replace(backbone.geometry, limits=limits))


def _explain_padding(backbone: Backbone, row: BatchInputs, states: _States) -> str | None:
    """Run the row with padding on either side; an encoder-decoder's is on the right alone."""
    is_encoder_decoder = backbone.geometry.architecture == "encoder-decoder"
    for before, after in ((0, 2),) if is_encoder_decoder else ((0, 2), (2, 0)):
        ids = F.pad(row.input_ids, (before, after), value=backbone.pad_token_id)
        mask = F.pad(row.attention_mask, (before, after))
        padded = forward(backbone, replace(row, input_ids=ids, attention_mask=mask), prompts=[None])
        real = padded if is_encoder_decoder else padded[:, before : before + states.shape[1]]
        if not is_close(real, states):
            return "mixes padding into a row's states"
    return None


def _explain_words(backbone: Backbone, ids: _Ids, states: _States) -> str | None:
    """Run soft tokens that have the embeddings of words instead of the words."""
    prompt = InputPrompt(backbone.embed(ids[:2]))
    soft = torch.cat([torch.arange(2, device=ids.device) + backbone.geometry.vocab_size, ids[2:]])
    inputs = replace(backbone.make_single_row(ids), input_ids=soft[None])
    same = is_close(forward(backbone, inputs, prompts=[prompt]), states)
    return None if same else "reads more of a word than its input embedding"


def _explain_late(backbone: Backbone, ids: _Ids) -> str | None:
    """Run soft tokens that enter late, with two different tokens in their place below."""
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


def _explain_split(backbone: Backbone, ids: _Ids, states: _States) -> str | None:
    """Run the row's last token after the keys and values of the others."""
    try:
        captured = capture_keys_and_values(backbone, ids[:-1])
    except PromptError:
        return "has keys and values that several tokens share"
    prefix = replace(captured, shift_positions=True)
    last = forward(backbone, backbone.make_single_row(ids[-1:]), prompts=[prefix])
    same = is_close(last[:, -1], states[:, -1])
    return None if same else "hands on more than keys and values from token to token"


def _explain_head(
    backbone: Backbone, row: BatchInputs, *, alone: LMHead, states: _States
) -> str | None:
    """Run the language-model head alone, and the model whole."""
    arguments = {"input_ids": row.input_ids, "attention_mask": row.attention_mask}
    if row.decoder_input_ids is not None:
        arguments["decoder_input_ids"] = row.decoder_input_ids
    try:
        same = is_close(alone(states), backbone.model(**arguments).logits)
    except Exception as error:  # noqa: BLE001  # any family's own code
        return explain_head_failure(error)
    return None if same else "has a language-model head that does more than read the last states"
