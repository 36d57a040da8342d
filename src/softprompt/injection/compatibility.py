"""Whether a prompt fits a backbone."""

from softprompt.backbone.model import Geometry
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def check_prompt_fits(geometry: Geometry, prompt: Prompt) -> None:
    """Raise PromptError if a prompt does not fit a backbone's geometry."""
    match prompt:
        case InputPrompt():
            _check_vectors(geometry, prompt)
        case KVPrefix():
            _check_prefix(geometry, prompt)


def _check_vectors(geometry: Geometry, prompt: InputPrompt) -> None:
    check_layer_exists(geometry, prompt.start_layer)
    width, is_late = prompt.vectors.shape[1], prompt.start_layer > 0
    expected = geometry.layer_width if is_late else geometry.embedding_size
    if width != expected:
        fact = f"has hidden states of {expected}" if is_late else f"embeds tokens in {expected}"
        msg = (
            f"the prompt's vectors are {width} wide, but {geometry.model_type} {fact}. Use the "
            "backbone that it was trained for."
        )
        raise PromptError(msg)


def check_layer_exists(geometry: Geometry, layer: int) -> None:
    """Raise PromptError if soft tokens cannot enter before this layer."""
    reason = explain_no_late_entry(geometry)
    if layer > 0 and reason is not None:
        msg = (
            f"soft tokens cannot enter {geometry.model_type} at layer {layer}: it {reason}, so "
            'they cannot be hidden from the layers below. Use layers = "all".'
        )
        raise PromptError(msg)
    if not 0 <= layer < max(geometry.num_layers, 1):
        msg = (
            f"soft tokens cannot enter at layer {layer}: {geometry.model_type} has the layers 0 to "
            f"{geometry.num_layers - 1}. Choose one of them."
        )
        raise PromptError(msg)


def _check_prefix(geometry: Geometry, prefix: KVPrefix) -> None:
    if geometry.limits.prefix is not None:
        msg = (
            f"{geometry.model_type} {geometry.limits.prefix}, so it accepts no key/value prefixes. "
            "Use a method with soft tokens among the inputs: prompt-tuning or p-tuning."
        )
        raise PromptError(msg)
    _, heads, _, size = prefix.keys.shape
    wrong = [site for site in prefix.sites if not 0 <= site < geometry.num_attention_sites]
    if (heads, size) != (geometry.num_kv_heads, geometry.head_dim) or wrong:
        msg = (
            f"the prefix has {heads} heads of {size} on layers {min(prefix.sites)} to "
            f"{max(prefix.sites)}, but {geometry.model_type} has {geometry.num_kv_heads} of "
            f"{geometry.head_dim} on layers 0 to {geometry.num_attention_sites - 1}. Use the "
            "backbone that the prompt was trained for."
        )
        raise PromptError(msg)
    reason = explain_unshiftable(geometry) if prefix.shift_positions else None
    if reason is not None:
        msg = (
            f"the prefix was trained with positions shifted by {prefix.length}, but "
            f"{geometry.model_type} {reason}. Train a prefix for it with softprompt instead."
        )
        raise PromptError(msg)
    shiftable = {*geometry.self_attention_sites}
    has_other_sites = (
        geometry.architecture == "encoder-decoder" and not {*prefix.sites} <= shiftable
    )
    if prefix.shift_positions and has_other_sites:
        sites = ", ".join(map(str, geometry.self_attention_sites))
        msg = (
            f"the prefix was trained with positions shifted by {prefix.length} and acts on the "
            f"layers {', '.join(map(str, prefix.sites))}, but in {geometry.model_type} only the "
            f"decoder's self-attention can shift them, on the layers {sites}. "
            "Leave the others out, or train a prefix for it with softprompt instead."
        )
        raise PromptError(msg)


def explain_no_late_entry(geometry: Geometry) -> str | None:
    """Why soft tokens cannot enter at a later layer, as a verb phrase; None if they can."""
    limits = geometry.limits
    unknown = None if geometry.num_layers else "has no list of layers"
    return limits.late or limits.prefix or unknown


def explain_unsplittable(geometry: Geometry) -> str | None:
    """Why a row's first tokens cannot be run separately, as a verb phrase; None if they can."""
    return geometry.limits.prefix or explain_unshiftable(geometry) or geometry.limits.split


def explain_unshiftable(geometry: Geometry) -> str | None:
    """Why a backbone cannot shift a row's positions, as a verb phrase; None if it can."""
    if not geometry.supports_position_shift and geometry.position_offset is not None:
        return "has scores by relative position, which are not known for a prefix before the row"
    if not geometry.supports_position_shift:
        return "takes no position ids, so a row's positions cannot be shifted"
    if geometry.sliding_window is not None and not geometry.reports_window:
        return "does not report which layers use the sliding window"
    return None
