"""Answers from contexts: which is chosen, how rows are scored, and the tokens of an answer."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from softprompt.data.squad import ContextAnswer
from softprompt.errors import DataError
from softprompt.tasks import AnswerPrediction, Example
from softprompt.tasks.answer_spans import AnswerSpan
from softprompt.tasks.extraction import ContextAnswers, list_answer_texts
from softprompt.tasks.extractor import StartEndScores, choose_answers, find_tokens, sum_span_loss
from softprompt.tasks.objectives import Prediction
from softprompt.tasks.squad_scores import compute_squad_metrics

SPANS = tuple(AnswerSpan(at, at + 1, text="Rome"[at], score=-float(at)) for at in range(4))


def as_truth(*texts):
    return json.dumps({"text": [*texts], "answer_start": [0] * len(texts)})


@pytest.mark.parametrize(
    ("threshold", "null", "text"),
    [(0.0, -1.0, "R"), (0.0, 0.0, "R"), (0.0, 0.5, ""), (1.0, 0.5, "R"), (-1.0, -0.5, ""),
     (None, 100.0, "R")],
)  # fmt: skip
def test_no_answer_is_given_where_its_score_exceeds_the_threshold(threshold, null, text) -> None:
    objective = ContextAnswers(threshold, n_best=2)
    found = objective.choose(SPANS, null)
    assert found.text == found.label == text
    assert (found.start, found.end) == ((0, 1) if text else (None, None))
    assert (found.score, found.null_score) == (0.0, null)
    assert found.candidates == SPANS[:2], "also where no answer is given"
    assert json.loads(json.dumps(found.details)).keys() == {*objective.detail_names}
    empty = objective.choose((), null)
    assert (empty.text, empty.score, empty.candidates) == ("", None, ())


def test_rows_are_scored_as_the_scripts_of_squad_do() -> None:
    truth = [as_truth("the Eiffel Tower", "Eiffel"), as_truth(), as_truth("Rome")]
    answers = ["Eiffel tower!", "", "in Paris"]
    objective = ContextAnswers()
    scores = objective.score(truth, [Prediction(answer, {}) for answer in answers])
    expected = compute_squad_metrics(answers, [["the Eiffel Tower", "Eiffel"], [], ["Rome"]])
    assert scores.metrics == expected
    assert {*scores.metrics} == {*objective.metric_names}
    rows = objective.score_rows(truth, answers)
    assert sum(rows) / 3 == pytest.approx(expected["f1"])
    assert rows == (1.0, 1.0, 0.0)
    pairs = zip(truth, answers, strict=True)
    assert [objective.is_right(*pair) for pair in pairs] == [True, True, False]
    assert {*replace(objective, null_threshold=None).metric_names} == {"exact_match", "f1"}


@pytest.mark.parametrize(
    ("truth", "constant"),
    [
        ([as_truth("a"), as_truth("b"), as_truth(), as_truth()], ""),
        ([as_truth("film"), as_truth("film"), as_truth("plot")], "film"),
        ([as_truth("film"), as_truth("film"), as_truth()], "film"),
    ],
)
def test_the_constant_answer_is_the_best_for_all_rows(truth, constant) -> None:
    assert ContextAnswers().choose_constant(truth) == constant


@pytest.mark.parametrize(
    ("text", "texts"),
    [(as_truth("a", "b"), ["a", "b"]), ("[]", []),
     ('[{"text": "a", "answer_start": 3}]', ["a"])],
)  # fmt: skip
def test_the_forms_of_a_cell_of_answers(text, texts) -> None:
    assert list_answer_texts(text) == texts


@pytest.mark.parametrize("text", ["", "Rome", "3", '{"answer": "Rome"}'])
def test_another_form_is_refused(text) -> None:
    with pytest.raises(DataError, match=r"the answers are .* Write them as"):
        list_answer_texts(text)


@pytest.mark.parametrize(
    ("start", "text", "tokens"),
    [
        (0, "In", (1, 1)),
        (3, "Rome", (2, 3)),
        (3, "Ro", (2, 2)),
        (6, "e of", (3, 4)),
        (4, "o", (2, 2)),
    ],
)
def test_an_answer_has_the_tokens_that_its_characters_are_in(start, text, tokens) -> None:
    characters = [(0, 2), (2, 5), (5, 7), (7, 10), (10, 10)]  # In| Ro|me| of|
    assert find_tokens(ContextAnswer(text, start), characters) == tokens
    with pytest.raises(DataError, match="has no token: this tokenizer leaves"):
        find_tokens(ContextAnswer("x", 12), characters)


def make_example(count, target=None):
    characters = tuple((at, at + 1) for at in range(count))
    return Example((), ((0,) * (count + 1),), target, text="x" * count, characters=characters)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 999))
def test_the_loss_of_rows_of_any_length_is_that_of_each_alone(counts, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, examples, expected = [], [], []
    for count in counts:
        first = int(torch.randint(0, count + 1, (), generator=generator))
        target = (first, int(torch.randint(first, count + 1, (), generator=generator)))
        found = StartEndScores(
            torch.randn(2, generator=generator), torch.randn(count, 2, generator=generator)
        )
        scores.append(found)
        examples.append(make_example(count, target))
        joined = torch.cat([found.null[None], found.tokens])
        expected += [F.cross_entropy(joined[:, n], torch.tensor(target[n])) for n in (0, 1)]
    loss = sum_span_loss(scores, examples)
    assert loss.count == len(counts)
    assert float(loss.total) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)


def test_scores_are_log_probabilities_over_all_tokens_and_no_answer() -> None:
    scores = StartEndScores(torch.tensor([0.5, -1.0]), torch.randn(6, 2))
    objective = ContextAnswers(n_best=100, max_answer_tokens=6)
    (found,) = choose_answers([make_example(6)], [scores], objective=objective)
    assert isinstance(found, AnswerPrediction)
    logs = torch.cat([scores.null[None], scores.tokens]).double().log_softmax(0)
    assert found.null_score == pytest.approx(float(logs[0].sum()))
    by_place = {(span.start, span.end): span.score for span in found.candidates}
    assert len(by_place) == 6 * 7 // 2, "every span"
    for (start, end), score in by_place.items():
        assert score == pytest.approx(float(logs[1 + start, 0] + logs[end, 1]))
    assert [s.score for s in found.candidates] == sorted(by_place.values(), reverse=True)
