"""The list of formats that prompts are imported from and exported to."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from softprompt._paths import is_present
from softprompt.errors import ArtifactError, format_unknown
from softprompt.hub.names import is_repo_id
from softprompt.interop import arrays, p_tuning_v2, peft, vllm_export
from softprompt.interop.base import BaseModelRef, Format, Reader, Writer

Function = TypeVar("Function")
PROMPT_FORMATS: dict[str, Format] = {
    "peft": Format(
        "a PEFT adapter folder",
        read=peft.read_peft,
        write=peft.write_peft,
        base=peft.read_peft_base_model,
    ),
    "npy": Format("vectors as a numpy array", read=arrays.read_npy, write=arrays.write_npy),
    "p-tuning-v2": Format(
        "a state dict of the P-tuning v2 code",
        read=p_tuning_v2.read_p_tuning_v2,
        write=p_tuning_v2.write_p_tuning_v2,
    ),
    "safetensors": Format(
        "vectors as one tensor", read=arrays.read_safetensors, write=arrays.write_safetensors
    ),
    "vllm": Format(
        "vectors and settings for requests to a vLLM server",
        read=None,
        write=vllm_export.write_vllm,
    ),
}


def get_reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        ArtifactError: there is no such format, or it cannot be imported.
    """
    return _select(name, {key: form.read for key, form in PROMPT_FORMATS.items()}, to="import")


def get_writer(name: str) -> Writer:
    """The writer of a format.

    Raises:
        ArtifactError: there is no such format, or it cannot be exported.
    """
    return _select(name, {key: form.write for key, form in PROMPT_FORMATS.items()}, to="export")


def _select(name: str, functions: Mapping[str, Function | None], *, to: str) -> Function:
    supported = {key: function for key, function in functions.items() if function is not None}
    if name not in supported:
        raise ArtifactError(format_unknown(f"format to {to}", name, options=supported))
    return supported[name]


def read_base_model(name: str, source: Path) -> BaseModelRef:
    """Read which backbone a file names.

    Args:
        name: of the format.
        source: the file or folder.

    Raises:
        ArtifactError: there is no such format or file, or it cannot be read.
    """
    get_reader(name)
    if not is_present(source):
        remote = is_repo_id(str(source))
        hint = f" If it is on the Hub: hf download {source} --local-dir FOLDER" if remote else ""
        msg = f"there is no file or folder {source}. Give the file or folder to import.{hint}"
        raise ArtifactError(msg)
    return PROMPT_FORMATS[name].base(source)
