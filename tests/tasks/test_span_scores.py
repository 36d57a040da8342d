"""The scores of spans are seqeval's, to the last digit."""

import random
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, classification_report
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES
from sklearn.exceptions import UndefinedMetricWarning

from softprompt.data.tag_schemes import TagSpan, list_tags, write_tags
from softprompt.errors import DataError
from softprompt.tasks.span_scores import compute_tag_accuracy, score_spans, score_tags

SEQEVAL = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES, "BILOU": BILOU}
SEQUENCES, ROWS = 4_000, 20


def draw_tags(rng, scheme, *, noise):
    """Tags of spans, some of which are replaced by any others, so that many are not possible."""
    length = rng.randint(1, 12)
    spans, at = [], 0
    while at < length:
        end = min(length, at + rng.randint(1, 3))
        if rng.random() < 0.5:
            spans.append(TagSpan(rng.choice(["PER", "LOC", "ORG", "MISC"]), at, end))
        at = end
    every = list_tags(["PER", "LOC", "ORG", "MISC"], scheme=scheme)
    tags = write_tags(spans, length=length, scheme=scheme)
    return [rng.choice(every) if rng.random() < noise else tag for tag in tags]


def change_tags(rng, tags, scheme):
    every = list_tags(["PER", "LOC", "ORG", "NEW"], scheme=scheme)
    return [rng.choice(every) if rng.random() < 0.15 else tag for tag in tags]


def flatten(scores):
    """The scores as seqeval reports them."""
    averages = [scores.micro, scores.macro, scores.weighted]
    named = [(f"{score.label} avg", score) for score in averages]
    return {
        name: {
            "precision": score.precision,
            "recall": score.recall,
            "f1-score": score.f1,
            "support": score.support,
        }
        for name, score in [*((score.label, score) for score in scores.types), *named]
    }


def report(truth, predicted, *, scheme, mode):
    """Its own, from the library; it does not know the letters of BILOU in its default mode."""
    options = {"mode": "strict", "scheme": SEQEVAL[scheme]} if mode == "strict" else {}
    if scheme == "BILOU" and mode == "lenient":
        truth, predicted = (
            [[re.sub("^L", "E", re.sub("^U", "S", tag)) for tag in tags] for tags in rows]
            for rows in (truth, predicted)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return classification_report(truth, predicted, output_dict=True, zero_division=0, **options)


@pytest.mark.parametrize("scheme", list(SEQEVAL))
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_scores_of_random_tags_are_those_of_seqeval(scheme, mode):
    rng = random.Random(f"{scheme} {mode}")  # noqa: S311  # not for secrets
    for group in range(SEQUENCES // ROWS):
        noise = (0, 0.1, 0.5, 1)[group % 4]
        truth = [draw_tags(rng, scheme, noise=noise) for _ in range(ROWS)]
        predicted = [change_tags(rng, tags, scheme) for tags in truth]
        scores = flatten(score_tags(truth, predicted, scheme=scheme, mode=mode))
        assert scores == report(truth, predicted, scheme=scheme, mode=mode)
        assert compute_tag_accuracy(truth, predicted) == accuracy_score(truth, predicted)


@pytest.mark.parametrize("mode", ["strict", "lenient"])
@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([["O", "B-A"]], [["O", "O"]]),
        ([["O", "O"]], [["O", "B-A"]]),
        ([["B-A"], ["O"]], [["O"], ["B-A"]]),
        ([["B-A", "I-A"]], [["B-A", "I-A"]]),
    ],
)
def test_scores_without_spans_on_one_side(truth, predicted, mode):
    scores = score_tags(truth, predicted, scheme="BIO", mode=mode)
    assert flatten(scores) == report(truth, predicted, scheme="BIO", mode=mode)


def test_scores_without_any_spans_are_zero():
    scores = score_tags([["O"]], [["O"]], scheme="BIO")
    assert scores.types == ()
    for average in (scores.micro, scores.macro, scores.weighted):
        assert (average.precision, average.recall, average.f1, average.support) == (0, 0, 0, 0)


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 5)), max_size=12))
def test_exact_spans_are_perfect(drawn):
    spans = [{TagSpan(label, at, at + 1) for label, at in drawn}, set()]
    scores = score_spans(spans, spans)
    assert scores.micro.correct == len(spans[0])
    assert all(score.f1 == 1 for score in scores.types)


def test_predictions_without_their_words_are_refused():
    with pytest.raises(DataError, match="1 predictions for 2 words of row 1"):
        score_tags([["O"], ["O", "O"]], [["O"], ["O"]], scheme="BIO")
    with pytest.raises(DataError, match="0 predictions for 1 rows"):
        compute_tag_accuracy([["O"]], [])
    with pytest.raises(DataError, match="no words to compare"):
        compute_tag_accuracy([[]], [[]])
