"""What makes scores say less than they seem to is reported wherever a run starts."""

import json

import pytest
from datasets import Dataset

from softprompt import Classify, SoftpromptWarning, TrainingConfig, check_recipe, fit, train_recipe
from softprompt.data import read_splits
from softprompt.recipe import make_recipe, read_recipe
from softprompt.sklearn import SoftPromptClassifier
from softprompt.train import PhaseStarted, TrainingWarning, run_recipe, setup_run
from softprompt.train.datasets import get_task_columns
from softprompt.train.run_dir import RunDir
from support.reviews import write_rows

TASK = Classify("{soft:3}{text} movie", verbalizer={"negative": " bad", "positive": " good"})


def warnings_of(prepared) -> str:
    return "\n".join(prepared.warnings)


def test_rows_in_two_splits_are_reported(parts, rows):
    train, test = rows(60, 0), rows(55, 2)
    copies = [train[3], {**train[8], "text": f" {train[8]['text'].upper()} "}]
    test = [row for row in test if row["text"] not in {r["text"] for r in train}]
    prepared = parts(sizes=(60,), tables={"train": train, "test": [*test, *copies]})
    (shared,) = [text for text in prepared.warnings if "have their text" in text]
    assert (
        f"2 of {len(test) + 2} test rows have their text in the train data too, 1 of them in"
        in (shared)
    )
    assert f"the first is row {len(test)} " in shared


def test_labels_without_rows_are_reported(parts, rows):
    positive = [row for row in rows(120, 1) if row["label"] == "positive"]
    prepared = parts(sizes=(60,), tables={"validation": positive})
    assert "the validation data has no row with the label 'negative': its macro_f1 counts it" in (
        warnings_of(prepared)
    )


def test_enough_rows_of_their_own_are_no_warning(parts, rows):
    numbered = {
        name: [{**row, "text": f"{row['text']} {name} {at}"} for at, row in enumerate(rows(60, 0))]
        for name in ("train", "validation", "test")
    }
    assert parts(tables=numbered, sizes=()).warnings == ()


@pytest.mark.filterwarnings("ignore:nothing was learned", "ignore:the prediction is")
def test_every_door_reports_few_rows(backbone, rows, written, tmp_path):
    config = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.05)
    with pytest.warns(SoftpromptWarning, match="few rows: 5 validation rows to choose"):
        fit(backbone("llama"), TASK, rows(20), validation=rows(5, 1), config=config)
    texts, labels = zip(*((row["text"], row["label"]) for row in rows(40)), strict=True)
    classifier = SoftPromptClassifier(backbone("llama"), template=TASK.template, epochs=1)
    classifier.set_params(verbalizer=dict(TASK.verbalizer), batch_size=8)
    with pytest.warns(SoftpromptWarning, match="few rows: 4 validation rows to choose"):
        classifier.fit([*texts], [*labels])
    recipe = read_recipe(written(), ["train.epochs=1"])
    plan = check_recipe(recipe).plan
    assert plan.warnings[0].startswith("few rows: 5 validation rows to choose the best prompt by ")
    with pytest.warns(SoftpromptWarning, match="few rows: 5 validation rows to choose .* 4 test"):
        train_recipe(recipe, tmp_path / "run")
    assert RunDir(tmp_path / "run").read_metrics()["warnings"][: len(plan.warnings)] == [
        *plan.warnings
    ]


def test_a_run_that_does_not_leave_its_start_says_so(parts, tmp_path):
    """At the end, in the metrics, and the artifact is the start, bit for bit."""
    prepared, seen = parts(optimizer="sgd", learning_rate=1e-30), []
    start = prepared.method().vectors.detach().clone()
    model = run_recipe(
        prepared.recipe, tmp_path / "run", callbacks=[seen.append], prepared=prepared
    )
    *_, last, _finished = [event for event in seen if not isinstance(event, PhaseStarted)]
    assert isinstance(last, TrainingWarning)
    loss = model.artifact.manifest.metrics["validation"]["loss"]
    assert last.message.startswith(
        f"nothing was learned: the best validation loss, {loss:.4f}, is that of the start"
    )
    metrics = RunDir(tmp_path / "run").read_metrics()
    assert (metrics["best_step"], metrics["warnings"][-1]) == (0, last.message)
    assert (model.prompt.vectors == start).all()


def test_a_run_that_learns_says_nothing_of_the_kind(parts, tmp_path):
    prepared, seen = parts(task="head", learning_rate=0.05, epochs=4), []
    run_recipe(prepared.recipe, tmp_path / "run", callbacks=[seen.append], prepared=prepared)
    metrics = RunDir(tmp_path / "run").read_metrics()
    messages = [event.message for event in seen if isinstance(event, TrainingWarning)]
    learned = metrics["best_step"] > 0
    assert learned == (not any("nothing was learned" in message for message in messages))


def test_duplicates_are_dropped_from_what_is_trained_on(tmp_path, rows):
    numbered = [{**row, "text": f"{row['text']} {at}"} for at, row in enumerate(rows(60, 0))]
    copies = [{**row, "text": row["text"].upper()} for row in numbered[:5]]
    paths = {
        "train": str(write_rows(tmp_path / "train.jsonl", numbered)),
        "test": str(write_rows(tmp_path / "test.jsonl", [*copies, *rows(5, 1)])),
    }
    data = {
        "backbone": {"name": "llama"},
        "data": {**paths, "drop_duplicates": True},
        "task": {"kind": "classify", "template": "{soft:3}{text}"},
        "method": {"name": "prompt-tuning"},
    }
    recipe = make_recipe(data)
    columns = get_task_columns(recipe.task_settings)
    splits = read_splits(recipe.data, seed=1, columns=columns)
    assert {name: len(table) for name, table in splits.items()}["test"] == 10
    assert len(splits["train"]) + len(splits["validation"]) == 55
    kept = {text for name in ("train", "validation") for text in splits[name]["text"]}
    assert kept == {row["text"] for row in numbered[5:]}


def test_splits_are_stratified_by_the_label_in_every_door(tmp_path, rows, backbone):
    """In a recipe, in fit, and when an artifact reads its test split again."""
    table = [{"text": f"row {at}", "label": "rare" if at % 10 else "often"} for at in range(100)]
    path = write_rows(tmp_path / "rows.jsonl", table)
    data = {
        "seed": 3,
        "backbone": {"name": "llama"},
        "data": {"train": str(path)},
        "task": {"kind": "classify", "template": "{soft:3}{text}"},
        "method": {"name": "prompt-tuning"},
        "train": {"epochs": 1},
    }
    own = backbone("llama")
    prepared = setup_run(make_recipe(data), backbone=own)
    in_memory = setup_run(
        make_recipe(data), backbone=own, tables={"train": Dataset.from_list(table)}
    )
    for made in (prepared, in_memory):
        shares = {
            name: [part.truth.count(label) for label in ("often", "rare")]
            for name, part in made.rows.items()
        }
        assert shares == {"train": [8, 72], "validation": [1, 9], "test": [1, 9]}
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    hashes = json.loads((tmp_path / "run" / "artifact" / "manifest.json").read_text())["data"]
    assert len(model.read_split("test")) == hashes["test"]["rows"] == 10  # else it would warn
