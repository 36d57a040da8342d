"""``evaluate --ensemble``: the numbers of Python; data and artifacts are not confused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from softprompt.inference import Ensemble, PromptModel
from support.workspace import make_workspace


@pytest.fixture(scope="module")
def three(tmp_path_factory, backbones, run):
    """Three runs of one recipe, one of them with another method."""
    home = make_workspace(tmp_path_factory.mktemp("three"), backbones["llama"])
    folders = [home.path / name for name in ("one", "two", "prefix")]
    for seed, folder in enumerate(folders[:2]):
        result = run("train", home.recipe, "--quiet", "--set", f"seed={seed}", "--output", folder)
        assert result.status == 0, result.err
    home.data["task"]["template"] = "{text} sentiment"
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    assert run("train", home.recipe, "--quiet", "--output", folders[2]).status == 0
    return home, folders


@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_members_and_ensemble_are_scored_as_python_scores_them(three, run, vote: str) -> None:
    home, folders = three
    result = run("evaluate", *folders, "--ensemble", "--vote", vote, "--json")
    assert (result.status, result.err) == (0, "")
    models = [PromptModel.from_pretrained(folder) for folder in folders]
    rows = home.rows("test")
    alone = [model.evaluate(rows).metrics["accuracy"] for model in models]
    scores = result.json
    assert [one["accuracy"] for one in scores["members"]] == alone
    assert [one["artifact"] for one in scores["members"]] == [*map(str, folders)]
    assert (scores["metric"], scores["vote"], scores["data"]) == ("accuracy", vote, "test")
    assert scores["mean"] == pytest.approx(sum(alone) / 3)
    assert scores["best"] == max(alone)
    ensemble = Ensemble(models, vote=vote).evaluate(rows)
    assert scores["accuracy"] == ensemble.metrics["accuracy"]
    assert scores["loss"] == pytest.approx(ensemble.metrics["loss"], abs=1e-6)
    assert scores["rows"] == 12


def test_the_table_has_a_line_for_each(three, run) -> None:
    _, folders = three
    found = run("evaluate", *folders, "--ensemble", "--json").json
    result = run("evaluate", *folders, "--ensemble").out
    lines = [line.rsplit(maxsplit=2) for line in result.splitlines()]
    for one in found["members"]:
        assert [one["artifact"], f"{one['accuracy']:.4f}", f"{one['loss']:.4f}"] in lines
    assert ["mean of the members", f"{found['mean']:.4f}"] in [line[:2] for line in lines]
    assert ["best of the members", f"{found['best']:.4f}"] in [line[:2] for line in lines]
    whole = ["ensemble (majority)", f"{found['accuracy']:.4f}", f"{found['loss']:.4f}"]
    assert whole in lines


def test_rows_of_a_file(three, run) -> None:
    home, folders = three
    path = home.path / "train.jsonl"
    found = run("evaluate", *folders[:2], "--ensemble", "--data", path, "--json").json
    assert (found["rows"], found["data"], len(found["members"])) == (40, str(path), 2)
    alone = run("evaluate", folders[0], "--data", path, "--json").json
    assert alone == run("evaluate", folders[0], path, "--json").json
    assert found["members"][0]["accuracy"] == alone["accuracy"]
    only = run("evaluate", folders[0], "--ensemble", "--data", path, "--json").json
    assert {k: only[k] for k in alone if k != "artifact"} == {
        k: v for k, v in alone.items() if k != "artifact"
    }


MISTAKES: list[tuple[Callable[[Path, list[Path]], list[object]], tuple[str, ...]]] = [
    (
        lambda _, f: [f[0], f[1]],
        ("{1} is an artifact, not data", "softprompt evaluate {0} {1} --ensemble\n"),
    ),
    (
        lambda _, f: [f[0], "--data", f[1]],
        ("{1} is an artifact, not data", "softprompt evaluate {0} {1} --ensemble\n"),
    ),
    (
        lambda _, f: [f[0], f[1], "a.csv"],
        ("{1} is an artifact, not data", "softprompt evaluate {0} {1} --ensemble --data a.csv\n"),
    ),
    (lambda h, f: [f[0], h / "a.csv", h / "b.csv"], ("2 data sets", "one at a time. Give one.")),
    (
        lambda h, f: [f[0], h / "a.csv", "--data", h / "b.csv"],
        ("2 data sets", "one at a time. Give one."),
    ),
    (
        lambda h, f: [*f, h / "test.jsonl", "--ensemble"],
        ("not the folder of an artifact", "--data"),
    ),
    (lambda h, f: [*f, h / "gone", "--ensemble"], ("there is no folder",)),
    (lambda _, f: [f[0], "--vote", "mean"], ("--vote is for an ensemble", "--ensemble")),
    (lambda _, f: [*f, "--ensemble", "--vote", "most"], ("most", "majority", "mean")),
]


@pytest.mark.parametrize(("given", "fragments"), MISTAKES)
def test_ambiguous_arguments_are_refused(three, run, given, fragments) -> None:
    home, folders = three
    result = run("evaluate", *given(home.path, folders))
    assert result.out == ""
    assert result.is_mistake(*(fragment.format(*folders) for fragment in fragments))


def test_members_with_other_test_rows_are_reported(three, home, run) -> None:
    """Another member may have been trained on the test rows of the first."""
    _, folders = three
    home.write("test", home.rows("train")[:12])
    assert run("train", home.recipe, "--quiet", "--output", "other").status == 0
    result = run("evaluate", folders[0], "other", "--ensemble", "--json")
    assert result.status == 0
    assert "warning: member 2 was not trained with the same test rows" in result.err
    assert run("evaluate", folders[0], "other", "--ensemble", "--data", "test.jsonl").err == ""


def test_members_of_another_task_are_refused(three, home, run, backbones) -> None:
    _, folders = three
    home.data["task"]["verbalizer"] = {"negative": " no", "positive": " yes"}
    run("train", home.recipe, "--quiet", "--output", "words")
    result = run("evaluate", folders[0], "words", "--ensemble")
    assert result.is_mistake("verbalizer is", "member 2", "same task")
    home.data["backbone"]["name"] = str(backbones["t5"])
    run("train", home.recipe, "--quiet", "--output", "t5")
    result = run("evaluate", folders[0], "t5", "--ensemble")
    assert result.is_mistake("was trained on", "its own backbone")
