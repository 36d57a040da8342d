"""Sets of labels and numbers from rows to answers: on every architecture, as for single labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt import Classify, Ensemble, Regress, TrainingConfig, fit
from softprompt.errors import ArtifactError, DataError, PromptError, RecipeError, TemplateError
from softprompt.inference import PromptModel
from softprompt.inference.loops import stack_probabilities
from softprompt.recipe import make_recipe
from softprompt.tasks import LabelSetPrediction, LengthBudget, NumberPrediction
from softprompt.train import run_recipe, setup_run
from softprompt.train.packing import pack_examples, unpack_examples
from softprompt.train.validation import check_recipe
from support.recipes import check_resumed, make_recipe_data
from support.reviews import BAD, GOOD, make_reviews, write_rows

SETS = {"kind": "classify", "multi_label": True, "label_column": "labels"}
NUMBERS = {"kind": "regress", "target_column": "score"}
PAIRS = {"kind": "regress", "target_column": "both"}
WORDS = NUMBERS | {"words": {"-1": " bad", "0": " plot", "1": " good"}}
MASKED = WORDS | {"template": "{soft:3}{text} {mask}"}
CASES = {
    "sets-bert-prefix": ("bert", "p-tuning-v2", SETS),
    "sets-llama-input": ("llama", "prompt-tuning", SETS),
    "numbers-bert-input": ("bert", "prompt-tuning", NUMBERS),
    "numbers-llama-prefix": ("llama", "p-tuning-v2", NUMBERS),
    "two-numbers-bert": ("bert", "p-tuning-v2", PAIRS),
    "words-llama": ("llama", "prompt-tuning", WORDS),
    "words-bert": ("bert", "prompt-tuning", MASKED),
    "words-t5": ("t5", "prompt-tuning", WORDS),
}


def make_rows(count, *, seed=0):
    """Reviews with the kinds of their words as labels, and their number as the score."""
    rows = []
    for row in make_reviews(count, seed=seed):
        words = row["text"].split()
        good, bad = (sum(word in part for word in words) for part in (GOOD, BAD))
        labels = [n for n, m in (("good", good), ("bad", bad), ("long", len(words) > 5)) if m]
        rows.append({
            "text": row["text"], "labels": labels, "score": float(good - bad),
            "both": [float(good - bad), float(len(words))],
        })  # fmt: skip
    return rows


def make_data(name, **train):
    family, method, task = CASES[name]
    data = make_recipe_data(family, method, task="head", **train)
    template = {"template": data["task"]["template"]} | task
    return data | {"task": template}


@pytest.fixture
def prepare(backbone):
    def make(name, *, rows=(13, 6, 5), **train):
        tables = {
            split: Dataset.from_list(make_rows(count, seed=seed))
            for seed, (split, count) in enumerate(
                zip(("train", "validation", "test"), rows, strict=True)
            )
        }
        recipe = make_recipe(make_data(name, **train))
        return setup_run(recipe, backbone=backbone(CASES[name][0]), tables=tables)

    return make


def as_numbers(prediction):
    return [*prediction.probabilities.values()] or [*prediction.values]


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_saved_and_answers_alike_alone_and_in_a_batch(prepare, tmp_path, name):
    prepared = prepare(name)
    trained = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = make_rows(9, seed=5)
    together, again = model.predict(rows), trained.predict(rows)
    assert together == again, "what is loaded is what was trained"
    for row, prediction in zip(rows, together, strict=True):
        (alone,) = model.predict([row])
        assert as_numbers(alone) == pytest.approx(as_numbers(prediction), abs=1e-5)
    kind = LabelSetPrediction if name.startswith("sets") else NumberPrediction
    assert all(isinstance(prediction, kind) for prediction in together)
    report = model.evaluate(rows)
    assert {*report.metrics} == {"loss", *model.task.objective.metric_names}
    assert len(report.right) == 9
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]) >= {*model.task.objective.metric_names}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_scores(prepare, name) -> None:
    prepared = prepare(name)
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    rows = make_rows(13)
    with torch.no_grad():
        scores = task.compute_scores(examples, [prompt])
        found = task.compute_loss(examples, [prompt])
    match prepared.recipe.task.kind:
        case "classify":
            marks = [[float(name in row["labels"]) for name in task.labels] for row in rows]
            wanted = torch.tensor(marks)
            expected = F.binary_cross_entropy_with_logits(scores, wanted)
        case _:
            column = prepared.recipe.task_settings.target_column
            values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
            values = values.reshape(13, -1)
            wanted = (values - values.mean(0)) / values.std(0, correction=0)
            if "words" in name:
                numbers = (torch.tensor([-1.0, 0, 1]) - values.mean()) / values.std(correction=0)
                scores = (scores.softmax(-1) @ numbers.float())[:, None]
            expected = F.mse_loss(scores.double(), wanted)
    assert float(found.total) / found.count == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["sets-bert-prefix", "numbers-llama-prefix", "words-llama"])
def test_a_resumed_run_is_the_uninterrupted_one(prepare, tmp_path, name) -> None:
    check_resumed(lambda: prepare(name), tmp_path)


@pytest.mark.parametrize("name", ["sets-bert-prefix", "numbers-bert-input"])
def test_examples_survive_the_cache(prepare, name) -> None:
    examples = prepare(name).rows["train"].examples
    assert unpack_examples(pack_examples(examples)) == [*examples]


@pytest.mark.filterwarnings("ignore:nothing was learned")
def test_thresholds_are_chosen_on_validation_rows_and_can_be_changed(backbone, tmp_path) -> None:
    task = Classify("{soft:3}{text}", label_column="labels", multi_label=True)
    model = fit(
        backbone("bert"), task, make_rows(16), validation=make_rows(12, seed=3),
        method="prompt-tuning", config=TrainingConfig(epochs=4, learning_rate=0.05),
        progress=False,
    )  # fmt: skip
    assert isinstance(model, PromptModel)
    chosen = model.artifact.manifest.task["thresholds"]
    assert {*chosen} == {"bad", "good", "long"}
    rows = make_rows(6, seed=8)
    every = model.with_task(thresholds=0.0)
    assert all(p.labels == model.labels for p in every.predict(rows))
    assert all(p.labels == () for p in model.with_task(thresholds=1.0).predict(rows))
    np.testing.assert_array_equal(model.predict_proba(rows), every.predict_proba(rows))
    mixed = model.with_task(thresholds={"bad": 0.0, "good": 1.0, "long": 1.0})
    assert all(p.labels == ("bad",) for p in mixed.predict(rows))
    saved = PromptModel.from_pretrained(mixed.save(tmp_path / "mixed"), backbone=model.backbone)
    assert saved.predict(rows) == mixed.predict(rows)


def test_only_settings_of_the_answer_can_be_changed(backbone) -> None:
    config = TrainingConfig(epochs=1)
    task = Classify("{soft:3}{text}")
    rows = make_reviews(8, seed=0)
    model = fit(backbone("bert"), task, rows, validation=0, method="prompt-tuning", config=config)
    careful = model.with_task(abstain_below=1.0)
    assert all(p.abstained for p in careful.predict(rows))
    assert not any(p.abstained for p in model.predict(rows))
    with pytest.raises(PromptError, match=r"task.head is part .* abstain_below, temp"):
        model.with_task(head="mlp-tanh")
    with pytest.raises(PromptError, match=r"task.abstain_below is 2.0: Input should be less"):
        model.with_task(abstain_below=2.0)
    multi = Classify("{soft:3}{text}", label_column="labels", multi_label=True)
    several = fit(
        backbone("bert"), multi, make_rows(8), validation=0, method="prompt-tuning", config=config
    )
    with pytest.raises(DataError, match=r"task.thresholds has the labels 'x'"):
        several.with_task(thresholds={"x": 0.5})


@pytest.mark.parametrize("name", ["sets-bert-prefix", "numbers-bert-input"])
def test_an_ensemble_is_the_mean_of_its_members(prepare, tmp_path, name) -> None:
    models = []
    for seed in (1, 2):
        prepared = prepare(name, epochs=1)
        prepared = replace(prepared, recipe=prepared.recipe.model_copy(update={"seed": seed}))
        models.append(run_recipe(prepared.recipe, tmp_path / str(seed), prepared=prepared))
    ensemble = Ensemble(models, vote="mean")
    rows = make_rows(7, seed=9)
    each = [model.predict(rows) for model in models]
    found = ensemble.predict(rows)
    for row, prediction in enumerate(found):
        mean = np.mean([as_numbers(member[row]) for member in each], axis=0)
        assert as_numbers(prediction) == pytest.approx(mean.tolist(), abs=1e-5)
    report = ensemble.evaluate(rows)
    assert report.metrics["loss"] >= 0
    if name.startswith("numbers"):
        with pytest.raises(PromptError, match="numbers have no majority"):
            Ensemble(models, vote="majority")


def test_targets_that_are_not_possible_name_their_row(prepare, tmp_path) -> None:
    rows = make_rows(6)
    rows[4]["score"] = "about three"
    with pytest.raises(DataError, match=r"mixes float \(row 0\), str \(row 4\)"):
        fit("builtin:none", Regress("{text}", target_column="score"), rows)
    path = write_rows(
        tmp_path / "train.jsonl", [row | {"score": str(row["score"])} for row in rows]
    )
    data = make_data("numbers-bert-input")
    data["data"] = {"train": str(path), "split_sizes": {"train": 1.0, "validation": 0, "test": 0}}
    data["backbone"]["name"] = "./nowhere"
    faults = " ".join(check_recipe(data).faults)
    assert "row 4 (counted from 0) of the train data, column 'score': the target" in faults


def test_a_label_of_another_split_must_be_known(backbone) -> None:
    rows = make_rows(8)
    task = Classify("{soft:3}{text}", label_column="labels", multi_label=True)
    with pytest.raises(DataError, match=r"'labels' of the validation data: unknown label"):
        fit(
            backbone("bert"), task, rows, validation=[{"text": "good", "labels": ["new"]}],
            method="prompt-tuning", progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("t5", SETS, "answers in words, so it has no head for task.multi_label"),
        ("t5", NUMBERS, "answers in words, so it needs task.words, number words"),
        ("llama", SETS | {"verbalizer": {"bad": " bad", "good": " good", "long": " long"}},
         "task.multi_label needs a trained head"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(backbone, family, task, message) -> None:
    data = make_recipe_data(family, "prompt-tuning", task="head")
    data["task"] = {"template": "{text}{soft:3}"} | task
    tables = {"train": Dataset.from_list(make_rows(8))}
    with pytest.raises(TemplateError, match=message):
        setup_run(make_recipe(data), backbone=backbone(family), tables=tables)


def test_balanced_weights_give_rows_with_and_without_a_label_the_same_sum(prepare) -> None:
    data = make_data("sets-bert-prefix")
    data["task"]["class_weights"] = "balanced"
    rows = make_rows(13)
    from softprompt.train.task_settings import complete_task_settings

    labels = ("bad", "good", "long")
    recipe = make_recipe(data)
    table = Dataset.from_list(rows)
    weights = complete_task_settings(recipe.task_settings, table, labels=labels).class_weights
    for label in labels:
        positive = sum(label in row["labels"] for row in rows)
        assert weights[label] * positive == pytest.approx(13 - positive)


def test_a_number_that_is_not_scaled_like_the_rows_is_refused(backbone) -> None:
    task = Regress("{soft:3}{text}", target_column="both", mean=[0.0], scale=[1.0])
    with pytest.raises(DataError, match=r"has 2 numbers"):
        fit(backbone("bert"), task, make_rows(6), validation=0, method="prompt-tuning")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": "auto"}, "task.thresholds is 'auto', but an artifact has a number"),
        ({"temperature": "auto"}, "task.temperature is 'auto', but an artifact has a number"),
    ],
)
def test_an_artifact_has_no_automatic_settings(prepare, tmp_path, changes, message) -> None:
    from softprompt.artifact.checks import check_artifact

    prepared = prepare("sets-bert-prefix", epochs=1)
    artifact = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared).artifact
    manifest = replace(artifact.manifest, task=artifact.manifest.task | changes)
    with pytest.raises(ArtifactError, match=message):
        check_artifact(replace(artifact, manifest=manifest))


def test_a_plain_head_is_kept_where_no_prompt_is_better(prepare, tmp_path) -> None:
    """Noise as a target: what is kept is never worse than the plain head on the validation rows."""
    for name in ("sets-bert-prefix", "numbers-bert-input"):
        prepared = prepare(name, rows=(24, 12, 9), keep_plain_head=True, epochs=1)
        run_recipe(prepared.recipe, tmp_path / name, prepared=prepared)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        measure = prepared.task.objective.measure
        decision = metrics["plain_head"]
        better = decision["prompt"][measure] > decision["head"][measure]
        assert decision["keeps_prompt"] == better or decision["prompt"] == decision["head"]
        assert measure in metrics["verdict"] or "a prompt of length 0" in metrics["verdict"]
        assert metrics["baselines"].keys() >= {"linear probe"}
        model = PromptModel.from_pretrained(tmp_path / name, backbone=prepared.backbone)
        assert (model.prompt.length == 0) is not decision["keeps_prompt"]


def test_the_metric_that_selects_must_be_one_of_the_tasks(prepare) -> None:
    from softprompt.train.validation import check_best_metric

    for name, metric in (("sets-bert-prefix", "mean_average_precision"), ("words-llama", "r2")):
        check_best_metric(prepare(name, best_metric=metric))
        with pytest.raises(RecipeError, match="unknown metric 'matthews'"):
            check_best_metric(prepare(name, best_metric="matthews"))


def test_probabilities_are_each_labels_own(prepare, tmp_path) -> None:
    prepared = prepare("sets-bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    rows = make_rows(4, seed=2)
    shares = model.predict_proba(rows)
    assert (shares == stack_probabilities(model.predict(rows), model.labels)).all()
    examples = [model.task.make_example(row, target=False) for row in rows]
    with torch.no_grad():
        scores = model.task.compute_scores(examples, [model.prompt])
    np.testing.assert_allclose(shares, scores.sigmoid().numpy(), atol=1e-6)
    assert model.task.make_example(rows[0]).target is not None
    assert LengthBudget().max_length is None
