"""Prompts in memory: loaded once, evicted when unused, never of mixed versions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from softprompt.errors import ArtifactError
from softprompt.serve import prompts as prompts_module
from softprompt.serve.prompts import FolderSource, PromptStore, RegistrySource
from softprompt.serve.registry import Registry


@pytest.fixture
def source(folders) -> FolderSource:
    return FolderSource(list(folders.values()))


def test_a_prompt_is_loaded_once_for_all_who_wait(source, backbone, monkeypatch) -> None:
    loads, gate = [], threading.Event()
    load = prompts_module.load_artifact

    def load_slowly(folder: Path):
        loads.append(folder)
        assert gate.wait(30)
        return load(folder)

    monkeypatch.setattr(prompts_module, "load_artifact", load_slowly)
    store = PromptStore(backbone("llama"), source)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(store.acquire, "mood") for _ in range(8)]
        gate.set()
        found = {id(one.result(30)) for one in waiting}
    assert len(found) == 1
    assert len(loads) == 1


def test_the_least_recently_used_goes_first_and_what_is_used_stays(source, backbone) -> None:
    sizes = {}
    for name in ("mood", "tone", "rating"):
        with PromptStore(backbone("llama"), source).borrow(name) as one:
            sizes[name] = one.bytes
    store = PromptStore(backbone("llama"), source, max_bytes=sum(sizes.values()) - 1)
    mood = store.acquire("mood")
    with store.borrow("tone"), store.borrow("rating"):
        assert store.versions == ("mood", "tone", "rating")  # all are in use
    assert store.versions == ("mood", "tone")  # rating was given back first
    assert store.bytes == sizes["mood"] + sizes["tone"]
    store.release(mood)
    with store.borrow("rating"):
        pass
    assert store.versions == ("tone", "rating")
    assert store.bytes <= store.max_bytes
    with pytest.raises(ArtifactError, match="are for all prompts"):
        PromptStore(backbone("llama"), source, max_bytes=10).acquire("mood")


def test_an_error_is_repeated_for_a_while_and_then_tried_again(
    source, backbone, folders, monkeypatch
) -> None:
    now = [0.0]
    store = PromptStore(backbone("llama"), source, clock=lambda: now[0])
    tensors = folders["mood"] / "prompt.safetensors"
    raw = tensors.read_bytes()
    tensors.write_bytes(raw[:-1])
    for _ in range(2):
        with pytest.raises(ArtifactError, match="truncated"):
            store.acquire("mood")
    tensors.write_bytes(raw)
    with pytest.raises(ArtifactError, match="truncated"):
        store.acquire("mood")
    now[0] = 6.0
    with store.borrow("mood") as one:
        assert one.found.name == "mood"


def test_another_backbone_is_refused(source, backbone) -> None:
    with pytest.raises(ArtifactError, match="works only on its own backbone"):
        PromptStore(backbone("gpt2"), source).acquire("mood")


def test_folders_of_the_same_name_are_refused(folders, tmp_path) -> None:
    with pytest.raises(ArtifactError, match="have the same name 'mood'"):
        FolderSource([folders["mood"], folders["mood"]])
    with pytest.raises(ArtifactError, match="Did you mean 'mood'"):
        FolderSource([folders["mood"]]).find("moood")


def test_a_registry_is_followed_and_an_answer_keeps_its_version(
    folders, backbone, model, tmp_path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    source = RegistrySource(registry)
    store = PromptStore(backbone("llama"), source)
    old = store.acquire("mood")
    other = model(("llama", "words", "input"), prompt=old.model.prompt.map_tensors(torch.neg))
    registry.publish(other.save(tmp_path / "other"), "mood")
    registry.unpublish("mood@1")
    assert source.refresh()
    with store.borrow("mood") as new:
        assert new.found.version == "mood@2"
        assert torch.equal(new.model.prompt.vectors, -old.model.prompt.vectors)
    assert old.found.version == "mood@1"  # still usable
    store.release(old)
    with pytest.raises(ArtifactError, match="has no version 1"):
        store.acquire("mood@1")
    with store.borrow("mood@2") as again:
        assert again is new
