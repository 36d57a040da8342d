"""Damaged and forged artifacts of trained prompts."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from damage import (
    ODD_VALUES,
    damage_bytes,
    damage_json_text,
    damage_safetensors,
    damage_tree,
    dump_json,
)
from judge import require_consistent, require_same
from tiny import ask, load, train
from trials import Given, Kind, Trial

from softprompt._io import ErrorContext
from softprompt.artifact.manifest import Manifest, dump_manifest
from softprompt.inference import PromptModel

MANIFEST, TENSORS = "manifest.json", "prompt.safetensors"
ODD_TEMPLATES = (
    "",
    "{text}",
    "{soft:3}{text}",
    "{text}{soft:2}{soft:2}",
    "{text} it was{soft:5}",
    "{text} it was{soft:" + "9" * 20 + "}",
    "{text} it was{soft:" + "9" * 5000 + "}",
    "{text} it was{soft:300000000}",
    "{text} it was{soft:0}",
    "{text} it was{soft:-1}",
    "{text} it was{soft: 4}",
    "{text} it was{soft:٤}",
    "{text}{mask}{soft:4}",
    "{text}{sep}{text}{soft:4}",
    "{bos}{text}{soft:4}",
    "{soft:4}{bos}{text}",
    "{label}{soft:4}",
    "{text} {x}{soft:4}",
    "{text}\ud800{soft:4}",
    "{text}" * 3000 + "{soft:4}",
    "x" * 100_000 + "{text}{soft:4}",
    "{{text}}{soft:4}",
    "{text",
    "{text.__class__}{soft:4}",
    "{0}{soft:4}",
)


def list_kinds() -> list[Kind]:
    """Each kind of trained prompt: damaged, and forged with the right digests."""
    counts = {
        "vectors": 2600,
        "prefix": 1400,
        "masked": 700,
        "head": 1500,
        "choices": 900,
        "text": 700,
    }
    damaged = [Kind(f"artifact: {p}", n, partial(_prepare, p, _damage)) for p, n in counts.items()]
    return damaged + [
        Kind(f"artifact, forged: {p}", n // 2, partial(_prepare, p, _forge))
        for p, n in counts.items()
    ]


def _prepare(prompt: str, attempt: Callable[..., Any], place: Path) -> Trial:
    trained = train(place, prompt)
    folder, backbone = place / f"run-{prompt}" / "artifact", load(trained.backbone.name)
    original = ask(PromptModel.from_pretrained(folder, backbone=backbone))

    def trial(given: Given) -> Literal["refused", "answered"]:
        copy = given.folder / "artifact"
        shutil.copytree(folder, copy)
        attempt(copy, given)
        model = PromptModel.from_pretrained(copy, backbone=backbone)
        if attempt is _forge:
            require_consistent(model)
        else:
            require_same(ask(model), original)
        return "answered"

    return trial


def _damage(folder: Path, given: Given) -> None:
    """Damage one of the two files, as an accident or a careless editor does."""
    manifest, tensors = folder / MANIFEST, folder / TENSORS
    chance = given.random
    match chance.randrange(14):
        case 0 | 1 | 2:
            content, given.damage = damage_bytes(manifest.read_bytes(), chance)
            manifest.write_bytes(content)
        case 3 | 4 | 5 | 6:
            tree = json.loads(manifest.read_text("utf-8"))
            tree, given.damage = damage_tree(tree, chance)
            manifest.write_bytes(dump_json(tree))
        case 7:
            content, given.damage = damage_json_text(manifest.read_bytes(), chance)
            manifest.write_bytes(content)
        case 8:
            tree = json.loads(manifest.read_text("utf-8"))
            tree["template"] = chance.choice(ODD_TEMPLATES)
            given.damage = f"template {tree['template'][:60]!r}"
            manifest.write_bytes(dump_json(tree))
        case 9:
            given.damage = _replace_file(chance.choice((manifest, tensors)), chance)
        case _:
            content, given.damage = damage_safetensors(tensors.read_bytes(), chance)
            tensors.write_bytes(content)


def _replace_file(path: Path, chance: random.Random) -> str:
    raw = path.read_bytes()
    path.unlink()
    match chance.randrange(5):
        case 0:
            return f"{path.name} is gone"
        case 1:
            path.mkdir()
            return f"{path.name} is a folder"
        case 2:
            path.write_bytes(b"")
            return f"{path.name} is empty"
        case 3:
            path.symlink_to("/dev/zero")
            return f"{path.name} is a link to /dev/zero"
        case _:
            with path.open("wb") as file:
                file.write(raw)
                file.truncate(50 << 30)
            return f"{path.name} is 50 GB of holes"


# What decides answers; the rest of a manifest is a note.
_DECISIVE = (
    "kind",
    "length",
    "shapes",
    "dtype",
    "layers",
    "shift_positions",
    "max_length",
    "labels",
)


def _forge(folder: Path, given: Given) -> None:
    """Change the record or the numbers, and make the digests right again."""
    manifest, tensors = folder / MANIFEST, folder / TENSORS
    tree, raw, chance = json.loads(manifest.read_text("utf-8")), tensors.read_bytes(), given.random
    match chance.randrange(8):
        case 0:
            tree["template"] = chance.choice(ODD_TEMPLATES)
            given.damage = f"template {tree['template'][:60]!r}"
            tree["task"]["template"] = tree["template"]
        case 1:
            raw, given.damage = damage_safetensors(raw, chance)
        case 2 | 3 | 4:
            tree, given.damage = damage_tree(tree, chance, below=("task",), odd=_ODD)
        case 5:
            below = chance.choice(("backbone", "recipe", "labels", "shapes"))
            if tree[below]:
                tree, given.damage = damage_tree(tree, chance, below=(below,), odd=_ODD)
        case _:
            key = chance.choice(_DECISIVE)
            part, given.damage = damage_tree({key: tree[key]}, chance, odd=_ODD)
            tree = {**tree, key: part.get(key)}
    tensors.write_bytes(raw)
    manifest.write_bytes(_seal(tree, raw))


_ODD = (*ODD_VALUES, 10**9, 10**6, "fp8", {"load_in_4bit": True}, {"quant_method": "fp8"}, "meta")


def _seal(tree: Mapping[str, Any], raw: bytes) -> bytes:
    """The manifest as softprompt itself would write it, if it can; else with the old digests."""
    fields = {key: value for key, value in tree.items() if key in Manifest.__dataclass_fields__}
    digest = hashlib.sha256(raw).hexdigest()
    source = ErrorContext("a forged artifact", "")
    try:
        return dump_manifest(Manifest(**fields), digest, source=source)
    except Exception:  # noqa: BLE001  # no JSON can represent it
        return dump_json({**tree, "digest": digest})
