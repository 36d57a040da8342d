"""Loading any folder returns what was saved, or raises an error that names the fault."""

import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.artifact import Manifest, load_artifact, save_artifact
from softprompt.errors import ArtifactError
from support.artifacts import forge

REMEDY = "Restore the folder from a copy, or train again."


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        load_artifact(folder)
    return str(error.value)


def test_a_missing_folder_is_reported_with_near_names(stored):
    path = stored.folder.parent / "moot"
    said = refusal(path)
    assert said.startswith(f"there is no folder {path} (looked in {path.parent})")
    assert said.endswith("Did you mean mood?")
    assert refusal(stored.folder.parent / "xyz").endswith("No folder there has a similar name.")


def test_a_missing_parent_is_reported(tmp_path):
    path = tmp_path / "gone" / "mood"
    assert (
        refusal(path)
        == f"there is no folder {path}: its parent {path.parent} does not exist either."
    )


def test_the_previous_artifact_of_an_interrupted_save_is_named(stored):
    previous = stored.folder.with_name(".mood.softprompt-0123abcd.previous")
    stored.folder.rename(previous)
    assert refusal(stored.folder) == (
        f"there is no folder {stored.folder}: a save was interrupted just before it "
        f"finished. The previous artifact is complete in {previous}; rename that to "
        f"{stored.folder}."
    )


def test_a_file_instead_of_its_folder_is_reported(stored):
    assert refusal(stored.manifest) == (
        f"{stored.manifest} is a file, but an artifact is a folder. Give its folder "
        f"{stored.folder}."
    )


def test_a_name_that_the_system_refuses_is_reported(tmp_path):
    assert "there is no folder" in refusal(tmp_path / ("x" * 300))


def test_files_that_may_not_be_read_are_reported(stored, monkeypatch):
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal(stored.folder) == (
        f"{stored.folder} cannot be read: Permission denied. Give a folder that this user may read."
    )


def test_a_missing_manifest_is_reported(stored):
    stored.manifest.unlink()
    assert refusal(stored.folder) == (
        f"{stored.folder} has no file manifest.json; it has prompt.safetensors. An artifact is a "
        "folder with manifest.json and prompt.safetensors; a run directory has such a folder in "
        "it, named artifact. Give one of the two."
    )


def test_an_empty_folder_is_reported(tmp_path):
    assert f"{tmp_path} has no file manifest.json; it has nothing." in refusal(tmp_path)


def test_a_run_without_a_whole_artifact_is_reported(tmp_path):
    (tmp_path / "artifact").mkdir()
    assert f"{tmp_path / 'artifact'} has no file manifest.json" in refusal(tmp_path)


def test_missing_tensors_are_reported(stored):
    stored.tensors.unlink()
    assert "has no file prompt.safetensors; it has manifest.json." in refusal(stored.folder)


def test_a_pickle_next_to_the_manifest_is_refused(stored):
    stored.tensors.rename(stored.folder / "prompt.pt")
    said = refusal(stored.folder)
    assert "prompt.pt looks like a pickle, which is refused: reading one can run any code." in said
    assert said.endswith("Convert it to safetensors in a place where you trust it, or train again.")


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, goal: Path) -> None:
        self.goal = goal

    def __reduce__(self):
        return os.mkdir, (str(self.goal),)


@pytest.mark.parametrize("form", ["zip", "legacy", 2, 3, 4, 5])
def test_a_pickle_in_the_place_of_the_tensors_is_refused_unread(stored, form, tmp_path):
    bomb = Bomb(tmp_path / "boom")
    if isinstance(form, int):
        raw = pickle.dumps(bomb, protocol=form)
    else:
        torch.save(bomb, tmp_path / "x.pt", _use_new_zipfile_serialization=form == "zip")
        raw = (tmp_path / "x.pt").read_bytes()
    stored.put(raw)
    assert refusal(stored.folder) == (
        f"{stored.folder}: prompt.safetensors is a pickle or an archive of torch.save, which is "
        "refused: reading one can run any code. Convert it to safetensors in a place "
        "where you trust it, or train again."
    )
    assert not bomb.goal.exists()


def test_truncated_tensors_are_reported(stored):
    whole = stored.tensors.read_bytes()
    for kept in (0, 4, 8, 9, 40, len(whole) - 1):
        stored.tensors.write_bytes(whole[:kept])
        said = refusal(stored.folder)
        assert f"prompt.safetensors ({kept:,} bytes) is truncated or damaged: " in said
        assert said.endswith(REMEDY)


def test_something_that_is_no_safetensors_file_is_reported(stored):
    stored.put(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert "prompt.safetensors (16 bytes) is not a safetensors file: " in refusal(stored.folder)


def test_a_changed_number_is_reported(stored):
    raw = bytearray(stored.tensors.read_bytes())
    raw[-1] ^= 1
    wanted = hashlib.sha256(stored.tensors.read_bytes()).hexdigest()
    stored.tensors.write_bytes(raw)
    assert refusal(stored.folder) == (
        f"{stored.folder}: prompt.safetensors has the SHA-256 {hashlib.sha256(raw).hexdigest()}, "
        f"but the manifest says {wanted}: one of the two files was changed, or they belong "
        f"to different artifacts. {REMEDY}"
    )


def test_two_artifacts_mixed_up_are_reported(stored, new, tmp_path):
    other = save_artifact(new("input", "float32", head=True), tmp_path / "other")
    shutil.copy(other / "prompt.safetensors", stored.tensors)
    assert "or they belong to different artifacts." in refusal(stored.folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "the tensor 'prompt.vectors' is missing."),
        (
            {"prompt__vectors": torch.ones(3, 8), "evil": torch.ones(1)},
            "the tensor 'evil' is not in the manifest.",
        ),
        (
            {"prompt__vectors": torch.ones(3, 7)},
            "prompt.vectors has the shape [3, 7], but the manifest says [3, 8].",
        ),
        (
            {"prompt__vectors": torch.ones(3, 8, dtype=torch.int64)},
            "prompt.vectors is int64; a tensor must be one of float32, bfloat16, float16.",
        ),
        (
            {"prompt__vectors": torch.ones(3, 8, dtype=torch.float8_e4m3fn)},
            "prompt.vectors is float8_e4m3fn; a tensor must be one of float32, bfloat16, float16.",
        ),
        (
            {"prompt__vectors": torch.ones(3, 8, dtype=torch.bfloat16)},
            "prompt.vectors is bfloat16, but the manifest says float32.",
        ),
        (
            {"prompt__vectors": torch.ones(3, 8).index_fill(1, torch.tensor([2]), float("nan"))},
            "prompt.vectors: 3 of its 24 values are NaN or infinite.",
        ),
        (
            {"prompt__vectors": torch.ones(3, 8).index_fill(0, torch.tensor([0]), -float("inf"))},
            "prompt.vectors: 8 of its 24 values are NaN or infinite.",
        ),
    ],
)
def test_tensors_that_are_not_as_the_manifest_says_are_reported(stored, tensors, message):
    stored.put_tensors(**tensors)
    assert refusal(stored.folder) == f"{stored.folder}: {message} {REMEDY}"


def test_all_faults_are_reported_at_once(stored):
    stored.put_tensors(vectors=torch.ones(3, 8))
    assert refusal(stored.folder) == (
        f"{stored.folder}: 2 faults:\n  - the tensor 'prompt.vectors' is missing.\n"
        f"  - the tensor 'vectors' is not in the manifest.\n{REMEDY}"
    )


def with_header(content: object, data: bytes) -> bytes:
    header = json.dumps(content).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F4", [2], 1), ("F32", [2**63, 0], 0), ("F32", [2**64 - 1, 0], 0)]
)
def test_what_torch_cannot_hold_is_reported(stored, dtype, shape, size):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    stored.put(with_header({"prompt.vectors": entry}, bytes(size)))
    assert "is truncated or damaged: " in refusal(stored.folder)


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(stored, name, tmp_path):
    secret = tmp_path / "secret"
    (stored.folder / name).rename(secret)
    (stored.folder / name).symlink_to(secret)
    said = refusal(stored.folder)
    assert f"{name} is a link to {secret}, outside the folder; only files in it are read." in said
    assert said.endswith(f"cp --remove-destination {secret} {stored.folder / name}")


def test_the_command_that_copies_a_linked_file_can_be_pasted(stored, tmp_path):
    secret, folder = tmp_path / "my secret's", stored.folder.rename(tmp_path / "my mood")
    (folder / "manifest.json").rename(secret)
    (folder / "manifest.json").symlink_to(secret)
    command = refusal(folder).partition("Copy the file itself: ")[2]
    assert subprocess.run(shlex.split(command), check=False).returncode == 0
    assert load_artifact(folder).manifest.length == 3


@pytest.mark.parametrize("goal", ["../gone", "prompt.safetensors"])
def test_a_link_to_nothing_is_reported(stored, goal):
    stored.tensors.unlink()
    stored.tensors.symlink_to(goal)
    assert "prompt.safetensors" in refusal(stored.folder)


def test_a_link_within_the_folder_is_followed(stored, same, new):
    stored.tensors.rename(stored.folder / "blob")
    stored.tensors.symlink_to("blob")
    assert same(load_artifact(stored.folder), new())


def test_a_pipe_is_not_waited_for(stored):
    stored.tensors.unlink()
    os.mkfifo(stored.tensors)
    assert "prompt.safetensors is not a regular file, but an artifact has" in refusal(stored.folder)


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_reported(stored, name):
    (stored.folder / name).unlink()
    (stored.folder / name).mkdir()
    assert f"{stored.folder / name} is a folder, but an artifact has a file" in refusal(
        stored.folder
    )


@pytest.mark.parametrize(
    ("name", "limit"), [("manifest.json", 64 << 20), ("prompt.safetensors", 4 << 30)]
)
def test_a_file_of_any_size_is_refused_unread(stored, name, limit):
    os.truncate(stored.folder / name, 60 << 30)  # a hole, which takes no space
    assert refusal(stored.folder) == (
        f"{stored.folder}: {name} has 64,424,509,440 bytes, but at most {limit:,} are possible. "
        f"{REMEDY}"
    )


def test_names_in_the_manifest_open_no_file(stored, monkeypatch, tmp_path):
    trap = str(tmp_path / "trap")
    os.mkfifo(trap)  # opening it would block for ever
    backbone = {"name": trap, "revision": trap, "fingerprint": trap, "model_type": trap}
    template = f"{{soft:3}}{{text}}{trap}"
    stored.edit(backbone=backbone, data={"sources": [trap]}, recipe={"path": trap})
    stored.edit(template=template)
    opened: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read(path))
    assert load_artifact(stored.folder).manifest.backbone["name"] == trap
    assert opened == ["manifest.json", "prompt.safetensors"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "prompt.vectors/../x"])
def test_names_of_tensors_that_look_like_paths_are_refused(stored, name):
    stored.edit(shapes={"prompt.vectors": [3, 8], name: [1]})
    assert (
        f"shapes has {', '.join(sorted([name, 'prompt.vectors']))}; kind 'input' needs"
        in refusal(stored.folder)
    )


# Any bytes: what was saved, or an ArtifactError.


@cache
def originals(kind: str, make) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        saved = save_artifact(make(kind, "bfloat16", head=True), Path(folder) / "a")
        return (saved / "manifest.json").read_bytes(), (saved / "prompt.safetensors").read_bytes()


def spoilt(data: st.DataObject, raw: bytes) -> bytes:
    """The bytes with some overwritten, removed or inserted, anywhere."""
    start = data.draw(st.integers(0, len(raw)))
    removed = data.draw(st.integers(0, 20))
    return raw[:start] + data.draw(st.binary(max_size=20)) + raw[start + removed :]


def attempt(manifest: bytes, tensors: bytes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "prompt.safetensors").write_bytes(tensors)
        try:
            return load_artifact(folder)
        except ArtifactError as error:
            if not str(error).startswith(name):
                raise
            return None


@pytest.mark.parametrize("kind", ["input", "kv"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_spoilt_tensors_never_load_as_something_else(kind, new, same, data):
    manifest, tensors = originals(kind, new)
    changed = spoilt(data, tensors)
    loaded = attempt(manifest, changed)
    assert (loaded is not None) == (changed == tensors)
    assert loaded is None or same(loaded, new(kind, "bfloat16", head=True))


@pytest.mark.parametrize("kind", ["input", "kv"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_spoilt_tensors_with_a_matching_digest_are_still_checked(kind, new, data):
    manifest, tensors = originals(kind, new)
    changed = spoilt(data, tensors)
    digests = [hashlib.sha256(raw).hexdigest().encode() for raw in (tensors, changed)]
    loaded = attempt(forge(manifest.replace(*digests)), changed)
    if loaded is not None:
        shapes = {name: [*tensor.shape] for name, tensor in loaded.to_tensors().items()}
        assert shapes == loaded.manifest.shapes
        assert all(tensor.isfinite().all() for tensor in loaded.to_tensors().values())


sizes = st.sampled_from([0, 1, 3, 8, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1])
dtypes = st.sampled_from(
    ["F32", "BF16", "F64", "I8", "BOOL", "F4", "F6_E2M3", "F8_E8M0", "C64", "X"]
)


@given(dtype=dtypes, shape=st.lists(sizes, max_size=4), end=st.sampled_from([0, 1, 6, 96, 97]))
@settings(deadline=None, max_examples=200)
def test_a_header_that_lies_is_refused(dtype, shape, end, new):
    manifest, tensors = originals("input", new)
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    changed = with_header({"prompt.vectors": entry}, bytes(end))
    digests = [hashlib.sha256(raw).hexdigest().encode() for raw in (tensors, changed)]
    assert (
        attempt(forge(manifest.replace(*digests)), changed) is None
    )  # the artifact has a head, too


@pytest.mark.parametrize("kind", ["input", "kv"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_spoilt_manifest_never_loads_as_something_else(kind, new, same, data):
    """White space may change; whatever a value is, nothing else is answered from it."""
    manifest, tensors = originals(kind, new)
    loaded = attempt(spoilt(data, manifest), tensors)
    assert loaded is None or same(loaded, new(kind, "bfloat16", head=True))


@pytest.mark.parametrize("kind", ["input", "kv"])
def test_no_single_bit_of_a_manifest_changes_what_is_loaded(kind, new, same):
    manifest, tensors = originals(kind, new)
    wanted, step = new(kind, "bfloat16", head=True), len(manifest) // 150
    for place in range(0, len(manifest), step):
        changed = bytearray(manifest)
        changed[place] ^= 1 << place % 8
        loaded = attempt(bytes(changed), tensors)
        assert loaded is None or same(loaded, wanted), place


@given(manifest=st.binary(max_size=200), tensors=st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_noise_is_refused(manifest, tensors):
    assert attempt(manifest, tensors) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", ["input", "kv"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_manifest_with_any_value_anywhere_loads_or_is_refused(kind, new, data):
    manifest, tensors = originals(kind, new)
    content = json.loads(manifest)
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = data.draw(json_values)
    loaded = None
    with suppress(ValueError):  # NaN, which has no digest
        loaded = attempt(forge(json.dumps(content).encode()), tensors)
    if loaded is not None and key in {field.name for field in fields(Manifest)}:
        assert getattr(loaded.manifest, key) == content[key]
