"""Checkpoints: bit for bit what was saved, complete or not at all, and no pickle."""

import errno
import hashlib
import json
import math
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.errors import ArtifactError
from softprompt.train.checkpoint import has_state, load_state, save_state

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
tensors = st.builds(
    lambda seed, size, dtype: torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    ),
    st.integers(0, 99),
    st.sampled_from([(), (0,), (3,), (2, 3), (2, 1, 2)]),
    st.sampled_from(DTYPES),
)
keys = st.text(max_size=3) | st.integers()
states = st.dictionaries(
    keys,
    st.recursive(
        plain | tensors,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def same(first: Any, second: Any) -> bool:
    """Equal in value and type; tensors to the last bit."""
    if type(first) is not type(second):
        return False
    match first:
        case Tensor():
            same_form = first.dtype == second.dtype and first.shape == second.shape
            return same_form and raw(first) == raw(second)
        case dict():
            return [*first] == [*second] and all(same(first[k], second[k]) for k in first)
        case list():
            return len(first) == len(second) and all(map(same, first, second))
        case float():
            return first == second or (math.isnan(first) and math.isnan(second))
        case _:
            return bool(first == second)


def raw(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(states)
def test_what_is_saved_comes_back(tmp_path, state):
    save_state(state, tmp_path / "checkpoint")
    assert same(load_state(tmp_path / "checkpoint"), state)


def test_a_view_of_a_larger_tensor_and_two_of_one_come_back(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_state({"a": whole[:, 1], "b": whole.T, "c": whole}, tmp_path / "c")
    found = load_state(tmp_path / "c")
    assert torch.equal(found["a"], whole[:, 1])
    assert torch.equal(found["b"], whole.T)
    assert torch.equal(found["c"], whole)


def test_tuples_become_lists(tmp_path):
    save_state({"betas": (0.9, 0.999)}, tmp_path / "c")
    assert load_state(tmp_path / "c") == {"betas": [0.9, 0.999]}


def test_there_is_no_pickle(tmp_path):
    save_state({"a": torch.ones(3), "b": {1: [None, "x"]}}, tmp_path / "c")
    files = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    assert {*files} == {"state.json", "state.safetensors", "digests.json"}
    json.loads(files["state.json"])
    length = int.from_bytes(files["state.safetensors"][:8], "little")
    json.loads(files["state.safetensors"][8 : 8 + length])


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_the_old_checkpoint_stays_complete_whenever_a_write_fails(
    tmp_path, monkeypatch, fault, moment
):
    """At each call that syncs or renames, in turn."""
    folder = tmp_path / "checkpoint"
    save_state({"step": 1, "t": torch.ones(2)}, folder)
    calls = 0

    def failing(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment + 1:
                raise fault
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "rename", failing(Path.rename))
        kind = ArtifactError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(kind) as caught:
            save_state({"step": 2, "t": torch.zeros(2)}, folder)
    if isinstance(fault, OSError):
        message = str(caught.value)
        assert message.startswith(f"the checkpoint {folder} could not be written: ")
        assert "No space left on device" in message
        assert message.endswith(
            "Free disk space or correct the permissions, then resume with: "
            f"softprompt resume {tmp_path}"
        )
    found = load_state(folder)
    assert found["step"] == 1
    assert torch.equal(found["t"], torch.ones(2))
    save_state({"step": 3}, folder)
    assert load_state(folder) == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_backup_that_a_power_failure_leaves_is_read(tmp_path):
    folder = tmp_path / "checkpoint"
    assert not has_state(folder)
    save_state({"step": 1}, folder)
    folder.rename(tmp_path / ".checkpoint.softprompt-0123abcd.previous")
    assert has_state(folder)
    assert load_state(folder) == {"step": 1}


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("state.json", "{", "JSONDecodeError"),
        ("state.json", "[]", "AttributeError"),
        ("state.json", '{"spell": 1}', "unknown node 'spell'"),
        ("state.json", '{"dict": [["t", {"tensor": "t9"}]]}', "KeyError: 't9'"),
        ("state.json", '{"dict": 3}', "TypeError"),
        ("state.json", '{"a": 1, "b": 2}', "too many values"),
        ("state.json", '{"value": 3}', "holds a int, not a checkpoint"),
        ("state.safetensors", "", "SafetensorError"),
        ("state.safetensors", "x" * 20, "SafetensorError"),
    ],
)
def test_a_checkpoint_with_fitting_digests_is_still_checked(tmp_path, name, content, fact):
    folder = tmp_path / "checkpoint"
    save_state({"t": torch.ones(2)}, folder)
    (folder / name).write_text(content)
    names = ("state.json", "state.safetensors")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(ArtifactError) as caught:
        load_state(folder)
    assert fact in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "or train again from the first step: rm -r " in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "digests.json"])
def test_no_flipped_bit_is_resumed_from(tmp_path, name):
    """Tensors, numbers, names and digests: whichever bit it is, the checkpoint is refused."""
    state = {"t": torch.arange(128.0).reshape(4, 32), "n": [1, 2.5, "x"], "recipe": {"seed": 4}}
    folder = tmp_path / "checkpoint"
    save_state(state, folder)
    raw = (folder / name).read_bytes()
    for place in range(0, len(raw), max(1, len(raw) // 60)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 8
        (folder / name).write_bytes(changed)
        with pytest.raises(ArtifactError, match="holds no complete checkpoint"):
            load_state(folder)
    (folder / name).write_bytes(raw)
    assert same(load_state(folder), state)


def test_the_remedy_can_be_pasted(tmp_path):
    folder = tmp_path / "my run" / "checkpoint"
    save_state({"t": torch.ones(2)}, folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ArtifactError) as caught:
        load_state(folder)
    remove, resume = str(caught.value).partition("first step: ")[2].split(" && ")
    assert shlex.split(resume) == ["softprompt", "resume", str(folder.parent)]
    assert subprocess.run(shlex.split(remove), check=False).returncode == 0
    assert not has_state(folder)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "digests.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    save_state({"t": torch.ones(2)}, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(ArtifactError, match=r"holds no complete checkpoint \(FileNotFoundError"):
        load_state(tmp_path / "checkpoint")
