"""Cross-validation: folds, their scores, the number of steps they choose, and resuming."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from softprompt import Classify, DataError, TrainingConfig, fit, load_backbone, make_recipe
from softprompt.artifact import load_artifact
from softprompt.data.splits import divide_into_folds
from softprompt.errors import ArtifactError, RecipeError
from softprompt.sklearn import SoftPromptClassifier
from softprompt.train import FoldProgress, RunDir, run_recipe, train_recipe
from softprompt.train.accelerator import make_accelerator
from softprompt.train.folds import CrossValidation, FoldScores, train_folds
from softprompt.train.setup import settle_head, settle_readout
from softprompt.train.validation import check_recipe
from support.recipes import make_recipe_data

METHODS = {
    "prompt-tuning": ("llama", "prompt-tuning"),
    "p-tuning": ("llama", "p-tuning"),
    "prefix with a head": ("bert", "p-tuning-v2"),
}


def make_folds(rows: list[dict], folds: int, **columns: str) -> list[list[int]]:
    return divide_into_folds(Dataset.from_list(rows), folds, seed=3, **columns)


@given(st.lists(st.sampled_from("abc"), min_size=5, max_size=60), st.integers(2, 5))
def test_every_row_is_in_one_fold_and_labels_are_shared_out(labels, count) -> None:
    rows = [{"text": str(n), "label": label} for n, label in enumerate(labels)]
    folds = make_folds(rows, count, stratify="label")
    assert sorted(index for fold in folds for index in fold) == [*range(len(rows))]
    sizes = [len(fold) for fold in folds]
    assert len(folds) == count
    assert max(sizes) - min(sizes) <= 1
    for label in {*labels}:
        shares = [Counter(labels[index] for index in fold)[label] for fold in folds]
        assert max(shares) - min(shares) <= 1


@given(st.lists(st.sampled_from("uvwxyz"), min_size=12, max_size=40))
def test_groups_stay_whole(groups) -> None:
    rows = [{"text": str(n), "label": "a", "user": user} for n, user in enumerate(groups)]
    if len({*groups}) < 3:
        with pytest.raises(DataError, match="3 folds need as many values of 'user'"):
            make_folds(rows, 3, group="user")
        return
    folds = make_folds(rows, 3, group="user", stratify="label")
    users = [{groups[index] for index in fold} for fold in folds]
    assert sum(map(len, users)) == len({*groups})


def test_fewer_rows_than_folds_are_refused() -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    with pytest.raises(DataError, match="3 folds need as many rows, but there are 2"):
        make_folds(rows, 3)


def test_mean_spread_and_choice_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    losses, rows = generator.random((3, 5)), [4, 5, 3]
    progress = np.linspace(0, 1, 5)
    folds = [
        FoldScores(count, tuple(progress), tuple({"loss": value} for value in fold))
        for count, fold in zip(rows, losses.tolist(), strict=True)
    ]
    means = np.average(losses, axis=0, weights=rows)
    result = CrossValidation.from_folds(folds, "loss")
    assert result.chosen == means.argmin()
    assert result.progress == pytest.approx(progress[means.argmin()])
    assert result.metrics["loss"] == pytest.approx(means.min())
    assert result.spread["loss"] == pytest.approx(losses[:, means.argmin()].std(ddof=1))
    again = [FoldScores.from_data(json.loads(json.dumps(fold.as_data()))) for fold in folds]
    assert again == folds


@pytest.fixture
def with_folds(backbone, rows):
    """The parts of a run on 12 rows with 3 folds, new each time."""
    from softprompt.train import setup_run

    def make(name: str = "prompt-tuning", **changes):
        family, method = METHODS[name]
        task = "head" if "head" in name else "words"
        data = make_recipe_data(family, method, task=task, **changes)
        data["data"]["folds"] = 3
        tables = {"train": Dataset.from_list(rows(12)), "test": Dataset.from_list(rows(4, 2))}
        return setup_run(make_recipe(data), backbone=backbone(family), tables=tables)

    return make


def score_folds(prepared) -> list[FoldScores]:
    accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
    return [*train_folds(prepared, accelerator, callbacks=[])]


@pytest.mark.parametrize("name", METHODS)
def test_each_fold_scores_as_a_run_of_its_own(with_folds, trainer_of, name) -> None:
    """Whatever the folds before it trained: prompt and head begin at the same start."""
    found = score_folds(with_folds(name))
    for number, fold in enumerate(with_folds(name).folds):
        prepared = with_folds(name)  # a new start
        table = prepared.rows["train"]
        others = [index for index in range(12) if index not in fold]

        def take(indices, table=table):
            return replace(
                table,
                examples=[table.examples[i] for i in indices],
                truth=[table.truth[i] for i in indices],
            )

        alone = replace(prepared, rows={"train": take(others), "validation": take([*fold])})
        trainer = trainer_of(settle_head(alone))
        reports = [event.report for event in trainer.run() if hasattr(event, "report")]
        assert [report.metrics for report in reports] == [*found[number].metrics]
        assert found[number].rows == len(fold) == reports[0].rows


@pytest.mark.parametrize("name", METHODS)
def test_the_prompt_is_that_of_all_rows_after_the_chosen_steps(
    with_folds, trainer_of, name, tmp_path
) -> None:
    prepared = with_folds(name, epochs=4)
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    chosen = metrics["cross_validation"]["progress"]
    assert metrics["steps"] == round(chosen * 12)  # 12 rows, 4 a step, 4 epochs
    assert metrics["validation"] == {}
    # The same steps by hand, with the readout and head of the run, and the schedule of all steps.
    prepared = settle_head(settle_readout(with_folds(name, epochs=4)))
    trainer = trainer_of(replace(prepared, folds=()))
    for _ in range(metrics["steps"]):
        trainer.train_step()
    expected = trainer.get_best()
    artifact = load_artifact(tmp_path / "run")
    for key, tensor in expected.prompt.to_tensors().items():
        assert torch.equal(artifact.prompt.to_tensors()[key], tensor), key
    assert all(torch.equal(artifact.head[key], value) for key, value in expected.head.items())
    assert artifact.manifest.metrics["cross_validation"] == metrics["cross_validation"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that is not stopped, which is made once."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize("stop", [3, 9, 14, 30])
def test_a_stopped_run_resumes_to_the_same_numbers(with_folds, tmp_path, whole, stop) -> None:
    """Stopped in the first and second fold, and while training on all rows."""
    if not whole.exists():
        prepared = with_folds("p-tuning", epochs=4)
        run_recipe(prepared.recipe, whole, prepared=prepared)
    seen = 0

    def watch(_event) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise KeyboardInterrupt

    first = with_folds("p-tuning", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(first.recipe, tmp_path / "run", prepared=first, callbacks=[watch])
    second, events = with_folds("p-tuning", epochs=4), []
    run_recipe(
        second.recipe, tmp_path / "run", prepared=second, resume=True, callbacks=[events.append]
    )
    finished = json.loads((tmp_path / "run" / "folds.json").read_text())["folds"]
    again = {event.fold for event in events if isinstance(event, FoldProgress)}
    assert len(finished) == 3
    # A finished fold is not trained again.
    assert again == {*range(4 - len(again), 4)}
    for name in ("metrics.json", "folds.json"):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text()
    one, other = load_artifact(tmp_path / "run"), load_artifact(whole)
    assert one.manifest == other.manifest
    assert all(torch.equal(one.to_tensors()[k], v) for k, v in other.to_tensors().items())


def test_folds_of_another_recipe_or_rows_are_refused(with_folds, tmp_path) -> None:
    def stop(event) -> None:
        if isinstance(event, FoldProgress) and event.fold == 2:
            raise KeyboardInterrupt

    first = with_folds(epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(first.recipe, tmp_path / "run", prepared=first, callbacks=[stop])
    for changes in ({"epochs": 3}, {"learning_rate": 0.5}):
        other = with_folds(**changes)
        with pytest.raises(ArtifactError, match=f"train.{next(iter(changes))}.*train again"):
            run_recipe(other.recipe, tmp_path / "run", prepared=other, resume=True)
    other = with_folds(epochs=2)
    moved = replace(other, hashes={"train": "0"})
    with pytest.raises(ArtifactError, match="something else: the rows"):
        run_recipe(other.recipe, tmp_path / "run", prepared=moved, resume=True)
    (tmp_path / "run" / "folds.json").write_text('{"recipe": 5}')
    with pytest.raises(ArtifactError, match=r"folds.json is not JSON with a digest.*Remove it"):
        run_recipe(first.recipe, tmp_path / "run", prepared=with_folds(epochs=2), resume=True)


def test_where_the_start_is_best_it_is_said(with_folds, tmp_path) -> None:
    # Nothing moves, and of equal validations the first one is chosen.
    prepared = with_folds(optimizer="sgd", learning_rate=1e-30, epochs=1)
    warned = []
    run_recipe(
        prepared.recipe,
        tmp_path / "run",
        prepared=prepared,
        callbacks=[lambda event: warned.append(getattr(event, "message", ""))],
    )
    metrics = RunDir(tmp_path / "run").read_metrics()
    assert metrics["steps"] == 0
    assert "nothing was learned: the best mean of all folds" in metrics["warnings"][-1]
    assert metrics["warnings"][-1] in warned


TASK = Classify("{soft:3}{text} movie", verbalizer={"negative": " bad", "positive": " good"})


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_fit_cross_validates_as_a_recipe_does(saved, rows, tmp_path) -> None:
    folder, config = str(saved("llama")), TrainingConfig(seed=7, epochs=2, batch_size=4)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(12))), "utf-8")
    recipe = make_recipe(
        {
            "seed": 7,
            "backbone": {"name": folder, "device": "cpu", "dtype": "float32"},
            "data": {
                "train": str(path),
                "folds": 3,
                "split_sizes": {"train": 1.0, "validation": 0.0, "test": 0.0},
            },
            "task": {
                "kind": "classify",
                "template": TASK.template,
                "verbalizer": dict(TASK.verbalizer),
            },
            "method": {"name": "prompt-tuning"},
            "train": config.as_table(),
        }
    )
    theirs = train_recipe(recipe, tmp_path / "run").artifact
    backbone = load_backbone(folder, device="cpu", dtype="float32")
    ours = fit(backbone, TASK, rows(12), config=config, folds=3).artifact
    scores = theirs.manifest.metrics["cross_validation"]
    assert ours.manifest.metrics["cross_validation"] == scores
    assert all(torch.equal(ours.to_tensors()[k], v) for k, v in theirs.to_tensors().items())
    plan = check_recipe(recipe).plan
    assert any("trains 3 times on all rows but one fold" in note for note in plan.notes)


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_the_estimator_cross_validates_too(saved, rows) -> None:
    train = rows(12)
    texts, labels = [row["text"] for row in train], [row["label"] for row in train]
    classifier = SoftPromptClassifier(
        str(saved("llama")),
        template="{soft:3}{text} movie",
        verbalizer={"negative": " bad", "positive": " good"},
        folds=3,
        epochs=2,
        batch_size=4,
    )
    manifest = classifier.fit(texts, labels).model_.artifact.manifest
    assert manifest.data["train"]["rows"] == 12
    scores = manifest.metrics["cross_validation"]
    assert (scores["folds"], scores["rows"]) == (3, 12)


def test_validation_rows_and_folds_at_once_are_refused(saved, rows) -> None:
    backbone = load_backbone(str(saved("llama")), device="cpu", dtype="float32")
    with pytest.raises(DataError, match="Leave one of them out"):
        fit(backbone, TASK, rows(12), validation=0.2, folds=3)
    splits = {"train": rows(12), "validation": rows(4, 1)}
    with pytest.raises(DataError, match="Leave one of them out"):
        fit(backbone, TASK, splits, folds=3)
    data = make_recipe_data(early_stopping_patience=2)
    data["data"] |= {"folds": 3, "validation": "rows.jsonl"}
    with pytest.raises(RecipeError) as error:
        make_recipe(data)
    keys = {fault.partition(":")[0] for fault in error.value.faults}
    assert keys == {"data.folds", "train.early_stopping_patience"}


@pytest.mark.usefixtures("draws")
def test_folds_are_drawn_where_no_rows_validate(with_folds, tmp_path, monkeypatch) -> None:
    """Each point of the line is the mean of the folds, weighted by their rows."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        drawn.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    made = with_folds(learning_rate=0.05, epochs=3)
    run_recipe(made.recipe, tmp_path / "run", prepared=made)
    folds = json.loads((tmp_path / "run" / "folds.json").read_text())["folds"]
    _, metrics = drawn[0].axes
    (line,) = [one for one in metrics.lines if one.get_label() == "accuracy, mean of 3 folds"]
    rows = [fold["rows"] for fold in folds]
    means = [
        np.average([fold["metrics"][at]["accuracy"] for fold in folds], weights=rows)
        for at in range(len(folds[0]["metrics"]))
    ]
    assert [*line.get_ydata()] == pytest.approx(means)
    assert metrics.get_xlabel() == "share of the longest training"
