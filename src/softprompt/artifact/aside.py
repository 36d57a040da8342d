"""Write a folder so that, whatever happens, either the old one or the new one is there, whole."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place when the block ends without an error.

    Its files reach the disk before it does. If anything fails, or the block is interrupted, what
    stood in ``folder`` stays as it was. A power cut in the instant between the two renames leaves
    it, whole, under the name that `previous` gives.

    Args:
        folder: what to replace; it need not exist, and what is in it is lost.

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


def previous(folder: Path) -> Path:
    """Where the old folder stands while the new one takes its place."""
    return folder.parent / f".{folder.name}.previous"


def _replace(folder: Path, fresh: Path) -> None:
    old = previous(folder)
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
        return  # elsewhere a folder cannot be opened, and need not be
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
