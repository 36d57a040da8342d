"""A pull writes two files and a card of one commit, checked, or nothing."""

import json
import pickle
from pathlib import Path

import pytest

import softprompt
from softprompt.artifact import load_artifact, save_artifact
from softprompt.errors import ArtifactError, HubError
from softprompt.hub import repository
from support.artifacts import forge

# The transport warns of the client's way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def left(place: Path) -> set[str]:
    """The names that a pull has left in a folder."""
    return {path.name for path in place.iterdir()} - {"hf"}


@pytest.fixture
def pushed(hub, stored):
    """The repository of an artifact that can be spoilt."""
    softprompt.push(stored.folder, "ada/tune")
    hub.log.clear()
    return hub.repos["ada/tune"]


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    """The folder to pull to, the only one in its parent."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "got"


def test_an_old_commit_gives_the_old_artifact(hub, new, goal: Path) -> None:
    first = softprompt.push(new(), "ada/tune")
    second = softprompt.push(new("kv"), "ada/tune")
    assert softprompt.pull("ada/tune", goal).commit == second.commit
    assert load_artifact(goal).manifest.kind == "kv"
    for revision in (first.commit, "v1"):
        hub.repos["ada/tune"].tags["v1"] = first.commit
        assert softprompt.pull("ada/tune", goal, revision=revision).commit == first.commit
        assert load_artifact(goal).manifest.kind == "input"  # in place of the other one
    assert left(goal.parent) == {"got"}


def test_a_branch_that_moves_meanwhile_is_not_mixed(hub, pushed, new, goal: Path) -> None:
    softprompt.pull("ada/tune", goal)
    asked = hub.asked("GET /ada/tune/resolve") + hub.asked("HEAD /ada/tune/resolve")
    assert asked
    assert all(f"/resolve/{pushed.heads['main']}/" in line for line in asked)


def test_no_other_file_is_fetched(hub, pushed, goal: Path) -> None:
    surplus = {"pytorch_model.bin": pickle.dumps([1]), "run.py": b"1/0", "a/b.safetensors": b"x"}
    pushed.commit(pushed.files | surplus)
    done = softprompt.pull("ada/tune", goal)
    assert {path.name for path in goal.rglob("*")} == {*done.files}
    sent = " ".join(line for line, _ in hub.log)
    assert not any(name in sent for name in surplus)


def test_a_repository_without_a_card_is_pulled(pushed, goal: Path) -> None:
    pushed.commit({k: v for k, v in pushed.files.items() if k != "README.md"})
    assert softprompt.pull("ada/tune", goal).files == ("manifest.json", "prompt.safetensors")
    load_artifact(goal)


def test_a_download_that_breaks_is_resumed(hub, pushed, stored, plant, goal: Path) -> None:
    plant("GET /cdn/", keep=50, times=1)
    softprompt.pull("ada/tune", goal)
    assert (goal / "prompt.safetensors").read_bytes() == stored.tensors.read_bytes()


def test_a_private_repository_is_its_owners(away, new, monkeypatch, goal: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    softprompt.push(new(), "ada/tune", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    softprompt.pull("ada/tune", goal)
    for token, message in [
        ("hf_stranger", "no such repository, or it is private and the token has no access to it"),
        ("hf_wrong", "the token is not accepted"),
        (None, "no such repository, or it is private and you are not logged in"),
    ]:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_TOKEN", token) if token else None
        with pytest.raises(HubError, match=message) as error:
            softprompt.pull("ada/tune", goal.parent / "other")
        assert (token or "hf_") not in str(error.value)
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert left(goal.parent) == {"got"}


def test_what_is_not_there_is_reported(hub, pushed, goal: Path) -> None:
    with pytest.raises(HubError, match="ada/tone cannot be read: there is no such repository"):
        softprompt.pull("ada/tone", goal)
    with pytest.raises(HubError, match=r"unknown revision 'mian'. Options: main. Did you mean"):
        softprompt.pull("ada/tune", goal, revision="mian")
    with pytest.raises(HubError, match="unknown revision"):
        softprompt.pull("ada/tune", goal, revision="0" * 40)
    hub.make("ada/gated", pushed.files, gated=True)
    with pytest.raises(HubError, match="it is gated, and its owner grants access"):
        softprompt.pull("ada/gated", goal)
    assert left(goal.parent) == set()


@pytest.mark.parametrize(
    ("begins", "planted", "message"),
    [
        ("GET /api/models", {"status": 429, "headers": {"Retry-After": "7"}}, "Wait 7 seconds"),
        ("GET /api/models", {"status": 503}, "the Hub failed with status 503"),
        ("GET /api/models", {"status": 418}, "status 418"),
        ("GET /cdn/", {"keep": 50, "honest": False}, "Consistency check failed.*Try again"),
        ("GET /cdn/", {"status": 403}, "has no permission for this repository to be read"),
    ],
)
def test_what_fails_on_the_way_leaves_nothing(
    pushed, plant, goal: Path, begins: str, planted, message: str
) -> None:
    plant(begins, **planted)
    with pytest.raises(HubError, match=message):
        softprompt.pull("ada/tune", goal)
    assert left(goal.parent) == set()


def test_a_hub_that_is_not_reached_is_reported(away, goal: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=r"127.0.0.1:9 cannot be reached \(ConnectError.*HTTPS_PROXY"
    ):
        softprompt.pull("ada/tune", goal)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"):
        softprompt.pull("ada/tune", goal)
    assert left(goal.parent) == set()


def edited(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"]) | changes
    return files | {"manifest.json": forge(json.dumps(manifest).encode())}


def named(name: str) -> dict[str, object]:
    return {"name": name, "revision": None, "fingerprint": "a-b", "model_type": "bert"}


OTHER = {"config.json": b"{}", "pytorch_model.bin": b""}
SPOILT = [
    (lambda f: edited(f, digest="0" * 64), "has the SHA-256"),
    (lambda f: edited(f, shapes={"prompt.vectors": [3, 8], "../x": [1]}), "shapes has ../x"),
    (lambda f: edited(f, schema=99), "schema 99"),
    (lambda f: edited(f, template="{soft:2}{text}"), "has 2 soft tokens, but the prompt has 3"),
    (lambda f: edited(f, labels=["gut", "gut"]), "labels has 'gut' more than once"),
    (lambda f: edited(f, task={"kind": "classify", "pooling": "zzz"}), "task.pooling in manifest"),
    (lambda f: f | {"manifest.json": b"../../etc/passwd"}, "is not JSON"),
    (lambda f: f | {"prompt.safetensors": pickle.dumps({"a": 1})}, "is a pickle"),
    (lambda f: f | {"prompt.safetensors": f["prompt.safetensors"][:-9]}, "truncated or damaged"),
    (lambda f: edited(f, backbone=named("/etc")), "a path on its author's machine"),
    (lambda f: edited(f, backbone=named("\\\\host\\share")), "a path on its author's machine"),
    (lambda f: edited(f, backbone=named("a/../../b")), "a path on its author's machine"),
    (lambda f: {k: v for k, v in f.items() if k != "manifest.json"}, "has no manifest.json"),
    (lambda _: OTHER, "not an artifact of softprompt. It has config.json, pytorch_model.bin."),
    (lambda _: OTHER, "pytorch_model.bin looks like a pickle, which is never fetched."),
    (lambda _: {"sub/manifest.json": b"{}", "../manifest.json": b"{}"}, "It has ../manifest"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[m[:24] for _, m in SPOILT])
def test_what_is_no_whole_artifact_is_refused(pushed, new, goal: Path, spoil, message) -> None:
    pushed.commit(spoil(pushed.files))
    save_artifact(new("kv"), goal)
    before = {path.name: path.read_bytes() for path in goal.iterdir()}
    with pytest.raises(ArtifactError) as error:
        softprompt.pull("ada/tune", goal)
    assert message in str(error.value)
    assert "ada/tune at commit" in str(error.value)
    assert str(goal.parent / ".got") not in str(error.value)
    assert {path.name: path.read_bytes() for path in goal.iterdir()} == before
    assert left(goal.parent) == {"got"}


def test_another_revision_than_a_damaged_one_can_be_pulled(hub, new, goal: Path, run) -> None:
    """The message names the command line's option and Python's argument, and both work."""
    first = softprompt.push(new(), "ada/tune").commit
    repo = hub.repos["ada/tune"]
    repo.commit(edited(repo.files, digest="0" * 64))
    with pytest.raises(ArtifactError) as error:
        softprompt.pull("ada/tune", goal)
    assert str(error.value).endswith(
        f"{goal} is unchanged. Pull another revision (--revision, or revision=… in Python), or ask "
        "ada."
    )
    assert softprompt.pull("ada/tune", goal, revision=first).commit == first
    done = run("pull", "ada/tune", "--output", goal, "--revision", first)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("file", ["manifest.json", "prompt.safetensors", "README.md"])
def test_what_is_too_large_is_not_fetched(hub, pushed, goal, file: str, monkeypatch) -> None:
    size = len(pushed.files[file])
    monkeypatch.setitem(repository.LIMITS, file, size - 1)
    with pytest.raises(HubError, match=f"{file} for ada/tune has {size:,} bytes, but at most"):
        softprompt.pull("ada/tune", goal)
    assert hub.asked("GET /ada") == hub.asked("GET /cdn") == []
    monkeypatch.setitem(repository.LIMITS, file, size)
    softprompt.pull("ada/tune", goal)


def test_a_folder_with_other_files_is_left_alone(hub, pushed, goal: Path) -> None:
    goal.mkdir()
    (goal / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"also contains thesis.tex"):
        softprompt.pull("ada/tune", goal)
    (goal / "thesis.tex").rename(goal / "README.md")
    with pytest.raises(ArtifactError, match=r"also contains README.md"):
        softprompt.pull("ada/tune", goal)
    (goal.parent / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        softprompt.pull("ada/tune", goal.parent / "file")
    assert hub.log == []


def test_a_folder_that_cannot_be_written_is_reported(pushed, goal: Path) -> None:
    (goal.parent / "file").write_text("")
    with pytest.raises(HubError, match=r"Not a directory|File exists"):
        softprompt.pull("ada/tune", goal.parent / "file" / "got")
