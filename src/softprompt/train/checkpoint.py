"""Checkpoints without pickles: tensors in safetensors, everything else in JSON.

A checkpoint is written to a temporary folder, which then replaces the old one. A third file has the
SHA-256 of both, so that a run never resumes from a checkpoint that was damaged.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softprompt._io import find_backup, load_strict_json, write_atomically
from softprompt.errors import ArtifactError

_TENSORS, _REST, _DIGESTS = "state.safetensors", "state.json", "digests.json"


def save_state(state: Mapping[str, Any], folder: Path, *, run: Path | None = None) -> None:
    """Write a nested state of dictionaries, lists, numbers, text and tensors.

    Args:
        state: to write.
        folder: of the checkpoint.
        run: the folder of the run, for messages; None for the one that the checkpoint is in.

    Raises:
        ArtifactError: it cannot be written; the checkpoint from before is complete.
    """
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_take_apart(dict(state), tensors))
    try:
        with write_atomically(folder) as fresh:
            save_file(tensors, fresh / _TENSORS)
            (fresh / _REST).write_text(rest, encoding="utf-8")
            digests = {name: _compute_digest(fresh / name) for name in (_TENSORS, _REST)}
            (fresh / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        msg = (
            f"the checkpoint {folder} could not be written: {error}. An earlier one is complete. "
            "Free disk space or correct the permissions, then resume with: "
            f"softprompt resume {quote(str(run or folder.parent))}"
        )
        raise ArtifactError(msg) from error


def has_state(folder: Path) -> bool:
    """Whether there is a checkpoint, or the backup of one after an interrupted write."""
    return folder.exists() or find_backup(folder) is not None


def load_state(folder: Path, *, run: Path | None = None) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Args:
        folder: of the checkpoint.
        run: as for `save_state`.

    Raises:
        ArtifactError: there is no complete checkpoint, or it was changed since it was written.
    """
    source = folder if folder.exists() else find_backup(folder) or folder
    try:
        _check_digests(source)
        rest = json.loads((source / _REST).read_text(encoding="utf-8"))
        tensors = load_file(source / _TENSORS)
        state = _put_together(rest, tensors)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        msg = f"{folder} holds no complete checkpoint ({type(error).__name__}: {error})"
        raise ArtifactError(_add_remedy(msg, folder, run)) from error
    if not isinstance(state, dict):
        msg = f"{folder} holds a {type(state).__name__}, not a checkpoint"
        raise ArtifactError(_add_remedy(msg, folder, run))
    return state


def _compute_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digests(folder: Path) -> None:
    """Check that both files are as they were written.

    Raises:
        ValueError: one was changed.
        OSError: one is missing.
    """
    digests = load_strict_json((folder / _DIGESTS).read_bytes())
    for name in (_TENSORS, _REST):
        actual = _compute_digest(folder / name)
        expected = digests.get(name) if isinstance(digests, dict) else None
        if actual != expected:
            msg = f"{name} has the SHA-256 {actual}, but {_DIGESTS} says {expected!r}"
            raise ValueError(msg)


def _add_remedy(fact: str, folder: Path, run: Path | None) -> str:
    """What to do without a checkpoint: nothing of it may be used."""
    whole = quote(str(run or folder.parent))
    command = f"rm -r {quote(str(folder))} && softprompt resume {whole}"
    return f"{fact}. Restore it from a copy, or train again from the first step: {command}"


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401  # JSON
    match value:
        case Tensor():
            key = f"t{len(tensors)}"
            tensors[key] = value.detach().cpu().contiguous().clone()
            return {"tensor": key}
        case dict():
            # Pairs, because an optimizer's keys are numbers, which JSON would make text.
            return {"dict": [[k, _take_apart(v, tensors)] for k, v in value.items()]}
        case list() | tuple():
            return {"list": [_take_apart(v, tensors) for v in value]}
        case _:
            return {"value": value}


def _put_together(node: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401  # JSON
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
