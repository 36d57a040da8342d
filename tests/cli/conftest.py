"""Tiny backbones saved as checkpoints, small files of labelled text, and a way to run commands."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from softprompt.cli import app

GOOD = ["good", "great", "wonderful", "love", "funny", "bright", "happy"]
BAD = ["bad", "awful", "terrible", "hate", "boring", "dull", "sad"]
PLAIN = ["the", "a", "film", "movie", "story", "actor", "scene", "music"]
COUNTS = {"train": 40, "validation": 12, "test": 12}
KINDS = {"llama": "causal", "bert": "encoder", "t5": "encoder-decoder"}


def reviews(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Reviews whose words tell their label, both labels in turn."""
    draw = random.Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        telling = GOOD if number % 2 else BAD
        words = [draw.choice(telling if draw.random() < 0.6 else PLAIN) for _ in range(6)]
        rows.append({"text": " ".join(words), "label": "positive" if number % 2 else "negative"})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@dataclass(frozen=True)
class Said:
    """What a command said: its status, its results and the rest."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def is_mistake(self, *fragments: str) -> bool:
        """Whether it was told as a user's mistake: exit 2, the message alone, nothing printed."""
        assert self.status == 2, (self.status, self.err)
        assert "Traceback" not in self.err
        for fragment in fragments:
            assert fragment in self.err, f"{fragment!r} is not in {self.err!r}"
        return True


@pytest.fixture(scope="session")
def run() -> Callable[..., Said]:
    """Run a command in this process."""

    def invoke(*args: object, given: str | bytes | None = None) -> Said:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=given)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process of its own."""

    def begin(*args: object, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from softprompt.cli import main; main()", *map(str, args)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"NO_COLOR": "1"}, **more
        )

    return begin


@pytest.fixture(scope="session")
def backbones(tmp_path_factory, plain, tokenizer) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    root = tmp_path_factory.mktemp("backbones")
    for family, kind in KINDS.items():
        plain(family).save_pretrained(root / family)
        tokenizer(kind).save_pretrained(root / family)
    return {family: root / family for family in KINDS}


@dataclass
class Home:
    """A folder with data and a recipe that trains in a moment; change ``data`` and write it."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Path:
        self.path.joinpath("recipe.toml").write_text(tomli_w.dumps(self.data), "utf-8")
        return self.path / "recipe.toml"

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        lines = (self.path / f"{split}.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self, split: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        return write_rows(self.path / f"{split}.jsonl", rows)


def furnish(path: Path, backbone: Path) -> Home:
    for seed, (split, count) in enumerate(COUNTS.items()):
        write_rows(path / f"{split}.jsonl", reviews(count, seed=seed))
    data = {
        "backbone": {"name": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {split: f"{split}.jsonl" for split in COUNTS},
        "task": {
            "kind": "classify",
            "template": "{text} sentiment{soft:4}",
            "verbalizer": {"negative": " negative", "positive": " positive"},
        },
        "method": {"name": "prompt-tuning", "initialise": {"from": "vocabulary"}},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
    }
    return Home(path, data)


@pytest.fixture(scope="session")
def furnished() -> Callable[[Path, Path], Home]:
    """Furnish a folder, for fixtures that outlive a test."""
    return furnish


@pytest.fixture
def home(tmp_path: Path, backbones: dict[str, Path], monkeypatch) -> Home:
    """A folder of one's own, which is the working one."""
    monkeypatch.chdir(tmp_path)
    return furnish(tmp_path, backbones["llama"])


@dataclass(frozen=True)
class Trained:
    """A finished run, what ``train --json`` said of it, and its home."""

    home: Home
    folder: Path
    said: Said


@pytest.fixture(scope="session")
def trained(tmp_path_factory, backbones: dict[str, Path], run) -> Trained:
    """A run that nobody changes."""
    home = furnish(tmp_path_factory.mktemp("trained"), backbones["llama"])
    folder = home.path / "run"
    said = run("train", home.recipe, "--output", folder, "--json")
    assert said.status == 0, said.err
    return Trained(home, folder, said)
