"""Tags as an objective: seqeval's numbers, shares of rows, decoding; and words of any text."""

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.data.tag_schemes import convert_tags, find_fault, repair_tags
from softprompt.data.words import WordStates, split_words
from softprompt.errors import DataError, PromptError
from softprompt.tasks import Tag, TagPrediction, make_objective
from softprompt.tasks.objective_settings import change_answer_settings
from softprompt.tasks.tag_cells import read_row_tags, read_row_words
from softprompt.tasks.tag_sequences import TagSequences, format_tags, parse_tags

LABELS = ("O", "B-A", "I-A", "B-B", "I-B")


def make_rows(seed: int, count: int = 30) -> tuple[list[list[str]], list[list[str]]]:
    random = Random(seed)  # noqa: S311  # tags, not keys
    lengths = [random.randint(1, 9) for _ in range(count)]
    first, second = ([[random.choice(LABELS) for _ in range(n)] for n in lengths] for _ in range(2))
    return [repair_tags(tags, scheme="BIO") for tags in first], second


def make(**more) -> TagSequences:
    return TagSequences(LABELS, "BIO", "BIO", **more)


def predict(rows) -> list[TagPrediction]:
    return [TagPrediction(format_tags(tags), {}) for tags in rows]


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_seqeval(seed) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import IOB2

    truth, found = make_rows(seed)
    scores = make().score([format_tags(tags) for tags in truth], predict(found)).metrics
    strict = {"mode": "strict", "scheme": IOB2}
    assert scores["span_f1"] == pytest.approx(metrics.f1_score(truth, found, **strict))
    macro = metrics.f1_score(truth, found, average="macro", zero_division=0, **strict)
    assert scores["span_macro_f1"] == pytest.approx(macro)
    assert scores["lenient_f1"] == pytest.approx(metrics.f1_score(truth, found))
    assert scores["tag_accuracy"] == pytest.approx(metrics.accuracy_score(truth, found))


@pytest.mark.parametrize("scheme", ["BIO", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_the_rows_is_the_measure(seed, scheme) -> None:
    truth, found = make_rows(seed)
    objective = TagSequences(LABELS, scheme, scheme)
    texts = [format_tags(tags) for tags in truth]
    scores = objective.score(texts, predict(found))
    rows = objective.score_rows(texts, [format_tags(tags) for tags in found])
    assert np.mean(rows) == pytest.approx(scores.metrics[objective.measure])
    assert objective.score_rows(texts, texts) == pytest.approx([1.0] * len(texts))


def test_the_spread_of_the_rows_is_that_of_the_ratio() -> None:
    """The standard error of the rows' parts against F1 of resampled rows (a bootstrap)."""
    truth, found = make_rows(0, count=400)
    objective = make()
    texts, answers = ([format_tags(tags) for tags in rows] for rows in (truth, found))
    rows = np.array(objective.score_rows(texts, answers))
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(60):
        chosen = random.integers(0, len(texts), len(texts))
        part = objective.score_rows([texts[i] for i in chosen], [answers[i] for i in chosen])
        resampled.append(np.mean(part))
    assert rows.std() / 20 == pytest.approx(np.std(resampled), rel=0.25)


def test_rows_without_any_span_score_nothing() -> None:
    assert make().score_rows(['["O"]', '["O", "O"]'], ['["O"]', '["O", "O"]']) == (0.0, 0.0)


def test_a_constant_is_one_tag_for_every_word() -> None:
    truth = ['["O", "O", "B-A"]', '["O"]']
    objective = make()
    constant = objective.choose_constant(truth)
    assert constant == "O"
    assert objective.score(truth, [TagPrediction(constant, {})] * 2).metrics[
        "tag_accuracy"
    ] == pytest.approx(0.75)
    assert objective.is_right('["O", "O"]', constant)
    assert not objective.is_right(truth[0], constant)


@pytest.mark.parametrize("target", ["IOB1", "BIOES", "BILOU"])
def test_truth_is_converted_to_the_scheme_of_predictions(target) -> None:
    truth = [["B-A", "I-A", "O", "B-B"], ["B-A", "B-A"]]
    settings_ = Tag(scheme="BIO", output_scheme=target)
    labels = [tag for tags in truth for tag in convert_tags(tags, source="BIO", target=target)]
    objective = make_objective(settings_, sorted({"O", *labels}))
    for tags in truth:
        found = objective.read_truth(format_tags(tags))
        assert find_fault(found, scheme=target) is None
        assert convert_tags(found, source=target, target="BIO") == tags


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_constrained_tags_are_possible_and_none_is_likelier(data) -> None:
    length = data.draw(st.integers(1, 4))
    values = st.floats(0.01, 1.0)
    shares = np.array([[data.draw(values) for _ in LABELS] for _ in range(length)])
    shares /= shares.sum(axis=1, keepdims=True)
    states = WordStates("a" * length, tuple((n, n + 1) for n in range(length)),
                        tuple((n,) for n in range(length)))  # fmt: skip
    found = make().describe(shares, states)
    assert find_fault(found.tags, scheme="BIO") is None
    free = make(is_constrained=False).describe(shares, states)
    assert free.tags == tuple(LABELS[at] for at in shares.argmax(axis=1))
    best = np.prod([shares[n, LABELS.index(tag)] for n, tag in enumerate(found.tags)])
    for _ in range(20):
        other = repair_tags(data.draw(st.lists(st.sampled_from(LABELS), min_size=length,
                                               max_size=length)), scheme="BIO")  # fmt: skip
        assert (
            np.prod([shares[n, LABELS.index(tag)] for n, tag in enumerate(other)]) <= best + 1e-12
        )


def test_aggregations_read_the_tokens_of_a_word() -> None:
    shares = np.array([[0.4, 0.6, 0, 0, 0], [0.9, 0.1, 0, 0, 0], [0.7, 0.3, 0, 0, 0]])
    states = WordStates("goodness no", ((0, 8), (9, 11)), ((0, 1), (2,)), ((0, 4), (4, 8), (8, 11)))
    tags = {name: make(aggregation=name).describe(shares, states).tags[0] for name in
            ("first", "average", "max", "simple")}  # fmt: skip
    assert tags == {"first": "B-A", "average": "O", "max": "O", "simple": "B-A"}
    (span,) = make(aggregation="simple").describe(shares, states).spans
    assert (span.text, span.start, span.end, span.score) == ("good", 0, 4, 0.6)
    (whole,) = make().describe(shares, states).spans
    assert (whole.text, whole.score) == ("goodness", 0.6)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_every_word_of_any_text_is_read(text) -> None:
    words = read_row_words(text, "text")
    if not words.is_list:
        assert words.text == text
        assert [*words.places] == split_words(text)
    assert all(text.strip() for text in words.list_words())


@given(st.lists(st.text(min_size=1, max_size=6).filter(str.strip), max_size=8))
@settings(max_examples=200, deadline=None)
def test_words_of_a_list_stay_as_they_are(words) -> None:
    for cell in (words, json.dumps(words), repr(words)):
        assert read_row_words(cell, "words").list_words() == tuple(words)
    row = {"words": words, "tags": ["O"] * len(words)}
    assert read_row_tags(row, Tag()) == ("O",) * len(words)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "one two", "tags": ["O", "O"]}, "Give the words as a list"),
        ({"words": ["one"], "tags": []}, "0 tags for 1 words"),
        ({"words": ["one"], "tags": None}, "has no value"),
        ({"words": None, "tags": ["O"]}, "has no value"),
        ({"words": ["one", None], "tags": ["O", "O"]}, "is a NoneType"),
        ({"words": ["one"], "tags": "O"}, "are not a list of texts"),
        ({"words": "one", "tags": [{"start": 0, "end": 9, "label": "A"}]}, "not inside"),
        ({"words": "one"}, "unknown column 'tags'"),
    ],
)
def test_cells_that_are_not_possible_are_refused(row, message) -> None:
    with pytest.raises(DataError, match=message):
        read_row_tags(row, Tag())


def test_tags_have_a_text_form() -> None:
    assert parse_tags(format_tags(["B-Ä", '"'])) == ("B-Ä", '"')
    with pytest.raises(DataError, match="are not a list of texts"):
        parse_tags('["O", null]')


def test_a_change_of_answers_without_effect_is_refused() -> None:
    """Plain tags may follow each other in any order, and so may tags of tokens."""
    plain, spans = Tag(scheme="none"), Tag(scheme="BIO")
    off = {"constrained_decoding": False}
    with pytest.raises(PromptError, match=r"task.constrained_decoding: means nothing with .*none"):
        change_answer_settings(plain, off, labels=("A", "B"))
    with pytest.raises(PromptError, match=r"means nothing with task.aggregation = .simple"):
        change_answer_settings(spans, off | {"aggregation": "simple"}, labels=("O", "B-A", "I-A"))
    kept = {"scheme": "BIO", "class_weights": None}
    assert change_answer_settings(spans, off, labels=("O", "B-A", "I-A")) == off | kept
