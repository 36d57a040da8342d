"""Quantised backbones: what a configuration asks for, and whether it is installed."""

from collections.abc import Mapping
from importlib.util import find_spec

from softprompt.errors import MissingPackageError


def check_installed(quantization: Mapping[str, object]) -> None:
    """Check that bitsandbytes is there if a quantisation needs it.

    Args:
        quantization: a configuration of transformers as a table.

    Raises:
        MissingPackageError: it is not installed.
    """
    own = any(key.startswith("load_in_") for key in quantization)
    if not own and quantization.get("quant_method") != "bitsandbytes":
        return
    if find_spec("bitsandbytes") is None:
        msg = (
            "backbone.quantization needs the package bitsandbytes, which is not installed. "
            "Install it: pip install 'softprompt[bitsandbytes]'"
        )
        raise MissingPackageError(msg)
