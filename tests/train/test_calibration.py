"""Temperatures and thresholds: brute force agrees; runs choose them by validation rows alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from softprompt.artifact import load_artifact
from softprompt.inference import PromptModel
from softprompt.tasks.label_sets import LabelSets, format_label_set
from softprompt.tasks.objectives import Prediction, SingleLabel
from softprompt.train import run_recipe
from softprompt.train.calibration import calibrate, choose_thresholds, fit_temperature


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_the_planted_temperature_is_found(planted) -> None:
    """Labels are drawn from the probabilities at that temperature."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 4)) * 2
    shares = softmax(logits / planted, axis=1)
    targets = [int(random.choice(4, p=row)) for row in shares]
    assert fit_temperature(softmax(logits, axis=1), targets) == pytest.approx(planted, rel=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_of_a_grid_is_better(seed) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(50, 3)) * 3
    targets = random.integers(0, 3, size=50).tolist()
    found = fit_temperature(softmax(logits, axis=1), targets)

    def loss(temperature):
        shares = softmax(logits / temperature, axis=1)
        return -np.log(shares[np.arange(50), targets]).mean()

    assert all(loss(found) <= loss(t) + 1e-6 for t in np.geomspace(0.06, 19, 200))


SHARES = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])


@settings(deadline=None)
@given(st.data())
def test_no_common_threshold_is_better_and_a_label_moves_for_a_reason(data) -> None:
    rows = data.draw(st.integers(1, 12))
    draw = lambda of: data.draw(st.lists(st.tuples(of, of), min_size=rows, max_size=rows))  # noqa: E731
    shares, marks = np.array(draw(SHARES)), np.array(draw(st.booleans()))
    found = choose_thresholds(shares, marks)

    def f1(least, shares, marks):
        chosen = shares >= least
        return 2 * (chosen & marks).sum() / max(1, chosen.sum() + marks.sum())

    grid = np.linspace(0, 1, 101)
    (common,) = choose_thresholds(shares.reshape(-1, 1), marks.reshape(-1, 1))
    if marks.any():
        best = max(f1(least, shares, marks) for least in grid)
        error = (best * (1 - best) / marks.sum()) ** 0.5
        assert f1(common, shares, marks) >= best - error - 1e-9
    for threshold, of_label, wanted in zip(found, shares.T, marks.T, strict=True):
        if wanted.any():
            best = max(f1(least, of_label, wanted) for least in grid)
            error = (best * (1 - best) / wanted.sum()) ** 0.5
            assert f1(threshold, of_label, wanted) >= best - error - 1e-9


def test_a_label_with_few_rows_keeps_the_common_threshold() -> None:
    """Two rows of a rare label are no reason, two hundred are."""
    shares = np.array([[0.3, 0.8]] * 100 + [[0.1, 0.6]] * 100)
    marks = np.zeros((200, 2), dtype=bool)
    marks[:100, 0] = True
    marks[:2, 1] = True
    first, second = choose_thresholds(shares, marks)
    assert first == pytest.approx(0.2)
    assert second == pytest.approx(0.2), "two rows do not tell"
    marks[:100, 1] = True
    assert choose_thresholds(shares, marks)[1] == pytest.approx(0.7)
    assert choose_thresholds(shares, np.zeros((200, 2), dtype=bool)) == (0.5, 0.5)


def test_a_record_says_what_was_chosen_and_what_it_gained() -> None:
    labels = ("a", "b")
    sure = [Prediction("a", {"a": 0.99, "b": 0.01})] * 4
    found, record = calibrate(SingleLabel(labels), ["a", "b", "a", "b"], predictions=sure)
    assert found.temperature > 5, "half of them are wrong"
    assert record.rows == 4
    assert record.chosen == {"temperature": found.temperature}
    assert record.before["ece"] == pytest.approx(0.49)
    assert record.after["ece"] < 0.1
    sets = LabelSets(labels, (0.5, 0.5))
    rows = [("a",), (), ("a",)]
    shares = [{"a": 0.3, "b": 0.1}, {"a": 0.1, "b": 0.1}, {"a": 0.4, "b": 0.1}]
    predictions = [sets.average([Prediction("", share)]) for share in shares]
    found, record = calibrate(
        sets, [format_label_set(row) for row in rows], predictions=predictions
    )
    assert found.thresholds == (pytest.approx(0.2), pytest.approx(0.2)), "b has no row"
    assert record.before["micro_f1"] == 0
    assert record.after["micro_f1"] == 1


def test_a_run_is_calibrated_by_its_validation_rows(parts, tmp_path) -> None:
    settings_ = {"temperature": "auto"}
    prepared = parts("bert", "p-tuning-v2", task="head", task_settings=settings_, sizes=(12, 30, 8))
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run" / "artifact")
    temperature = artifact.manifest.task["temperature"]
    assert artifact.manifest.metrics["calibration"]["temperature"] == temperature
    assert temperature != 1
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = prepared.tables["validation"].to_list()
    task = model.task.with_objective(SingleLabel(model.labels))
    examples = [task.make_example(row) for row in rows]
    shares = np.array([
        [*p.probabilities.values()] for p in task.predict(examples, [model.prompt])
    ])  # fmt: skip
    targets = [model.labels.index(row["label"]) for row in rows]
    assert temperature == pytest.approx(fit_temperature(shares, targets), rel=1e-3)
    cold = [p.label for p in task.predict(examples, [model.prompt])]
    assert [p.label for p in model.predict(rows)] == cold, "no label changes"


def test_test_rows_do_not_calibrate(parts, tmp_path) -> None:
    found = []
    for seed in (1, 2):
        prepared = parts(
            "bert", "p-tuning-v2", task="head", task_settings={"temperature": "auto"},
            sizes=(12, 10), tables={"test": [{"text": "bad", "label": "positive"}] * (4 * seed)},
        )  # fmt: skip
        run_recipe(prepared.recipe, tmp_path / str(seed), prepared=prepared)
        manifest = load_artifact(tmp_path / str(seed) / "artifact").manifest
        found.append(manifest.task["temperature"])
    assert found[0] == found[1]


def test_without_validation_rows_nothing_is_chosen(parts, tmp_path) -> None:
    prepared = parts(
        "bert", "p-tuning-v2", task="head", task_settings={"temperature": "auto"}, sizes=(8,)
    )
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    manifest = load_artifact(tmp_path / "run" / "artifact").manifest
    assert manifest.task["temperature"] == 1
    assert "calibration" not in manifest.metrics
