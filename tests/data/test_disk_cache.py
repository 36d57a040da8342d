"""Files of lines: what is read is what was written, or it is computed again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softprompt.data.disk_cache import DiskCache, StateShape

SHAPE = StateShape(rows=7, width=5, dtype=torch.float32)
MARK = "0" * 32


@pytest.fixture
def shelf(tmp_path) -> DiskCache:
    return DiskCache(tmp_path / "states", limit=12_000)


def lines(shape: StateShape = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape.rows, shape.width, generator=generator).to(shape.dtype)


def opened(shelf: DiskCache, shape: StateShape = SHAPE) -> torch.Tensor | None:
    return shelf.load(MARK, width=shape.width, dtype=shape.dtype)


def filled(shelf: DiskCache, mark: str = MARK, shape: StateShape = SHAPE) -> Path:
    with shelf.lock(mark):
        assert [*shelf.write(mark, shape, parts=lines(shape).split(3))] == [3, 6, 7]
    return shelf.folder / f"{mark}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_reads_what_it_wrote_and_so_does_safetensors(shelf, dtype):
    shape = StateShape(7, 5, dtype)
    path = filled(shelf, shape=shape)
    assert torch.equal(opened(shelf, shape), lines(shape))
    assert torch.equal(load_file(path)["lines"], lines(shape))
    assert sorted(p.suffix for p in shelf.folder.iterdir()) == [".lock", ".safetensors"]


def test_the_folder_is_the_users_own(shelf):
    assert filled(shelf).parent.stat().st_mode & 0o777 == 0o700


def test_what_is_not_there_is_not_found(shelf):
    assert opened(shelf) is None


@pytest.mark.parametrize(
    "spoil",
    {
        "a byte of a line": lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
        "the end": lambda raw: raw[:-3],
        "the header": lambda raw: raw[:9] + b"?" + raw[10:],
        "all of it": lambda _raw: b"",
        "more behind it": lambda raw: raw + b"\0",
    }.values(),
)
def test_a_damaged_file_is_removed(shelf, spoil):
    path = filled(shelf)
    path.write_bytes(spoil(path.read_bytes()))
    assert opened(shelf) is None
    assert not path.exists()


def test_a_file_of_other_lines_is_none_of_ours(shelf):
    filled(shelf)
    assert opened(shelf, StateShape(7, 4, torch.float32)) is None
    path = filled(shelf)
    path.rename(path.with_name(f"{'1' * 32}.safetensors"))
    assert shelf.load("1" * 32, width=5, dtype=torch.float32) is None


def test_nothing_is_left_of_a_fill_that_fails(shelf):
    def parts():
        yield lines()[:3]
        raise KeyboardInterrupt

    with shelf.lock(MARK), pytest.raises(KeyboardInterrupt):
        [*shelf.write(MARK, SHAPE, parts=parts())]
    assert [p.suffix for p in shelf.folder.iterdir()] == [".lock"]


def test_the_longest_unused_make_room(shelf):
    size = StateShape(20, 20, torch.float32)
    marks = [str(n) * 32 for n in range(7)]
    for at, mark in enumerate(marks[:6]):
        with shelf.lock(mark):
            [*shelf.write(mark, size, parts=[lines(size)])]
        os.utime(shelf.folder / f"{mark}.safetensors", (at, at))
    shelf.load(marks[0], width=size.width, dtype=size.dtype)
    with shelf.lock(marks[6]):
        [*shelf.write(marks[6], size, parts=[lines(size)])]
    left = {p.stem for p in shelf.folder.glob("*.safetensors")}
    assert left == {marks[0], *marks[2:]}


def test_what_is_larger_than_the_limit_does_not_fit(shelf):
    assert shelf.has_room(StateShape(60, 50, torch.float32))
    assert not shelf.has_room(StateShape(61, 50, torch.float32))


FILL_SLOWLY = """
import sys, time
from pathlib import Path
import torch
from softprompt.data.disk_cache import DiskCache, StateShape

folder, mark, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
shape = StateShape(rows=7, width=5, dtype=torch.float32)
lines = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
shelf = DiskCache(folder, limit=10_000)
with shelf.lock(mark):
    if shelf.load(mark, width=5, dtype=torch.float32) is None:
        for _ in shelf.write(mark, shape, parts=lines.split(1)):
            print("begun", flush=True)
            time.sleep(seconds)
        print("filled", flush=True)
"""


def filling(shelf: DiskCache, seconds: float) -> subprocess.Popen[str]:
    """Another process that fills the shelf, waiting after each line."""
    arguments = [sys.executable, "-c", FILL_SLOWLY, str(shelf.folder), MARK, str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_kill_while_writing_leaves_nothing_to_be_read(shelf):
    with filling(shelf, 60) as other:
        assert other.stdout.readline() == "begun\n"
        other.kill()
    assert opened(shelf) is None
    filled(shelf)
    assert torch.equal(opened(shelf), lines())
    assert [*shelf.folder.glob(".*")] == []


def test_of_two_processes_one_fills(shelf):
    said = [other.communicate()[0].split() for other in [filling(shelf, 0.05) for _ in range(2)]]
    assert sorted(said, key=len) == [[], [*["begun"] * 7, "filled"]]
    assert torch.equal(opened(shelf), lines())
