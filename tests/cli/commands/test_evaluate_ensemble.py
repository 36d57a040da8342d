"""``evaluate --ensemble`` says what Python finds, and takes nothing for what it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from softprompt.inference import Ensemble, PromptModel


@pytest.fixture(scope="module")
def three(tmp_path_factory, backbones, run, furnished):
    """Three runs of one recipe; one of them of another method."""
    home = furnished(tmp_path_factory.mktemp("three"), backbones["llama"])
    folders = [home.path / name for name in ("one", "two", "prefix")]
    for seed, folder in enumerate(folders[:2]):
        said = run("train", home.recipe, "--quiet", "--set", f"seed={seed}", "--output", folder)
        assert said.status == 0, said.err
    home.data["task"]["template"] = "{text} sentiment"
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    assert run("train", home.recipe, "--quiet", "--output", folders[2]).status == 0
    return home, folders


@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_members_and_ensemble_are_scored_as_python_scores_them(three, run, vote: str) -> None:
    home, folders = three
    said = run("evaluate", *folders, "--ensemble", "--vote", vote, "--json")
    assert (said.status, said.err) == (0, "")
    models = [PromptModel.from_pretrained(folder) for folder in folders]
    rows = home.rows("test")
    alone = [model.evaluate(rows).metrics["accuracy"] for model in models]
    found = said.json
    assert [one["accuracy"] for one in found["members"]] == alone
    assert [one["artifact"] for one in found["members"]] == [*map(str, folders)]
    assert (found["metric"], found["vote"], found["data"]) == ("accuracy", vote, "test")
    assert found["mean"] == pytest.approx(sum(alone) / 3)
    assert found["best"] == max(alone)
    ensemble = Ensemble(models, vote=vote).evaluate(rows)
    assert found["accuracy"] == ensemble.metrics["accuracy"]
    assert found["loss"] == pytest.approx(ensemble.metrics["loss"], abs=1e-6)
    assert found["rows"] == 12


def test_the_table_has_a_line_for_each(three, run) -> None:
    _, folders = three
    found = run("evaluate", *folders, "--ensemble", "--json").json
    said = run("evaluate", *folders, "--ensemble").out
    lines = [line.rsplit(maxsplit=2) for line in said.splitlines()]
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
    (lambda _, f: [f[0], f[1]], ("is an artifact, not data", "--ensemble")),
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
def test_what_is_meant_is_never_guessed(three, run, given, fragments) -> None:
    home, folders = three
    said = run("evaluate", *given(home.path, folders))
    assert said.out == ""
    assert said.is_mistake(*fragments)


def test_members_that_held_other_rows_back_are_told(three, home, run) -> None:
    """The test rows of the first may be what another was trained on."""
    _, folders = three
    home.write("test", home.rows("train")[:12])
    assert run("train", home.recipe, "--quiet", "--output", "other").status == 0
    said = run("evaluate", folders[0], "other", "--ensemble", "--json")
    assert said.status == 0
    assert "warning: member 2 was not trained with the same test rows" in said.err
    assert run("evaluate", folders[0], "other", "--ensemble", "--data", "test.jsonl").err == ""


def test_members_of_another_task_are_refused(three, home, run, backbones) -> None:
    _, folders = three
    home.data["task"]["verbalizer"] = {"negative": " no", "positive": " yes"}
    run("train", home.recipe, "--quiet", "--output", "words")
    said = run("evaluate", folders[0], "words", "--ensemble")
    assert said.is_mistake("verbalizer is", "member 2", "same task")
    home.data["backbone"]["name"] = str(backbones["t5"])
    run("train", home.recipe, "--quiet", "--output", "t5")
    said = run("evaluate", folders[0], "t5", "--ensemble")
    assert said.is_mistake("was trained on", "its own backbone")
