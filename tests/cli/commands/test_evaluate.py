"""``evaluate`` of one artifact: the scores of scikit-learn, and the faults of data."""

from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from softprompt.inference import PromptModel


def compute_scores(rows: list[dict], model: PromptModel) -> dict[str, object]:
    """The scores by scikit-learn."""
    truth = [row["label"] for row in rows]
    predicted = [next(iter(model.predict([row["text"]]))).label for row in rows]
    labels = ["negative", "positive"]
    return {
        "rows": len(rows),
        "accuracy": pytest.approx(accuracy_score(truth, predicted)),
        "macro_f1": pytest.approx(f1_score(truth, predicted, average="macro")),
        "counts": confusion_matrix(truth, predicted, labels=labels).tolist(),
    }


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_of_the_recipe_is_scored(trained, run, model, split: str) -> None:
    result = run("evaluate", trained.folder, "--split", split, "--json").json
    expected = compute_scores(trained.home.rows(split), model)
    scores = {name: result[name] for name in ("rows", "accuracy", "macro_f1")}
    assert scores | {"counts": result["confusion"]["counts"]} == expected
    recorded = trained.result.json[split]
    assert result["loss"] == pytest.approx(recorded["loss"], abs=1e-6)
    assert result["accuracy"] == recorded["accuracy"]


def test_a_file_is_scored_by_an_artifact_without_its_run(trained, run, model) -> None:
    path = trained.home.path / "train.jsonl"
    result = run("evaluate", trained.folder / "artifact", path, "--json", "--batch-size", "3").json
    expected = compute_scores(trained.home.rows("train"), model)
    assert (result["rows"], result["accuracy"]) == (expected["rows"], expected["accuracy"])


def test_scores_are_a_table_and_a_matrix(trained, run) -> None:
    result = run("evaluate", trained.folder)
    scores = run("evaluate", trained.folder, "--json").json
    rows = [line.split() for line in result.out.splitlines()]
    assert ["accuracy", f"{scores['accuracy']:.4f}"] in rows
    assert ["rows", "12"] in rows
    (first, _) = scores["confusion"]["counts"]
    assert ["negative", *map(str, first)] in rows


def test_data_that_does_not_fit_is_refused(trained, run, tmp_path: Path) -> None:
    folder = trained.folder
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good", "label": "neutral"}\n')
    assert run("evaluate", folder, path).is_mistake("'neutral' (1 row)", "Known labels: negative")
    path.write_text('{"text": "good"}\n')
    assert run("evaluate", folder, path).is_mistake("has no column 'label'")
    path.write_text("")
    assert run("evaluate", folder, path).is_mistake("has no rows")
    assert run("evaluate", folder, "--split", "dev").is_mistake("unknown split 'dev'", "validation")
    path.write_text('{"text": "good", "label": "positive"}\n')
    assert run("evaluate", folder, path, "--split", "test").is_mistake("has no split 'test'")


def test_data_that_has_changed_is_reported(home, run) -> None:
    run("train", home.recipe, "--output", "out", "--quiet")
    home.write("test", home.rows("test")[1:])
    result = run("evaluate", "out", "--json")
    assert (result.status, result.json["rows"]) == (0, 11)
    assert "the test data has changed" in result.err
