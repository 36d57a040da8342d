"""Weights of labels, smoothed targets and labels in an order, in the loss, heads and metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from softprompt import Classify, DataError, RecipeError, TrainingConfig, fit
from softprompt.artifact import load_artifact
from softprompt.errors import ArtifactError
from softprompt.inference import compute_classification_metrics
from softprompt.inference.model import attach
from softprompt.recipe import make_recipe
from softprompt.tasks import build_task
from softprompt.tasks.targets import find_labels
from softprompt.train import run_recipe, setup_run
from softprompt.train.regression import RegressionSettings, fit_regression, weigh_regressions
from softprompt.train.task_settings import complete_task_settings
from softprompt.train.validation import check_best_metric
from support.recipes import make_recipe_data

LABELS = ("negative", "positive")
KINDS = [
    ("llama", "prompt-tuning", "words"),
    ("bert", "prompt-tuning", "words"),
    ("t5", "prompt-tuning", "words"),
    ("bert", "p-tuning-v2", "head"),
    ("llama", "p-tuning-v2", "head"),
]


@pytest.fixture
def unequal(backbone, rows):
    """The parts of a run on nine rows of one label and three of the other."""

    def make(family: str, method: str, task: str, **settings):
        reviews = rows(40)
        kept = [row for row in reviews if row["label"] == "negative"][:9]
        kept += [row for row in reviews if row["label"] == "positive"][:3]
        data = make_recipe_data(family, method, task=task, task_settings=settings)
        tables = {"train": Dataset.from_list(kept), "validation": Dataset.from_list(rows(6, 3))}
        return setup_run(make_recipe(data), backbone=backbone(family), tables=tables)

    return make


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=50).filter(lambda x: len({*x}) > 1))
def test_balanced_is_scikit_learns_and_its_mean_is_one(labels) -> None:
    names = sorted({*labels})
    table = Dataset.from_dict({"label": labels})
    found = complete_task_settings(
        Classify(class_weights="balanced"), table, labels=names
    ).class_weights
    wanted = compute_class_weight("balanced", classes=np.array(names), y=labels)
    assert [found[name] for name in names] == pytest.approx(wanted.tolist())
    given_ = complete_task_settings(
        Classify(class_weights=dict(zip(names, (1.0, 2.0, 3.0), strict=False))), table, labels=names
    ).class_weights
    assert np.mean([given_[label] for label in labels]) == pytest.approx(1)
    assert given_[names[1]] / given_[names[0]] == pytest.approx(2)


def test_a_label_without_rows_changes_nothing() -> None:
    table = Dataset.from_dict({"label": ["a", "a", "b"]})
    settings = Classify(verbalizer=dict.fromkeys("abc", "x"), class_weights="balanced")
    found = complete_task_settings(settings, table, labels="abc").class_weights
    assert found == pytest.approx({"a": 0.75, "b": 1.5, "c": 1.0})


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_loss_is_that_of_the_formula(unequal, kind) -> None:
    """Of each row w_y ((1 - ε) (-log p_y) + ε mean_c(w_c / w_y (-log p_c))), summed."""
    weighted = unequal(*kind, class_weights="balanced", label_smoothing=0.2)
    prompt, task = weighted.method(), weighted.task
    examples, truth = weighted.rows["train"].examples, weighted.rows["train"].truth
    with torch.no_grad():
        log_p = task.compute_scores(examples, [prompt]).log_softmax(-1).double()
    weight = torch.tensor([12 / 18, 12 / 6]).double()
    at = torch.tensor([LABELS.index(label) for label in truth])
    plain = -log_p[range(12), at] * weight[at]
    spread = (-log_p * weight).mean(-1)
    wanted = (0.8 * plain + 0.2 * spread).sum()
    found = task.compute_loss(examples, [prompt])
    assert found.count == 12
    assert float(found.total.detach()) == pytest.approx(float(wanted), rel=1e-5)
    report = task.objective.sum_loss(log_p.float(), at.tolist())
    assert float(report.total) == pytest.approx(float(plain.sum()), rel=1e-5), "not smoothed"


def test_a_batch_of_one_label_keeps_its_weight(unequal) -> None:
    """Torch's mean divides by the weights of the batch, in which a label alone has none."""
    weighted, plain = (
        unequal("bert", "p-tuning-v2", "head", **s) for s in ({"class_weights": "balanced"}, {})
    )
    rows = [e for e in weighted.rows["train"].examples if e.target == 1]
    prompt = weighted.method()
    total, same = (part.task.compute_loss(rows, [prompt]).total for part in (weighted, plain))
    assert torch.allclose(total, 2 * same)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_an_artifact_has_the_numbers_and_the_same_loss(unequal, tmp_path, kind) -> None:
    prepared = unequal(*kind, class_weights="balanced", label_smoothing=0.1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run" / "artifact")
    assert artifact.manifest.task["class_weights"] == pytest.approx(
        {"negative": 12 / 18, "positive": 12 / 6}
    )
    again = attach(artifact, prepared.backbone)
    rows = prepared.tables["validation"].to_list()
    loss = again.evaluate(rows).metrics["loss"]
    assert loss == pytest.approx(model.evaluate(rows).metrics["loss"], rel=1e-6)
    validation = artifact.manifest.metrics["validation"]["loss"]
    assert loss == pytest.approx(validation, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_run_takes_weights_that_are_given(unequal, tmp_path, kind) -> None:
    """To its end, at which the learning curves are drawn."""
    prepared = unequal(*kind, class_weights={"negative": 1.0, "positive": 4.0})
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    kept = load_artifact(tmp_path / "run" / "artifact").manifest.task["class_weights"]
    assert kept["positive"] / kept["negative"] == pytest.approx(4)


def test_an_artifact_with_other_labels_is_refused(unequal, tmp_path) -> None:
    prepared = unequal("bert", "p-tuning-v2", "head", class_weights="balanced")
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run" / "artifact")
    for weights, message in (
        ("balanced", "an artifact has a number for each label"),
        ({"negative": 1.0}, "task.class_weights has negative, but labels is"),
    ):
        task = {**artifact.manifest.task, "class_weights": weights}
        other = replace(artifact, manifest=replace(artifact.manifest, task=task))
        with pytest.raises(ArtifactError, match=message):
            attach(other, prepared.backbone)


def test_a_regression_has_scikit_learns_weights() -> None:
    generator = np.random.default_rng(0)
    labels = np.array(["a"] * 30 + ["b"] * 6)
    features = generator.normal(size=(36, 4)) + (labels == "b")[:, None]
    weights = compute_class_weight("balanced", classes=np.array(["a", "b"]), y=labels)
    (settings,) = weigh_regressions(
        [RegressionSettings(1.0)], dict(zip("ab", weights.tolist(), strict=True))
    )
    found = fit_regression(features, labels, settings=settings)[-1]
    peer = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features, labels)
    assert np.allclose(found.coef_, peer.coef_, atol=1e-5)
    assert np.allclose(found.intercept_, peer.intercept_, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "fact"),
    [
        ({"negative": 1.0}, "no number for 'positive'"),
        ({"negative": 1.0, "positive": 2.0, "good": 1.0}, "the unknown 'good'"),
    ],
)
def test_weights_of_other_labels_are_refused(unequal, weights, fact) -> None:
    with pytest.raises(DataError, match=fact):
        unequal("bert", "p-tuning-v2", "head", class_weights=weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_weights": {"negative": 0.0, "positive": 1.0}},
        {"class_weights": "even"},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
    ],
)
def test_numbers_out_of_range_are_faults_of_the_recipe(changes) -> None:
    (key,) = changes
    with pytest.raises(RecipeError, match=f"task.{key}"):
        make_recipe(make_recipe_data("bert", "p-tuning-v2", task="head", task_settings=changes))


@pytest.mark.filterwarnings("ignore:the prediction is")
def test_settings_of_a_task_in_memory(backbone, rows) -> None:
    """`balanced` without training rows has no numbers, so that all rows count the same."""
    task = build_task(Classify("{text}", class_weights="balanced"), backbone("bert"),
                      template="{text}", labels=LABELS)  # fmt: skip
    assert task.class_weights is None
    with pytest.raises(DataError, match="has the labels 'x'"):
        build_task(Classify("{text}", class_weights={"x": 1.0}), backbone("bert"),
                   template="{text}", labels=LABELS)  # fmt: skip
    weights = {"negative": 3.0, "positive": 1.0}
    model = fit(
        backbone("bert"),
        Classify("{text}", class_weights=weights),
        rows(20),
        method="p-tuning-v2",
        config=TrainingConfig(epochs=1, learning_rate=0.01),
    )
    found = model.artifact.manifest.task["class_weights"]
    assert found["negative"] / found["positive"] == pytest.approx(3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=60).filter(
        lambda pairs: len({t for t, _ in pairs} | {p for _, p in pairs}) > 1
    )
)
def test_quadratic_kappa_is_scikit_learns(pairs) -> None:
    truth, predicted = ([str(pair[at]) for pair in pairs] for at in (0, 1))
    labels = ["0", "1", "2", "3"]
    found = compute_classification_metrics(truth, predicted, labels=labels, is_ordinal=True)
    peer = cohen_kappa_score(truth, predicted, labels=labels, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(peer, abs=1e-12)
    plain = compute_classification_metrics(truth, predicted, labels=labels)
    assert "quadratic_kappa" not in plain


def test_ordinal_labels_are_in_the_order_of_their_numbers() -> None:
    table = Dataset.from_dict({"label": ["10", "9", "2", "-1"]})
    assert find_labels(Classify(ordinal=True), table) == ("-1", "2", "9", "10")
    assert find_labels(Classify(), table) == ("-1", "10", "2", "9")
    words = Dataset.from_dict({"label": ["low", "high", "middle"]})
    with pytest.raises(DataError, match="order of the labels 'high', 'low', 'middle' is not known"):
        find_labels(Classify(ordinal=True), words)
    listed = Classify(ordinal=True, labels=["low", "middle", "high"])
    assert find_labels(listed, words) == ("low", "middle", "high")


def test_the_best_prompt_can_be_that_of_the_highest_kappa(parts) -> None:
    ordinal = {"ordinal": True, "labels": [*LABELS]}
    made = parts(
        "bert", "p-tuning-v2", task="head", task_settings=ordinal, best_metric="quadratic_kappa"
    )
    check_best_metric(made)
    plain = parts("bert", "p-tuning-v2", task="head", best_metric="quadratic_kappa")
    with pytest.raises(RecipeError, match="quadratic_kappa"):
        check_best_metric(plain)


def test_an_ensemble_has_the_weighted_loss_of_its_mean(unequal, tmp_path) -> None:
    from softprompt import Ensemble

    prepared = unequal("bert", "p-tuning-v2", "head", class_weights="balanced")
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    rows = prepared.tables["validation"].to_list()
    report = Ensemble([model, model]).evaluate(rows)
    assert report.metrics["loss"] == pytest.approx(model.evaluate(rows).metrics["loss"], rel=1e-5)
    scores = torch.tensor([[0.3, 0.1], [0.2, 0.9]])
    targets = torch.tensor([0, 1])
    weight = torch.tensor(model.task.objective.weights)
    total = model.task.objective.sum_loss(scores, targets.tolist()).total
    assert torch.allclose(total, F.cross_entropy(scores, targets, weight=weight, reduction="sum"))
