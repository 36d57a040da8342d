"""Damaged and lying checkpoints are a BackboneError that names them, or load as they were."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softprompt import load_backbone
from softprompt.backbone import LoadOptions, load_unverified, loading
from softprompt.errors import BackboneError, MissingPackageError

# What a JSON file may have where something else is expected.
VALUES = (None, 0, -1, 2**40, 1e30, "x", "", [], {}, True, [1], {"a": 1}, "/dev/zero")


def refuse(folder: Path, **options: Any) -> str:
    with pytest.raises(BackboneError) as caught:
        load_unverified(str(folder), LoadOptions(**options))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def change_json(content: Any, draw: random.Random) -> None:
    """Replace or remove one value, at any depth."""
    places = []

    def visit(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value[:50])
        for key, inner in [*items]:
            places.append((value, key))
            if isinstance(inner, dict | list):
                visit(inner)

    visit(content)
    table, key = draw.choice(places)
    if draw.random() < 0.3:
        del table[key]
    else:
        table[key] = draw.choice(VALUES)


def change_bytes(raw: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(raw)), draw.randrange(1, 40)
    noise = bytes(draw.randrange(256) for _ in range(size))
    return draw.choice([raw[:at], raw[:at] + noise + raw[at + size :], raw[:at] + raw[at + size :]])


@pytest.mark.parametrize(("family", "seed"), [("llama", 0), ("llama", 1), ("bert", 2), ("t5", 3)])
def test_a_damaged_file_is_refused_or_of_no_effect(saved, family, seed):
    draw = random.Random(seed)  # noqa: S311
    folder = saved(family)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    refused = 0
    for _ in range(12):
        path = draw.choice([*files])
        if path.suffix == ".json" and draw.random() < 0.7:
            content = json.loads(files[path])
            change_json(content, draw)
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(change_bytes(files[path], draw))
        try:
            load_backbone(str(folder), device="cpu", dtype="float32")
        except BackboneError as error:
            refused += str(folder) in str(error) or "unknown" in str(error)
        path.write_bytes(files[path])
    assert refused > 2
    load_backbone(str(folder), device="cpu")


def test_a_panic_in_the_tokenizer_is_refused(saved):
    """It is no `Exception` of Python's."""
    folder = saved("llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    assert content["post_processor"]["special_tokens"].popitem()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "cannot be used: PanicException: no entry found for key" in refuse(folder)


def shard(folder: Path, names: Callable[[str], str]) -> Path:
    """Divide a checkpoint into two files, and write an index with other names of them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, half in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        name = f"model-{number}.safetensors"
        save_file({n: tensors[n] for n in half}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, names(name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_checkpoint_in_several_files_is_loaded(saved, backbone):
    own = load_unverified(str(shard(saved("llama"), str)))
    assert own.fingerprint == backbone("llama").fingerprint


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../other/model.safetensors", "absent.safetensors", "x" * 5000, "a\0b"]
)
def test_an_index_that_names_no_file_in_the_folder_is_refused(saved, tmp_path, name):
    (tmp_path / "other").mkdir()
    folder = shard(saved("llama"), lambda own: name if "-1" in own else own)
    assert "model.safetensors.index.json names " in refuse(folder)


def test_a_file_next_to_the_folder_is_not_read(saved):
    folder = shard(saved("llama"), lambda own: f"../{own}")
    for path in folder.glob("*.safetensors"):
        path.rename(folder.parent / path.name)
    assert "which is not a file in the folder" in refuse(folder)


def test_links_into_a_cache_are_read(saved, tmp_path, backbone):
    """As in the Hub's cache, whose snapshots are links to blobs."""
    folder = saved("llama")
    links = tmp_path / "links"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    assert load_unverified(str(links)).fingerprint == backbone("llama").fingerprint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_never_ends_is_refused(saved, name, kind):
    folder = saved("llama")
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    assert f"{name} is not a file but a device or a pipe" in refuse(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_beyond_memory_is_refused(saved, name):
    folder = saved("llama")
    os.truncate(folder / name, 60 * 10**9)  # a hole, which takes no space
    assert f"{name} has 60,000,000,000 bytes, far more than any checkpoint's" in refuse(folder)


@pytest.mark.parametrize("size", [0, 4, 24, 100, 1000])
def test_a_gguf_file_that_was_cut_off_is_refused(tmp_path, size):
    head = b"GGUF" + (3).to_bytes(4, "little") + (290).to_bytes(8, "little") * 2 + bytes(1000)
    (tmp_path / "x.gguf").write_bytes(head[:size])
    assert refuse(tmp_path / "x.gguf").endswith("cut off or damaged has to be fetched again.")


def test_a_gguf_file_needs_its_reader(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'softprompt\[gguf\]'"):
        load_unverified(str(tmp_path / "x.gguf"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the devices of a machine without any")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "xla", "meta"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(BackboneError) as caught:
        load_backbone("builtin:minilm", device=device)
    assert str(caught.value) == (
        f"device {device!r} is not on this machine. It has: cpu. Give one of these, or 'auto'."
    )


@pytest.mark.parametrize("device", ["gpu", "x", "", "CPU", "cuda:-1", "cuda:" + "9" * 30, "a\0"])
def test_a_name_of_no_device(device):
    with pytest.raises(BackboneError, match="unknown device"):
        load_backbone("builtin:minilm", device=device)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"device_map": "nonsense"}, "Correct device_map, or leave it out."),
        ({"device_map": {"": "meta"}}, "leaves weights of backbone"),
        ({"device_map": {"": "disk"}}, "leaves weights of backbone"),
        ({"quantization_config": {"quant_method": "x"}}, "Correct quantization_config, or leave"),
        ({"quantization_config": {"quant_method": 5}}, "Correct quantization_config, or leave"),
        ({"quantization_config": {}}, "Correct quantization_config, or leave it out."),
    ],
)
def test_arguments_that_do_not_fit_are_named_in_the_remedy(saved, options, fault):
    assert fault in refuse(saved("llama"), **options)
