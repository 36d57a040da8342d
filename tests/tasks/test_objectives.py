"""Labels, sets of labels and numbers: text forms, losses, predictions and scores by other means."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
)
from torch.nn import functional as F

from softprompt.errors import DataError
from softprompt.tasks.label_sets import (
    LabelSetPrediction,
    LabelSets,
    format_label_set,
    parse_label_set,
)
from softprompt.tasks.metrics import compute_calibration_error, compute_multi_label_metrics
from softprompt.tasks.objectives import FreeText, Prediction, SingleLabel
from softprompt.tasks.regression import (
    NumberPrediction,
    Numbers,
    WordNumbers,
    format_numbers,
    parse_numbers,
)

LABELS = ("a", "b", "c")


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), max_size=4, unique=True))
def test_a_set_of_labels_survives_its_text(labels) -> None:
    assert parse_label_set(format_label_set(labels)) == tuple(labels)
    assert parse_label_set(json.dumps(labels)) == tuple(labels)


@pytest.mark.parametrize(
    ("text", "labels"),
    [("", ()), ("  ", ()), ("[]", ()), ("a|b", ("a", "b")), (" a | b |", ("a", "b")),
     ("a|a", ("a",)), ('["a", "a|b"]', ("a", "a|b")), ("[1, 2]", ("1", "2"))],
)  # fmt: skip
def test_the_forms_of_a_cell_of_labels(text, labels) -> None:
    assert parse_label_set(text) == labels


@pytest.mark.parametrize("text", ["[1", '["a", null]', '[["a"]]', '[""]'])
def test_a_cell_that_is_no_list_of_labels_is_refused(text) -> None:
    with pytest.raises(DataError, match=r"Write \["):
        parse_label_set(text)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3))
def test_numbers_survive_their_text(values) -> None:
    assert parse_numbers(format_numbers(values), count=len(values)) == tuple(values)


@pytest.mark.parametrize("text", ["", "three", "nan", "inf", "1,5", "[]", "[1, null]", '["x"]'])
def test_what_is_no_number_is_refused(text) -> None:
    with pytest.raises(DataError, match=r"is not a number, .* without units"):
        parse_numbers(text)


def test_rows_need_as_many_numbers() -> None:
    with pytest.raises(DataError, match=r"has 2 numbers, but others have 1\. Give each row as"):
        parse_numbers("[1, 2]", count=1)


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), ((3.0, 0.5), 0.0), (None, 0.2)])
def test_the_loss_of_sets_is_that_of_transformers(weights, smoothing) -> None:
    """BCEWithLogitsLoss, the mean over labels of each row (``problem_type`` multi label)."""
    scores = torch.tensor([[0.3, -2.0], [1.5, 0.1], [-0.2, 4.0]])
    wanted = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    sets = LabelSets(("x", "y"), (0.5, 0.5), weights=weights, smoothing=smoothing)
    pos_weight = None if weights is None else torch.tensor(weights)
    plain = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)(scores, wanted)
    found = sets.sum_loss(scores, [(0,), (0, 1), ()])
    assert found.count == 3
    assert float(found.total) / 3 == pytest.approx(float(plain))
    smooth = wanted * (1 - smoothing) + smoothing / 2
    trained = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)(scores, smooth)
    training = sets.sum_loss(scores, [(0,), (0, 1), ()], training=True)
    assert float(training.total) / 3 == pytest.approx(float(trained))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_loss_of_numbers_is_torchs_on_scaled_ones(loss) -> None:
    numbers = Numbers((10.0, -1.0), (2.0, 0.5), loss)
    truth = ["[12, -1.5]", "[4, 0]"]
    targets = [numbers.read_target(text) for text in truth]
    assert targets == [(1.0, -1.0), (-3.0, 2.0)]
    scores = torch.tensor([[0.5, -1.0], [1.0, 0.0]])
    compute = F.mse_loss if loss == "mse" else F.huber_loss
    expected = compute(scores, torch.tensor(targets))
    found = numbers.sum_loss(scores, targets)
    assert float(found.total) / found.count == pytest.approx(float(expected))
    predictions = numbers.to_predictions(scores)
    assert [p.values for p in predictions] == [(11.0, -1.5), (12.0, -1.0)]
    assert predictions[0].label == "[11.0, -1.5]"


def test_the_number_of_words_is_their_expected_value() -> None:
    words = WordNumbers((1.0, 2.0, 5.0), Numbers((2.0,), (3.0,)))
    scores = torch.tensor([[0.0, 0.0, 0.0], [9.0, -9.0, -9.0]])
    shares = scores.softmax(-1).double().numpy()
    expected = shares @ np.array([1.0, 2.0, 5.0])
    found = [p.values[0] for p in words.to_predictions(scores)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    loss = words.sum_loss(scores, [words.read_target("2"), words.read_target("5")])
    errors = (expected - np.array([2.0, 5.0])) / 3
    assert float(loss.total) == pytest.approx(float((errors**2).sum()), rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_metrics_of_sets_are_scikit_learns(data) -> None:
    sets = st.lists(st.sampled_from(LABELS), unique=True, max_size=3)
    rows = data.draw(st.integers(1, 12))
    truth = data.draw(st.lists(sets, min_size=rows, max_size=rows))
    found = data.draw(st.lists(sets, min_size=rows, max_size=rows))
    shares = data.draw(
        st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=rows, max_size=rows)
    )
    marks = [np.array([[n in row for n in LABELS] for row in side]) for side in (truth, found)]
    metrics = compute_multi_label_metrics(truth, found, labels=LABELS, probabilities=shares)
    for average in ("micro", "macro"):
        expected = f1_score(*marks, average=average, zero_division=0.0)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    expected = f1_score(*marks, average="samples", zero_division=1.0)
    assert metrics["samples_f1"] == pytest.approx(expected)
    assert metrics["accuracy"] == pytest.approx((marks[0] == marks[1]).all(1).mean())
    present = marks[0].any(0)
    if present.any():
        expected = np.mean([
            average_precision_score(marks[0][:, at], np.array(shares)[:, at])
            for at in np.flatnonzero(present)
        ])  # fmt: skip
        assert metrics["mean_average_precision"] == pytest.approx(expected)
    else:
        assert "mean_average_precision" not in metrics
    classes = LabelSets(LABELS, (0.5,) * 3).score(
        [format_label_set(row) for row in truth],
        [Prediction(format_label_set(row), {}) for row in found],
    ).classes  # fmt: skip
    by_label = precision_recall_fscore_support(*marks, zero_division=0.0)
    assert [(c.precision, c.recall, c.f1) for c in classes] == [
        pytest.approx(column[:3]) for column in zip(*by_label, strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=20))
def test_metrics_of_numbers_are_those_of_the_libraries(pairs) -> None:
    truth, found = (list(map(float, column)) for column in zip(*pairs, strict=True))
    assume(len({*truth}) > 1 and len({*found}) > 1)
    numbers = Numbers((0.0,), (1.0,))
    texts = [format_numbers([value]) for value in truth]
    predictions = [NumberPrediction(format_numbers([v]), {}, values=(v,)) for v in found]
    metrics = numbers.score(texts, predictions).metrics
    assert metrics["pearson"] == pytest.approx(pearsonr(truth, found).statistic, abs=1e-9)
    assert metrics["spearman"] == pytest.approx(spearmanr(truth, found).statistic, abs=1e-9)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, found))
    assert metrics["r2"] == pytest.approx(r2_score(truth, found))
    rows = numbers.score_rows(texts, [p.label for p in predictions])
    assert math.fsum(rows) / len(rows) == pytest.approx(r2_score(truth, found))


def test_numbers_that_do_not_vary_have_no_correlation_and_no_error() -> None:
    numbers = Numbers((0.0,), (1.0,))
    metrics = numbers.score(["2", "2"], [NumberPrediction("2.0", {}, values=(2.0,))] * 2).metrics
    assert metrics == {"pearson": 0.0, "spearman": 0.0, "mae": 0.0, "rmse": 0.0, "r2": 0.0}


def test_a_threshold_belongs_to_its_label_and_is_reached() -> None:
    sets = LabelSets(LABELS, (0.2, 0.5, 0.9))
    found = sets.to_predictions(torch.tensor([[0.3, 0.5, 0.89]]).logit())[0]
    assert isinstance(found, LabelSetPrediction)
    assert found.labels in {("a",), ("a", "b")}, "0.5 up to rounding"
    exact = sets.average([Prediction("", {"a": 0.2, "b": 0.5, "c": 0.9})])
    assert exact.labels == LABELS
    assert sets.average([Prediction("", dict.fromkeys(LABELS, 0.1))]).label == ""


def test_the_mean_of_prompts_is_that_of_their_probabilities() -> None:
    scores = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    sets = LabelSets(("a", "b"), (0.5, 0.5))
    mean = scores.sigmoid().mean(0)
    targets = [(0,), (), (1,), (0, 1)]
    wanted = torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, 1]])
    expected = F.binary_cross_entropy(mean, wanted, reduction="none").mean(1).sum()
    assert float(sets.sum_averaged_loss(scores, targets).total) == pytest.approx(float(expected))
    numbers = Numbers((0.0, 0.0), (1.0, 1.0))
    values = [(0.1, 0.2), (1.0, 0.0), (0.0, 0.5), (0.3, 0.3)]
    expected = F.mse_loss(scores.mean(0), torch.tensor(values), reduction="sum") / 2
    found = numbers.sum_averaged_loss(scores, values).total
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    each = [numbers.to_predictions(part) for part in scores]
    for row in range(4):
        found = numbers.average([member[row] for member in each]).values
        assert found == pytest.approx(scores[:, row].mean(0).tolist(), abs=1e-6)


def test_a_temperature_divides_the_scores_and_the_loss() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 4.0]])
    warm = SingleLabel(LABELS, temperature=2.0)
    found = warm.to_predictions(scores)
    shares = (scores / 2).softmax(-1)
    assert [[*p.probabilities.values()] for p in found] == [
        pytest.approx(row) for row in shares.tolist()
    ]
    loss = warm.sum_loss(scores, [0, 1])
    expected = F.cross_entropy(scores / 2, torch.tensor([0, 1]), reduction="sum")
    assert float(loss.total) == pytest.approx(float(expected))
    # The mean of one prompt is the prompt.
    assert float(warm.sum_averaged_loss(scores[None], [0, 1]).total) == pytest.approx(
        float(expected)
    )


def test_an_abstention_keeps_the_label_and_says_so() -> None:
    careful = SingleLabel(LABELS, abstain_below=0.6)
    scores = torch.tensor([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.2, 0.0]])
    predictions = careful.to_predictions(scores)
    assert [p.abstained for p in predictions] == [False, True, True]
    assert [p.label for p in predictions] == ["a", "a", "b"]
    assert predictions[1].details == {"abstained": True}
    metrics = careful.score(["a", "a", "a"], predictions).metrics
    assert metrics["coverage"] == pytest.approx(1 / 3)
    assert metrics["selective_accuracy"] == 1
    assert metrics["accuracy"] == pytest.approx(2 / 3), "over all rows"


def test_the_calibration_error_by_hand() -> None:
    """Bins of a tenth: 0.62 and 0.68 are in one, of which half are right; 0.95 is right."""
    found = compute_calibration_error([0.62, 0.68, 0.95], [True, False, True], bins=10)
    assert found == pytest.approx((2 * abs(0.65 - 0.5) + abs(0.95 - 1)) / 3)
    assert compute_calibration_error([0.7, 0.7, 0.7], [True, True, False], bins=10) == (
        pytest.approx(abs(0.7 - 2 / 3))
    )
    assert compute_calibration_error([1.0, 1.0], [True, True]) == 0
    # The end of a bin belongs to it.
    assert compute_calibration_error([0.5, 0.51], [True, False], bins=2) == pytest.approx(
        (0.5 + 0.51) / 2
    )
    with pytest.raises(DataError, match="1 probabilities of 0 rows"):
        compute_calibration_error([0.5], [])


def test_the_best_constant_answer() -> None:
    assert SingleLabel(LABELS).choose_constant(["b", "a", "b", "a"]) == "a", "the alphabet decides"
    assert FreeText().choose_constant(["x y", "x y", "z"]) == "x y"
    assert parse_numbers(Numbers((0.0,), (1.0,)).choose_constant(["1", "4"])) == (2.5,)
    rows = ["a|b", "a", "a|c", ""]
    assert LabelSets(LABELS, (0.5,) * 3).choose_constant(rows) == "a"
    sparse = ["", "", "", "a"]
    assert LabelSets(LABELS, (0.5,) * 3).choose_constant(sparse) == ""
