"""Checkpoints without pickles: tensors in safetensors, everything else in JSON.

A checkpoint is written beside the old one and renamed over it, so one of the two is always whole.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softprompt.errors import ArtifactError

_TENSORS, _REST = "state.safetensors", "state.json"


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write a nested state of dictionaries, lists, numbers, text and tensors."""
    tensors: dict[str, Tensor] = {}
    rest = _take_apart(state, tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        save_file(tensors, aside / _TENSORS)
        (aside / _REST).write_text(json.dumps(rest), encoding="utf-8")
        for name in (_TENSORS, _REST):
            with (aside / name).open("rb") as file:
                os.fsync(file.fileno())
        _swap(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def load_state(folder: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        ArtifactError: there is no whole checkpoint.
    """
    source = folder if folder.exists() else folder.with_name(f".{folder.name}-old")
    try:
        rest = json.loads((source / _REST).read_text(encoding="utf-8"))
        tensors = load_file(source / _TENSORS)
        state = _put_together(rest, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        msg = (
            f"{folder} holds no whole checkpoint ({error}). Without one a run cannot go on; train "
            "it anew."
        )
        raise ArtifactError(msg) from error
    if not isinstance(state, dict):
        msg = f"{folder} holds no checkpoint but a {type(state).__name__}. Train the run anew."
        raise ArtifactError(msg)
    return state


def _swap(aside: Path, folder: Path) -> None:
    """A folder cannot be renamed over a full one; the old one stands aside for that moment."""
    old = folder.with_name(f".{folder.name}-old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401  # JSON
    match value:
        case Tensor():
            key = f"t{len(tensors)}"
            tensors[key] = value.detach().cpu().contiguous().clone()
            return {"tensor": key}
        case dict():
            # Pairs, because an optimiser's keys are numbers, which JSON would make text.
            return {"dict": [[k, _take_apart(v, tensors)] for k, v in value.items()]}
        case list() | tuple():
            return {"list": [_take_apart(v, tensors) for v in value]}
        case _:
            return {"value": value}


def _put_together(node: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401  # JSON
    ((kind, content),) = node.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: _put_together(value, tensors) for key, value in content}
        case "list":
            return [_put_together(value, tensors) for value in content]
        case "value":
            return content
        case _:
            msg = f"unknown node {kind!r}"
            raise ValueError(msg)


def generators() -> dict[str, Any]:
    """The states of torch's own generators, which dropout draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_generators(states: dict[str, Any]) -> None:
    """Put :func:`generators` back."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
