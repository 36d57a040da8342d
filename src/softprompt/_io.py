"""Files: folders written atomically, strict JSON, tensors as bytes, and their error messages."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import safetensors.torch
from filelock import lock_descriptor
from safetensors import SafetensorError
from torch import Tensor

from softprompt._parsing import parse_json
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
    complete, at the path that `find_backup` returns. Several threads or processes may write the
    same folder: the last one wins. What killed writers have left is removed.

    Args:
        folder: the folder to replace; it need not exist, and its contents are lost.

    Yields:
        The temporary folder, next to ``folder``.

    Raises:
        OSError: something could not be written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name)
    with _make_temporary(folder, make=lambda path: path.mkdir(exist_ok=True)) as fresh:
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        _replace(folder, fresh)
    remove_leftovers(folder.parent, folder.name)


@contextmanager
def write_once(folder: Path) -> Iterator[Path]:
    """Write a folder that is never replaced: a temporary folder is renamed when the block ends.

    A reader finds all of the folder or nothing, even if the writer is killed.

    Args:
        folder: to write; it must not exist, or be empty.

    Yields:
        The temporary folder, next to ``folder``, in which the block must write something.

    Raises:
        FileExistsError: another writer was first.
        OSError: something could not be written.
    """
    folder = folder.resolve()
    remove_leftovers(folder.parent, folder.name)
    with _make_temporary(folder, make=lambda path: path.mkdir(exist_ok=True)) as fresh:
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise FileExistsError(error.errno, error.strerror, str(folder)) from error
            raise
        _sync(folder.parent)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: a temporary file replaces it when the block ends.

    Args:
        path: of the file to replace; it need not exist.

    Yields:
        The path of the temporary file, next to ``path``, which the block writes.

    Raises:
        OSError: something could not be written; the old file is unchanged.
    """
    remove_leftovers(path.parent, path.name)
    with _make_temporary(path, make=Path.touch) as fresh:
        yield fresh
        _sync(fresh)
        fresh.replace(path)
        _sync(path.parent)


def find_backup(folder: Path) -> Path | None:
    """Where the old folder is while the new one replaces it; None if there is no such folder."""
    names = _list_temporary(folder.parent, folder.name)
    backups = [path for path in names if path.name.endswith(_BACKUP) and path.is_dir()]
    return max(backups, key=lambda path: path.stat().st_mtime, default=None)


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of writers that were killed.

    A backup is kept while it is the only copy. A writer locks what it writes, so that nothing is
    removed while it runs; where the file system has no locks, nothing is removed.

    Args:
        parent: the folder that they are in.
        name: of the file or folder that was written; None for any.
    """
    for path in _list_temporary(parent, name):
        is_backup = path.name.endswith(_BACKUP)
        if is_backup and not path.with_name(_get_owner(path)).exists():
            continue
        descriptor = _lock(path, seconds=0)
        if descriptor is None:
            continue
        try:
            _remove(path)
        finally:
            os.close(descriptor)


# The ends of temporary names, which no one else's file has.
_BACKUP = ".previous"
_TEMPORARY = re.compile(rf"\.softprompt-[0-9a-f]{{8}}({re.escape(_BACKUP)})?$")
# How long a writer waits for another one that replaces the same folder, and how often it tries.
_WAIT_SECONDS, _POLL_SECONDS, _ATTEMPTS = 10.0, 0.01, 100
# What a rename fails with if another writer has just moved or replaced the folder.
_MOVED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}


def name_temporary(path: Path) -> Path:
    """The path at which a file or folder is written before it replaces another.

    Args:
        path: of the file or folder to replace.
    """
    return path.with_name(f".{path.name}.softprompt-{secrets.token_hex(4)}")


def _get_owner(temporary: Path) -> str:
    """The name of the file or folder that a temporary one is for."""
    return _TEMPORARY.sub("", temporary.name).removeprefix(".")


def _list_temporary(parent: Path, name: str | None) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            paths = [parent / entry.name for entry in entries if _TEMPORARY.search(entry.name)]
    except OSError:
        return []
    return [path for path in paths if name is None or _get_owner(path) == name]


@contextmanager
def _make_temporary(path: Path, *, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder that is locked while it is written, and removed afterwards."""
    fresh, descriptor = name_temporary(path), None
    while descriptor is None:
        make(fresh)
        descriptor = _lock(fresh, seconds=_WAIT_SECONDS)
        if descriptor is None and fresh.exists():  # there are no locks
            break
    try:
        yield fresh
    finally:
        _remove(fresh)
        if descriptor is not None:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder, if it exists and its file system has locks."""
    descriptor = _lock(path, seconds=_WAIT_SECONDS)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, *, seconds: float) -> int | None:
    """Open a file or folder and lock it until it is closed.

    Returns:
        The descriptor. None if it is locked for longer than this, or cannot be locked.
    """
    end = monotonic() + seconds
    while os.name == "posix":
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if lock_descriptor(descriptor, blocking=False) and _is_at(descriptor, path):
                return descriptor
        except OSError:
            end = 0
        os.close(descriptor)
        if monotonic() >= end:
            return None
        sleep(_POLL_SECONDS)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _replace(folder: Path, fresh: Path) -> None:
    """Replace a folder by another one, again if another writer has replaced it meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _hold_lock(folder):
                _replace_once(folder, fresh)
        except OSError as error:
            if error.errno not in _MOVED or not fresh.exists() or attempt == _ATTEMPTS:
                raise
            sleep(_POLL_SECONDS)
        else:
            return


def _replace_once(folder: Path, fresh: Path) -> None:
    old = fresh.with_name(f"{fresh.name}{_BACKUP}")
    try:
        shutil.rmtree(old, ignore_errors=True)  # of an earlier attempt, and replaced since
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _sync(folder.parent)
    except BaseException:
        if not fresh.exists():
            folder.rename(fresh)
        backup = find_backup(folder)
        if backup is not None and not folder.exists():
            backup.rename(folder)
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
        ValueError: it is not UTF-8 or not JSON, has a duplicate key, a number that is not finite
            or has hundreds of digits, or is nested too deeply.
    """
    return parse_json(raw.decode("utf-8"))


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
