"""``fit``: from a file to a judged artifact, with no recipe to write."""

import csv
import json
import re
import tomllib
from pathlib import Path

import pytest

from softprompt import PromptModel, RecipeError, fit_data, load_model
from softprompt.recipe.drafting import draft_recipe
from softprompt.train import RunDir
from softprompt.train.automatic import draft_run
from support.reviews import make_reviews

SHORT = ("--set", "train.max_steps=6", "--set", "method.length=2", "--set", "train.batch_size=8")


def write_csv(path: Path, count: int, *, seed: int = 0) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["text"], row["label"]] for row in make_reviews(count, seed=seed))


@pytest.mark.parametrize(("family", "rows"), [("bert", 60), ("bert", 30), ("llama", 60)])
def test_a_file_becomes_a_judged_artifact(home, run, backbones, family, rows) -> None:
    write_csv(Path("mine.csv"), rows)
    result = run("fit", "mine.csv", "--backbone", backbones[family], *SHORT)
    assert result.status == 0, result.err
    folder = Path("runs/mine")
    metrics = RunDir(folder).read_metrics()
    # The recipe that was run can be run again; few rows validate in folds.
    recipe = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))
    assert recipe["data"]["folds"] == 5
    assert recipe["train"]["keep_plain_head"] is True
    assert metrics["cross_validation"]["folds"] == 5
    assert metrics["verdict"] in result.out
    if rows >= 50:
        # The number that is told is that of the artifact on the test rows, with its interval.
        again = run("evaluate", folder, "--json").json
        assert again["accuracy"] == metrics["test"]["accuracy"]
        assert f"is right in {metrics['test']['accuracy']:.1%}" in result.out
        assert {"majority", "linear probe"} <= metrics["baselines"].keys()
        assert ("hard prompt" in metrics["baselines"]) == (family == "llama")
    else:
        assert "test" not in metrics
    shown = run("show", folder, "--no-backbone").out
    assert ("none: a trained head alone" in shown) == (metrics["kept"] == "plain head")
    answers = run("predict", folder, "a good film", "--json").lines
    assert answers[0]["label"] in {"negative", "positive"}


def test_many_rows_are_split_and_few_are_divided_into_folds(tmp_path) -> None:
    def draft(count: int, **options):
        write_csv(tmp_path / "rows.csv", count)
        text = draft_recipe(
            tmp_path / "rows.csv", directory=tmp_path, automatic=True, **options
        ).text
        return tomllib.loads(text)

    few, many = draft(499), draft(500)
    assert few["data"]["folds"] == 5
    assert few["data"]["split_sizes"] == {"train": 0.8, "validation": 0.0, "test": 0.2}
    assert "folds" not in many["data"]
    assert many["data"]["split_sizes"] == {"train": 0.8, "validation": 0.1, "test": 0.1}
    tiny = draft(8)
    assert tiny["data"]["split_sizes"]["train"] == 1.0
    assert 2 <= tiny["data"]["folds"] <= 4  # each fold has a row of each label
    for recipe in (few, many, tiny):
        assert recipe["backbone"]["name"] == "builtin:minilm"
        assert (recipe["train"]["learning_rate"], recipe["train"]["epochs"]) == ("auto", "auto")
        assert recipe["method"] == {"name": "p-tuning-v2", "length": 20}
        assert "{soft" not in recipe["task"]["template"]


def test_a_label_that_only_one_row_has_cannot_be_in_every_fold(tmp_path) -> None:
    lines = ["text,label", *(f"a film {n},good" for n in range(20)), "a bore,bad"]
    (tmp_path / "rows.csv").write_text("\n".join(lines), "utf-8")
    recipe = tomllib.loads(
        draft_recipe(tmp_path / "rows.csv", directory=tmp_path, automatic=True).text
    )
    assert "folds" not in recipe["data"]
    assert recipe["data"]["split_sizes"]["validation"] > 0


def test_a_stopped_fit_resumes_to_the_same_numbers(home, run, backbones, monkeypatch) -> None:
    write_csv(Path("mine.csv"), 60)
    options = ("--backbone", backbones["bert"], *SHORT)
    whole = run("fit", "mine.csv", "--output", "whole", *options)
    assert whole.status == 0, whole.err
    from softprompt.train import api

    judge = api.judge_run

    def stop(*_args, **_options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "judge_run", stop)
    stopped = run("fit", "mine.csv", "--output", "part", *options)
    assert stopped.status == 1
    assert "softprompt resume part" in stopped.err
    monkeypatch.setattr(api, "judge_run", judge)
    resumed = run("resume", "part")
    assert resumed.status == 0, resumed.err
    metrics = RunDir(Path("whole")).read_metrics()
    assert RunDir(Path("part")).read_metrics() == metrics
    assert metrics["verdict"] in resumed.out


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_python_has_it_too(home, run, backbones, monkeypatch) -> None:
    """The recipe is that of the command; the run is then the same."""
    monkeypatch.setattr("softprompt.train.config._AUTO_FOLD_STEPS", 6)
    write_csv(Path("mine.csv"), 16)
    options = ("--backbone", backbones["bert"], "--output", "command", "--quiet")
    result = run("fit", "mine.csv", *options)
    assert result.status == 0, result.err
    model = fit_data("mine.csv", "python", backbone=str(backbones["bert"]))
    one = RunDir(Path("command")).read_metrics()
    assert RunDir(Path("python")).read_metrics() == one
    theirs = PromptModel.from_pretrained("command")
    assert theirs.predict(["a good film"]) == model.predict(["a good film"])


def test_text_to_write_is_trained_without_a_head(home, run, backbones) -> None:
    rows = [
        json.dumps({"text": row["text"], "summary": f"a film {n}"})
        for n, row in enumerate(make_reviews(60, seed=0))
    ]
    Path("texts.jsonl").write_text("\n".join(rows), "utf-8")
    result = run("fit", "texts.jsonl", "--backbone", backbones["llama"], *SHORT, "--quiet")
    assert result.status == 0, result.err
    assert "verdict" not in RunDir(Path("runs/texts")).read_metrics()


def test_slips_are_told_with_a_remedy(home, run, backbones) -> None:
    assert run("fit", "nosuch.csv").is_mistake("no file nosuch.csv")
    write_csv(Path("mine.csv"), 60)
    changed = run("fit", "mine.csv", "--backbone", backbones["bert"], "--set", "train.epoch=3")
    assert changed.is_mistake("train.epoch", "Did you mean")
    Path("taken").mkdir()
    Path("taken/recipe.toml").write_text("seed = 1", "utf-8")
    taken = run("fit", "mine.csv", "--backbone", backbones["bert"], "--output", "taken", *SHORT)
    assert taken.status == 2
    assert Path("taken/recipe.toml").read_text("utf-8") == "seed = 1"


def write_labels(path: Path, **counts: int) -> None:
    """A file with so many rows of each label."""
    rows = make_reviews(sum(counts.values()), seed=0)
    labels = [label.replace("_", " ") for label, count in counts.items() for _ in range(count)]
    lines = [
        f"{row['text']} {n},{label}"
        for n, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    path.write_text("\n".join(["text,label", *lines]), "utf-8")


FEW = {
    "four of two": ({"good": 4, "bad": 4}, 4, (1.0, 0.0)),
    "four of three": ({"good": 4, "bad": 4, "so_so": 4}, 4, (1.0, 0.0)),
    "four and forty": ({"good": 40, "bad": 4}, 4, (1.0, 0.0)),
    "two of two": ({"good": 2, "bad": 2}, 2, (1.0, 0.0)),
    "one and twenty": ({"good": 20, "bad": 1}, None, (0.8, 0.2)),
    "one and four": ({"good": 4, "bad": 1}, None, (1.0, 0.0)),
    "one of two": ({"good": 1, "bad": 1}, None, (1.0, 0.0)),
}


@pytest.mark.parametrize("kind", FEW)
def test_from_few_rows_of_a_label_no_score_is_promised_that_is_none(
    home, run, backbones, kind
) -> None:
    """Every row validates in a fold where that is possible; no row is tested on below 50."""
    counts, folds, (train, validation) = FEW[kind]
    write_labels(Path("few.csv"), **counts)
    result = run("fit", "few.csv", "--backbone", backbones["bert"], *SHORT)
    assert result.status == 0, result.err
    recipe = tomllib.loads(Path("runs/few/recipe.toml").read_text("utf-8"))
    assert recipe["data"].get("folds") == folds
    assert recipe["data"]["split_sizes"] == {"train": train, "validation": validation, "test": 0.0}
    metrics = RunDir(Path("runs/few")).read_metrics()
    assert "test" not in metrics
    assert "test rows" not in result.out
    rows = sum(counts.values())
    if folds is not None:
        assert metrics["cross_validation"]["rows"] == rows
        assert f"of {rows} rows in {folds} folds" in metrics["verdict"]
    elif not validation:
        assert "there are no rows to compare it with a plain head by" in metrics["verdict"]
    for text in (result.out, result.err):
        assert not re.search(r"\b1 (\w+ )?rows\b", text), text


def test_several_seeds_of_few_rows_become_an_ensemble(home, run, backbones) -> None:
    write_csv(Path("mine.csv"), 60)
    whole = ("--set", "train.keep_plain_head=false")
    result = run("fit", "mine.csv", "--seeds", "3", "--backbone", backbones["bert"], *SHORT, *whole)
    assert result.status == 0, result.err
    folder = Path("runs/mine")
    train = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))["train"]
    assert (train["seeds"], train["combine_seeds"]) == (3, "ensemble")
    metrics = RunDir(folder).read_metrics()
    seeds = ["seed-42", "seed-43", "seed-44"]
    assert sorted(path.name for path in (folder / "artifact").iterdir()) == [
        "ensemble.json",
        *seeds,
    ]
    assert "training seed 2 of 3 …" in result.err
    assert "3 seeds (test accuracy " in result.out
    assert "mean of 5 folds of the first seed" in result.out
    # The same folder is evaluated, predicts and is shown, and the numbers are those of the run.
    report = run("evaluate", folder, "--json").json
    assert report["accuracy"] == metrics["test"]["accuracy"]
    assert report["vote"] == "mean"
    assert [Path(member["artifact"]).name for member in report["members"]] == seeds
    by_majority = run("evaluate", folder, "--vote", "majority", "--json").json
    assert by_majority["vote"] == "majority"
    together = run("evaluate", folder, "--ensemble", "--vote", "mean", "--json").json
    assert together["loss"] == report["loss"]
    answers = run("predict", folder, "a good film", "dull").lines
    model = load_model(folder)
    expected = model.predict(["a good film", "dull"])
    assert [answer["label"] for answer in answers] == [one.label for one in expected]
    for answer, one in zip(answers, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
    shown = run("show", folder, "--no-backbone", "--json").json
    assert [one["metrics"]["seed"] for one in shown["artifacts"]] == [42, 43, 44]
    for command in (["push", folder, "ada/mine"], ["export", "npy", folder, "--output", "out"]):
        refused = run(*command)
        assert refused.status == 2
        assert "an ensemble of 3 prompts, but a single one is needed here" in refused.err
    again = run("resume", folder)
    assert "is finished already" in again.err


def test_of_many_rows_the_best_seed_is_kept(tmp_path) -> None:
    write_csv(tmp_path / "rows.csv", 500)
    _, recipe = draft_run(tmp_path / "rows.csv", seeds=5)
    assert (recipe.train.seeds, recipe.train.combine_seeds) == (5, "best")
    _, recipe = draft_run(tmp_path / "rows.csv")
    assert recipe.train.seeds == 1
    with pytest.raises(RecipeError, match=r"train\.seeds: .*greater than or equal to 1|greater"):
        draft_run(tmp_path / "rows.csv", seeds=0)
