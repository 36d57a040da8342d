"""Numpy's ``.npy`` of ``[P, E]``, as google-research/prompt-tuning keeps its prompts.

Those of a T5 stand before the text of the encoder; the file says nothing of its backbone.
"""

import io
import tokenize
from pathlib import Path

import numpy as np
import torch

from softprompt.artifact.formats.foreign import Foreign, Outgoing
from softprompt.artifact.formats.reading import checked, contents, found, refused
from softprompt.artifact.formats.vectors import only_vectors, plain
from softprompt.artifact.tensors import is_pickle
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError

FILE = "prompt.npy"
# What T5X names the file; it has no ending there.
_NAMES = (FILE, "encoder.prompt.prompt.prompt", "prompt")
# Its header is Python, which numpy reads as such.
_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    EOFError,
    OSError,
    MemoryError,
    RecursionError,
    SyntaxError,
    tokenize.TokenError,
)
_HEADER = 1 << 16
_SAVE = "numpy.save(path, array.astype('float32'))."
_DTYPES = (np.float16, np.float32, np.float64)


def read(source: Path, backbone: Backbone) -> dict[str, Foreign]:
    """The vectors of a file.

    Raises:
        ArtifactError: it is no such array, or holds Python objects, which are pickles.
    """
    path = found(source, _NAMES, what="npy prompt")
    array = _array(path)
    # In whatever order of bytes; those of structures and texts are none of these either.
    if array.dtype.newbyteorder("=") not in _DTYPES:
        msg = (
            f"{path} holds {array.dtype}, but a prompt is float16, float32 or float64. Convert it."
        )
        raise ArtifactError(msg)
    # Numpy's doubles have no place in an artifact; nobody trained in them.
    dtype = np.float16 if array.dtype.itemsize == np.float16().itemsize else np.float32
    with np.errstate(over="ignore"):  # what is too large for float32 is told as infinite
        vectors = torch.from_numpy(np.array(array, dtype, order="C"))
    checked(path, {"the array": vectors})
    return {"": plain(vectors, backbone, path=path, form="npy")}


def write(given: Outgoing) -> dict[str, bytes]:
    """One file; bfloat16, which numpy lacks, is written as float32, which loses nothing.

    Raises:
        ArtifactError: the prompt is keys and values, or is not all that there is.
    """
    vectors = only_vectors(given.artifact, form="npy")
    array = (vectors.float() if vectors.dtype == torch.bfloat16 else vectors).numpy()
    made = io.BytesIO()
    np.save(made, array)
    return {FILE: made.getvalue()}


def _array(path: Path) -> np.ndarray:
    raw = contents(path)
    if raw.startswith(b"PK") and b".npy" in raw[:_HEADER]:
        msg = (
            f"{path} is an archive of arrays (.npz), but a prompt is a single one. Save it alone: "
            f"{_SAVE}"
        )
        raise ArtifactError(msg)
    if is_pickle(raw):
        raise ArtifactError(refused(path))
    try:  # objects, which are pickles, it refuses as long as it is not told otherwise
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(raw), max_header_size=_HEADER)
    except _UNREADABLE as error:
        first, *_ = str(error).split("\n")
        msg = (
            f"{path} ({len(raw):,} bytes) is no whole .npy file of numbers: {first.rstrip('.')}. "
            f"Objects are pickles and are refused. Save it again: {_SAVE}"
        )
        raise ArtifactError(msg) from error
    return array
