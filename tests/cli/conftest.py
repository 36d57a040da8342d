"""Tiny backbones saved as checkpoints, small files of labelled text, and a way to run commands."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cli_runner import CommandResult, run_command, start_command
from support.tiny_models import save_checkpoint
from support.workspace import FinishedRun, Workspace, make_workspace

# A family of each kind of backbone.
KINDS = ("llama", "bert", "t5")


@pytest.fixture(scope="session")
def run() -> Callable[..., CommandResult]:
    """Run a command in this process."""
    return run_command


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process of its own."""
    return start_command


@pytest.fixture(scope="session")
def backbones(tmp_path_factory, plain) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    root = tmp_path_factory.mktemp("backbones")
    for family in KINDS:
        save_checkpoint(root / family, family, plain(family))
    return {family: root / family for family in KINDS}


@pytest.fixture(scope="session")
def furnished() -> Callable[[Path, Path], Workspace]:
    """Furnish a folder, for fixtures that outlive a test."""
    return make_workspace


@pytest.fixture
def home(tmp_path: Path, backbones: dict[str, Path], monkeypatch) -> Workspace:
    """A folder of one's own, which is the working one."""
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path, backbones["llama"])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, backbones: dict[str, Path], run) -> FinishedRun:
    """A run that nobody changes."""
    home = make_workspace(tmp_path_factory.mktemp("trained"), backbones["llama"])
    folder = home.path / "run"
    said = run("train", home.recipe, "--output", folder, "--json")
    assert said.status == 0, said.err
    return FinishedRun(home, folder, said)
