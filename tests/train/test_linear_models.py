"""Linear models of sets of labels and numbers: scikit-learn's; folds never see their rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from softprompt.tasks.label_sets import LabelSets, format_label_set
from softprompt.tasks.regression import Numbers, format_numbers
from softprompt.train.linear_models import (
    _fit_logits,
    _fit_numbers,
    divide_rows,
    fit_linear_model,
    list_fold_parts,
)

RANDOM = np.random.default_rng(3)
STATES = RANDOM.normal(size=(60, 5)) * [1, 5, 0.2, 3, 1] + 2
VALUES = STATES @ RANDOM.normal(size=(5, 2)) + RANDOM.normal(size=(60, 2)) * 0.1
MARKS = VALUES.mean(0) < VALUES
SETS = LabelSets(("a", "b"), (0.5, 0.5))
NUMBERS = Numbers((0.0, 0.0), (1.0, 1.0))
SET_TEXTS = [format_label_set([n for n, m in zip("ab", row, strict=True) if m]) for row in MARKS]
NUMBER_TEXTS = [format_numbers(row.tolist()) for row in VALUES]


def test_numbers_are_fitted_as_ridge_does() -> None:
    weight, bias = _fit_numbers(STATES, VALUES, 10.0)
    scaler = StandardScaler().fit(STATES)
    ridge = Ridge(alpha=10.0).fit(scaler.transform(STATES), VALUES)
    expected = ridge.predict(scaler.transform(STATES))
    np.testing.assert_allclose(STATES @ weight.T + bias, expected, atol=1e-8)


def test_each_label_is_fitted_as_logistic_regression_does() -> None:
    weight, bias = _fit_logits(STATES, MARKS.astype(float), 0.1)
    scaled = StandardScaler().fit_transform(STATES)
    for label in range(2):
        found = LogisticRegression(C=0.1, max_iter=1000).fit(scaled, MARKS[:, label])
        np.testing.assert_allclose(
            STATES @ weight[label] + bias[label], found.decision_function(scaled), atol=1e-6
        )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_label_that_all_rows_have_or_none_is_predicted_so(value) -> None:
    marks = np.column_stack([MARKS[:, 0].astype(float), np.full(60, value)])
    weight, bias = _fit_logits(STATES, marks, 1.0)
    assert (weight[1] == 0).all()
    assert (bias[1] > 0) == (value == 1.0)


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize(("objective", "truth"), [(SETS, SET_TEXTS), (NUMBERS, NUMBER_TEXTS)])
def test_unseen_scores_are_those_of_models_without_the_rows(objective, truth, is_normalized):
    folds = divide_rows(truth, objective, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == [*range(60)]
    parts = list_fold_parts(truth, folds, objective=objective)
    states = STATES / np.linalg.norm(STATES, axis=1, keepdims=True) if is_normalized else STATES
    found = fit_linear_model(
        states, truth, objective=objective, parts=parts, is_normalized=is_normalized
    )
    scale = 5**0.5 if is_normalized else 1.0
    fit = _fit_logits if objective is SETS else _fit_numbers
    targets = MARKS.astype(float) if objective is SETS else VALUES
    at = 0
    for rows, judge in parts:
        weight, bias = fit(states[rows] * scale, targets[rows], found.settings["strength"])
        expected = states[judge] * scale @ weight.T + bias
        np.testing.assert_allclose(found.unseen[at : at + len(judge)], expected, atol=1e-4)
        at += len(judge)
    weight, bias = fit(states * scale, targets, found.settings["strength"])
    np.testing.assert_allclose(
        found.score(states * scale), states * scale @ weight.T + bias, atol=1e-4
    )


def test_noise_gets_a_strong_regularization_and_a_line_a_weak_one() -> None:
    noise = [format_numbers(row) for row in RANDOM.normal(size=(60, 1)).tolist()]
    line = [format_numbers([row[0] * 2]) for row in STATES.tolist()]
    one = Numbers((0.0,), (1.0,))
    strengths = []
    for truth in (noise, line):
        parts = list_fold_parts(truth, divide_rows(truth, one, seed=0), objective=one)
        model = fit_linear_model(STATES, truth, objective=one, parts=parts, is_normalized=False)
        strengths.append(model.settings["strength"])
    assert strengths[0] > 100 * strengths[1]
