"""Files: folders written atomically, strict JSON, tensors as bytes, and their error messages."""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from softprompt.errors import ArtifactError

# What reading a damaged safetensors file can raise; the last two come from torch, for types and
# sizes in the header that it does not support.
UNREADABLE = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
# The first bytes of a zip archive, which torch.save writes, and of pickles of protocol 2 to 5.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@contextmanager
def write_atomically(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: a temporary folder replaces it when the block ends.

    The files are synced to disk before the replacement. If the block fails or is interrupted,
    ``folder`` stays as it was. A power failure between the two renames leaves the old folder,
    complete, at the path that `get_backup_path` returns.

    Args:
        folder: the folder to replace; it need not exist, and its contents are lost.

    Yields:
        The temporary folder, next to ``folder``.

    Raises:
        OSError: something could not be written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    fresh.mkdir()
    try:
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def get_backup_path(folder: Path) -> Path:
    """Where the old folder is while the new one replaces it."""
    return folder.parent / f".{folder.name}.previous"


def _replace(folder: Path, fresh: Path) -> None:
    old = get_backup_path(folder)
    try:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        _sync(folder.parent)
    except BaseException:
        if not fresh.exists():
            folder.rename(fresh)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # other systems cannot open a folder, and need not sync it
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_dir(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write files into a folder that is new or empty.

    Args:
        files: their contents by name.
        folder: where to write.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is not empty, so it is not overwritten. Choose another folder."
        raise ArtifactError(msg)
    try:
        with write_atomically(folder) as fresh:
            for name, content in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(content)
    except OSError as error:
        size = sum(map(len, files.values()))
        msg = (
            f"{size:,} bytes could not be written to {folder}: {error.strerror}. Nothing was "
            "changed. Choose a writable folder on a disk with enough space."
        )
        raise ArtifactError(msg) from error
    return folder


def load_strict_json(raw: bytes) -> object:
    """Parse a JSON file, without the extensions of Python's parser.

    Args:
        raw: its content, in UTF-8.

    Returns:
        The parsed value.

    Raises:
        ValueError: it is not UTF-8 or not JSON, has a duplicate key, or a number that is not
            finite.
        RecursionError: it is nested too deeply.
    """
    content: object = json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_make_object,
        parse_constant=_reject_constant,
        parse_float=_parse_finite,
    )
    return content


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        msg = f"the key {duplicate!r} appears twice"
        raise ValueError(msg)
    return content


def _reject_constant(word: str) -> None:
    msg = f"{word} is not a number in JSON"
    raise ValueError(msg)


def _parse_finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        msg = f"{word} overflows a float"
        raise ValueError(msg)
    return number


def name_event(event: object) -> str:
    """The name of an event in JSON lines: its class name in snake case.

    Examples:
        >>> name_event(ErrorContext("a file", "Fetch it again."))
        'error_context'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Serialize tensors as a safetensors file, in their own dtype and from any device.

    Args:
        tensors: by name; they may share storage.
        metadata: further entries of the header.

    Returns:
        The content of the file.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata=metadata)


def is_pickle(raw: bytes) -> bool:
    """Whether a file's content begins like a pickle or an archive of torch.save."""
    return raw.startswith(_PICKLES)


@dataclass(frozen=True)
class ErrorContext:
    """The parts that all error messages about one artifact share.

    Args:
        name: how messages name the artifact.
        remedy: the sentence that says what to do.
    """

    name: str
    remedy: str

    def make_error(self, fact: str) -> ArtifactError:
        """The error to raise for a fact, which should state the limit too."""
        return ArtifactError(f"{self.name}: {fact} {self.remedy}")

    def join_faults(self, facts: list[str]) -> ArtifactError:
        """The error to raise for several facts at once."""
        if len(facts) == 1:
            return self.make_error(facts[0])
        listed = "".join(f"\n  - {fact}" for fact in facts)
        return ArtifactError(f"{self.name}: {len(facts)} faults:{listed}\n{self.remedy}")
