"""``evaluate`` of one artifact: the scores of scikit-learn, and the faults of data."""

from pathlib import Path

import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from softprompt.cli.commands.evaluate import _describe_classes, _format_classes
from softprompt.inference import EvaluationReport, PromptModel, compute_confusion_matrix
from softprompt.tasks.metrics import compute_class_scores


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
    low, high = binomtest(round(12 * scores["accuracy"]), 12).proportion_ci(method="wilson")
    interval = ["95", "%", "interval", f"{low:.2f}", "to", f"{high:.2f}"]
    assert ["accuracy", f"{scores['accuracy']:.4f}", *interval] in rows
    assert scores["intervals"]["accuracy"] == pytest.approx([low, high])
    assert ["rows", "12"] in rows
    (f1,) = [one["f1"] for one in scores["classes"] if one["label"] == "positive"]
    assert ["f1", f"{f1:.4f}", "of", "'positive',", "the", "second", "label"] in rows
    assert "without rows" not in result.out
    (first, _) = scores["confusion"]["counts"]
    assert ["negative", *map(str, first)] in rows


def test_each_label_has_its_scores(trained, run, model) -> None:
    rows = trained.home.rows("test")
    truth = [row["label"] for row in rows]
    predicted = [answer.label for answer in model.predict([row["text"] for row in rows])]
    expected = classification_report(truth, predicted, output_dict=True, zero_division=0)
    found = run("evaluate", trained.folder, "--json").json
    for scores in found["classes"]:
        one = expected[scores["label"]]
        numbers = [scores[name] for name in ("precision", "recall", "f1", "rows")]
        assert numbers == pytest.approx(
            [one[name] for name in ("precision", "recall", "f1-score", "support")]
        )
    lines = [line.split() for line in run("evaluate", trained.folder).out.splitlines()]
    for scores in found["classes"]:
        numbers = [f"{scores[name]:.4f}" for name in ("precision", "recall", "f1")]
        counts = [str(scores["rows"]), str(scores["predicted"])]
        assert [scores["label"], *numbers, *counts] in lines
    for pair in found["confusions"]:
        cells = [pair["label"], "→", pair["predicted"], str(pair["rows"]), f"{pair['share']:.1%}"]
        assert cells in lines


def test_two_hundred_labels_have_a_table_too() -> None:
    labels = [f"l{n}" for n in range(200)]
    truth = [label for label in labels for _ in range(3)]
    # Every third row of a label is predicted as the next label.
    predicted = [labels[(n // 3 + (n % 3 == 2)) % 200] for n in range(600)]
    confusion = compute_confusion_matrix(truth, predicted, labels=labels)
    classes = compute_class_scores(confusion)
    report = EvaluationReport(600, {"loss": 1.0}, confusion, classes=classes)
    described = _describe_classes(report)
    lines = [line.split() for line in _format_classes(described).splitlines()]
    assert all([label, "0.6667", "0.6667", "0.6667", "3", "3"] in lines for label in labels)
    assert ["l0", "→", "l1", "1", "33.3%"] in lines
    assert lines[-1] == ["…", "and", "190", "more:", "see", "--json"]


def test_labels_without_rows_are_named_beside_macro_f1(trained, run, tmp_path: Path) -> None:
    """Half of the mean of a label that is always right and of one that no row has."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good", "label": "positive"}\n' * 3)
    result = run("evaluate", trained.folder, path)
    assert "macro_f1 counts a label without rows as 0: negative\n" in result.out
    scores = run("evaluate", trained.folder, path, "--json").json
    assert scores["macro_f1"] == scores["f1"] / 2


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
