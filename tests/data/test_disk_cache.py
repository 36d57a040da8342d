"""The disk cache: a file is read as it was written, or it is removed."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import disk_usage

import pytest
import torch
from safetensors.torch import load_file

from softprompt.data.disk_cache import DiskCache, StateShape, open_user_cache

SHAPE = StateShape(rows=7, width=5, dtype=torch.float32)
KEY = "0" * 32


@pytest.fixture
def cache(tmp_path) -> DiskCache:
    return DiskCache(tmp_path / "states", limit=12_000)


def make_lines(shape: StateShape = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape.rows, shape.width, generator=generator).to(shape.dtype)


def load(cache: DiskCache, shape: StateShape = SHAPE) -> torch.Tensor | None:
    return cache.load(KEY, width=shape.width, dtype=shape.dtype)


def write(cache: DiskCache, key: str = KEY, shape: StateShape = SHAPE) -> Path:
    with cache.lock(key):
        assert [*cache.write(key, shape, parts=make_lines(shape).split(3))] == [3, 6, 7]
    return cache.folder / f"{key}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_is_read_as_written_also_by_safetensors(cache, dtype):
    shape = StateShape(7, 5, dtype)
    path = write(cache, shape=shape)
    assert torch.equal(load(cache, shape), make_lines(shape))
    assert torch.equal(load_file(path)["lines"], make_lines(shape))
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".lock", ".safetensors"]


def test_only_the_user_can_read_the_folder(cache):
    assert write(cache).parent.stat().st_mode & 0o777 == 0o700


def test_a_missing_file(cache):
    assert load(cache) is None


@pytest.mark.parametrize(
    "damage",
    {
        "a byte of a line": lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
        "the end": lambda raw: raw[:-3],
        "the header": lambda raw: raw[:9] + b"?" + raw[10:],
        "all of it": lambda _raw: b"",
        "more after it": lambda raw: raw + b"\0",
    }.values(),
)
def test_a_damaged_file_is_removed(cache, damage):
    path = write(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert load(cache) is None
    assert not path.exists()


def test_a_file_with_another_width_or_key_is_not_used(cache):
    write(cache)
    assert load(cache, StateShape(7, 4, torch.float32)) is None
    path = write(cache)
    path.rename(path.with_name(f"{'1' * 32}.safetensors"))
    assert cache.load("1" * 32, width=5, dtype=torch.float32) is None


def test_nothing_is_left_of_an_interrupted_write(cache):
    def parts():
        yield make_lines()[:3]
        raise KeyboardInterrupt

    with cache.lock(KEY), pytest.raises(KeyboardInterrupt):
        [*cache.write(KEY, SHAPE, parts=parts())]
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]


def test_the_least_recently_used_file_is_evicted(cache):
    size = StateShape(20, 20, torch.float32)
    keys = [str(n) * 32 for n in range(7)]
    for at, key in enumerate(keys[:6]):
        with cache.lock(key):
            [*cache.write(key, size, parts=[make_lines(size)])]
        os.utime(cache.folder / f"{key}.safetensors", (at, at))
    cache.load(keys[0], width=size.width, dtype=size.dtype)
    with cache.lock(keys[6]):
        [*cache.write(keys[6], size, parts=[make_lines(size)])]
    left = {p.stem for p in cache.folder.glob("*.safetensors")}
    assert left == {keys[0], *keys[2:]}


def test_a_file_larger_than_the_limit_has_no_room(cache):
    assert cache.has_room(StateShape(60, 50, torch.float32))
    assert not cache.has_room(StateShape(61, 50, torch.float32))


GIGABYTE = 10**9


@pytest.mark.parametrize(
    ("free", "gigabytes", "most"),
    [(100, None, 2.0), (20, None, 2.0), (15, None, 1.5), (100, 50.0, 50.0), (15, 50.0, 15.0)],
)
def test_a_file_of_the_default_cache_is_small_for_its_disk(
    free: int, gigabytes: float | None, most: float, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    usage = disk_usage(tmp_path)._replace(free=free * GIGABYTE)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    cache = open_user_cache(gigabytes)
    assert cache.has_room(StateShape(int(most * 1000) - 1, 250_000, torch.float32))
    assert not cache.has_room(StateShape(int(most * 1000) + 1, 250_000, torch.float32))


def test_the_default_cache_has_room_for_the_files_that_it_holds(tmp_path, monkeypatch):
    """What a file takes counts as free, so a second run finds it."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    cache = open_user_cache(None)
    size = write(cache).stat().st_size
    usage = disk_usage(tmp_path)._replace(free=10 * SHAPE.size - size)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    assert cache.has_room(SHAPE)
    assert not cache.has_room(StateShape(8, 5, torch.float32))


def test_a_file_that_another_process_evicts_meanwhile_is_skipped(cache):
    """A broken link stands for a file that is removed between its listing and its stat."""
    write(cache)
    (cache.folder / "gone.safetensors").symlink_to(cache.folder / "nowhere")
    assert cache.has_room(SHAPE)
    write(cache, key="1" * 32)
    assert torch.equal(load(cache), make_lines())


WRITE_SLOWLY = """
import sys, time
from pathlib import Path
import torch
from softprompt.data.disk_cache import DiskCache, StateShape

folder, key, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
shape = StateShape(rows=7, width=5, dtype=torch.float32)
lines = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
cache = DiskCache(folder, limit=10_000)
with cache.lock(key):
    if cache.load(key, width=5, dtype=torch.float32) is None:
        for _ in cache.write(key, shape, parts=lines.split(1)):
            print("begun", flush=True)
            time.sleep(seconds)
        print("written", flush=True)
"""


def start_writing(cache: DiskCache, seconds: float) -> subprocess.Popen[str]:
    """Start a process that writes a file, waiting after each line."""
    arguments = [sys.executable, "-c", WRITE_SLOWLY, str(cache.folder), KEY, str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_killed_write_leaves_no_file(cache):
    with start_writing(cache, 60) as other:
        assert other.stdout.readline() == "begun\n"
        other.kill()
    assert load(cache) is None
    write(cache)
    assert torch.equal(load(cache), make_lines())
    assert [*cache.folder.glob(".*")] == []


def test_of_two_processes_one_writes(cache):
    processes = [start_writing(cache, 0.05) for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert sorted(outputs, key=len) == [[], [*["begun"] * 7, "written"]]
    assert torch.equal(load(cache), make_lines())
