"""Artifacts, and a client and commands that use a stand-in for the Hub."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from huggingface_hub import close_session, constants
from typer.testing import CliRunner

from softprompt.artifact import Artifact
from softprompt.cli import app
from support.artifacts import SAMPLES, Stored, make_sample, store_sample
from support.hub import WRITER, Fault, Hub, serve_hub


@pytest.fixture(scope="session")
def new() -> Callable[..., Artifact]:
    return make_sample


@pytest.fixture(params=SAMPLES)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return make_sample(**request.param)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return store_sample(tmp_path)


@pytest.fixture
def away(monkeypatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, which the client in this process uses as the Hub; nobody is logged in."""
    with serve_hub() as hub:
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": files,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
            "AGENT_HARNESSES_PATH": str(tmp_path / "hf" / "harnesses"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        close_session()
        yield hub
        close_session()


@pytest.fixture
def hub(away: Hub, monkeypatch) -> Hub:
    """The stand-in, with a token that has write permission."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return away


@pytest.fixture
def plant(away: Hub) -> Callable[..., None]:
    """Make requests fail whose method and path begin with a text."""

    def put(begins: str, **how: Any) -> None:
        away.faults.append(Fault(begins, **how))

    return put


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command in this process."""
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def command(away: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run softprompt in its own process, which uses the stand-in as the Hub."""

    def run(*args: object, **more: str) -> subprocess.CompletedProcess[str]:
        without = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
        environment = {k: v for k, v in os.environ.items() if k not in without} | {
            "HF_ENDPOINT": away.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            **more,
        }
        line = [sys.executable, "-m", "softprompt", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)

    return run
