"""Folders are written atomically: after a failure at any step, the old folder is there."""

import os
from pathlib import Path

import pytest

from softprompt._io import write_atomically


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
    (tmp_path / "x").rename(tmp_path / ".x.previous")
    write(tmp_path / "x", "new")
    assert content(tmp_path) == NEW


def test_the_backup_of_a_power_failure_is_restored_by_a_failed_write(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.previous")
    with monkeypatch.context() as patch:
        patched(patch, (Path, "rename", 1), late=False)
        with pytest.raises(OSError):  # noqa: PT011  # it says nothing
            write(tmp_path / "x", "new")
    assert content(tmp_path) == OLD
