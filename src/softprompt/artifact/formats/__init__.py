"""The forms that prompts are kept in elsewhere: the only list of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from softprompt.artifact.formats import (
    npy,
    p_tuning_v2,
    peft_read,
    peft_write,
    plain_safetensors,
    vllm_write,
)
from softprompt.artifact.formats.foreign import Asked, Base, Foreign, Format, Outgoing, Read, Write
from softprompt.artifact.names import is_id
from softprompt.errors import ArtifactError, unknown

Does = TypeVar("Does")
FORMATS: dict[str, Format] = {
    "peft": Format(
        "a PEFT adapter folder",
        read=peft_read.read,
        write=peft_write.write,
        base=peft_read.base_of,
    ),
    "npy": Format("vectors as a numpy array", read=npy.read, write=npy.write),
    "p-tuning-v2": Format(
        "a state dict of the P-tuning v2 code", read=p_tuning_v2.read, write=p_tuning_v2.write
    ),
    "safetensors": Format(
        "vectors as one tensor", read=plain_safetensors.read, write=plain_safetensors.write
    ),
    "vllm": Format("what requests to a vLLM server are made of", read=None, write=vllm_write.write),
}


def reader(name: str) -> Read:
    """What reads files of this format.

    Raises:
        ArtifactError: there is no such format, or nothing is read of it.
    """
    return _able(name, {key: form.read for key, form in FORMATS.items()}, to="import")


def writer(name: str) -> Write:
    """What writes files of this format.

    Raises:
        ArtifactError: there is no such format, or nothing is written of it.
    """
    return _able(name, {key: form.write for key, form in FORMATS.items()}, to="export")


def _able(name: str, every: Mapping[str, Does | None], *, to: str) -> Does:
    able = {key: does for key, does in every.items() if does is not None}
    if name not in able:
        raise ArtifactError(unknown(f"format to {to}", name, options=able))
    return able[name]


def base_of(name: str, source: Path) -> Base:
    """Which backbone a file of this format says that it belongs to.

    Raises:
        ArtifactError: there is no such format or file, or it cannot be read.
    """
    reader(name)
    if not source.exists():
        far = is_id(str(source))
        more = f" If it is on the Hub: hf download {source} --local-dir FOLDER" if far else ""
        msg = f"there is no file or folder {source}. Give what is to be imported.{more}"
        raise ArtifactError(msg)
    return FORMATS[name].base(source)


__all__ = [
    "FORMATS",
    "Asked",
    "Base",
    "Foreign",
    "Format",
    "Outgoing",
    "base_of",
    "reader",
    "writer",
]
