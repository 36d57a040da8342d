"""Bare vectors ``[P, E]`` in numpy's ``.npy`` or in a safetensors file."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softprompt._io import is_pickle, to_bytes
from softprompt.artifact.artifact import Artifact
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.interop.base import ExportRequest, ForeignPrompt
from softprompt.interop.files import (
    check_finite,
    find_file,
    read_bytes,
    read_tensors,
    refuse_pickle,
)
from softprompt.prompt import InputPrompt, KVPrefix

NPY_FILE, SAFETENSORS_FILE = "prompt.npy", "prompt.safetensors"
# The last two are T5X's names, without a suffix.
_NPY_NAMES = (NPY_FILE, "encoder.prompt.prompt.prompt", "prompt")
_NPY_DTYPES = (np.float16, np.float32, np.float64)
_NPY_HEADER = 1 << 16  # the most bytes of a header
_SAVE_NPY = "numpy.save(path, array.astype('float32'))."


def make_vectors_prompt(
    vectors: Tensor, backbone: Backbone, *, path: Path, form: str
) -> ForeignPrompt:
    """A prompt of vectors, by default before the text.

    Args:
        vectors: ``[P, E]`` or ``[1, P, E]``.
        backbone: of the prompt.
        path: of the file, for messages.
        form: the name of the format.

    Returns:
        The prompt, with a template and, if the backbone can generate text, that task.

    Raises:
        ArtifactError: the shape does not fit the backbone.
    """
    width = backbone.geometry.embedding_size
    if vectors.ndim == 3 and len(vectors) == 1:  # noqa: PLR2004  # some keep a batch of one
        vectors = vectors[0]
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:  # noqa: PLR2004  # a table
        msg = (
            f"{path} holds {[*vectors.shape]}, but a prompt for {backbone.name!r} is [P, {width}]: "
            "P soft tokens. Take another file, or name the prompt's own backbone with --backbone "
            "(backbone=… in Python)."
        )
        raise ArtifactError(msg)
    task = None if backbone.geometry.architecture == "encoder" else {"kind": "generate"}
    template = f"{{soft:{len(vectors)}}}{{text}}"
    return ForeignPrompt(
        InputPrompt(vectors.contiguous()), template=template, task=task, note={"format": form}
    )


def require_vectors(artifact: Artifact, *, form: str) -> Tensor:
    """The vectors of an artifact that consists of these alone.

    Args:
        artifact: to export.
        form: the name of the format, for messages.

    Returns:
        The vectors ``[P, E]``, on the CPU.

    Raises:
        ArtifactError: it has a head, has keys and values, or enters at a later layer.
    """
    match artifact.prompt:
        case InputPrompt(vectors=vectors, start_layer=0) if not artifact.head:
            return vectors.detach().cpu().contiguous()
        case InputPrompt(start_layer=0):
            part = "a trained head"
        case InputPrompt(start_layer=layer):
            part = f"soft tokens that enter at layer {layer}"
        case KVPrefix():
            part = "keys and values"
    msg = (
        f"the artifact has {part}, but a {form} file holds vectors for the input alone. "
        "Export it as peft, or keep the artifact itself."
    )
    raise ArtifactError(msg)


def read_npy(source: Path, backbone: Backbone) -> dict[str, ForeignPrompt]:
    """The vectors of a file.

    Raises:
        ArtifactError: it is not such an array, or contains Python objects, which are pickles.
    """
    path = find_file(source, _NPY_NAMES, what="npy prompt")
    array = _load_array(path)
    # In any byte order; structured arrays and arrays of text are refused too.
    if array.dtype.newbyteorder("=") not in _NPY_DTYPES:
        msg = (
            f"{path} holds {array.dtype}, but a prompt is float16, float32 or float64. Convert it."
        )
        raise ArtifactError(msg)
    # Artifacts have no float64, which prompts are not trained in.
    dtype = np.float16 if array.dtype.itemsize == np.float16().itemsize else np.float32
    with np.errstate(over="ignore"):  # check_finite reports values too large for float32
        vectors = torch.from_numpy(np.array(array, dtype, order="C"))
    check_finite(path, {"the array": vectors})
    return {"": make_vectors_prompt(vectors, backbone, path=path, form="npy")}


def write_npy(request: ExportRequest) -> dict[str, bytes]:
    """Make one file; bfloat16, which numpy lacks, is written as float32 without loss.

    Raises:
        ArtifactError: the artifact does not consist of vectors alone.
    """
    vectors = require_vectors(request.artifact, form="npy")
    array = (vectors.float() if vectors.dtype == torch.bfloat16 else vectors).numpy()
    buffer = io.BytesIO()
    np.save(buffer, array)
    return {NPY_FILE: buffer.getvalue()}


def _load_array(path: Path) -> np.ndarray:
    raw = read_bytes(path)
    if raw.startswith(b"PK") and b".npy" in raw[:_NPY_HEADER]:
        msg = (
            f"{path} is an archive of arrays (.npz), but a prompt is a single one. Save it alone: "
            f"{_SAVE_NPY}"
        )
        raise ArtifactError(msg)
    if is_pickle(raw):
        raise ArtifactError(refuse_pickle(path))
    try:  # allow_pickle is False by default
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(raw), max_header_size=_NPY_HEADER)
    except Exception as error:  # numpy parses the header as Python: errors of many kinds
        first, *_ = str(error).split("\n")
        msg = (
            f"{path} ({len(raw):,} bytes) is not a complete .npy file of numbers: "
            f"{first.rstrip('.')}. Objects are pickles and are refused. Save it again: {_SAVE_NPY}"
        )
        raise ArtifactError(msg) from error
    return array


def read_safetensors(source: Path, backbone: Backbone) -> dict[str, ForeignPrompt]:
    """The only tensor of a file.

    Raises:
        ArtifactError: there is not exactly one, or its shape does not fit the backbone.
    """
    path = find_file(source, [SAFETENSORS_FILE, "model.safetensors"], what="safetensors prompt")
    tensors = read_tensors(path)
    check_finite(path, tensors)
    if len(tensors) != 1:
        msg = (
            f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:5])}), but a plain "
            "prompt is one. Save it alone; for adapters there are the formats peft and p-tuning-v2."
        )
        raise ArtifactError(msg)
    (vectors,) = tensors.values()
    return {"": make_vectors_prompt(vectors, backbone, path=path, form="safetensors")}


def write_safetensors(request: ExportRequest) -> dict[str, bytes]:
    """Make one file with the tensor ``prompt``.

    Raises:
        ArtifactError: the artifact does not consist of vectors alone.
    """
    vectors = require_vectors(request.artifact, form="safetensors")
    return {SAFETENSORS_FILE: to_bytes({"prompt": vectors}, {"format": "pt"})}
