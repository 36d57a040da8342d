"""What is saved is loaded again, bit for bit, or nothing is saved."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import safetensors.torch
import torch

from softprompt.artifact import Artifact, load_artifact, save_artifact
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix

# Another process prints what it read: the type and every bit.
READ = """
import json, sys
from pathlib import Path
import torch
from softprompt.artifact import load_artifact

def describe(artifact):
    prompt = artifact.prompt
    return {
        "prompt": type(prompt).__name__,
        "length": prompt.length,
        "layers": getattr(prompt, "sites", None),
        "shift_positions": getattr(prompt, "shift_positions", None),
        "metrics": artifact.manifest.metrics,
        "tensors": {
            name: [list(t.shape), str(t.dtype), bytes(t.reshape(-1).view(torch.uint8)).hex()]
            for name, t in artifact.to_tensors().items()
        },
    }

folders = sorted(Path(sys.argv[1]).iterdir())
json.dump({folder.name: describe(load_artifact(folder)) for folder in folders}, sys.stdout)
"""


def read_in_a_fresh_process(folder: Path) -> dict[str, dict[str, object]]:
    command = [sys.executable, "-W", "error", "-c", READ, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hexadecimal(artifact: Artifact) -> dict[str, list[object]]:
    return {
        name: [[*t.shape], str(t.dtype), bytes(t.reshape(-1).view(torch.uint8)).hex()]
        for name, t in artifact.to_tensors().items()
    }


def test_load_gives_back_what_was_saved(artifact, same, tmp_path):
    assert save_artifact(artifact, tmp_path / "a") == tmp_path / "a"
    assert same(load_artifact(tmp_path / "a"), artifact)


def test_a_fresh_process_reads_the_same_bits(new, tmp_path):
    kinds = {
        "input": {"prompt": "InputPrompt", "layers": None, "shift_positions": None},
        "kv": {"prompt": "KVPrefix", "layers": [1, 3], "shift_positions": True},
    }
    wanted = {}
    for kind, dtype, head in product(kinds, ("float32", "bfloat16"), (False, True)):
        artifact = new(kind, dtype, head=head)
        name = save_artifact(artifact, tmp_path / f"{kind}-{dtype}-{head}").name
        rest = {"metrics": artifact.manifest.metrics, "tensors": hexadecimal(artifact)}
        wanted[name] = kinds[kind] | {"length": 3} | rest
    assert read_in_a_fresh_process(tmp_path) == wanted


def test_the_folder_holds_two_files_and_only_what_inference_needs(new, tmp_path):
    folder = save_artifact(new("kv", head=True), tmp_path / "a")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "a",
        "manifest.json",
        "prompt.safetensors",
    ]
    assert safetensors.torch.load_file(folder / "prompt.safetensors").keys() == {
        "prompt.keys",
        "prompt.values",
        "head.output.weight",
        "head.output.bias",
    }


def test_saving_twice_writes_the_same_bytes(artifact, tmp_path):
    first, second = save_artifact(artifact, tmp_path / "a"), save_artifact(artifact, tmp_path / "b")
    for name in ("manifest.json", "prompt.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tensors_in_a_graph_on_one_storage_and_strided_are_kept(new, tmp_path):
    both = torch.randn(2, 5, 4, 3, 2, requires_grad=True)
    keys, values = both.transpose(1, 4)
    artifact = new("kv")
    prefix = KVPrefix(keys, values, (1, 3), shift_positions=True)
    shapes = {"prompt.keys": [2, 4, 3, 5], "prompt.values": [2, 4, 3, 5]}
    changed = Artifact(replace(artifact.manifest, shapes=shapes), prefix)
    loaded = load_artifact(save_artifact(changed, tmp_path / "a")).prompt
    assert isinstance(loaded, KVPrefix)
    assert torch.equal(loaded.keys, keys)
    assert torch.equal(loaded.values, values)
    assert not loaded.keys.requires_grad
    assert both.requires_grad  # the method's own tensor is unchanged


def test_a_loaded_prompt_owns_its_memory(new, same, tmp_path):
    save_artifact(new(), tmp_path / "a")
    first = load_artifact(tmp_path / "a")
    first.prompt.to_tensors()["vectors"].zero_()
    assert same(load_artifact(tmp_path / "a"), new())


def test_a_header_that_looks_like_a_pickle_is_none(stored):
    starts = set()  # the header's length; the one of 640 bytes looks like the start of a pickle
    tensors = safetensors.torch.load_file(stored.tensors)
    for size in range(440, 600, 8):
        raw = safetensors.torch.save(tensors, metadata={"note": "n" * size})
        stored.put(raw)
        starts.add(raw[:2])
        assert load_artifact(stored.folder).to_tensors().keys() == tensors.keys()
    assert b"\x80\x02" in starts


def test_a_run_folder_leads_to_the_artifact_in_it(new, same, tmp_path):
    save_artifact(new(), tmp_path / "run" / "artifact")
    assert same(load_artifact(tmp_path / "run"), new())


def test_a_folder_inside_an_artifact_does_not_lead_away_from_it(new, same, tmp_path):
    save_artifact(new(), tmp_path / "a")
    save_artifact(new("kv"), tmp_path / "a" / "artifact")
    assert same(load_artifact(tmp_path / "a"), new())


def test_saving_over_an_artifact_replaces_it(new, same, tmp_path):
    save_artifact(new("kv", head=True), tmp_path / "a")
    save_artifact(new("input"), tmp_path / "a")
    assert same(load_artifact(tmp_path / "a"), new("input"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_saving_through_a_link_replaces_what_it_leads_to(new, same, tmp_path):
    save_artifact(new("kv"), tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    save_artifact(new("input"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(load_artifact(tmp_path / "real"), new("input"))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", ["pathlib.Path.write_bytes", "os.fsync"])
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_leaves_what_was_there(new, same, tmp_path, monkeypatch, write, before):
    if before:
        save_artifact(new("kv"), tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(write, full)
        with pytest.raises(ArtifactError) as error:
            save_artifact(new("input"), tmp_path / "a")
    assert str(error.value).endswith(
        f"bytes) could not be written to {tmp_path / 'a'}: No space left on device. Nothing was "
        "changed. Free some space, or save to another disk."
    )
    assert [p.name for p in tmp_path.iterdir()] == (["a"] if before else [])
    if before:
        assert same(load_artifact(tmp_path / "a"), new("kv"))


def test_a_file_that_the_system_will_not_write_leaves_what_was_there(new, same, tmp_path):
    save_artifact(new("kv"), tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"could not be written.*File too large.*Free some"):
            save_artifact(new("input"), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert same(load_artifact(tmp_path / "a"), new("kv"))


def test_a_folder_that_may_not_be_written_is_said(new, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"Permission denied.* Save to a writable folder"):
        save_artifact(new(), tmp_path / "a")


def test_other_files_are_not_removed(new, tmp_path):
    save_artifact(new(), tmp_path / "a")
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError) as error:
        save_artifact(new(), tmp_path / "a")
    assert str(error.value) == (
        f"{tmp_path / 'a'} also contains thesis.tex, which saving an artifact there would remove. "
        "Save to another folder."
    )
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"


def test_a_file_is_not_replaced_by_a_folder(new, tmp_path):
    (tmp_path / "a").write_text("notes")
    with pytest.raises(ArtifactError, match=r"a is a file, but an artifact is a folder\."):
        save_artifact(new(), tmp_path / "a")
    assert (tmp_path / "a").read_text() == "notes"


UNSAVEABLE = {
    "NaN": (
        {"prompt": InputPrompt(torch.tensor([[1.0, float("nan")]] * 3))},
        {"shapes": {"prompt.vectors": [3, 2]}},
        "prompt.vectors: 3 of its 6 values are NaN or infinite.",
    ),
    "float64": (
        {"prompt": InputPrompt(torch.ones(3, 8, dtype=torch.float64))},
        {},
        "prompt.vectors is float64; a tensor must be one of float32, bfloat16, float16.",
    ),
    "complex": (
        {"head": {"w": torch.ones(2, dtype=torch.complex128)}},
        {"shapes": {"prompt.vectors": [3, 8], "head.w": [2]}},
        "head.w is complex128; a tensor must be",
    ),
    "shape": ({}, {"shapes": {"prompt.vectors": [3, 9]}}, "has the shape [3, 8], but the manifest"),
    "kind": ({}, {"kind": "kv"}, "kind is 'kv', so neither layers nor shift_positions"),
    "path": (
        {},
        {"recipe": {"data": Path("x.csv")}},
        "a value that JSON cannot represent (Object of type Posix",
    ),
    "infinite metric": (
        {},
        {"metrics": {"perplexity": float("inf")}},
        "a value that JSON cannot represent (Out of",
    ),
    "half a character": (
        {},
        {"template": "\ud800"},
        "a value that JSON cannot represent ('utf-8' codec",
    ),
    "schema": ({}, {"schema": 0}, "manifest.json has schema 0, but softprompt reads schema 3."),
}


@pytest.mark.parametrize(("parts", "fields", "message"), UNSAVEABLE.values(), ids=UNSAVEABLE)
def test_what_could_not_be_loaded_is_not_saved(new, same, parts, fields, message, tmp_path):
    good = new()
    save_artifact(good, tmp_path / "a")
    bad = replace(good, **parts, manifest=replace(good.manifest, **fields))
    with pytest.raises(ArtifactError) as error:
        save_artifact(bad, tmp_path / "a")
    assert message in str(error.value)
    assert str(error.value).startswith(f"the artifact for {tmp_path / 'a'}: ")
    assert str(error.value).endswith("Correct it; nothing was written.")
    assert same(load_artifact(tmp_path / "a"), good)


def test_the_digest_is_the_files_sha256(stored):
    digest = json.loads(stored.manifest.read_text("utf-8"))["digest"]
    assert digest == hashlib.sha256(stored.tensors.read_bytes()).hexdigest()


def test_new_files_have_the_users_own_permissions(new, tmp_path):
    before = os.umask(0o027)
    try:
        folder = save_artifact(new(), tmp_path / "a")
    finally:
        os.umask(before)
    modes = [folder.stat().st_mode & 0o777, *(p.stat().st_mode & 0o777 for p in folder.iterdir())]
    assert modes == [0o750, 0o640, 0o640]
