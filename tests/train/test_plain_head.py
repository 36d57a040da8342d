"""A plain head: folded exactly, kept where no prompt is better, and never chosen by test rows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softprompt import Classify, PromptModel, TrainingConfig, fit, load_backbone, make_recipe
from softprompt.errors import ArtifactError, PromptError, RecipeError
from softprompt.inference import Ensemble, attach
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.train import RunDir, run_recipe, setup_run
from softprompt.train import plain_head as module
from softprompt.train.plain_head import (
    HeadDecision,
    decide,
    fit_plain_head,
    make_plain_artifact,
)
from softprompt.train.readout import compute_features, select_texts
from softprompt.train.regression import (
    REGRESSIONS,
    RegressionSettings,
    UnseenScores,
    choose_regression,
    fit_regression,
    fold_regression,
    normalize_features,
    score_unseen,
)
from support.recipes import make_recipe_data

KINDS = {
    "encoder": ("bert", "p-tuning-v2", "head"),
    "soft tokens": ("bert", "prompt-tuning", "head"),
    "causal": ("llama", "p-tuning-v2", "head"),
    "label words": ("llama", "prompt-tuning", "words"),
}


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seen", ["all", "without one"])
@pytest.mark.parametrize("settings", [REGRESSIONS[1], REGRESSIONS[-1]], ids=["plain", "scaled"])
def test_a_folded_regression_has_the_same_probabilities(classes, seen, settings) -> None:
    generator = np.random.default_rng(classes)
    features = generator.normal(3, 5, (60, 7)) * generator.uniform(0.1, 9, 7)
    names = [f"label {n}" for n in range(classes)]
    truth = np.array([names[n % classes] for n in range(60)])
    labels = [*reversed(names)]  # another order than the regression's
    fitted = fit_regression(features, truth, settings=settings)
    if seen == "without one":
        labels.insert(1, "unseen")
    weight, bias = fold_regression(fitted, labels)
    found = (torch.from_numpy(features).float() @ weight.T + bias).softmax(-1).numpy()
    for at, probabilities in enumerate(fitted.predict_proba(features)):
        expected = dict(zip(fitted.classes_, probabilities, strict=True)) | {"unseen": 0.0}
        np.testing.assert_allclose(found[at], [expected[name] for name in labels], atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-32, 1e-7])
def test_features_that_differ_by_rounding_alone_have_no_weight(scale) -> None:
    """They told the labels apart with weights of 1e29, whose gradient overflowed."""
    generator = np.random.default_rng(2)
    truth = np.array(["a", "b"] * 40)
    features = generator.normal(size=(80, 6)).astype(np.float32)
    features[:, 0] += truth == "b"
    features[:, 3] = 0.5 * (scale > 1e-8) + scale * (truth == "b")
    settings = RegressionSettings(1.0, is_standardized=True)
    weight, bias = fold_regression(fit_regression(features, truth, settings=settings), ["a", "b"])
    others = np.delete(features, 3, axis=1)
    peer = make_pipeline(StandardScaler(), LogisticRegression()).fit(others, truth)
    assert weight.abs().max() < 10
    scores = torch.from_numpy(features) @ weight.T + bias
    wanted = peer.decision_function(others)
    np.testing.assert_allclose((scores[:, 1] - scores[:, 0]).numpy(), wanted, atol=1e-3)


def test_of_equally_accurate_regressions_the_calibrated_loss_is_the_lowest() -> None:
    """Scores times the factor have a lower cross entropy than times any other; none is worse."""
    generator = np.random.default_rng(1)
    truth = np.array(["a", "b"] * 40)
    features = generator.normal(size=(80, 6)) + 0.4 * (truth == "b")[:, None]
    parts = [(np.arange(40), np.arange(40, 80)), (np.arange(40, 80), np.arange(40))]
    for settings in REGRESSIONS:
        unseen = score_unseen(features, truth, labels=["a", "b"], parts=parts, settings=settings)
        factor = unseen.find_factor()
        losses = [unseen.compute_loss(factor * change) for change in (0.85, 1.0, 1.18)]
        assert losses[1] == min(losses)
        assert losses[1] <= unseen.compute_loss()
        # By hand: each half is scored by the regression of the other half.
        fitted = [fit_regression(features[fit], truth[fit], settings=settings) for fit, _ in parts]
        right = [
            f.predict(features[judge]) == truth[judge]
            for f, (_, judge) in zip(fitted, parts, strict=True)
        ]
        assert unseen.accuracy == pytest.approx(np.concatenate(right).mean())


def test_without_rows_to_judge_by_nothing_is_known() -> None:
    features, truth = np.ones((2, 3)), np.array(["a", "b"])
    unseen = score_unseen(features, truth, labels=["a", "b"], parts=[], settings=REGRESSIONS[0])
    assert (unseen.accuracy, unseen.compute_loss(), unseen.find_factor()) == (0.0, np.inf, 1.0)


def test_a_normalized_head_reads_directions_only() -> None:
    head = ClassifierHead(5, 3, kind="linear-normalized", seed=3)
    plain = ClassifierHead(5, 3, kind="linear", seed=3)
    states = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected = plain(states / states.square().mean(dim=-1, keepdim=True).sqrt())
    torch.testing.assert_close(head(states), expected)
    torch.testing.assert_close(head(states * 1e3), head(states))
    torch.testing.assert_close(head(torch.zeros(1, 5)), plain.output.bias[None])


@pytest.fixture
def make(backbone, rows):
    """The parts of a run whose prompt never moves, and whose head is random."""

    def make(kind: str, *, folds: int | None = None, test_seed: int = 2, pooling="auto", **train):
        family, method, task = KINDS[kind]
        still = {"optimizer": "sgd", "learning_rate": 1e-30, "head_learning_rate": 1e-30}
        data = make_recipe_data(family, method, task=task, **still | train, keep_plain_head=True)
        if task == "head":
            data["task"]["pooling"] = pooling
        data["data"] |= {} if folds is None else {"folds": folds}
        tables = {"train": rows(40), "test": rows(30, test_seed)}
        tables |= {} if folds else {"validation": rows(60, 1)}
        tables = {name: Dataset.from_list(part) for name, part in tables.items()}
        return setup_run(make_recipe(data), backbone=backbone(family), tables=tables)

    return make


DECISION = HeadDecision(keeps_prompt=False, prompt=None, head={}, judge="")


@pytest.mark.parametrize("kind", KINDS)
def test_the_artifact_predicts_what_the_regression_predicts(make, tmp_path, kind) -> None:
    """Saved, loaded, alone, in batches, and beside a prompt with soft tokens."""
    from softprompt.artifact import load_artifact, save_artifact

    prepared = make(kind)
    head = fit_plain_head(prepared)
    size = prepared.backbone.geometry.vocab_size
    texts, truth = select_texts(prepared.rows["train"], size)
    tests, _ = select_texts(prepared.rows["test"], size)

    def read(rows):
        features = compute_features(prepared.backbone, rows, poolings=[head.pooling])
        return normalize_features(features[head.pooling])

    fitted = fit_regression(read(texts), truth, settings=RegressionSettings(**head.settings))
    scores = np.log(fitted.predict_proba(read(tests)))
    labels = prepared.task.labels
    folded = fold_regression(fitted, labels)[0] / head.weight.shape[1] ** 0.5
    factor = float(head.weight[0].abs().max() / folded[0].abs().max())
    expected = torch.from_numpy(scores * factor).softmax(-1).numpy()
    save_artifact(make_plain_artifact(prepared, head, decision=DECISION), tmp_path / "head")
    artifact = load_artifact(tmp_path / "head")
    assert artifact.prompt.length == 0
    model = attach(artifact, prepared.backbone)
    table = [{"text": row} for row in _list_texts(prepared, "test")]
    for batch_size in (1, 32):
        found = model.predict_proba(table, batch_size=batch_size)
        order = [[*fitted.classes_].index(label) for label in model.labels]
        np.testing.assert_allclose(found, expected[:, order], atol=2e-4)


def _list_texts(prepared, split: str) -> list[str]:
    """The texts of the rows, which the fixture made by its seeds."""
    from support.reviews import make_reviews

    count, seed = {"test": (30, 2), "train": (40, 0)}[split]
    return [row["text"] for row in make_reviews(count, seed=seed)]


@pytest.mark.parametrize(
    ("accuracy", "loss", "keeps"),
    [(0.1, 0.0, True), (-0.1, -9.0, False), (0.0, -0.01, True), (0.0, 0.01, False), (0, 0, False)],
)
def test_the_more_accurate_one_is_kept_and_of_equals_that_with_the_lower_loss(
    make, monkeypatch, accuracy, loss, keeps
) -> None:
    monkeypatch.setattr(module, "_FEW_ROWS", 0)
    prepared = make("encoder")
    head = replace(fit_plain_head(prepared), score=0.5, loss=1.0)
    scores = {"accuracy": 0.5 + accuracy, "loss": 1.0 + loss}
    decision = decide(prepared, {"validation": scores}, head=head)
    assert decision.keeps_prompt is keeps
    assert ("is kept: it is right" in str(decision)) is keeps
    assert json.loads(json.dumps(decision.as_data()))["judge"] == "60 validation rows"


@pytest.mark.parametrize(
    ("lead", "keeps"), [(-0.1, False), (0.0, False), (0.06, False), (0.07, True)]
)
def test_with_few_rows_the_prompt_has_to_be_clearly_better(make, lead, keeps) -> None:
    """By hand: the standard error of 50 % of 60 rows is sqrt(0.25 / 60), 6.5 points."""
    prepared = make("encoder")
    head = replace(fit_plain_head(prepared), score=0.5, loss=1.0)
    scores = {"accuracy": 0.5 + lead, "loss": 0.0}
    decision = decide(prepared, {"validation": scores}, head=head)
    assert decision.keeps_prompt is keeps
    assert ("with so few rows no prompt was clearly better" in str(decision)) is (lead == 0.06)


def test_the_strongest_regularization_within_one_standard_error_is_chosen(monkeypatch) -> None:
    labels = np.array(["a", "b"] * 50)
    right = torch.eye(2)[torch.tensor([0, 1] * 50)]
    targets = torch.tensor([0, 1] * 50)

    def score(_features, _truth, *, settings, **_others):
        scores = right.clone()
        wrong = {1.0: slice(0, 8), 3.0: slice(0, 3), 10.0: slice(98, 100)}[settings.strength]
        scores[wrong] = right[wrong].flip(-1)
        return UnseenScores(scores, targets)

    monkeypatch.setattr("softprompt.train.regression.score_unseen", score)
    among = [RegressionSettings(strength) for strength in (1.0, 3.0, 10.0)]
    # By hand: 8 wrong rows against 2 others are 6 ± 3.1 of 100 more, 3 against 2 are 1 ± 2.2 more.
    chosen, _ = choose_regression(np.zeros((100, 2)), labels, labels="ab", parts=[], among=among)
    assert chosen.strength == 3.0


def run(prepared, folder):
    run_recipe(prepared.recipe, folder, prepared=prepared)
    return RunDir(folder).read_metrics()


@pytest.mark.parametrize(
    ("kind", "folds"), [("encoder", None), ("encoder", 4), ("soft tokens", None), ("causal", None)]
)
def test_where_the_prompt_learns_nothing_the_run_keeps_the_head(
    make, rows, tmp_path, kind, folds
) -> None:
    metrics = run(make(kind, folds=folds), tmp_path / "run")
    assert metrics["kept"] == "plain head"
    assert metrics["verdict"].startswith("No prompt was better than a plain head, which is kept")
    assert metrics["plain_head"]["prompt"]["accuracy"] <= metrics["plain_head"]["head"]["accuracy"]
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=make(kind).backbone)
    assert model.prompt.length == 0
    report = model.evaluate(rows(30, 2))
    assert report.metrics["accuracy"] == metrics["test"]["accuracy"]
    assert metrics["baselines"]["linear probe"] == metrics["test"]["accuracy"]
    truth = [row["label"] for row in rows(30, 2)]
    train = [row["label"] for row in rows(40)]
    common = max(sorted({*train}), key=train.count)
    assert metrics["baselines"]["majority"] == pytest.approx(truth.count(common) / 30)


def test_a_prompt_that_is_better_is_kept(make, tmp_path, monkeypatch) -> None:
    worse = {"score": 0.0, "loss": 99.0}
    monkeypatch.setattr(
        "softprompt.train.verdict.fit_plain_head",
        lambda prepared: replace(fit_plain_head(prepared), **worse),
    )
    metrics = run(make("encoder"), tmp_path / "run")
    assert metrics["kept"] == "prompt"
    assert metrics["plain_head"]["head"] == {"accuracy": 0.0, "loss": 99.0}
    assert metrics["test"] == metrics["test_of_prompt"]
    assert RunDir(tmp_path / "run").read_metrics()["plain_head"]["keeps_prompt"]


@pytest.mark.parametrize("folds", [None, 4])
def test_nothing_is_chosen_by_test_rows(make, tmp_path, folds) -> None:
    """Other test rows give the same artifact and the same decision; a leak would change them."""
    found = []
    for seed in (2, 9):
        metrics = run(make("encoder", folds=folds, test_seed=seed), tmp_path / f"run-{seed}")
        tensors = PromptModel.from_pretrained(
            tmp_path / f"run-{seed}", backbone=make("encoder").backbone
        ).artifact.to_tensors()
        found.append((metrics, tensors))
    (first, one), (second, other) = found
    assert first["test"] != second["test"]
    for name in ("plain_head", "kept", "readout", "validation", "best_step"):
        assert first.get(name) == second.get(name), name
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_what_needs_vectors_refuses_a_head_alone(make, tmp_path) -> None:
    from softprompt import export_prompt
    from softprompt.analysis import compute_similarity
    from softprompt.analysis.inspection import has_nearest_words

    prepared = make("encoder")
    artifact = make_plain_artifact(prepared, fit_plain_head(prepared), decision=DECISION)
    model = attach(artifact, prepared.backbone)
    with pytest.raises(PromptError, match="number 1 is a trained head without a prompt"):
        compute_similarity([model, model])
    for form in ("peft", "safetensors", "npy"):
        with pytest.raises(ArtifactError, match="trained head without a prompt"):
            export_prompt(form, model, output=tmp_path / form)
    assert not has_nearest_words([artifact])


def test_a_head_alone_is_a_member_of_an_ensemble(make, rows, tmp_path) -> None:
    prepared = make("encoder", pooling="mean")
    plain = attach(
        make_plain_artifact(prepared, fit_plain_head(prepared), decision=DECISION),
        prepared.backbone,
    )
    other = make("soft tokens", learning_rate=0.05, pooling="mean")
    run_recipe(
        other.recipe.model_copy(
            update={"train": other.recipe.train.model_copy(update={"keep_plain_head": False})}
        ),
        tmp_path / "run",
        prepared=other,
    )
    trained = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    table = rows(6, 3)
    both = Ensemble([plain, trained]).predict_proba(table)
    mean = (plain.predict_proba(table) + trained.predict_proba(table)) / 2
    np.testing.assert_allclose(both, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "task", "reason"),
    [
        ("t5", "words", "read by its decoder"),
        ("llama", "text", "no labels that a head could choose from"),
    ],
)
def test_tasks_without_such_a_head_are_refused(backbone, rows, family, task, reason) -> None:
    data = make_recipe_data(family, "prompt-tuning", task=task, keep_plain_head=True)
    tables = {"train": Dataset.from_list(rows(12)), "validation": Dataset.from_list(rows(6, 1))}
    with pytest.raises(RecipeError, match=rf"train\.keep_plain_head: .*{reason}"):
        setup_run(make_recipe(data), backbone=backbone(family), tables=tables)


def test_a_prompt_of_length_0_without_a_head_is_refused(make) -> None:
    prepared = make("encoder")
    artifact = make_plain_artifact(prepared, fit_plain_head(prepared), decision=DECISION)
    manifest = artifact.manifest
    shapes = {name: shape for name, shape in manifest.shapes.items() if "head" not in name}
    bare = replace(artifact, head={}, manifest=replace(manifest, shapes=shapes))
    with pytest.raises(ArtifactError, match=r"at least 1 \(or 0, with a trained head\)"):
        attach(bare, prepared.backbone)


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_fit_keeps_the_better_one_too(saved, rows) -> None:
    backbone = load_backbone(str(saved("bert")), device="cpu", dtype="float32")
    config = TrainingConfig(
        keep_plain_head=True, epochs=1, optimizer="sgd", learning_rate=1e-30, batch_size=8
    )
    model = fit(
        backbone,
        Classify("{text}"),
        rows(40),
        method="p-tuning-v2",
        config=config,
        validation=rows(20, 1),
    )
    assert model.prompt.length == 0
    assert not model.artifact.manifest.metrics["plain_head"]["keeps_prompt"]


def test_without_rows_to_judge_by_the_strongest_regularization_is_taken() -> None:
    features, labels = np.eye(2), np.array(["a", "b"])
    chosen, unseen = choose_regression(features, labels, labels="ab", parts=[])
    assert (chosen, unseen.accuracy) == (REGRESSIONS[0], 0.0)
