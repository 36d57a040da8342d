"""Tensors as the bytes of a safetensors file, and what stands where such bytes should."""

from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

# What reading made-up bytes raises; the last ones come from torch, for types and sizes that it
# lacks and a header may have.
UNREADABLE = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
# How a zip archive starts, as torch.save writes it, and a bare pickle of protocol 2 to 5.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The file of these tensors, in their own precision, wherever they are.

    Args:
        tensors: by name; they may share storage.
        metadata: what else its header says.
    """
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(own, metadata=metadata)


def is_pickle(raw: bytes) -> bool:
    """Whether a file's content begins as a pickle or an archive of torch.save does."""
    return raw.startswith(_PICKLES)
