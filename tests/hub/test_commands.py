"""``softprompt push`` and ``pull`` as a user runs them: in processes, with their output."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

import softprompt
from softprompt.artifact import save_artifact
from softprompt.errors import ArtifactError, HubError

pytestmark = [
    # The transport warns of the client's way to send a file.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # A step or two on a random model do not train anything.
    pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning"),
]

WORDS = {"negative": " bad", "positive": " good"}
ROWS = [
    {"text": "good film", "label": "positive"},
    {"text": "bad film", "label": "negative"},
] * 10


@pytest.fixture
def model(saved):
    """A tiny model trained on a backbone in a local folder."""
    backbone = softprompt.load_backbone(str(saved("llama")), dtype="float32", device="cpu")
    task = softprompt.Classify("{text} is{soft:3}", verbalizer=WORDS)
    return softprompt.fit(
        backbone, task, ROWS, config=softprompt.TrainingConfig(epochs=1, learning_rate=0.1)
    )


def test_what_is_pulled_answers_as_what_was_pushed(hub, model, tmp_path: Path) -> None:
    texts = ["good film", "bad story", "a scene"]
    before = model.predict(texts)
    softprompt.push(model, "ada/tune", backbone="tiny/llama")
    folder = softprompt.pull("ada/tune", tmp_path / "got").folder
    again = softprompt.PromptModel.from_pretrained(folder, backbone=model.backbone)
    assert again.artifact.manifest.backbone["name"] == "tiny/llama"
    assert again.predict(texts) == before
    assert again.evaluate(ROWS).metrics == model.evaluate(ROWS).metrics


def test_a_repository_is_fetched_into_the_cache_once_a_commit(
    hub, model, tmp_path: Path, monkeypatch
) -> None:
    """By name alone; without a connection the last fetched commit is used."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = ["good film", "bad story"]
    first = model.push_to_hub("ada/tune", backbone="tiny/llama", message="First")
    assert hub.repos["ada/tune"].messages[-1] == "First"

    def get(**how: str) -> softprompt.PromptModel:
        return softprompt.PromptModel.from_pretrained("ada/tune", backbone=model.backbone, **how)

    again = get()
    assert again.predict(texts) == model.predict(texts)
    one, two = again.save("one"), softprompt.pull("ada/tune", "two").folder
    assert one.joinpath("prompt.safetensors").read_bytes() == (
        two.joinpath("prompt.safetensors").read_bytes()
    )
    hub.log.clear()
    get()
    assert [line for line, _ in hub.log if "/resolve/" in line] == []
    assert [*tmp_path.joinpath("cache").iterdir()] == [tmp_path / "cache" / "hub"]
    hub.log.clear()
    get(revision=first.commit)
    assert hub.log == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(softprompt.SoftpromptWarning, match="so the cached commit .* of ada/tune"):
        assert get().predict(texts) == model.predict(texts)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        get(revision="other")


def test_what_is_here_as_a_folder_is_not_looked_up(hub, model, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.push_to_hub("ada/tune", backbone="tiny/llama")
    model.save("ada/mine")
    hub.log.clear()
    softprompt.PromptModel.from_pretrained("ada/mine", backbone=model.backbone)
    with pytest.raises(
        ArtifactError, match=r"there is no folder ada/tune .* To download from the Hub"
    ):
        softprompt.PromptModel.from_pretrained("ada/tune", backbone=model.backbone)
    assert hub.log == []
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    again = softprompt.PromptModel.from_pretrained(
        "ada/tune", revision="main", backbone=model.backbone
    )
    assert again.predict("good") == model.predict("good")


def test_another_backbone_is_still_refused(hub, model, saved, tmp_path: Path) -> None:
    softprompt.push(model.artifact, "ada/tune", backbone="tiny/gpt2")
    folder = softprompt.pull("ada/tune", tmp_path / "got").folder
    other = softprompt.load_backbone(str(saved("gpt2")), dtype="float32", device="cpu")
    with pytest.raises(ArtifactError, match="trained on 'tiny/gpt2'"):
        softprompt.PromptModel.from_pretrained(folder, backbone=other)


def test_the_commands_push_and_pull(hub, model, run, tmp_path: Path) -> None:
    folder, local = model.save(tmp_path / "own"), model.backbone.name
    refused = run("push", folder, "ada/tune")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"trained on {local!r}" in refused.stderr
    assert hub.log == []
    given = ["--backbone", "tiny/llama", "--private", "--message", "First"]
    done = run("push", folder, "ada/tune", *given)
    assert done.exit_code == 0, done.stderr
    commit = hub.repos["ada/tune"].heads["main"]
    assert done.stdout.splitlines() == [
        "repository  ada/tune (private, new)",
        "branch      main",
        f"commit      {commit}",
        f"page        {hub.url}/ada/tune/commit/{commit}",
    ]
    assert f"backbone.name: {local!r} → 'tiny/llama'" in done.stderr
    assert "softprompt pull ada/tune --output tune" in done.stderr
    assert hub.repos["ada/tune"].messages[-1] == "First"
    again = json.loads(run("push", folder, "ada/tune", *given, "--json").stdout)
    assert (again["commit"], again["created"], again["private"]) == (commit, False, True)
    assert again["changed"][0] == {
        "where": "backbone.name", "before": local, "after": "tiny/llama"
    }  # fmt: skip
    pinned = run("pull", "ada/tune", "--output", tmp_path / "x", "--revision", commit)
    assert pinned.stdout == f"artifact  {tmp_path / 'x'}\ncommit    {commit}\n"
    assert f"softprompt pull ada/tune --revision {commit} --output" in pinned.stderr


def test_they_work_in_processes_of_their_own(away, new, command, tmp_path: Path) -> None:
    folder, token = save_artifact(new(), tmp_path / "own"), {"HF_TOKEN": "hf_writer"}
    done = command("push", folder, "ada/tune", **token)
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr  # no progress bars, because it is not a terminal
    got = command("pull", "ada/tune", "--output", tmp_path / "got", "--json")  # it is public
    assert json.loads(got.stdout) == {
        "artifact": str(tmp_path / "got"),
        "repo": "ada/tune",
        "commit": away.repos["ada/tune"].heads["main"],
        "files": ["manifest.json", "prompt.safetensors", "README.md"],
    }
    assert got.stderr == ""
    assert token["HF_TOKEN"] not in done.stderr + done.stdout
    offline = command("pull", "ada/tune", "--output", tmp_path / "x", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (2, "")
    assert offline.stderr.startswith("ada/tune cannot be read: HF_HUB_OFFLINE or TRANS")
    assert offline.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "token", "message"),
    [
        ("push own ada/tune", None, "you are not logged in"),
        ("push own ada/tune", "hf_bad", "the token is not accepted"),
        ("push own tune", None, "lacks its owner"),
        ("push absent ada/tune", None, "there is no folder absent"),
        ("pull ada/tune --output got", None, "there is no such repository"),
        ("pull ada/tune --output own", None, "also contains config.json"),
        ("pull ada/tune", None, "Missing option '--output'"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(own, run, monkeypatch, line, token, message) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = run(*line.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "hf_bad" not in done.stderr
    assert {path.name for path in own.parent.iterdir()} - {"hf"} == {"own"}


@pytest.fixture
def own(away, new, tmp_path: Path, monkeypatch) -> Path:
    """An artifact in the working folder, which also has another file."""
    monkeypatch.chdir(tmp_path)
    folder = save_artifact(new(), tmp_path / "own")
    (folder / "config.json").write_text("{}")
    return folder
