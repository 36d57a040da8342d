"""The features are those of transformers, and the fit is that of scikit-learn."""

import numpy as np
import pytest
import torch

from softprompt.compare import FeatureReader, fit_probe
from softprompt.tasks.objectives import SingleLabel

OBJECTIVE = SingleLabel(("n", "p"))
TEXTS = ["good film", "a bad movie and a bad film", "the great movie was good", "it was bad"] * 3
ROWS = [{"text": t, "label": "n" if "bad" in t else "p"} for t in TEXTS]


def fit(reader, train, validation):
    truth = [[row["label"] for row in rows] for rows in (train, validation)]
    return fit_probe(reader, train=train, validation=validation, truth=truth, objective=OBJECTIVE)


def compute_features(model, tokenizer, text, family):
    """The features of one row alone, by transformers."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    body = model.get_encoder() if family == "t5" else model.base_model
    with torch.no_grad():
        states = body(input_ids=ids).last_hidden_state[0]
    wanted = {"mean": states.mean(dim=0), "max": states.amax(dim=0), "last": states[-1]}
    return wanted | ({"cls": states[0]} if family == "bert" else {})


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_features_are_those_of_a_row_alone(backbone, plain, family):
    loaded = backbone(family)
    features = FeatureReader(loaded, "{text}").read(ROWS)
    for at, row in enumerate(ROWS):
        expected = compute_features(plain(family), loaded.tokenizer, row["text"], family)
        assert features.keys() == expected.keys()
        for name in features:
            np.testing.assert_allclose(features[name][at], expected[name], atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_answers_as_its_regression_and_counts_its_parameters(backbone, family):
    reader = FeatureReader(backbone(family), "{text}")
    probe = fit(reader, ROWS, ROWS[:4])
    features = probe.reader.read(ROWS)[probe.reading]
    (fitted,) = (cell.cell_contents for cell in probe.answer.__closure__)
    scale, regression = fitted[0], fitted[1]
    plane = features / np.linalg.norm(features, axis=1, keepdims=True)
    if scale != "passthrough":
        plane = (plane - scale.mean_) / scale.scale_
    plane = plane @ regression.coef_[0] + regression.intercept_
    assert probe(ROWS) == [regression.classes_[int(side)] for side in plane > 0]
    assert probe.cost.trainable == 32 + 1
    assert probe.cost.size == 4 * 33


def test_it_learns_separable_rows(backbone):
    """Four different texts, each three times: a linear rule of 32 features exists."""
    reader = FeatureReader(backbone("llama"), "{text}")
    probe = fit(reader, ROWS, ROWS)
    assert probe(ROWS) == [row["label"] for row in ROWS]


def test_validation_rows_decide(backbone):
    """With inverted labels of the validation rows, the worst fit to the training rows wins."""
    reader = FeatureReader(backbone("llama"), "{text}")
    inverted = [row | {"label": "n" if row["label"] == "p" else "p"} for row in ROWS]
    probe = fit(reader, ROWS, ROWS)
    other = fit(reader, ROWS, inverted)
    right = [
        sum(a == row["label"] for a, row in zip(p(ROWS), ROWS, strict=True)) for p in (probe, other)
    ]
    assert right[1] <= right[0]


def test_a_row_longer_than_the_backbone_is_truncated(backbone):
    loaded = backbone("llama")
    assert loaded.geometry.max_positions == 64
    rows = [{"text": " good" * 200}]
    assert np.isfinite(FeatureReader(loaded, "{text}").read(rows)["mean"]).all()
