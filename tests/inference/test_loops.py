"""Answers in order, whatever else is in the batch; losses that are the mean of the rows' own."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import DataError, PromptError
from softprompt.inference import Ensemble
from softprompt.inference.loops import (
    EvaluatedRows,
    evaluate_rows,
    make_report,
    predict_rows,
)
from softprompt.tasks import Prediction

WAYS = (
    "causal words", "causal words, prefix", "masked words", "answer words", "head on [CLS]",
    "head on the last token", "text", "text of a seq2seq", "a choice",
)  # fmt: skip


def assert_alike(first: Prediction, second: Prediction) -> None:
    assert first.label == second.label
    assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def examples(model, rows):
    return [model.task.make_example(row) for row in rows]


def truth(model, rows):
    return [row[model.task.target_column] for row in rows]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2, 3, 100])
def test_an_answer_does_not_depend_on_its_batch(model, rows, way, size):
    trained = model(way)
    alone = [answer for row in rows for answer in trained.predict([row])]
    found = dict(
        predict_rows(trained.task, examples(trained, rows), prompt=trained.prompt, batch_size=size)
    )
    assert {*found} == {*range(len(rows))}
    for index, answer in found.items():
        assert_alike(answer, alone[index])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_loss_is_the_mean_of_each_scored_token_s(model, rows, way, size):
    trained = model(way)
    made = examples(trained, rows)
    with torch.no_grad():
        single = [trained.task.compute_loss([example], [trained.prompt]) for example in made]
    found = evaluate_rows(
        trained.task, made, truth=truth(trained, rows), prompt=trained.prompt, batch_size=size
    )
    assert found.count == sum(loss.count for loss in single)
    assert found.total == pytest.approx(sum(float(loss.total) for loss in single), rel=1e-5)
    mean = found.total / found.count
    assert make_report(trained.task, [found]).metrics["loss"] == pytest.approx(mean)


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_predicts_as_prediction_does(model, rows, way):
    trained = model(way)
    made = examples(trained, rows)
    found = evaluate_rows(
        trained.task, made, truth=truth(trained, rows), prompt=trained.prompt, batch_size=3
    )
    predicted = dict(predict_rows(trained.task, made, prompt=trained.prompt, batch_size=3))
    assert found.predictions == tuple(predicted[i] for i in range(len(rows)))
    assert found.truth == tuple(truth(trained, rows))


def test_a_classifier_runs_the_backbone_once_for_both(model, rows):
    trained = model("head on [CLS]")
    calls = 0

    def count(*_args) -> None:
        nonlocal calls
        calls += 1

    hook = trained.backbone.model.base_model.register_forward_hook(count)
    evaluate_rows(
        trained.task,
        examples(trained, rows),
        truth=truth(trained, rows),
        prompt=trained.prompt,
        batch_size=3,
    )
    hook.remove()
    assert calls == 3


@pytest.mark.parametrize("way", ["causal words", "text"])
def test_without_a_prompt_the_bare_backbone_is_evaluated(model, rows, way):
    """Only a row without soft tokens can be: here its words alone, as a hard prompt."""
    trained = model("causal words, prefix" if way == "causal words" else "text")
    made = examples(trained, rows)
    bare = evaluate_rows(trained.task, made, truth=truth(trained, rows), prompt=None)
    empty = trained.prompt.map_tensors(lambda tensor: tensor[:, :, :0])
    none = evaluate_rows(trained.task, made, truth=truth(trained, rows), prompt=empty)
    assert bare.total == pytest.approx(none.total, rel=1e-5)
    prompted = evaluate_rows(trained.task, made, truth=truth(trained, rows), prompt=trained.prompt)
    assert prompted.total != pytest.approx(bare.total, rel=1e-3)


@pytest.mark.parametrize("way", ["head on [CLS]", "text", "a choice"])
def test_parts_add_up_to_the_whole(model, rows, way):
    """As when several processes evaluate, one of which has no rows."""
    trained = model(way)
    made, right = examples(trained, rows), truth(trained, rows)
    whole = evaluate_rows(trained.task, made, truth=right, prompt=trained.prompt)
    parts = [
        evaluate_rows(trained.task, made[k::2], truth=right[k::2], prompt=trained.prompt)
        for k in range(2)
    ]
    nothing = evaluate_rows(trained.task, [], truth=[], prompt=trained.prompt)
    assert nothing == EvaluatedRows(0.0, 0, (), ())
    first, second = make_report(trained.task, [whole]), make_report(trained.task, [*parts, nothing])
    assert (second.rows, second.confusion) == (first.rows, first.confusion)
    assert second.metrics == pytest.approx(first.metrics, rel=1e-5)


def test_nothing_is_left_behind(model, rows):
    trained = model("head on [CLS]")
    found = evaluate_rows(
        trained.task, examples(trained, rows), truth=truth(trained, rows), prompt=trained.prompt
    )
    assert isinstance(found.total, float)
    for module in (trained.backbone.model, trained.task.head):
        assert all(p.grad is None for p in module.parameters())


def test_no_rows_are_refused(model):
    trained = model("text")
    with pytest.raises(DataError, match=r"^no rows to evaluate\. Give a split or a file that has"):
        make_report(trained.task, [EvaluatedRows(0.0, 0, (), ())])


@pytest.mark.parametrize("way", ["causal words", "text"])
def test_the_metrics_are_those_that_a_recipe_may_select(model, rows, way):
    trained = model(way)
    found = evaluate_rows(
        trained.task, examples(trained, rows), truth=truth(trained, rows), prompt=trained.prompt
    )
    task = trained.task
    if way != "text":
        task = task.with_objective(replace(task.objective, is_ordinal=True))
    names = task.objective.metric_names
    assert {*make_report(task, [found]).metrics} == {"loss", *names}
    assert names[0] == ("exact_match" if way == "text" else "accuracy")
    assert (make_report(trained.task, [found]).confusion is None) == (way == "text")


def test_a_constrained_answer_is_one_of_the_choices(model, rows):
    trained = model("a choice")
    assert {a.label for a in trained.predict(rows)} <= {"negative", "positive"}


def test_an_answer_that_is_no_label_is_other(model):
    trained = model("a choice")
    given = tuple(Prediction(label, {}) for label in ("positive", "posi", "negative", ""))
    found = make_report(
        trained.task,
        [EvaluatedRows(1.0, 4, ("positive", "positive", "negative", "negative"), given)],
    )
    assert found.confusion.predicted_labels == ("negative", "positive", "other")
    assert found.confusion.counts == ((1, 0, 1), (0, 1, 1))
    assert found.metrics["accuracy"] == 0.5


def test_the_probabilities_are_a_softmax_of_the_scores(model, rows):
    trained = model("masked words")
    made = examples(trained, rows)
    with torch.no_grad():
        scores = trained.task.compute_scores(made, [trained.prompt])
    by_hand = (scores.double() - scores.double().logsumexp(1, keepdim=True)).exp()
    found = dict(predict_rows(trained.task, made, prompt=trained.prompt))
    for index, row in enumerate(by_hand):
        given = torch.tensor([*found[index].probabilities.values()], dtype=torch.float64)
        assert_close(given, row, atol=1e-5, rtol=1e-5)
        assert found[index].label == trained.labels[int(row.argmax())]
        assert replace(found[index]).probabilities.keys() == {"negative", "positive"}


@pytest.mark.parametrize("way", WAYS)
def test_scores_that_are_not_numbers_are_no_answer(model, rows, way):
    """Any label, or any token, would be the likeliest."""
    sound = model(way)
    # As a backbone gives them whose numbers overflow; an artifact with such numbers is refused.
    spoilt = replace(sound, prompt=sound.prompt.map_tensors(lambda tensor: tensor * math.nan))
    for answer in (lambda: spoilt.predict(rows), lambda: spoilt.evaluate(rows)):
        with pytest.raises(PromptError, match=r"scores are not numbers \(NaN\)"):
            answer()
    with pytest.raises(PromptError, match="scores are not numbers"):
        Ensemble([sound, spoilt]).predict(rows)
