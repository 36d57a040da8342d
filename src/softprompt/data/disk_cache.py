"""A disk cache of tensors that are expensive to compute, in memory-mapped files.

A file is one safetensors tensor of lines. Files are written atomically, under a lock. A file is
verified whenever it is opened, and computed again if it is damaged.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
}
_CHUNK = 1 << 24
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
    """A folder of such files; the least recently used ones are evicted for new ones.

    Args:
        folder: the folder; it is created when it is needed.
        limit: the most bytes of all files.
    """

    folder: Path
    limit: int

    def has_room(self, shape: StateShape) -> bool:
        """Whether a file of this shape is within the limit and fits on the disk."""
        if shape.size > self.limit:
            return False
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        used = sum(p.stat().st_size for p in self._files())
        return shape.size < shutil.disk_usage(existing).free + used

    @contextmanager
    def lock(self, mark: str) -> Iterator[None]:
        """Hold the lock of a file; the lock of a process that is killed is released."""
        # For this user only: the states were computed from rows that may be confidential.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.folder / f"{mark}.lock"):
            yield

    def load(self, mark: str, *, width: int, dtype: torch.dtype) -> Shaped[Tensor, "S W"] | None:
        """Map the lines of a file; None if there is no such file, or it is damaged.

        A damaged file is removed.
        """
        path = self._path(mark)
        if not path.exists():
            return None
        try:
            lines = _read(path, mark, width=width, dtype=dtype)
        except _UNREADABLE:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return lines

    def write(self, mark: str, shape: StateShape, *, parts: Iterable[Tensor]) -> Iterator[int]:
        """Write a file from parts.

        Args:
            mark: the name of the file.
            shape: the shape of all lines.
            parts: the lines in order.

        Yields:
            The number of lines that are written, after each part.

        Raises:
            OSError: the disk is full or cannot be written; no file is left behind.
        """
        self._evict_for(shape.size)
        partial = self.folder / f".{mark}.part"
        checksum, done = 0, 0
        try:
            with partial.open("wb") as file:
                file.write(_header(mark, shape, 0))
                for part in parts:
                    raw = part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                    checksum = crc32(raw, checksum)
                    file.write(raw)
                    done += len(part)
                    yield done
                file.seek(0)
                file.write(_header(mark, shape, checksum))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(mark))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, mark: str) -> Path:
        return self.folder / f"{mark}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)

    def _evict_for(self, size: int) -> None:
        files = self._files()
        used = sum(path.stat().st_size for path in files)
        for path in files:
            if used + size <= self.limit and shutil.disk_usage(self.folder).free > size:
                return
            used -= path.stat().st_size
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def open_user_cache(gigabytes: float) -> DiskCache:
    """The disk cache in the user's cache folder.

    Args:
        gigabytes: the limit of all files together, in units of 10^9 bytes.
    """
    return DiskCache(cache_folder() / "states", int(gigabytes * 10**9))


def _header(mark: str, shape: StateShape, checksum: int) -> bytes:
    """The header of a safetensors file; its length does not depend on the checksum."""
    content = {
        "__metadata__": {"schema": _SCHEMA, "mark": mark, "crc32": f"{checksum:08x}"},
        "lines": {
            "dtype": _TYPES[shape.dtype],
            "shape": [shape.rows, shape.width],
            "data_offsets": [0, shape.size],
        },
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, mark: str, *, width: int, dtype: torch.dtype) -> Tensor:
    """Check the header and the checksum of a file, and map its lines.

    Raises:
        ValueError: the file is not as expected.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        lines: Tensor = file.get_tensor("lines")
    facts = lines.ndim, lines.shape[-1], lines.dtype, metadata["schema"], metadata["mark"]
    if facts != (2, width, dtype, _SCHEMA, mark):
        msg = f"{path} is not the expected file."
        raise ValueError(msg)
    checksum = 0
    with path.open("rb") as raw:
        raw.seek(len(_header(mark, StateShape(len(lines), width, dtype), 0)))
        while chunk := raw.read(_CHUNK):
            checksum = crc32(chunk, checksum)
    if f"{checksum:08x}" != metadata["crc32"]:
        msg = f"{path} is damaged."
        raise ValueError(msg)
    return lines
