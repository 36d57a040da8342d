"""What is pushed: one commit of two files and a card, without the machine's local paths."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import softprompt
from softprompt.artifact import Artifact, load_artifact, save_artifact
from softprompt.errors import ArtifactError, HubError
from softprompt.hub.model_card import list_card_metrics
from softprompt.hub.redaction import redact
from support.artifacts import read_bits

# The transport warns of the client's way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {"README.md", "manifest.json", "prompt.safetensors"}


def secretive(artifact: Artifact, folder: Path) -> Artifact:
    """An artifact whose manifest has many local paths."""
    place = str(folder / "secret-client")
    recipe = {
        "seed": 7,
        "backbone": {"name": f"{place}/model", "revision": "main", "dtype": "float32"},
        "data": {
            "train": f"{place}/train.jsonl",
            "validation": "../secret-client/valid.csv.gz[train]",
            "test": "C:\\Users\\secret-client\\test.parquet",
            "value_map": {"label": {"/secret/": "kept, it is a word"}},
        },
        "task": {"kind": "classify", "template": "/a {text}"},
        "method": {
            "name": "prompt-tuning",
            "init": {"from": "artifact", "path": f"{place}/runs/first/artifact"},
        },
        "train": {"optimizer_args": {"log": "~/secret-client/x.log", "beta": [0.9, 0.99]}},
    }
    manifest = replace(
        artifact.manifest,
        backbone={**artifact.manifest.backbone, "name": f"{place}/model", "revision": None},
        recipe=recipe,
        data={"sources": ["file:///secret-client/a.csv"], f"{place}/b.csv": {"rows": 3}},
    )
    return replace(artifact, manifest=manifest)


def test_what_is_pulled_is_what_was_pushed(hub, artifact, tmp_path: Path) -> None:
    folder = save_artifact(artifact, tmp_path / "own")
    done = softprompt.push(folder, "ada/tune")
    got = softprompt.pull("ada/tune", tmp_path / "got")
    assert (done.repo, done.branch, done.created, done.changed) == ("ada/tune", "main", True, ())
    assert got.commit == done.commit == hub.repos["ada/tune"].heads["main"]
    assert {*got.files} == FILES == {path.name for path in (tmp_path / "got").iterdir()}
    again = load_artifact(got.folder)
    assert again.manifest == artifact.manifest
    wanted = {name: read_bits(tensor) for name, tensor in artifact.to_tensors().items()}
    assert {name: read_bits(tensor) for name, tensor in again.to_tensors().items()} == wanted
    for name in ("manifest.json", "prompt.safetensors"):
        assert (got.folder / name).read_bytes() == (folder / name).read_bytes()


def test_a_push_is_one_commit_of_three_files(hub, new) -> None:
    softprompt.push(new(), "ada/tune", message="Better")
    repo = hub.repos["ada/tune"]
    assert {*repo.files} == FILES
    assert repo.messages == ["", "Better"]  # the first one is the Hub's own
    assert not repo.private


def test_an_artifact_a_folder_and_a_run_are_pushed_in_the_same_way(
    hub, new, tmp_path: Path
) -> None:
    save_artifact(new(), tmp_path / "run" / "artifact")
    first = softprompt.push(new(), "ada/tune")
    for given in (tmp_path / "run", str(tmp_path / "run" / "artifact")):
        assert softprompt.push(given, "ada/tune").commit == first.commit  # nothing is new
    assert len(hub.repos["ada/tune"].commits) == 2


def test_no_local_folder_reaches_the_hub(hub, new, tmp_path: Path) -> None:
    done = softprompt.push(secretive(new(), tmp_path), "ada/tune", backbone="ada/bert@v2")
    sent = b"".join(line.encode() + body for line, body in hub.log)
    sent += b"".join(hub.repos["ada/tune"].files.values())
    assert b"secret-client" not in sent
    assert str(tmp_path).encode() not in sent
    manifest = json.loads(hub.repos["ada/tune"].files["manifest.json"])
    recipe = manifest["recipe"]
    assert manifest["backbone"] | {"fingerprint": "", "model_type": ""} == {
        "name": "ada/bert", "revision": "v2", "fingerprint": "", "model_type": ""
    }  # fmt: skip
    assert manifest["backbone"]["fingerprint"] == new().manifest.backbone["fingerprint"]
    assert recipe["backbone"] == {"name": "ada/bert", "dtype": "float32"}
    assert recipe["data"]["train"] == "train.jsonl"
    assert recipe["data"]["validation"] == "valid.csv.gz[train]"
    assert recipe["data"]["test"] == "test.parquet"
    assert recipe["data"]["value_map"] == {"label": {"/secret/": "kept, it is a word"}}
    assert recipe["task"]["template"] == "/a {text}"
    assert recipe["method"]["init"] == {"from": "artifact", "path": "artifact"}
    assert recipe["train"]["optimizer_args"] == {"log": "x.log", "beta": [0.9, 0.99]}
    assert manifest["data"] == {"sources": ["a.csv"], "b.csv": {"rows": 3}}
    changed = {change.where: change.after for change in done.changed}
    assert changed["backbone.name"] == "ada/bert@v2"
    assert changed["recipe.data.train"] == "train.jsonl"
    assert len(changed) == len(done.changed) == 8


@pytest.mark.parametrize(
    "source",
    ["glue:mrpc[train]", "imdb[train]", "ada/reviews@v2:small[test]", "builtin:rotten-tomatoes"],
)
def test_names_that_everybody_has_stay(hub, new, source: str) -> None:
    artifact = new()
    recipe = {"data": {"train": source}, "backbone": {"name": "tiny/bert"}}
    artifact = replace(artifact, manifest=replace(artifact.manifest, recipe=recipe))
    assert softprompt.push(artifact, "ada/tune").changed == ()


@pytest.mark.parametrize(
    ("name", "revision"),
    [("/models/bert", None), ("~/bert", "abc"), ("./bert", None), ("a/b/c", None),
     ("bert.gguf", None), ("C:\\bert", None), ("here", None)],
)  # fmt: skip
def test_a_local_backbone_needs_a_name_for_others(
    hub, new, tmp_path: Path, monkeypatch, name: str, revision: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    artifact = new()
    own = {**artifact.manifest.backbone, "name": name, "revision": revision}
    artifact = replace(artifact, manifest=replace(artifact.manifest, backbone=own))
    with pytest.raises(HubError, match=r"a local folder or file.*--backbone HUB_ID"):
        softprompt.push(artifact, "ada/tune")
    with pytest.raises(HubError, match="is not a valid name on the Hub"):
        softprompt.push(artifact, "ada/tune", backbone="../bert")
    assert hub.log == []
    assert softprompt.push(artifact, "ada/tune", backbone="ada/bert").created


def test_a_backbone_of_the_hub_is_not_a_local_folder_of_that_name(
    hub, new, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "bert").mkdir(parents=True)
    assert softprompt.push(new(), "ada/tune").changed == ()  # it has the Hub's commit


def test_private_is_private(hub, new) -> None:
    assert softprompt.push(new(), "ada/tune", private=True).private
    assert hub.repos["ada/tune"].private
    again = softprompt.push(new("kv"), "ada/tune", private=True)
    assert (again.private, again.created) == (True, False)
    hub.make("ada/open", {})
    before = len(hub.asked("POST /api/models/ada/open"))
    with pytest.raises(
        HubError, match=r"exists and is public, but --private \(private=True in Python\) was"
    ):
        softprompt.push(new(), "ada/open", private=True)
    assert len(hub.asked("POST /api/models/ada/open")) == before == 0


def test_a_branch_is_made_and_main_stays(hub, new, tmp_path: Path) -> None:
    first = softprompt.push(new(), "ada/tune")
    second = softprompt.push(new("kv"), "ada/tune", revision="wide/kv")
    repo = hub.repos["ada/tune"]
    assert repo.heads == {"main": first.commit, "wide/kv": second.commit}
    assert second.branch == "wide/kv"
    softprompt.pull("ada/tune", tmp_path / "got", revision="wide/kv")
    assert load_artifact(tmp_path / "got").manifest.kind == "kv"
    repo.tags["v1"] = first.commit
    with pytest.raises(HubError, match="'v1' is a tag of ada/tune, which cannot be changed"):
        softprompt.push(new(), "ada/tune", revision="v1")


@pytest.mark.parametrize(
    ("begins", "status", "message"),
    [
        ("PUT /upload", 400, "status 400"),
        ("POST /ada/tune.git/info/lfs", 403, "has no permission"),
        ("POST /api/models/ada/tune/commit", 500, "failed with status 500"),
        ("POST /api/models/ada/tune/commit", 412, "it was changed by another commit"),
    ],
)
def test_a_push_that_fails_in_the_middle_leaves_all_as_it_was(
    hub, new, plant, begins: str, status: int, message: str
) -> None:
    softprompt.push(new(), "ada/tune")
    repo = hub.repos["ada/tune"]
    before = (dict(repo.heads), len(repo.commits), dict(repo.files))
    plant(begins, status=status)
    with pytest.raises(HubError, match=message):
        softprompt.push(new("kv"), "ada/tune")
    assert (dict(repo.heads), len(repo.commits), dict(repo.files)) == before


def test_what_changes_meanwhile_is_not_written_over(hub, new, monkeypatch) -> None:
    softprompt.push(new(), "ada/tune")
    repo = hub.repos["ada/tune"]
    store = dict.__setitem__

    class Meddled(dict):
        def __setitem__(self, key, value) -> None:
            store(self, key, value)
            repo.commit(repo.files | {"README.md": b"by hand"})

    hub.stored = Meddled(hub.stored)  # while the tensors are sent
    with pytest.raises(HubError, match="it was changed by another commit at the same time"):
        softprompt.push(new("kv"), "ada/tune")
    assert repo.files["README.md"] == b"by hand"


def test_another_things_repository_is_left_alone(hub, new) -> None:
    hub.make("ada/bert", {"config.json": b"{}", "model.safetensors": b"", "README.md": b"Mine"})
    with pytest.raises(HubError, match=r"contains other files \(config.json, model.safetensors\)"):
        softprompt.push(new(), "ada/bert")
    assert hub.repos["ada/bert"].files["README.md"] == b"Mine"
    hub.make("ada/begun", {"README.md": b"Soon", "LICENSE": b"MIT"})
    softprompt.push(new(), "ada/begun")
    assert hub.repos["ada/begun"].files["LICENSE"] == b"MIT"


def test_a_file_that_the_repository_ignores_is_missed(hub, new) -> None:
    hub.ignored = {"prompt.safetensors"}
    with pytest.raises(HubError, match=r"without prompt.safetensors, so .*\.gitignore"):
        softprompt.push(new(), "ada/tune")


def test_who_may_not_write_is_reported(away, new, monkeypatch) -> None:
    with pytest.raises(HubError, match=r"you are not logged in.*`hf auth login`"):
        softprompt.push(new(), "ada/tune")
    assert away.log == []
    for token, owner, message in [
        ("hf_wrong", "ada", r"the token is not accepted \(Invalid credentials"),
        (
            "hf_reader",
            "ada",
            r"has no permission for this repository to be written to \(you lack the rights",
        ),
        ("hf_writer", "bob", "has no permission"),
    ]:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match=message) as error:
            softprompt.push(new(), f"{owner}/tune")
        assert token not in str(error.value)
    assert away.repos == {}


def test_a_broken_artifact_is_not_pushed(hub, stored) -> None:
    stored.edit(length=4)
    with pytest.raises(ArtifactError, match="shapes has"):
        softprompt.push(stored.folder, "ada/tune")
    assert hub.log == []


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("tune", "lacks its owner. Write OWNER/tune"),
        ("https://hub.example/ada/tune/", "Write ada/tune."),
        ("./runs/first", "Write runs/first."),
        ("ada/my tune", "is not a valid name of a repository. It is OWNER/NAME"),
        ("ada/tune.git", "'.git' are not possible"),
        ("ada/a--b", "'--', '..' and"),
        ("ada/../tune", "not a repository's name"),
        ("/tune", "is not a valid name of a repository"),
        ("ada/-tune", "is not a valid name of a repository"),
        ("", "is not a valid name of a repository"),
    ],
)
def test_a_misspelt_repository_is_reported(away, new, repo: str, message: str, tmp_path) -> None:
    for attempt in (
        lambda: softprompt.push(new(), repo),
        lambda: softprompt.pull(repo, tmp_path / "got"),
    ):
        with pytest.raises(HubError) as error:
            attempt()
        assert message in str(error.value)
    assert away.log == []


@pytest.mark.parametrize("revision", ["a b", "", "../x", "refs/pr/1", "0" * 40, "-x"])
def test_what_is_no_branch_is_reported(hub, new, revision: str) -> None:
    with pytest.raises(HubError, match=r"is not a valid name of a branch|which cannot be changed"):
        softprompt.push(new(), "ada/tune", revision=revision)
    assert hub.log == []


def test_the_artifacts_that_a_start_was_chosen_from_are_named_without_their_folders(new) -> None:
    """Relative names too, in the recipe and in the record of the choice."""
    paths = ["secret-client/one", "/secret-client/other"]
    choice = {"chosen": paths[0], "losses": [[path, 0.5] for path in paths], "steps": 30}
    manifest = new().manifest
    recipe = manifest.recipe | {"method": {"init": {"from": "artifacts", "paths": paths}}}
    metrics = manifest.metrics | {"start_choice": choice}
    local = replace(manifest, recipe=recipe, metrics=metrics)
    copy, changes = redact(local, backbone="ada/bert")
    assert "secret-client" not in str(copy)
    assert copy.recipe["method"]["init"]["paths"] == ["one", "other"]
    assert copy.metrics["start_choice"]["losses"] == [["one", 0.5], ["other", 0.5]]
    assert len([change for change in changes if "secret" in change.before]) == 5
    assert "start_choice" not in list_card_metrics(copy)
