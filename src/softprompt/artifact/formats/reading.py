"""Read files that other programs wrote: nothing runs, nothing outside is opened, all is checked."""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from softprompt.artifact.files import few, looks_pickled
from softprompt.artifact.strict import strict
from softprompt.artifact.tensors import UNREADABLE, is_pickle
from softprompt.errors import ArtifactError

# Far beyond any prompt, and small enough to be read at once.
LARGEST = 4 << 30
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def found(source: Path, names: Iterable[str], *, what: str) -> Path:
    """The file of one of these names in a folder, or ``source`` itself if it is a file.

    Args:
        names: the first that is there is taken.
        what: the format, for messages.

    Raises:
        ArtifactError: there is none, it leads out of the folder, or only a pickle is there.
    """
    names = list(names)
    if source.is_file():
        return source
    if not source.is_dir():
        msg = f"there is no file or folder {source}. Give the {what} file, or the folder it is in."
        raise ArtifactError(msg)
    for name in names:
        path = source / name
        if path.is_symlink() or path.exists():
            return _inside(source, path)
    held = sorted(entry.name for entry in source.iterdir())
    pickled = [name for name in held if looks_pickled(name)]
    if pickled:
        raise ArtifactError(refused(source / pickled[0]))
    msg = (
        f"{source} has no {' or '.join(names)}, so it holds no {what}; it holds {few(held)}. "
        f"{_hint(source, names)}"
    )
    raise ArtifactError(msg)


def contents(path: Path) -> bytes:
    """A file's content.

    Raises:
        ArtifactError: it cannot be read, or is too large for any prompt.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            msg = f"{path} is no ordinary file. Give a file, or the folder it is in."
            raise ArtifactError(msg)
        size = path.stat().st_size
        if size > LARGEST:
            msg = (
                f"{path} has {size:,} bytes, but files of at most {LARGEST:,} are read. Take the "
                "prompt's own tensors out of it into a file of their own."
            )
            raise ArtifactError(msg)
        return path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Give a file that this user may read."
        raise ArtifactError(msg) from error


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ArtifactError: it is a pickle, cut short, or of types that torch lacks.
    """
    raw = contents(path)
    try:
        loaded = safetensors.torch.load(raw)
    except UNREADABLE as error:
        if is_pickle(raw):
            raise ArtifactError(refused(path)) from error
        first, *_ = str(error).split("\n")
        msg = (
            f"{path} ({len(raw):,} bytes) is cut short, damaged or no safetensors file: "
            f"{first.rstrip('.')}. "
            "Fetch it again."
        )
        raise ArtifactError(msg) from error
    return loaded


def checked(path: Path, given: Mapping[str, Tensor]) -> None:
    """Make sure that tensors are floating-point numbers, and finite.

    Raises:
        ArtifactError: one is not.
    """
    for name, tensor in given.items():
        if tensor.dtype not in _DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            msg = (
                f"{path}: {name} is {dtype}; a tensor must be float32, bfloat16 or float16. "
                "Convert it."
            )
            raise ArtifactError(msg)
        strange = int((~tensor.isfinite()).sum())
        if strange:
            msg = (
                f"{path}: {name}: {strange} of its {tensor.numel()} values are NaN or infinite, "
                "so nothing can be computed with it. Take another checkpoint of that run."
            )
            raise ArtifactError(msg)


def settings(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table.

    Raises:
        ArtifactError: it is no such file.
    """
    try:
        table = strict(contents(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is no JSON in UTF-8 with keys that differ: {error}. Fetch it again."
        raise ArtifactError(msg) from error
    if not isinstance(table, dict):
        msg = (
            f"{path} holds a {type(table).__name__}, but a table of keys is needed. Fetch it again."
        )
        raise ArtifactError(msg)
    return table


def count(table: Mapping[str, Any], key: str, *, path: Path) -> int:
    """A number from 1 up in a table.

    Raises:
        ArtifactError: it is missing or no such number.
    """
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = (
            f"{path}: {key} is {value!r}, but it must be a whole number from 1 up. Fetch it again."
        )
        raise ArtifactError(msg)
    return value


def refused(path: Path) -> str:
    """What is said of a pickle, and how to convert one that is trusted."""
    goal = path.with_suffix(".safetensors")
    return (
        f"{path} is a pickle or an archive of torch.save, which is refused: reading one can run "
        "any code. Where you trust it, convert it and import the result:\n"
        '  python -c "import sys, torch; from safetensors.torch import save_file; '
        "s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        'save_file({k: v.contiguous().clone() for k, v in s.items()}, sys.argv[2])" '
        f"{shlex.quote(str(path))} {shlex.quote(str(goal))}"
    )


def _inside(folder: Path, path: Path) -> Path:
    home, goal = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    # What the Hub's cache holds of one snapshot are links to the blobs beside it.
    stores = [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    cached = any(goal.is_relative_to(store) for store in stores)
    if not goal.is_relative_to(home) and not cached:
        msg = (
            f"{path} is a link to {goal}, outside the folder; only what lies in it is read. Copy "
            f"the file itself: cp --remove-destination {goal} {path}"
        )
        raise ArtifactError(msg)
    return path


def _hint(source: Path, names: list[str]) -> str:
    below = [
        e.name for e in source.iterdir() if e.is_dir() and any((e / n).exists() for n in names)
    ]
    if below:
        return f"Its folder {min(below)} has one: give {source / min(below)}."
    return "Give the folder that has it."
