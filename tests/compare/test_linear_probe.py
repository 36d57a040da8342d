"""The features are those of transformers, and the fit is that of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from softprompt.compare import FeatureReader, fit_probe
from softprompt.tasks.objectives import SingleLabel

OBJECTIVE = SingleLabel(("n", "p"))
TEXTS = ["good film", "a bad movie and a bad film", "the great movie was good", "it was bad"] * 3
WORDS = ["a", "the", "it", "film", "movie", "was", "good", "bad", "great", "and"]
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


def list_regressions():
    """The settings, from strong to weak regularization; first on states of length 1."""
    for strength in (1, 3, 10, 30, 100):
        yield make_pipeline(LogisticRegression(C=strength, max_iter=1000))
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1):
        yield make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


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
def test_it_answers_as_the_regression_that_is_chosen_by_hand(backbone, plain, family):
    """Of rows with random labels, so that regressions differ; scikit-learn fits them here too."""
    draw = np.random.default_rng(2)
    rows = [
        {"text": " ".join(draw.choice(WORDS, 5)), "label": str(draw.choice(["n", "p"]))}
        for _ in range(48)
    ]
    reader = FeatureReader(backbone(family), "{text}")
    probe = fit(reader, rows[:32], rows[32:])
    tokenizer, labels = reader.backbone.tokenizer, np.array([row["label"] for row in rows])
    states = [compute_features(plain(family), tokenizer, row["text"], family) for row in rows]
    found = {}
    for reading in reader.poolings:
        plane = normalize(np.stack([one[reading].numpy() for one in states]))
        for regression in list_regressions():
            answers = regression.fit(plane[:32], labels[:32]).predict(plane)
            found[reading, str(regression)] = answers, answers[32:] == labels[32:]
    best = max((right for _, right in found.values()), key=np.mean)
    for (reading, _), (answers, right) in found.items():  # noqa: B007  # the first that is enough
        lead = best * 1.0 - right
        if lead.mean() <= lead.std() / len(lead) ** 0.5:
            break
    assert probe.reading == reading
    assert probe(rows) == [*answers]
    assert len({*answers}) == 2
    assert len({tuple(given) for given, _ in found.values()}) > 2
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
