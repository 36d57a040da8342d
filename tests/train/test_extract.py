"""Answers from contexts, from rows to predictions: on both architectures that have a head."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt import Ensemble, Extract, TrainingConfig, fit
from softprompt.artifact.checks import check_artifact
from softprompt.errors import ArtifactError, PromptError, RecipeError, TemplateError
from softprompt.inference import PromptModel
from softprompt.recipe import make_recipe
from softprompt.tasks import AnswerPrediction
from softprompt.tasks.answer_spans import AnswerSpan
from softprompt.tasks.squad_scores import compute_squad_metrics
from softprompt.train import run_recipe, setup_run
from softprompt.train.calibration import fit_null_threshold
from softprompt.train.packing import pack_examples, unpack_examples
from softprompt.train.validation import check_recipe
from support.questions import make_questions
from support.recipes import check_resumed, make_recipe_data
from support.reviews import write_rows

CASES = {
    "bert-prefix": ("bert", "p-tuning-v2", "{question}{sep}{context}"),
    "bert-input": ("bert", "prompt-tuning", "{soft:3}{question}{sep}{context}"),
    "llama-input": ("llama", "prompt-tuning", "{question}{soft:3}{context} is"),
    "llama-prefix": ("llama", "p-tuning-v2", "{question} is {context} is"),
    "gpt2-prefix": ("gpt2", "prefix-tuning", "{question} is {context} is"),
}
# So few tokens of a row that contexts are divided into windows.
WINDOWS = 12
SPANS = (AnswerSpan(0, 4, text="Rome", score=0.0),)


def make_data(name, *, max_length=None, task=(), **train):
    family, method, template = CASES[name]
    data = make_recipe_data(family, method, task="head", **train)
    data["task"] = {"kind": "extract", "template": template, **dict(task)}
    if max_length is not None:
        data["data"]["max_length"] = max_length
    return data


@pytest.fixture
def prepare(backbone):
    def make(name, *, rows=(13, 6, 5), unanswerable=True, **changes):
        tables = {
            split: Dataset.from_list(make_questions(count, seed=seed, unanswerable=unanswerable))
            for seed, (split, count) in enumerate(
                zip(("train", "validation", "test"), rows, strict=True)
            )
        }
        recipe = make_recipe(make_data(name, **changes))
        return setup_run(recipe, backbone=backbone(CASES[name][0]), tables=tables)

    return make


@pytest.mark.parametrize(("name", "max_length"), [*product(CASES, [None, WINDOWS + 4])])
def test_a_run_is_saved_and_answers_alike_alone_and_in_a_batch(prepare, tmp_path, name, max_length):
    prepared = prepare(name, max_length=max_length)
    trained = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = make_questions(9, seed=5)
    together = model.predict(rows)
    assert together == trained.predict(rows), "what is loaded is what was trained"
    unlabeled = [{name: row[name] for name in ("question", "context")} for row in rows]
    assert model.predict(unlabeled) == together, "no answers are needed"
    for row, found in zip(rows, together, strict=True):
        assert isinstance(found, AnswerPrediction)
        (alone,) = model.predict([row])
        assert alone.null_score == pytest.approx(found.null_score, abs=1e-4)
        assert alone.score == pytest.approx(found.score, abs=1e-4)
        for span in found.candidates:
            assert row["context"][span.start : span.end] == span.text
        if found.start is not None:
            assert found.text == row["context"][found.start : found.end]
    report = model.evaluate(rows)
    assert {*report.metrics} == {"loss", *model.task.objective.metric_names}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]) >= {"exact_match", "f1"}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_transformers_question_answering(prepare, name) -> None:
    """In one window: the mean cross-entropy of start and end over the positions that are read."""
    prepared = prepare(name)
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    with torch.no_grad():
        found = task.compute_loss(examples, [prompt])
        parts = []
        for row, example in zip(make_questions(13, seed=0), examples, strict=True):
            (variant,), (positions,) = example.variants, example.read_positions
            states = task.compute_states_at(
                [variant], positions=[positions], prompts=[prompt], prompt_index=None
            )
            scores = task.head(states)
            texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
            first = last = 0
            if texts:  # as `char_to_token` of transformers finds them
                spans = [*enumerate(example.characters, 1)]
                begin, end = starts[0], starts[0] + len(texts[0]) - 1
                first = next(at for at, (low, high) in spans if low <= begin < high)
                last = next(at for at, (low, high) in spans if low <= end < high)
            parts += [F.cross_entropy(scores[:, 0], torch.tensor(first))]
            parts += [F.cross_entropy(scores[:, 1], torch.tensor(last))]
    assert found.count == 13
    assert float(found.total) / 13 == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["bert-prefix", "llama-input"])
def test_no_answer_of_a_long_context_is_lost(prepare, name) -> None:
    """Whatever the stride, each answer has its tokens, and each token is read in one window."""
    for stride in (0, 1, 3):
        prepared = prepare(name, max_length=WINDOWS + 4, task={"stride": stride})
        rows = make_questions(12, seed=3, length=30)
        for row in rows:
            example = prepared.task.make_example(row)
            spans = [row["context"][slice(*span)] for span in example.characters]
            assert "".join(spans) == row["context"], "each character is read once"
            assert sum(map(len, example.read_positions)) == len(spans) + len(example.variants)
            texts = row["answers"]["text"]
            first, last = example.target
            assert (first, last) == (0, 0) or example.text[
                example.characters[first - 1][0] : example.characters[last - 1][1]
            ].strip() == texts[0]
            assert bool(texts) == bool(first)


def test_an_answer_over_the_border_of_windows_has_its_tokens(prepare) -> None:
    task = prepare("bert-prefix", max_length=WINDOWS, task={"stride": 0}).task
    words = ["the", "film", "was", "very", "good", "story", "actor", "plot"] * 3
    context = " ".join(words)
    for begin in range(len(words)):
        for end in range(begin + 1, len(words) + 1):
            text = " ".join(words[begin:end])
            start = len(" ".join(words[:begin])) + bool(begin)
            row = {"question": "good", "context": context}
            answers = {"text": [text], "answer_start": [start]}
            example = task.make_example(row | {"answers": answers})
            assert len(example.variants) > 1
            first, last = (example.characters[at - 1] for at in example.target)
            assert context[first[0] : last[1]].strip() == text


@pytest.mark.parametrize("name", ["bert-prefix", "llama-input"])
def test_a_resumed_run_is_the_uninterrupted_one(prepare, tmp_path, name) -> None:
    check_resumed(lambda: prepare(name, max_length=WINDOWS + 4), tmp_path)


def test_examples_survive_the_cache(prepare) -> None:
    task = prepare("bert-prefix", max_length=WINDOWS + 4).task
    rows = make_questions(6, seed=2, length=20)
    # Of several bytes a character, and of a number of bytes that no four divide.
    rows.append({"question": "bad", "context": "die Käse 日本 👍🏽", "answers": []})
    examples = task.make_examples(rows)
    assert unpack_examples(pack_examples(examples)) == examples


@pytest.mark.filterwarnings("ignore:nothing was learned")
def test_the_threshold_is_chosen_on_validation_rows_and_can_be_changed(backbone, tmp_path) -> None:
    validation = make_questions(12, seed=3)
    model = fit(
        backbone("bert"), Extract("{question}{sep}{context}"), make_questions(24, seed=1),
        validation=validation, method="p-tuning-v2",
        config=TrainingConfig(epochs=3, learning_rate=0.02), progress=False,
    )  # fmt: skip
    chosen = model.artifact.manifest.task["null_threshold"]
    references = [row["answers"]["text"] for row in validation]
    found = model.predict(validation)
    best = compute_squad_metrics([one.text for one in found], references)["f1"]
    assert model.evaluate(validation).metrics["f1"] == pytest.approx(best)
    differences = [one.null_score - one.score for one in found]
    for threshold in [chosen, 0.0, *differences, min(differences) - 1]:
        other = model.with_task(null_threshold=float(threshold)).predict(validation)
        score = compute_squad_metrics([one.text for one in other], references)["f1"]
        assert score <= best + 1e-9
    assert all(p.text for p in model.with_task(null_threshold="never").predict(validation))
    assert not any(p.text for p in model.with_task(null_threshold=-1e9).predict(validation))
    one = model.with_task(n_best=1, max_answer_tokens=1)
    assert all(len(p.candidates) == 1 for p in one.predict(validation))
    assert all(" " not in p.candidates[0].text for p in one.predict(validation))
    saved = PromptModel.from_pretrained(one.save(tmp_path / "one"), backbone=model.backbone)
    assert saved.predict(validation) == one.predict(validation)
    with pytest.raises(PromptError, match=r"task.stride is part .* null_threshold, n_best"):
        model.with_task(stride=3)


def test_questions_that_all_have_an_answer_always_get_one(prepare, tmp_path) -> None:
    prepared = prepare("bert-prefix", unanswerable=False)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert model.artifact.manifest.task["null_threshold"] == "never"
    rows = make_questions(8, seed=9, unanswerable=False)
    assert all(prediction.text for prediction in model.predict(rows))
    assert {*model.evaluate(rows).metrics} == {"loss", "exact_match", "f1"}


def test_the_threshold_lies_between_two_rows() -> None:
    rows = [
        AnswerPrediction("", {}, score=0.0, null_score=n, candidates=SPANS) for n in (-2.0, 3.0)
    ]
    assert fit_null_threshold(rows, [["Rome"], []]) == pytest.approx(0.5)
    assert fit_null_threshold(rows, [["Rome"], ["Rome"]]) == pytest.approx(4.0)
    assert fit_null_threshold(rows, [[], []]) < -2
    blank = AnswerPrediction("", {}, null_score=1.0)
    assert fit_null_threshold([blank], [["Rome"]]) == 0
    assert fit_null_threshold([*rows, blank], [["Rome"], [], []]) == pytest.approx(0.5)


def test_seeds_vote_and_each_has_its_own_head(prepare, tmp_path) -> None:
    models = []
    for seed in (1, 2, 3):
        prepared = prepare("bert-prefix", epochs=1, max_length=WINDOWS + 4)
        recipe = prepared.recipe.model_copy(update={"seed": seed})
        parts = setup_run(recipe, backbone=prepared.backbone, tables=prepared.tables)
        models.append(run_recipe(recipe, tmp_path / str(seed), prepared=parts))
    ensemble = Ensemble(models)
    rows = make_questions(7, seed=9)
    each = [model.predict(rows) for model in models]
    for at, found in enumerate(ensemble.predict(rows)):
        labels = [member[at].label for member in each]
        assert labels.count(found.label) == max(map(labels.count, labels))
    report = ensemble.evaluate(rows)
    assert 0 <= report.ensemble.metrics["f1"] <= 1 if hasattr(report, "ensemble") else True
    with pytest.raises(PromptError, match="parts of a text have no probabilities"):
        Ensemble(models, vote="mean")


def test_a_context_without_tokens_has_no_answer(prepare) -> None:
    task = prepare("bert-prefix").task
    example = task.make_example({"question": "good", "context": ""}, target=False)
    (found,) = task.predict([example], [None])
    assert (found.text, found.start, found.score, found.candidates) == ("", None, None, ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": {"text": ["film"], "answer_start": [1]}}, "row 4 .* stands once, at 4"),
        ({"answers": {"text": ["plot"], "answer_start": [0]}}, "row 4 .* nor anywhere else in it"),
        ({"answers": None}, r"row 4 .*, column 'answers': the answers are no value"),
        ({"answers": {"text": ["film"], "answer_start": []}}, "row 4 .* 1 texts, but 0 values"),
    ],
)
def test_answers_that_are_not_possible_name_their_row(tmp_path, row, message) -> None:
    rows = make_questions(6, seed=0)
    rows[4] = {"id": "4", "question": "good", "context": "the film"} | row
    path = write_rows(tmp_path / "train.jsonl", rows)
    data = make_data("bert-prefix")
    data["data"] = {"train": str(path), "split_sizes": {"train": 1.0, "validation": 0, "test": 0}}
    data["backbone"]["name"] = "./nowhere"
    faults = " ".join(check_recipe(data).faults)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(faults)


@pytest.mark.parametrize(
    ("family", "template", "message"),
    [
        ("t5", "{soft:3}{question}{context}", "answers in words, so it has no head on the tokens"),
        ("llama", "{soft:3}{context}{question} is", "field 'question' comes after the context"),
        ("llama", "{question}{context}{soft:3}", "its soft tokens come after the context"),
        ("llama", "{soft:3}{question}{context}", "Write something after it"),
        ("bert", "{soft:3}{question}", "unknown field 'context'"),
        ("bert", "{soft:3}{context}{context}", "there 2 times"),
        ("bert", "{soft:3}{context} {mask}", "a trained head does not read the mask"),
    ],
)
def test_what_does_not_fit_is_refused(backbone, family, template, message) -> None:
    data = make_data("bert-input")
    data["backbone"]["name"], data["task"]["template"] = family, template
    tables = {"train": Dataset.from_list(make_questions(8, seed=0))}
    with pytest.raises(TemplateError, match=message):
        setup_run(make_recipe(data), backbone=backbone(family), tables=tables)


def test_a_stride_that_is_no_part_of_a_window_is_refused(prepare) -> None:
    with pytest.raises(TemplateError, match=r"cannot share 30 tokens .* Choose a stride from 0"):
        prepare("bert-prefix", max_length=WINDOWS, task={"stride": 30})


def test_what_has_no_answer_of_its_own_is_refused(prepare, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"train.keep_plain_head: the task has no labels"):
        prepare("bert-prefix", keep_plain_head=True)
    prepared = prepare("bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    with pytest.raises(PromptError, match="a part of a text has no probabilities of labels"):
        model.predict_proba(make_questions(1, seed=0))
    manifest = replace(
        model.artifact.manifest, task=model.artifact.manifest.task | {"null_threshold": "auto"}
    )
    with pytest.raises(ArtifactError, match=r"task.null_threshold is 'auto'"):
        check_artifact(replace(model.artifact, manifest=manifest))


def test_scores_that_are_not_numbers_are_refused(prepare) -> None:
    task = prepare("bert-prefix").task
    head = task.head
    with torch.no_grad():
        head.output.weight.fill_(float("nan"))
    from softprompt.inference.loops import predict_rows

    examples = [task.make_example(row) for row in make_questions(3, seed=0)]
    with pytest.raises(PromptError):
        list(predict_rows(task, examples, prompt=None))


def test_many_windows_are_run_in_parts(prepare, monkeypatch) -> None:
    task = prepare("bert-prefix", max_length=WINDOWS).task
    examples = task.make_examples(make_questions(5, seed=1, length=40))
    with torch.no_grad():
        whole = task.compute_row_states(examples, [None])
        monkeypatch.setattr("softprompt.tasks.base._MOST_POSITIONS", 3 * WINDOWS)
        parts = task.compute_row_states(examples, [None])
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)


def test_no_label_is_dropped_by_a_row_count(prepare) -> None:
    """The mean of a step's loss is over rows, whatever the numbers of their targets."""
    from softprompt.train.gradients import _count_scored

    prepared = prepare("bert-prefix")
    examples = prepared.rows["train"].examples
    assert all(_count_scored(example, prepared.task) == 1 for example in examples)
