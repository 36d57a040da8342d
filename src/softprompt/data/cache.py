"""Numbers that are costly to compute, kept in files of the user's cache and mapped from there.

A file is one safetensors tensor of lines. It is written aside and renamed, by one process
at a time; it is verified whenever it is opened, and computed anew if it is not what was written.
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

from softprompt.backbone.builtin import cache_folder

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
class Shape:
    """What a file holds.

    Args:
        lines: how many.
        width: numbers in each.
        dtype: fp32, bf16, fp16 or int32.
    """

    lines: int
    width: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return self.lines * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class Shelf:
    """A folder of such files, of which the longest unused make room for new ones.

    Args:
        folder: is made when it is needed.
        limit: most bytes that all files may take up.
    """

    folder: Path
    limit: int

    def fits(self, shape: Shape) -> bool:
        """Whether a file of this shape may be written, and the disk has room for it."""
        if shape.size > self.limit:
            return False
        there = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        held = sum(p.stat().st_size for p in self._files())
        return shape.size < shutil.disk_usage(there).free + held

    @contextmanager
    def locked(self, mark: str) -> Iterator[None]:
        """Only one process at a time is in this block; a killed one leaves it."""
        # The user's own: what is kept was made of rows that may be no one else's business.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.folder / f"{mark}.lock"):
            yield

    def open(self, mark: str, *, width: int, dtype: torch.dtype) -> Shaped[Tensor, "S W"] | None:
        """The lines, mapped from their file; None if there is none, or it is damaged.

        A damaged file is removed.
        """
        path = self._path(mark)
        if not path.exists():
            return None
        try:
            found = _read(path, mark, width=width, dtype=dtype)
        except _UNREADABLE:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return found

    def fill(self, mark: str, shape: Shape, *, parts: Iterable[Tensor]) -> Iterator[int]:
        """Write a file, from parts that make up its lines in order.

        Yields:
            How many lines are written, after each part.

        Raises:
            OSError: the disk is full or cannot be written; nothing is left behind.
        """
        self._make_room(shape.size)
        aside = self.folder / f".{mark}.part"
        checksum, done = 0, 0
        try:
            with aside.open("wb") as file:
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
            aside.replace(self._path(mark))
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, mark: str) -> Path:
        return self.folder / f"{mark}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)

    def _make_room(self, size: int) -> None:
        files = self._files()
        held = sum(path.stat().st_size for path in files)
        for path in files:
            if held + size <= self.limit and shutil.disk_usage(self.folder).free > size:
                return
            held -= path.stat().st_size
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def users_shelf(gigabytes: float) -> Shelf:
    """The one in the user's cache.

    Args:
        gigabytes: of 10^9 bytes, that all files in it may take up.
    """
    return Shelf(cache_folder() / "states", int(gigabytes * 10**9))


def _header(mark: str, shape: Shape, checksum: int) -> bytes:
    """The beginning of a safetensors file, of the same length whatever the checksum."""
    described = {
        "__metadata__": {"schema": _SCHEMA, "mark": mark, "crc32": f"{checksum:08x}"},
        "lines": {
            "dtype": _TYPES[shape.dtype],
            "shape": [shape.lines, shape.width],
            "data_offsets": [0, shape.size],
        },
    }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, mark: str, *, width: int, dtype: torch.dtype) -> Tensor:
    """Check a file against its header and its checksum, and map its lines.

    Raises:
        ValueError: they disagree.
    """
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        lines: Tensor = file.get_tensor("lines")
    wanted = 2, width, dtype, _SCHEMA, mark
    if (lines.ndim, lines.shape[-1], lines.dtype, said["schema"], said["mark"]) != wanted:
        msg = f"{path} is not what it should be."
        raise ValueError(msg)
    checksum = 0
    with path.open("rb") as raw:
        raw.seek(len(_header(mark, Shape(len(lines), width, dtype), 0)))
        while chunk := raw.read(_CHUNK):
            checksum = crc32(chunk, checksum)
    if f"{checksum:08x}" != said["crc32"]:
        msg = f"{path} is damaged."
        raise ValueError(msg)
    return lines
