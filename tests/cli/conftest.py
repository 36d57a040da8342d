"""Tiny backbones saved as checkpoints, small files of labelled text, and a way to run commands."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from softprompt.inference import PromptModel
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


@pytest.fixture
def home(tmp_path: Path, backbones: dict[str, Path], monkeypatch) -> Workspace:
    """A workspace of the test, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path, backbones["llama"])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, backbones: dict[str, Path], run) -> FinishedRun:
    """A finished run, which no test changes."""
    home = make_workspace(tmp_path_factory.mktemp("trained"), backbones["llama"])
    folder = home.path / "run"
    result = run("train", home.recipe, "--output", folder, "--json")
    assert result.status == 0, result.err
    return FinishedRun(home, folder, result)


@pytest.fixture(scope="session")
def model(trained) -> PromptModel:
    """The model of that run."""
    return PromptModel.from_pretrained(trained.folder)
