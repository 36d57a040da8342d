"""Numpy's ``.npy`` of ``[P, E]``, as google-research/prompt-tuning keeps its prompts.

Those of a T5 stand before the text of the encoder; the file says nothing of its backbone.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from softprompt.artifact.formats.foreign import Foreign, Outgoing
from softprompt.artifact.formats.reading import LARGEST, checked, contents, found, refused
from softprompt.artifact.formats.vectors import only_vectors, plain
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError

FILE = "prompt.npy"
# What T5X names the file; it has no ending there.
_NAMES = (FILE, "encoder.prompt.prompt.prompt", "prompt")
_UNREADABLE = (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile)
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
        vectors = torch.from_numpy(np.ascontiguousarray(array, dtype))
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
    try:  # numpy refuses objects, which are pickles, unless told otherwise
        made: np.ndarray = np.load(io.BytesIO(raw), max_header_size=1 << 16)
    except _UNREADABLE as error:
        first, *_ = str(error).split("\n")
        msg = (
            f"{path} ({len(raw):,} bytes) is no whole .npy file of numbers: "
            f"{first.rstrip('.')}. Arrays of objects are pickles and are refused; at most "
            f"{LARGEST:,} bytes are read. Save it again: numpy.save(path, array.astype('float32'))."
        )
        raise ArtifactError(msg) from error
    if not isinstance(made, np.ndarray):
        if any(name.endswith("data.pkl") for name in made.zip.namelist()):
            raise ArtifactError(refused(path))
        msg = f"{path} is an archive of several arrays. Save the prompt alone: numpy.save."
        raise ArtifactError(msg)
    return made
