"""Folders are written atomically: after a failure at any step, the old folder is there."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import pytest

from softprompt._io import (
    find_backup,
    load_strict_json,
    remove_leftovers,
    replace_file,
    write_atomically,
)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones and those in hidden folders too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def write(folder: Path, text: str) -> None:
    with write_atomically(folder) as fresh:
        (fresh / "a").write_text(text)
        (fresh / "deep").mkdir()
        (fresh / "deep" / "b").write_text(text)


OLD, NEW = ({"x/a": text, "x/deep/b": text} for text in ("old", "new"))


def test_the_new_folder_replaces_the_old(tmp_path):
    write(tmp_path / "x", "old")
    assert content(tmp_path) == OLD
    write(tmp_path / "x", "new")
    assert content(tmp_path) == NEW


def test_parents_are_created(tmp_path):
    write(tmp_path / "run" / "3" / "x", "new")
    assert content(tmp_path / "run" / "3") == NEW


def test_the_old_folder_is_there_while_the_new_one_is_written(tmp_path):
    write(tmp_path / "x", "old")
    with write_atomically(tmp_path / "x") as fresh:
        (fresh / "a").write_text("half")
        assert OLD.items() <= content(tmp_path).items()
        assert fresh.parent == tmp_path  # on one disk, so that it can be renamed


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [OLD, {}])
def test_a_failed_block_changes_nothing(tmp_path, error, before):
    if before:
        write(tmp_path / "x", "old")

    def interrupted() -> None:
        with write_atomically(tmp_path / "x") as fresh:
            (fresh / "a").write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert content(tmp_path) == before


class Failing:
    """A replacement of a function that fails at its nth call, before or after the work."""

    def __init__(self, function, *, at: int, late: bool, error: type[BaseException]) -> None:
        self.function, self.left, self.late, self.error = function, at, late, error

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0 and not self.late:
            raise self.error
        result = self.function(*arguments)
        if self.left == 0:
            raise self.error
        return result


def patched(monkeypatch, step: tuple[object, str, int], *, late: bool, error=OSError) -> Failing:
    owner, name, at = step
    failing = Failing(getattr(owner, name), at=at, late=late, error=error)

    def stand_in(*arguments):  # a plain function becomes a method where it stands for one
        return failing(*arguments)

    monkeypatch.setattr(owner, name, stand_in)
    return failing


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "step",
    # two files, two folders, the parent; the old folder out of the way, the new one in its place
    [*((os, "fsync", n) for n in range(1, 6)), (Path, "rename", 1), (Path, "rename", 2)],
)
def test_whichever_step_fails_the_old_folder_is_there(tmp_path, monkeypatch, step, late, error):
    write(tmp_path / "x", "old")
    with monkeypatch.context() as patch:
        failing = patched(patch, step, late=late, error=error)
        with pytest.raises(error):
            write(tmp_path / "x", "new")
    assert failing.left <= 0
    assert content(tmp_path) == OLD


@pytest.mark.parametrize("at", range(1, 6))
def test_whichever_step_fails_a_new_folder_is_not_left_incomplete(tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        patched(patch, (os, "fsync", at), late=False)
        with pytest.raises(OSError):  # noqa: PT011  # it says nothing
            write(tmp_path / "x", "new")
    assert content(tmp_path) == {}


def test_everything_is_synced_before_the_replacement(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    steps: list[str] = []
    rename, fsync = Path.rename, os.fsync

    def named(path: Path) -> str:
        top, *rest = path.relative_to(tmp_path).parts or ("",)
        return "/".join(["new" if top.startswith(".x.") else top, *rest])

    def noted_rename(path: Path, goal: Path) -> Path:
        steps.append(f"rename {named(path)}")
        return rename(path, goal)

    def noted_fsync(descriptor: int) -> None:
        steps.append(f"sync {named(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    write(tmp_path / "x", "new")
    assert sorted(steps[:4]) == ["sync new", "sync new/a", "sync new/deep", "sync new/deep/b"]
    assert steps[4:] == ["rename x", "rename new", "sync "]


def test_the_backup_of_a_power_failure_is_removed_by_a_successful_write(tmp_path):
    write(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.softprompt-0123abcd.previous")
    write(tmp_path / "x", "new")
    assert content(tmp_path) == NEW


def test_the_backup_of_a_power_failure_is_restored_by_a_failed_write(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.softprompt-0123abcd.previous")
    with monkeypatch.context() as patch:
        patched(patch, (Path, "rename", 1), late=False)
        with pytest.raises(OSError):  # noqa: PT011  # it says nothing
            write(tmp_path / "x", "new")
    assert content(tmp_path) == OLD


# What others own, what killed writers leave, and several writers at once.

KILLED = """
import os, signal, sys
from pathlib import Path
from softprompt._io import replace_file, write_atomically

place = Path(sys.argv[1])
writer = write_atomically(place / "x") if sys.argv[2] == "folder" else replace_file(place / "x")
with writer as fresh:
    if sys.argv[2] == "folder":
        (fresh / "a").write_text("half")
    else:
        fresh.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_writer(place: Path, kind: str) -> None:
    command = [sys.executable, "-c", KILLED, str(place), kind]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", [".x.previous", ".x.0123abcd", ".x", "x.softprompt-0123abcd.txt"])
def test_what_a_user_has_next_to_it_is_never_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new")
    assert content(tmp_path) == NEW | {f"{name}/mine.txt": "mine"}


def test_what_a_killed_writer_of_a_folder_leaves_is_removed_by_the_next_one(tmp_path):
    write(tmp_path / "x", "old")
    kill_a_writer(tmp_path, "folder")
    assert len(content(tmp_path)) == 3
    write(tmp_path / "x", "new")
    assert content(tmp_path) == NEW


def test_what_a_killed_writer_of_a_file_leaves_is_removed_by_the_next_one(tmp_path):
    kill_a_writer(tmp_path, "file")
    assert [*content(tmp_path).values()] == ["half"]
    with replace_file(tmp_path / "x") as fresh:
        fresh.write_text("new")
    assert content(tmp_path) == {"x": "new"}


def test_what_a_living_writer_writes_is_not_removed(tmp_path):
    with write_atomically(tmp_path / "x") as fresh, replace_file(tmp_path / "y") as other:
        (fresh / "a").write_text("slow")
        other.write_text("slow")
        write(tmp_path / "x", "fast")
        remove_leftovers(tmp_path)
    assert content(tmp_path) == {"x/a": "slow", "y": "slow"}


def test_the_only_copy_is_kept(tmp_path):
    write(tmp_path / "x", "old")
    backup = tmp_path / ".x.softprompt-0123abcd.previous"
    (tmp_path / "x").rename(backup)
    remove_leftovers(tmp_path)
    assert find_backup(tmp_path / "x") == backup


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("locks", [True, False])
def test_several_threads_write_one_folder(tmp_path, monkeypatch, first, locks):
    """Each write succeeds, and one of them is there, whole; with and without locks."""
    if not locks:

        def refuse(*_: object, **__: object) -> bool:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr("softprompt._io.lock_descriptor", refuse)
    if first:
        write(tmp_path / "x", "old")
    texts = [str(n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda text: write(tmp_path / "x", text), texts)] == [None] * 40
    found = content(tmp_path)
    assert {*found} == {"x/a", "x/deep/b"}
    assert found["x/a"] == found["x/deep/b"]
    assert found["x/a"] in texts


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, error):
    def interrupted() -> None:
        with replace_file(tmp_path / "x") as fresh:
            fresh.write_text("half")
            raise error

    for before in ({}, {"x": "old"}):
        for name, text in before.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(type(error)):
            interrupted()
        assert content(tmp_path) == before


def test_a_duplicate_key_is_found_in_linear_time():
    """A search among all pairs of 80,000 keys would take a minute."""

    def measure(count: int) -> float:
        raw = json.dumps({f"key {n}": n for n in range(count)})[:-1] + ', "key 1": 0}'
        start = perf_counter()
        with pytest.raises(ValueError, match="the key 'key 1' appears twice"):
            load_strict_json(raw.encode())
        return perf_counter() - start

    measure(1_000)
    assert min(measure(80_000) for _ in range(3)) < 2
