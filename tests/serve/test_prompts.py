"""Prompts in memory: loaded once, evicted when unused, never of mixed versions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softprompt.errors import ArtifactError
from softprompt.inference.mixed import BakedPrompt, PromptedRow, predict_mixed
from softprompt.prompt import KVPrefix
from softprompt.serve import prompts as prompts_module
from softprompt.serve import resident as resident_module
from softprompt.serve.prompts import FolderSource, PromptStore, RegistrySource
from softprompt.serve.registry import Registry


@pytest.fixture
def source(folders) -> FolderSource:
    return FolderSource(list(folders.values()))


def test_a_prompt_is_loaded_once_for_all_who_wait(source, backbone, monkeypatch) -> None:
    loads, gate = [], threading.Event()
    load = resident_module.load_saved

    def load_slowly(folder: Path):
        loads.append(folder)
        assert gate.wait(30)
        return load(folder)

    monkeypatch.setattr(resident_module, "load_saved", load_slowly)
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
    other = model(("llama", "words", "input"), prompt=old.members[0].prompt.map_tensors(torch.neg))
    registry.publish(other.save(tmp_path / "other"), "mood")
    registry.unpublish("mood@1")
    assert source.refresh()
    with store.borrow("mood") as new:
        assert new.found.version == "mood@2"
        assert torch.equal(new.members[0].prompt.vectors, -old.members[0].prompt.vectors)
    assert old.found.version == "mood@1"  # still usable
    store.release(old)
    with pytest.raises(ArtifactError, match="has no version 1"):
        store.acquire("mood@1")
    with store.borrow("mood@2") as again:
        assert again is new


def bake_all(store: PromptStore, *names: str) -> None:
    for _ in range(2):
        for name in names:
            with store.borrow(name):
                pass
    while store.has_unbaked:
        store.bake_waiting()


def test_soft_tokens_are_baked_at_the_second_use(source, backbone, models) -> None:
    store = PromptStore(backbone("llama"), source)
    with store.borrow("mood") as mood:
        assert not store.has_unbaked
    bake_all(store, "mood", "tone", "rating")
    assert store.num_baked == 2  # the third has a prefix
    (member,) = mood.members
    assert member.baked is not None
    example = models["mood"].render("dull")
    short = member.baked.cut(example)
    assert short is not None
    [found] = predict_mixed([PromptedRow(member.task, short, member.baked.prefix)])
    expected = models["mood"].predict("dull")[0].probabilities
    assert dict(found.probabilities) == pytest.approx(dict(expected), abs=2e-6)


def test_what_is_baked_is_given_up_before_prompts_are(source, backbone) -> None:
    whole = PromptStore(backbone("llama"), source)
    bake_all(whole, "mood")
    with whole.borrow("tone") as tone:
        room = whole.bytes - tone.bytes
    store = PromptStore(backbone("llama"), source, max_bytes=room)
    bake_all(store, "mood")
    assert store.num_baked == 1
    with store.borrow("tone"):
        assert store.num_baked == 0
        assert store.versions == ("mood", "tone")
    bake_all(store, "mood")  # does not fit, and nobody else could make room
    assert store.num_baked == 0
    assert store.bytes <= room


def test_prompts_of_one_task_share_all_but_their_tensors(model, backbone, tmp_path, maker) -> None:
    names = {"a": ("llama", "words", "input"), "b": ("llama", "words", "input"),
             "c": ("llama", "head", "input"), "d": ("llama", "head", "input")}  # fmt: skip
    made = {name: model(way, seed=n) for n, (name, way) in enumerate(names.items())}
    folders = [one.save(tmp_path / name) for name, one in made.items()]
    store = PromptStore(backbone("llama"), FolderSource(folders))
    a, b, c, d = (store.acquire(name).members[0] for name in names)
    assert a.task is b.task
    assert c.task is not d.task
    assert c.task.renderers[0] is d.task.renderers[0]
    for name, one in zip(names, (a, b, c, d), strict=True):
        row = PromptedRow(one.task, made[name].render("dull"), one.prompt)
        expected = made[name].predict("dull")[0].probabilities
        assert dict(predict_mixed([row])[0].probabilities) == pytest.approx(expected, abs=2e-6)


def test_a_prompt_used_while_it_is_baked_is_counted_once(source, backbone, monkeypatch) -> None:
    store = PromptStore(backbone("llama"), source)
    bake = prompts_module.bake_prompts

    def bake_in_use(*args: object, **options: object) -> object:
        with store.borrow("mood"):  # a request in the meantime
            pass
        return bake(*args, **options)

    monkeypatch.setattr(prompts_module, "bake_prompts", bake_in_use)
    bake_all(store, "mood")
    monkeypatch.setattr(prompts_module, "bake_prompts", bake)
    with store.borrow("mood") as mood:
        assert store.bytes == mood.bytes + mood.baked_bytes
        assert not store.has_unbaked


def test_what_fails_to_bake_is_run_whole_and_its_mates_are_baked(
    source, backbone, monkeypatch
) -> None:
    store = PromptStore(backbone("llama"), source)
    bake, calls = prompts_module.bake_prompts, []
    with store.borrow("mood") as mood:
        bad = mood.members[0].prompt

    def fail(owner: object, prompts: list, *, heads: list) -> object:
        calls.append(len(prompts))
        if any(prompt is bad for prompt in prompts):
            raise RuntimeError
        return bake(owner, prompts, heads=heads)

    monkeypatch.setattr(prompts_module, "bake_prompts", fail)
    for _ in range(2):
        for name in ("mood", "rating"):
            with store.borrow(name):
                pass
    store.bake_waiting()
    assert calls == [2, 1, 1]
    assert store.num_baked == 1
    with store.borrow("mood"):
        assert not store.has_unbaked, "it is not tried again at once"


def test_a_row_that_ends_with_the_soft_tokens_is_run_whole(backbone, models) -> None:
    store_row = models["mood"].render("dull")
    (variant,) = store_row.variants
    for count in (len(variant.input_ids), len(variant.input_ids) - 1):
        head = variant.input_ids[:count]
        baked = BakedPrompt(KVPrefix.__new__(KVPrefix), head)
        row = replace(store_row, read_positions=((),))
        cut = baked.cut(row)
        assert (cut is None) == (count == len(variant.input_ids))
