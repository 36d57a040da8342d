"""Read files of other libraries: no code runs, and links out of the folder are refused."""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from softprompt._io import UNREADABLE, is_pickle, load_strict_json
from softprompt._paths import is_file, is_present
from softprompt.artifact.store import abbreviate, has_pickle_suffix
from softprompt.errors import ArtifactError

# Far larger than any prompt, and small enough to be read at once.
LARGEST = 4 << 30
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_file(source: Path, names: Iterable[str], *, what: str) -> Path:
    """The file of one of these names in a folder, or ``source`` itself if it is a file.

    Args:
        source: a file or a folder.
        names: of files; the first one that exists is taken.
        what: the format, for messages.

    Raises:
        ArtifactError: there is none, it is a link out of the folder, or there is only a pickle.
    """
    names = list(names)
    if is_file(source):
        return source
    if not is_present(source) or not source.is_dir():
        msg = f"there is no file or folder {source}. Give the {what} file, or the folder it is in."
        raise ArtifactError(msg)
    for name in names:
        path = source / name
        if path.is_symlink() or path.exists():
            return _check_inside(source, path)
    entries = sorted(entry.name for entry in source.iterdir())
    pickles = [name for name in entries if has_pickle_suffix(name)]
    if pickles:
        raise ArtifactError(refuse_pickle(source / pickles[0]))
    msg = (
        f"{source} has no {' or '.join(names)}, so it is not a {what}; it holds "
        f"{abbreviate(entries)}. {_suggest_folder(source, names)}"
    )
    raise ArtifactError(msg)


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        ArtifactError: it cannot be read, or is too large for any prompt.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            msg = f"{path} is not a regular file. Give a file, or the folder it is in."
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ArtifactError: it is a pickle, truncated, or has a type that torch lacks.
    """
    raw = read_bytes(path)
    try:
        loaded = safetensors.torch.load(raw)
    except UNREADABLE as error:
        if is_pickle(raw):
            raise ArtifactError(refuse_pickle(path)) from error
        first, *_ = str(error).split("\n")
        msg = (
            f"{path} ({len(raw):,} bytes) is truncated, damaged or not a safetensors file: "
            f"{first.rstrip('.')}. Fetch it again."
        )
        raise ArtifactError(msg) from error
    return loaded


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Make sure that tensors are floating-point numbers, and finite.

    Args:
        path: of the file, for messages.
        tensors: to check, by name.

    Raises:
        ArtifactError: one is not.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            msg = (
                f"{path}: {name} is {dtype}; a tensor must be float32, bfloat16 or float16. "
                "Convert it."
            )
            raise ArtifactError(msg)
        invalid = int((~tensor.isfinite()).sum())
        if invalid:
            msg = (
                f"{path}: {name}: {invalid} of its {tensor.numel()} values are NaN or infinite, "
                "so nothing can be computed with it. Take another checkpoint of that run."
            )
            raise ArtifactError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file with an object at the top.

    Raises:
        ArtifactError: it is not such a file.
    """
    try:
        table = load_strict_json(read_bytes(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON in UTF-8 without duplicate keys: {error}. Fetch it again."
        raise ArtifactError(msg) from error
    if not isinstance(table, dict):
        msg = (
            f"{path} holds a {type(table).__name__}, but a table of keys is needed. Fetch it again."
        )
        raise ArtifactError(msg)
    return table


def read_positive_int(table: Mapping[str, Any], key: str, *, path: Path) -> int:
    """A positive whole number in a table.

    Args:
        table: read from JSON.
        key: of the number.
        path: of the file, for messages.

    Raises:
        ArtifactError: it is missing or not a positive whole number.
    """
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = (
            f"{path}: {key} is {value!r}, but it must be a whole number from 1 up. Fetch it again."
        )
        raise ArtifactError(msg)
    return value


def refuse_pickle(path: Path) -> str:
    """The message that refuses a pickle and says how to convert a trusted one."""
    target = path.with_suffix(".safetensors")
    return (
        f"{path} is a pickle or an archive of torch.save, which is refused: reading one can run "
        "any code. Where you trust it, convert it and import the result:\n"
        '  python -c "import sys, torch; from safetensors.torch import save_file; '
        "s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        'save_file({k: v.contiguous().clone() for k, v in s.items()}, sys.argv[2])" '
        f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
    )


def _check_inside(folder: Path, path: Path) -> Path:
    """Refuse a link that leads out of the folder."""
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    # In the Hub's cache, the files of a snapshot are links into the folder of blobs next to it.
    stores = [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    cached = any(target.is_relative_to(store) for store in stores)
    if not target.is_relative_to(home) and not cached:
        msg = (
            f"{path} is a link to {target}, outside the folder; only files in it are read. Copy "
            f"the file itself: cp --remove-destination {shlex.quote(str(target))} "
            f"{shlex.quote(str(path))}"
        )
        raise ArtifactError(msg)
    return path


def _suggest_folder(source: Path, names: list[str]) -> str:
    below = [
        e.name for e in source.iterdir() if e.is_dir() and any((e / n).exists() for n in names)
    ]
    if below:
        return f"Its folder {min(below)} has one: give {source / min(below)}."
    return "Give the folder that has it."
