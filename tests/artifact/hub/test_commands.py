"""``softprompt push`` and ``pull`` as a user has them: processes of their own, and their words."""

import json
from pathlib import Path

import pytest

import softprompt
from softprompt.artifact import save
from softprompt.errors import ArtifactError

# The client's own way to send a file, of which its transport warns.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WORDS = {"negative": " bad", "positive": " good"}
ROWS = [
    {"text": "good film", "label": "positive"},
    {"text": "bad film", "label": "negative"},
] * 10


@pytest.fixture
def model(saved):
    """A tiny model trained on a backbone in a local folder."""
    backbone = softprompt.load_backbone(str(saved("llama")))
    task = softprompt.Classify("{text} is{soft:3}", verbalizer=WORDS)
    return softprompt.fit(backbone, task, rows=ROWS, epochs=1, learning_rate=0.1)


def test_what_is_pulled_answers_as_what_was_pushed(hub, model, tmp_path: Path) -> None:
    texts = ["good film", "bad story", "a scene"]
    before = list(model.predict(texts))
    softprompt.push(model.artifact, "ada/tune", backbone="tiny/llama")
    folder = softprompt.pull("ada/tune", tmp_path / "got").folder
    again = softprompt.load_model(folder, model.backbone)
    assert again.artifact.manifest.backbone["name"] == "tiny/llama"
    assert list(again.predict(texts)) == before
    assert again.evaluate(ROWS).metrics == model.evaluate(ROWS).metrics


def test_another_backbone_is_still_refused(hub, model, saved, tmp_path: Path) -> None:
    softprompt.push(model.artifact, "ada/tune", backbone="tiny/gpt2")
    folder = softprompt.pull("ada/tune", tmp_path / "got").folder
    other = softprompt.load_backbone(str(saved("gpt2")))
    with pytest.raises(ArtifactError, match="trained on 'tiny/gpt2'"):
        softprompt.load_model(folder, other)


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
    assert f"backbone.name: {local!r} is 'tiny/llama' for others" in done.stderr
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
    folder, token = save(new(), tmp_path / "own"), {"HF_TOKEN": "hf_writer"}
    done = command("push", folder, "ada/tune", **token)
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr  # no bars where nobody sees them
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
        ("push own ada/tune", None, "nobody is logged in"),
        ("push own ada/tune", "hf_bad", "the token is not accepted"),
        ("push own tune", None, "lacks its owner"),
        ("push absent ada/tune", None, "there is no folder absent"),
        ("pull ada/tune --output got", None, "there is no such repository"),
        ("pull ada/tune --output own", None, "also holds config.json"),
        ("pull ada/tune", None, "Missing option '--output'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(own, run, monkeypatch, line, token, message) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = run(*line.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "hf_bad" not in done.stderr
    assert {path.name for path in own.parent.iterdir()} - {"hf"} == {"own"}


@pytest.fixture
def own(away, new, tmp_path: Path, monkeypatch) -> Path:
    """An artifact in the working folder, with a file of somebody's beside its own."""
    monkeypatch.chdir(tmp_path)
    folder = save(new(), tmp_path / "own")
    (folder / "config.json").write_text("{}")
    return folder
