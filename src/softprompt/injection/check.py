"""Whether a prompt fits a backbone."""

from softprompt.backbone.model import Geometry
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def check(geometry: Geometry, prompt: Prompt) -> None:
    """Raise PromptError if a prompt does not fit the backbone's geometry."""
    match prompt:
        case InputPrompt():
            _check_vectors(geometry, prompt)
        case KVPrefix():
            _check_prefix(geometry, prompt)


def _check_vectors(geometry: Geometry, prompt: InputPrompt) -> None:
    check_layer(geometry, prompt.layer)
    width, late = prompt.vectors.shape[1], prompt.layer > 0
    wanted = geometry.block_size if late else geometry.embedding_size
    if width != wanted:
        what = f"has hidden states of {wanted}" if late else f"embeds tokens in {wanted}"
        msg = (
            f"the prompt's vectors are {width} wide, but {geometry.family} {what}. Use the "
            "backbone that it was trained for."
        )
        raise PromptError(msg)


def check_layer(geometry: Geometry, layer: int) -> None:
    """Raise PromptError if soft tokens cannot enter before this layer."""
    if layer > 0 and not geometry.blocks:
        msg = (
            f"soft tokens cannot enter {geometry.family} at layer {layer}: its attention is its "
            'own, so the layers below could not be kept from seeing them. Use layers = "all".'
        )
        raise PromptError(msg)
    if not 0 <= layer < max(geometry.blocks, 1):
        msg = (
            f"soft tokens cannot enter at layer {layer}: {geometry.family} has the layers 0 to "
            f"{geometry.blocks - 1}. Choose one of them."
        )
        raise PromptError(msg)


def _check_prefix(geometry: Geometry, prefix: KVPrefix) -> None:
    if not geometry.sites:
        msg = (
            f"{geometry.family} has an attention of its own, which keys and values cannot enter. "
            "Use a method with soft tokens among the inputs: prompt-tuning or p-tuning."
        )
        raise PromptError(msg)
    _, heads, _, size = prefix.keys.shape
    wrong = [site for site in prefix.layers if not 0 <= site < geometry.sites]
    if (heads, size) != (geometry.heads, geometry.head_size) or wrong:
        msg = (
            f"the prefix has {heads} heads of {size} on layers {min(prefix.layers)} to "
            f"{max(prefix.layers)}, but {geometry.family} has {geometry.heads} of "
            f"{geometry.head_size} on layers 0 to {geometry.sites - 1}. Use the backbone that the "
            "prompt was trained for."
        )
        raise PromptError(msg)
    reason = unmovable(geometry) if prefix.shifted else None
    if reason is not None:
        msg = (
            f"the prefix was made with positions moved up by {prefix.length}, but "
            f"{geometry.family} {reason}. Train a prefix for it here instead."
        )
        raise PromptError(msg)
    apart = geometry.kind == "encoder-decoder" and not {*prefix.layers} <= {*geometry.own_sites}
    if prefix.shifted and apart:
        own = ", ".join(map(str, geometry.own_sites))
        msg = (
            f"the prefix was made with positions moved up by {prefix.length} and speaks on the "
            f"layers {', '.join(map(str, prefix.layers))}, but in {geometry.family} positions are "
            f"those of its decoder's own tokens, on the layers {own}. "
            "Leave the others out, or train a prefix for it here instead."
        )
        raise PromptError(msg)


def unmovable(geometry: Geometry) -> str | None:
    """Why a row's positions cannot be moved up, as a text goes on about a family; None if so."""
    if not geometry.movable:
        return "takes no position ids"
    if geometry.window is not None and not geometry.window_told:
        return "does not say which of its layers forget what leaves a sliding window"
    return None
