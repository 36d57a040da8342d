"""Damaged files of other libraries: PEFT, numpy, safetensors and P-tuning v2."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from damage import damage_bytes, damage_json_file, damage_safetensors
from judge import require, require_consistent, require_same
from tiny import WORDS, ask, load, make_backbone, train
from torch import Tensor
from trials import Given, Kind, Trial

from softprompt.backbone import Backbone
from softprompt.interop import export_prompt, import_prompts
from softprompt.tasks import Classify

Tensors = dict[str, Tensor]
CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"


def list_kinds() -> list[Kind]:
    """A kind for each format and each thing that it can hold."""
    kinds: dict[str, tuple[int, str, str, Callable[[Path], Path]]] = {
        "peft, vectors": (1200, "peft", "llama", partial(_export, "peft", "vectors first")),
        "peft, prefix": (600, "peft", "llama", partial(_export, "peft", "prefix")),
        "peft, head": (900, "peft", "bert", partial(_export, "peft", "head")),
        "peft, several tasks": (800, "peft", "llama", _make_multitask),
        "npy": (800, "npy", "llama", partial(_export, "npy", "vectors")),
        "safetensors": (500, "safetensors", "llama", partial(_export, "safetensors", "vectors")),
        "p-tuning-v2": (700, "p-tuning-v2", "bert", partial(_export, "p-tuning-v2", "head")),
        "p-tuning-v2, MLP": (500, "p-tuning-v2", "bert", _make_mlp),
    }
    return [
        Kind(f"foreign: {name}", count, partial(_prepare, form, family, make))
        for name, (count, form, family, make) in kinds.items()
    ]


def _export(form: str, prompt: str, place: Path) -> Path:
    return export_prompt(form, train(place, prompt), output=place / "original")


def _make_multitask(place: Path) -> Path:
    make_backbone(place / "llama", "llama")
    folder = place / "original"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    config = {
        "peft_type": "MULTITASK_PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 3,
        "num_tasks": 2,
        "base_model_name_or_path": "llama",
    }
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        "prompt_embeddings": torch.randn(3, 32, generator=generator),
        "prefix_task_cols": torch.randn(2, 3, 1, generator=generator),
        "prefix_task_rows": torch.randn(2, 1, 32, generator=generator),
    }
    safetensors.torch.save_file(tensors, folder / ADAPTER)
    return folder


def _make_mlp(place: Path) -> Path:
    make_backbone(place / "bert", "bert")
    folder = place / "original"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = {"embedding.weight": (3, 32), "trans.0.weight": (12, 32), "trans.0.bias": (12,)}
    shapes |= {"trans.2.weight": (128, 12), "trans.2.bias": (128,)}
    tensors = {
        f"prefix_encoder.{k}": torch.randn(v, generator=generator) for k, v in shapes.items()
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def _prepare(form: str, family: str, make: Callable[[Path], Path], place: Path) -> Trial:
    folder = make(place)
    backbone = load(place / family)
    original, numbers = _ask_all(form, folder, backbone), _read_numbers(folder)

    def trial(given: Given) -> Literal["refused", "answered"]:
        copy = given.folder / "prompt"
        shutil.copytree(folder, copy)
        _damage(copy, given)
        answers = _ask_all(form, copy, backbone)
        read = _read_numbers(copy)
        require(read is not None, "read, although its own library cannot read it")
        # With other numbers it is another prompt, which no record denies.
        if read is not None and numbers is not None and _is_equal(read, numbers):
            require(answers.keys() == original.keys(), f"prompts {[*answers]}")
            for name, one in answers.items():
                require_same(one, original[name])
        return "answered"

    return trial


def _ask_all(form: str, folder: Path, backbone: Backbone) -> dict[str, Any]:
    """The answers of all prompts; each must be consistent, and hold the numbers of the file."""
    bare = backbone.geometry.architecture == "encoder" and not _has_head(folder)
    task = Classify("{text} it was {mask}", verbalizer=WORDS) if bare else None
    models = import_prompts(form, folder, backbone=backbone, task=task)
    for model in models.values():
        require_consistent(model)
    return {name: ask(model) for name, model in models.items()}


def _has_head(folder: Path) -> bool:
    read = _read_numbers(folder)
    return read is not None and any("classifier" in name for name in read)


def _read_numbers(folder: Path) -> Tensors | None:
    """All numbers of a folder, as their own libraries read them; None if they cannot."""
    (path,) = (p for p in folder.iterdir() if p.suffix in {".npy", ".safetensors"})
    try:
        if path.suffix == ".npy":
            array = np.load(io.BytesIO(path.read_bytes()))
            return {"": torch.from_numpy(array.astype(np.float64))}
        return safetensors.torch.load(path.read_bytes())
    except Exception:  # noqa: BLE001  # of a damaged file
        return None


def _is_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].shape == other[k].shape and torch.equal(one[k].double(), other[k].double())
        for k in one
    )


_ODD_SETTINGS = (
    *("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "LORA", "MULTITASK_PROMPT_TUNING"),
    *("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"),
    *(None, True, 0, -1, 1, 2, 3, 4, 5, 10**9, 2**63, 10**5000, 1.5, float("nan"), 1e308),
    *("", "x", "\x00", "\ud800", "~nosuch/x", "/dev/zero", "x" * 10_000, [], [1], {}, {"a": None}),
)


def _damage(folder: Path, given: Given) -> None:
    chance = given.random
    (path,) = (p for p in folder.iterdir() if p.suffix in {".npy", ".safetensors"})
    config = folder / CONFIG
    if config.exists() and chance.random() < 0.5:  # noqa: PLR2004
        content, given.damage = damage_json_file(
            config.read_bytes(), chance, ways=6, odd=_ODD_SETTINGS
        )
        config.write_bytes(content)
        return
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        content, given.damage = damage_safetensors(raw, chance)
    elif chance.random() < 0.5:  # noqa: PLR2004
        content, given.damage = _damage_npy_header(raw, chance)
    else:
        content, given.damage = damage_bytes(raw, chance)
    path.write_bytes(content)


_ODD_HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (%s, 32), }",
    "{'descr': '%s', 'fortran_order': False, 'shape': (4, 32), }",
    "{'descr': '<f4', 'fortran_order': %s, 'shape': (4, 32), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }",
    "{'descr': %s, 'fortran_order': False, 'shape': (4, 32), }",
    "%s",
)
_ODD_PARTS = (
    *("0", "-1", "1", "2", "8", "1e3", "2**31", str(2**62), "9" * 5000, "(4, 32)", "()", "(128,)"),
    *("(32, 4)", "(1, 4, 32)", "(" * 300, "None", "True", "|O", "<f8", ">f4", "<f2", "<i4", "<c8"),
    *("<U4", "[('a', '<f4')]", "[]", "{}", "''", "__import__('os').getcwd()", "x", "\x00", "é"),
)


def _damage_npy_header(raw: bytes, chance: Any) -> tuple[bytes, str]:  # noqa: ANN401
    text = chance.choice(_ODD_HEADERS) % chance.choice(_ODD_PARTS)
    packed = text.encode("latin-1") + b" " * (64 - (len(text) + 11) % 64) + b"\n"
    version = chance.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    size = len(packed).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    body = raw[10 + int.from_bytes(raw[8:10], "little") :]
    return raw[:6] + version + size + packed + body, f"the header {text[:80]!r}"
