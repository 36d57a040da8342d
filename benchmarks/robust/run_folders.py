"""Damaged folders of runs that were stopped, or that are finished: resumed to the same prompt."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from commands import run_command
from damage import damage_bytes, damage_json_text, damage_safetensors, damage_tree, dump_json
from judge import require
from tiny import make_recipe_data
from trials import Given, Kind, Trial

from softprompt.artifact import load_artifact
from softprompt.recipe import make_recipe, read_recipe
from softprompt.train import train_recipe
from softprompt.train.events import Event, Step

STEPS, STOPPED = 6, 4


def list_kinds() -> list[Kind]:
    """One kind: a stopped run and a finished one, by turns."""
    return [Kind("run's folder", 600, _prepare)]


def _prepare(place: Path) -> Trial:
    data = make_recipe_data(place, "vectors")
    data["train"] |= {"max_steps": STEPS, "eval_every_steps": 2}
    recipe = make_recipe(data)
    train_recipe(recipe, place / "finished", progress=False)
    tensors = load_artifact(place / "finished").to_tensors()

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == STOPPED:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        train_recipe(recipe, place / "stopped", progress=False, callbacks=[stop])

    def trial(given: Given) -> Literal["refused", "answered"]:
        name = given.random.choice(("stopped", "stopped", "finished"))
        copy = given.folder / name
        shutil.copytree(place / name, copy)
        _damage(copy, given)
        outcome = run_command(["resume", str(copy), "--quiet"])
        if outcome == "answered":
            _require_same(copy, tensors)
            same = name == "finished" or read_recipe(copy / "recipe.toml") == recipe
            require(same, "another recipe than was trained")
            require((copy / "curve.png").is_file(), "finished without a picture")
        return outcome

    return trial


def _require_same(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = load_artifact(folder).to_tensors()
    same = all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    require(same, "another prompt than that of the whole run")


def _damage(folder: Path, given: Given) -> None:
    chance = given.random
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(files)
    raw = path.read_bytes()
    if chance.random() < 0.15:  # noqa: PLR2004
        given.damage = _replace(path, chance)
    elif path.suffix == ".json" and chance.random() < 0.7:  # noqa: PLR2004
        path.write_bytes(_damage_json(raw, given))
    elif path.suffix == ".jsonl" and chance.random() < 0.7:  # noqa: PLR2004
        lines = raw.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = _damage_json(lines[at], given)
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif path.suffix == ".safetensors":
        content, given.damage = damage_safetensors(raw, chance)
        path.write_bytes(content)
    else:
        content, given.damage = damage_bytes(raw, chance)
        path.write_bytes(content)
    given.damage = f"{path.relative_to(folder)}: {given.damage}"


def _damage_json(raw: bytes, given: Given) -> bytes:
    if given.random.random() < 0.3:  # noqa: PLR2004
        content, given.damage = damage_json_text(raw, given.random)
        return content
    tree: Any = json.loads(raw)
    if given.random.random() < 0.1:  # noqa: PLR2004
        given.damage = "another value as a whole"
        return dump_json(given.random.choice((5, [], {}, None, "x")))
    tree, given.damage = damage_tree(tree, given.random)
    return dump_json(tree)


def _replace(path: Path, chance: random.Random) -> str:
    path.unlink()
    match chance.randrange(3):
        case 0:
            return "gone"
        case 1:
            path.mkdir()
            return "a folder"
        case _:
            path.write_bytes(b"")
            return "empty"
