"""A disk cache of tensors that are expensive to compute, in memory-mapped files.

A file has one safetensors tensor, ``lines [S, W]``: W values for each token. Files are written
atomically, under a lock. A file is verified whenever it is opened, and removed if it is damaged, so
that it is computed again.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from filelock import FileLock
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt._paths import cache_folder

_SCHEMA = "1"
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
}
_CHUNK = 1 << 24
# Unless a user sets the limit: that of all files, that of one file, and the part of the disk's free
# space that one file may take.
_DEFAULT_LIMIT, _DEFAULT_FILE_LIMIT, _DEFAULT_SHARE = 16 * 10**9, 2 * 10**9, 10
_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True)
class StateShape:
    """The shape of the tensor in a file.

    Args:
        rows: the number of lines.
        width: the number of values in each line.
        dtype: fp32, bf16, fp16 or int32.
    """

    rows: int
    width: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.rows * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class DiskCache:
    """A folder of cache files; the least recently used ones are evicted for new ones.

    Args:
        folder: the folder; it is created when it is needed.
        limit: the most bytes of all files.
        is_default: whether the limit is the default one. Then no file has more than 2 GB, or more
            than a tenth of the space that is free without the cache.
    """

    folder: Path
    limit: int
    is_default: bool = False

    def has_room(self, shape: StateShape) -> bool:
        """Whether a file of this shape is within the limits and fits on the disk."""
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        used = sum(stat.st_size for _, stat in self._list_files())
        room = shutil.disk_usage(existing).free + used
        most = min(_DEFAULT_FILE_LIMIT, room // _DEFAULT_SHARE) if self.is_default else room - 1
        return shape.size <= min(self.limit, most)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of a file; the lock of a process that is killed is released."""
        # For this user only: the states were computed from rows that may be confidential.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key}.lock"):
            yield

    def load(self, key: str, *, width: int, dtype: torch.dtype) -> Shaped[Tensor, "S W"] | None:
        """Map the lines of a file; None if there is no such file, or it is damaged.

        A damaged file is removed.

        Args:
            key: the name of the file.
            width: the number of values that each line must have.
            dtype: the dtype that they must have.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            lines = _read_lines(path, key, width=width, dtype=dtype)
        except _UNREADABLE:
            path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):  # another process has evicted it; it stays mapped
            os.utime(path)
        return lines

    def write(self, key: str, shape: StateShape, *, parts: Iterable[Tensor]) -> Iterator[int]:
        """Write a file from parts.

        Args:
            key: the name of the file.
            shape: the shape of all lines.
            parts: the lines in order.

        Yields:
            The number of lines that are written, after each part.

        Raises:
            OSError: the disk is full or cannot be written; no file is left behind.
        """
        self._evict_for(shape.size)
        partial = self.folder / f".{key}.part"
        checksum, written = 0, 0
        try:
            with partial.open("wb") as file:
                file.write(_header(key, shape, 0))
                for part in parts:
                    raw = part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                    checksum = crc32(raw, checksum)
                    file.write(raw)
                    written += len(part)
                    yield written
                file.seek(0)
                file.write(_header(key, shape, checksum))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(key))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _list_files(self) -> list[tuple[Path, os.stat_result]]:
        """All files, the least recently used ones first."""
        files = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process may evict it meanwhile
                files.append((path, path.stat()))
        return sorted(files, key=lambda file: file[1].st_mtime)

    def _evict_for(self, size: int) -> None:
        files = self._list_files()
        used = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if used + size <= self.limit and shutil.disk_usage(self.folder).free > size:
                return
            used -= stat.st_size
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def open_user_cache(gigabytes: float | None) -> DiskCache:
    """The disk cache in the user's cache folder.

    Args:
        gigabytes: the limit of all files together, in units of 10^9 bytes; None for the default,
            which also limits the size of each file.
    """
    folder = cache_folder() / "states"
    if gigabytes is None:
        return DiskCache(folder, _DEFAULT_LIMIT, is_default=True)
    return DiskCache(folder, int(gigabytes * 10**9))


def _header(key: str, shape: StateShape, checksum: int) -> bytes:
    """The header of a safetensors file; its length does not depend on the checksum."""
    content = {
        "__metadata__": {"schema": _SCHEMA, "mark": key, "crc32": f"{checksum:08x}"},
        "lines": {
            "dtype": _DTYPE_NAMES[shape.dtype],
            "shape": [shape.rows, shape.width],
            "data_offsets": [0, shape.size],
        },
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_lines(path: Path, key: str, *, width: int, dtype: torch.dtype) -> Tensor:
    """Check the header and the checksum of a file, and map its lines.

    Raises:
        ValueError: the file is not as expected.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        lines: Tensor = file.get_tensor("lines")
    found = lines.ndim, lines.shape[-1], lines.dtype, metadata["schema"], metadata["mark"]
    if found != (2, width, dtype, _SCHEMA, key):
        msg = f"{path} is not the expected file."
        raise ValueError(msg)
    checksum = 0
    with path.open("rb") as raw:
        raw.seek(len(_header(key, StateShape(len(lines), width, dtype), 0)))
        while chunk := raw.read(_CHUNK):
            checksum = crc32(chunk, checksum)
    if f"{checksum:08x}" != metadata["crc32"]:
        msg = f"{path} is damaged."
        raise ValueError(msg)
    return lines
