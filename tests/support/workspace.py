"""A folder with labeled text and a recipe, as a user of the command line has it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from support.cli_runner import CommandResult
from support.reviews import make_plain_reviews, write_rows

COUNTS = {"train": 40, "validation": 12, "test": 12}


@dataclass
class Workspace:
    """A folder with data and a recipe of a short run.

    Args:
        path: the folder.
        data: the recipe as a mapping; `recipe` writes it to the folder.
    """

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


def make_workspace(path: Path, backbone: Path) -> Workspace:
    for seed, (split, count) in enumerate(COUNTS.items()):
        write_rows(path / f"{split}.jsonl", make_plain_reviews(count, seed=seed))
    data = {
        "backbone": {"name": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {split: f"{split}.jsonl" for split in COUNTS},
        "task": {
            "kind": "classify",
            "template": "{text} sentiment{soft:4}",
            "verbalizer": {"negative": " negative", "positive": " positive"},
        },
        "method": {"name": "prompt-tuning", "init": {"from": "vocabulary"}},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
    }
    return Workspace(path, data)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Args:
        home: its workspace.
        folder: the run directory.
        said: the result of ``train --json``.
    """

    home: Workspace
    folder: Path
    result: CommandResult
