"""A registry of immutable versions: publishing, pins, digests, names, killed writers."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from softprompt.artifact import load_artifact, save_artifact
from softprompt.errors import ArtifactError
from softprompt.serve.registry import PromptVersion, Registry, is_name
from support.artifacts import make_sample, read_bits
from support.cli_runner import run_command


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return save_artifact(make_sample(), tmp_path / "mood")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_artifact(make_sample("kv", head=True), tmp_path / "other")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def read_files(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_a_published_version_is_the_artifact_byte_for_byte(registry, artifact, other) -> None:
    first = registry.publish(artifact, "mood")
    second = registry.publish(other, "mood")
    assert [str(p.version) for p in (first, second)] == ["mood@1", "mood@2"]
    assert read_files(registry.locate(first.version)) == read_files(artifact)
    assert read_files(registry.locate(second.version)) == read_files(other)
    assert first.digest != second.digest
    assert registry.resolve("mood") == second.version
    assert registry.resolve("mood@1") == first.version
    for published in (first, second):
        reference = f"mood@sha256:{published.digest}"
        assert registry.resolve(reference) == published.version
        assert registry.resolve(reference[:25]) == published.version


def test_a_pin_decides_until_it_is_removed(registry, artifact) -> None:
    for _ in range(2):
        registry.publish(artifact, "mood")
    registry.pin("mood", 1)
    assert not registry.publish(artifact, "mood").is_current
    assert registry.resolve("mood").number == 1
    with pytest.raises(ArtifactError, match="mood@1 is pinned"):
        registry.unpublish("mood@1")
    registry.pin("mood", None)
    assert registry.resolve("mood").number == 3


def test_a_withdrawn_number_is_never_used_again(registry, artifact) -> None:
    for _ in range(2):
        registry.publish(artifact, "mood")
    assert registry.unpublish("mood@2") == [PromptVersion("mood", 2)]
    assert registry.resolve("mood").number == 1
    assert registry.publish(artifact, "mood").version.number == 3
    registry.pin("mood", 1)
    assert [v.number for v in registry.unpublish("mood")] == [1, 3]
    with pytest.raises(ArtifactError, match="unknown prompt 'mood'"):
        registry.resolve("mood")
    assert registry.publish(artifact, "mood").version.number == 4
    assert registry.resolve("mood").number == 4  # the pin was removed with the prompt


BAD_NAMES = ["", "..", ".hidden", "a/b", "../a", "a\\b", "a@1", "a b", "a\n", "-a", "a" * 65, "é"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a.pin", "a.withdrawn", "a."])
def test_a_name_cannot_be_a_path(registry, artifact, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ArtifactError, match="is not a valid name of a prompt"):
        registry.publish(artifact, name)
    for reference in (name, f"{name}@1"):
        with pytest.raises(ArtifactError):
            registry.resolve(reference)
    assert not registry.folder.exists()


BAD_REFERENCES = {
    "mood@2": "mood has no version 2. Versions: 1.",
    "mood@0": "does not name a version",
    "mood@": "does not name a version",
    "mood@1/..": "does not name a version",
    "mood@sha256:12": "does not name a version",
    "mood@sha256:00000000": "no version of mood has the digest",
    "mod": "Did you mean 'mood'",
}


@pytest.mark.parametrize("reference", BAD_REFERENCES)
def test_an_unknown_version_is_named(registry, artifact, reference: str) -> None:
    registry.publish(artifact, "mood")
    with pytest.raises(ArtifactError, match=BAD_REFERENCES[reference]):
        registry.resolve(reference)


def test_names_that_differ_in_case_are_refused(registry, artifact) -> None:
    registry.publish(artifact, "mood")
    with pytest.raises(ArtifactError, match="the registry has a prompt 'mood'"):
        registry.publish(artifact, "Mood")


def test_a_damaged_or_too_large_artifact_is_not_published(registry, artifact) -> None:
    small = Registry(registry.folder, max_bytes=100)
    with pytest.raises(ArtifactError, match="takes at most 100"):
        small.publish(artifact, "mood")
    with (artifact / "prompt.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        registry.publish(artifact, "mood")
    assert registry.read_state().numbers == {}
    assert not list(registry.folder.glob("*"))


def test_a_change_is_seen_by_one_look(registry, artifact, monkeypatch) -> None:
    state = registry.read_state()
    registry.publish(artifact, "mood")
    registry.publish(artifact, "mood")
    assert registry.has_changed(state)
    for change in (
        lambda: registry.publish(artifact, "mood"),
        lambda: registry.pin("mood", 1),
        lambda: registry.pin("mood", None),
        lambda: registry.unpublish("mood@3"),
    ):
        os.utime(registry.folder, ns=(0, 10**18))  # long ago
        state = registry.read_state()
        assert not registry.has_changed(state)
        change()
        assert registry.has_changed(state)
    # Two changes within one tick of the clock have the same time.
    state = registry.read_state()
    stamp = registry.folder.stat().st_mtime_ns
    registry.publish(artifact, "mood")
    os.utime(registry.folder, ns=(0, stamp))
    assert registry.has_changed(state)


def test_many_writers_at_once_get_a_number_each(registry, artifact) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: numbers.append(registry.publish(artifact, "mood").version.number)
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def run_and_kill(action, *, at: int) -> bool:
    """Run an action in a process that is killed before its n-th operation on files."""
    child = os.fork()
    if child == 0:
        left = at

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("what", ["publish", "unpublish", "pin"])
def test_a_writer_killed_at_any_moment_leaves_every_version_whole(
    registry, artifact, other, what: str
) -> None:
    registry.publish(artifact, "mood")
    registry.publish(artifact, "mood")
    expected = {1: make_sample(), 2: make_sample(), 3: make_sample("kv", head=True)}
    start = registry.folder.with_name("start")
    shutil.copytree(registry.folder, start)
    actions = {
        "publish": lambda: registry.publish(other, "mood"),
        "unpublish": lambda: registry.unpublish("mood@2"),
        "pin": lambda: registry.pin("mood", 1),
    }
    seen, at = set(), 0
    while run_and_kill(actions[what], at=at):
        state = registry.read_state()
        assert {1} <= {*state.numbers["mood"]} <= {1, 2, 3}
        for number in state.numbers["mood"]:
            loaded = load_artifact(registry.locate(PromptVersion("mood", number)))
            for name, tensor in expected[number].to_tensors().items():
                assert read_bits(loaded.to_tensors()[name]) == read_bits(tensor)
        seen.add((state.numbers["mood"], state.get_current("mood")))
        # The next writer is not disturbed, and takes a number that was never used.
        assert registry.publish(other, "mood").version.number > max(state.numbers["mood"])
        shutil.rmtree(registry.folder)
        shutil.copytree(start, registry.folder)
        at += 1
    assert at > 3
    before = ((1, 2), 2)
    after = {"publish": ((1, 2, 3), 3), "unpublish": ((1,), 1), "pin": ((1, 2), 1)}[what]
    assert before in seen
    assert seen <= {before, after}


def test_the_commands(tmp_path, artifact) -> None:
    where = ("--registry", tmp_path / "r")
    assert run_command("registry", "list", *where).err.startswith(
        f"{tmp_path / 'r'} has no prompts"
    )
    published = run_command("publish", artifact, "mood", *where, "--json").json
    assert published["prompt"] == "mood@1"
    assert published["is_current"]
    assert "mood@2" in run_command("publish", artifact, "mood", *where).out
    assert run_command("registry", "pin", "mood", "1", *where).out == "mood is mood@1\n"
    listed = run_command("registry", "list", *where, "--json").json
    assert [(p["prompt"], p["is_current"]) for p in listed["prompts"]] == [
        ("mood@1", True),
        ("mood@2", False),
    ]
    assert listed["prompts"][0]["labels"] == ["gut", "schlecht"]
    table = run_command("registry", "list", *where).out.splitlines()
    assert next(line.split()[:2] for line in table[1:]) == ["mood@1", "pinned"]
    assert run_command("registry", "pin", "mood", "x", *where).is_mistake("Give a number")
    assert run_command("registry", "pin", "mood", "newest", *where).out == "mood is mood@2\n"
    assert run_command("unpublish", "mood@2", *where).out == "mood@2\n"
    assert run_command("unpublish", "mood", *where, "--json").json == {"unpublished": ["mood@1"]}
    assert run_command("unpublish", "mood", *where).is_mistake("unknown prompt 'mood'")
