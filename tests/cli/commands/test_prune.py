"""``prune``: the table of lengths, and the shorter artifact."""

import json

import pytest

from softprompt.analysis import prune
from softprompt.artifact import load_artifact


def test_the_table_is_that_of_the_function(trained, run, model) -> None:
    """On the run's validation rows alone."""
    result = run("prune", trained.folder, "--json").json
    own = prune(model, split_rows(trained, "validation"))
    assert result["rows"] == 12
    assert result["importance"] == pytest.approx(own.importance, rel=1e-5)
    assert [each["length"] for each in result["lengths"]] == [4, 3, 2, 1]
    for said, each in zip(result["lengths"], own.lengths, strict=True):
        assert said["kept"] == [*each.kept]
        assert said["loss"] == pytest.approx(each.metrics["loss"], rel=1e-5)
    assert result["length"] == own.chosen.length
    assert result["output"] is None
    whole = run("evaluate", trained.folder, "--split", "validation", "--json").json
    assert result["lengths"][0]["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_test_rows_change_nothing(trained, run, tmp_path) -> None:
    """The test file may even be gone."""
    before = run("prune", trained.folder, "--json").json
    path = trained.home.path / "test.jsonl"
    text = path.read_text("utf-8")
    flipped = text.replace("positive", "x").replace("negative", "positive").replace("x", "negative")
    try:
        path.write_text(flipped, "utf-8")
        assert run("prune", trained.folder, "--json").json == before
    finally:
        path.write_text(text, "utf-8")


def test_a_shorter_artifact_is_written_and_can_be_trained_further(trained, run, tmp_path) -> None:
    folder = tmp_path / "short"
    result = run("prune", trained.folder, "--length", "2", "--output", folder)
    rows = [line.split() for line in result.out.splitlines()]
    assert rows[0][:3] == ["length", "loss", "accuracy"]
    assert [row[0] for row in rows[1:5]] == ["4", "3", "2", "1"]
    artifact = load_artifact(folder)
    assert artifact.prompt.length == 2
    kept = ", ".join(map(str, artifact.manifest.metrics["pruned"]["kept"]))
    assert result.out.splitlines()[5] == f"2 of 4 soft tokens are kept: {kept}"
    scores = run("evaluate", folder, "--split", "validation", "--json").json
    assert f"{scores['loss']:.4f}" == rows[3][1]
    again = run(
        "train",
        trained.home.recipe,
        *("--set", 'task.template="{text} sentiment{soft:2}"'),
        *("--set", f'method.init={{from="artifact", path="{folder}"}}'),
        *("--set", "train.epochs=1", "--output", tmp_path / "again", "--json"),
    )
    assert again.status == 0, again.err
    events = (tmp_path / "again" / "events.jsonl").read_text("utf-8").splitlines()
    first = next(e for e in map(json.loads, events) if e["event"] == "evaluation")
    assert first["metrics"]["loss"] == pytest.approx(scores["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--length", "9"), "the prompt has 4 soft tokens, so 9 cannot be kept. Keep 1 to 4."),
        (("--metric", "acuracy"), "Did you mean 'accuracy'?"),
        (("--data", "nowhere.csv"), "there is no file nowhere.csv"),
    ],
)
def test_mistakes(trained, run, options, fragment) -> None:
    assert run("prune", trained.folder, *options).is_mistake(fragment)


def split_rows(trained, split: str) -> list[dict]:
    return trained.home.rows(split)
