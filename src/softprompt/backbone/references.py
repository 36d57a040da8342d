"""What is known of a backbone that is not loaded: its name, its fingerprint, its kind."""

from typing import Literal

Architecture = Literal["causal", "encoder", "encoder-decoder"]

_MAX_NAME_LENGTH = 48


def is_same_model(first: str, second: str) -> bool:
    """Whether two fingerprints can be of the same model; either of them may be quantized."""
    stable_1, _, weights_1 = first.partition("-")
    stable_2, _, weights_2 = second.partition("-")
    return stable_1 == stable_2 and (
        weights_1 == weights_2 or "quantized" in {weights_1, weights_2}
    )


def shorten_name(name: str) -> str:
    """Shorten a name that is too long for a line, such as that of a folder.

    Args:
        name: the name of a backbone or an artifact.

    Returns:
        The name, or an ellipsis and its last characters.

    Examples:
        >>> shorten_name("builtin:minilm")
        'builtin:minilm'
    """
    return name if len(name) <= _MAX_NAME_LENGTH else f"…{name[1 - _MAX_NAME_LENGTH :]}"
