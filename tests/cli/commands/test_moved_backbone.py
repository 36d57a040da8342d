"""An artifact whose backbone has moved: its new place is given, and the answers are the same."""

import shutil
from pathlib import Path

import pytest

from softprompt.inference import PromptModel
from support.workspace import make_workspace


@pytest.fixture(scope="module")
def moved(tmp_path_factory, backbones: dict[str, Path], run):
    """A run, the new place of its backbone, and its predictions before it moved."""
    home = tmp_path_factory.mktemp("moved")
    shutil.copytree(backbones["llama"], home / "old")
    workspace = make_workspace(home, home / "old")
    assert run("train", workspace.recipe, "--quiet", "--output", home / "run").status == 0
    commands = {
        "predict": ("predict", home / "run", "good film", "dull"),
        "evaluate": ("evaluate", home / "run", home / "test.jsonl"),
        "ensemble": (
            "evaluate", home / "run", home / "run", "--ensemble", "--data", home / "test.jsonl",
        ),
        "show": ("show", home / "run"),
        "attention": ("show", home / "run", "--attention", "--data", home / "test.jsonl"),
    }  # fmt: skip
    before = {name: run(*command).out for name, command in commands.items()}
    (home / "old").rename(home / "new")
    return home, commands, before


@pytest.mark.parametrize("name", ["predict", "evaluate", "ensemble", "show", "attention"])
def test_every_command_takes_the_new_place(moved, run, name: str) -> None:
    home, commands, before = moved
    result = run(*commands[name], "--backbone", home / "new")
    assert (result.status, result.out) == (0, before[name])
    missing = run(*commands[name])
    assert "--backbone NAME" in missing.err
    assert missing.status == (0 if name == "show" else 2)


def test_export_takes_it_too(moved, run, tmp_path: Path) -> None:
    home, _, _ = moved
    args = ("export", "npy", home / "run", "--output", tmp_path / "out")
    assert run(*args).is_mistake("--backbone NAME")
    assert run(*args, "--backbone", home / "new").status == 0


def test_python_takes_a_name(moved) -> None:
    home, _, _ = moved
    model = PromptModel.from_pretrained(home / "run", backbone=home / "new")
    assert model.backbone.name == str(home / "new")


def test_another_backbone_is_refused(moved, run, backbones: dict[str, Path]) -> None:
    home, commands, _ = moved
    for name in commands:
        result = run(*commands[name], "--backbone", backbones["bert"])
        assert result.is_mistake("the prompt was trained on", "(bert, fingerprint")
    refused = run("show", home / "run", "--no-backbone", "--backbone", home / "new")
    assert refused.is_mistake("Leave one of them out")
