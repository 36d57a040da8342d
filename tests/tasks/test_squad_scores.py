"""Scores of question answering, against what SQuAD's published scripts compute, line by line."""

import random
import re
import string
from collections import Counter

import pytest

from softprompt.errors import DataError
from softprompt.tasks.squad_scores import (
    choose_null_threshold,
    choose_squad_version,
    compute_squad_metrics,
    normalize_answer,
    score_answer_f1,
    score_exact_match,
)

# ── The scripts' own way ─────────────────────────────────────────────────────


def published_normalization(text: str) -> str:
    """Lower case, then punctuation, then articles, then white space."""
    text = text.lower()
    text = "".join(character for character in text if character not in set(string.punctuation))
    text = re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE)
    return " ".join(text.split())


def published_f1(gold: str, predicted: str, version: str) -> float:
    gold_tokens = published_normalization(gold).split()
    predicted_tokens = published_normalization(predicted).split()
    if version == "2.0" and (len(gold_tokens) == 0 or len(predicted_tokens) == 0):
        return int(gold_tokens == predicted_tokens)
    same = sum((Counter(gold_tokens) & Counter(predicted_tokens)).values())
    if same == 0:
        return 0
    precision = 1.0 * same / len(predicted_tokens)
    recall = 1.0 * same / len(gold_tokens)
    return (2 * precision * recall) / (precision + recall)


def published_scores(predicted: str, golds: list[str], version: str) -> tuple[float, float]:
    if version == "2.0":
        golds = [gold for gold in golds if published_normalization(gold)]
        if not golds:
            golds = [""]
    exact = max(
        int(published_normalization(gold) == published_normalization(predicted)) for gold in golds
    )
    return exact, max(published_f1(gold, predicted, version) for gold in golds)


def published_threshold(differences, predictions, golds, scores) -> tuple[float, float]:
    """``find_best_thresh``, with the place of the best among the sorted rows, or -1."""
    has_answer = [bool(of_row) for of_row in golds]
    current = best = sum(not has for has in has_answer)
    place = -1
    for number, row in enumerate(sorted(range(len(golds)), key=lambda k: differences[k])):
        current += scores[row] if has_answer[row] else -int(bool(predictions[row]))
        if current > best:
            best, place = current, number
    return best / len(golds), place


# ── Random pairs ─────────────────────────────────────────────────────────────

VOCABULARY = """
a an the The AN theatre Anna a. the- 'the' a-b the_a U.S. U.S 1,000 1000 3.5% $5 co-op don't dont …
— « » Zürich ZÜRICH Zu\u0308rich İstanbul istanbul ß SS naïve Σίσυφος 映画 の 人 \u0430 the映 映the
🎬 \u200b Œuvre ª x² ٣ ﬁ fi Rome rome Paris tower of Eiffel 1889 (1889) [1889] ` ~ |
"""
WORDS = VOCABULARY.split()
SPACES = [" ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\u3000", "-", "", "\x1c"]


def draw_text(source: random.Random, most: int = 5) -> str:
    count = source.randrange(most + 1)
    return "".join(source.choice(WORDS) + source.choice(SPACES) for _ in range(count))


def draw_pairs(count: int, seed: int, *, null: float) -> list[tuple[str, list[str]]]:
    """Predictions and right answers; half of the predictions are near a right answer."""
    source = random.Random(seed)  # noqa: S311  # not for secrets
    pairs = []
    for _ in range(count):
        golds = [draw_text(source) for _ in range(source.randrange(1, 4))]
        if source.random() < null:
            golds = []
        predicted = draw_text(source)
        if golds and source.random() < 0.5:
            predicted = source.choice(["the ", "", "A "]) + source.choice(golds).upper() + "."
        pairs.append((predicted, golds))
    return pairs


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_ten_thousand_pairs_score_as_published(version) -> None:
    pairs = draw_pairs(10_000, seed=1, null=0.2 if version == "2.0" else 0.0)
    exact, f1 = [], []
    for predicted, golds in pairs:
        wanted = published_scores(predicted, golds, version)
        found = (
            score_exact_match(predicted, golds, version=version),
            score_answer_f1(predicted, golds, version=version),
        )
        assert found == wanted, (predicted, golds)
        exact.append(wanted[0])
        f1.append(wanted[1])
    assert 0.1 < sum(exact) / len(pairs) < 0.9
    assert len({*f1}) > 10
    metrics = compute_squad_metrics([p for p, _ in pairs], [golds for _, golds in pairs])
    assert metrics["exact_match"] == pytest.approx(sum(exact) / len(pairs))
    assert metrics["f1"] == pytest.approx(sum(f1) / len(pairs))
    if version == "2.0":
        for name, has in (("answerable", True), ("unanswerable", False)):
            chosen = [at for at, (_, golds) in enumerate(pairs) if bool(golds) == has]
            wanted = sum(exact[at] for at in chosen) / len(chosen)
            assert metrics[f"{name}_exact_match"] == pytest.approx(wanted)
    else:
        assert {*metrics} == {"exact_match", "f1"}


def test_ten_thousand_texts_are_normalized_as_published() -> None:
    source = random.Random(2)  # noqa: S311  # not for secrets
    for _ in range(10_000):
        text = draw_text(source, 8)
        assert normalize_answer(text) == published_normalization(text)


# ── By hand ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  quick, brown fox!", "quick brown fox"),
        ("a an the", ""),
        ("a-b", "ab"),  # punctuation goes first
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("“the” cat", "“ ” cat"),  # only ASCII punctuation goes
        ("", ""),
    ],
)
def test_normalization(text: str, wanted: str) -> None:
    assert normalize_answer(text) == wanted


@pytest.mark.parametrize(
    ("predicted", "golds", "exact", "f1"),
    [
        ("Rome", ["rome."], 1, 1),
        ("in Rome", ["Rome", "the city of Rome"], 0, 2 / 3),
        ("one two two", ["two two three"], 0, 2 / 3),  # words count as often as both have them
        ("x", ["Rome"], 0, 0),
        ("", [], 1, 1),
        ("Rome", [], 0, 0),
        ("the", [], 1, 1),
        ("", ["Rome"], 0, 0),
        ("", ["the"], 1, 1),  # an answer of articles alone is not an answer
    ],
)
def test_scores_of_version_2(predicted, golds, exact, f1) -> None:
    assert score_exact_match(predicted, golds, version="2.0") == exact
    assert score_answer_f1(predicted, golds, version="2.0") == pytest.approx(f1)


def test_versions_differ_where_only_articles_are_left() -> None:
    assert score_answer_f1("a", ["the"], version="1.1") == 0
    assert score_answer_f1("a", ["the"], version="2.0") == 1
    assert score_exact_match("a", ["the"], version="1.1") == 1
    assert choose_squad_version([["x"], ["y"]]) == "1.1"
    assert choose_squad_version([["x"], []]) == "2.0"


# ── The threshold ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("metric", ["exact_match", "f1"])
@pytest.mark.parametrize("seed", range(40))
def test_the_threshold_is_the_published_one(metric, seed: int) -> None:
    """Distinct differences, as those of real scores are."""
    source = random.Random(seed)  # noqa: S311  # not for secrets
    pairs = draw_pairs(source.randrange(1, 40), seed, null=source.choice([0.0, 0.3, 0.9, 1.0]))
    predictions, golds = [p for p, _ in pairs], [g for _, g in pairs]
    differences = [source.gauss(0, 3) for _ in pairs]
    both = [published_scores(p, g, "2.0") for p, g in pairs]
    scores = [pair[0 if metric == "exact_match" else 1] for pair in both]
    found = choose_null_threshold(differences, predictions, references=golds, metric=metric)
    best, place = published_threshold(differences, predictions, golds, scores)
    assert found.score == pytest.approx(best)
    ordered = sorted(differences)
    if place < 0:
        assert found.value < ordered[0]
    else:
        assert found.value == ordered[place]


@pytest.mark.parametrize("seed", range(40))
def test_the_threshold_is_the_best_of_all(seed: int) -> None:
    """By trying each, also where differences are equal."""
    source = random.Random(100 + seed)  # noqa: S311  # not for secrets
    words = ["Rome", "Paris", "it"]
    golds = [[source.choice(words)] if source.random() < 0.6 else [] for _ in range(25)]
    predictions = [source.choice(words) for _ in golds]
    differences = [float(source.randrange(-3, 4)) for _ in golds]

    def score(threshold: float) -> float:
        kept = [
            "" if difference > threshold else text
            for difference, text in zip(differences, predictions, strict=True)
        ]
        return sum(
            score_answer_f1(text, of_row, version="2.0")
            for text, of_row in zip(kept, golds, strict=True)
        ) / len(golds)

    found = choose_null_threshold(differences, predictions, references=golds)
    scores = {t: score(t) for t in (min(differences) - 1, *{*differences})}
    assert found.score == pytest.approx(max(scores.values()))
    assert scores[found.value] == pytest.approx(found.score)
    assert found.value == min(t for t, one in scores.items() if one == pytest.approx(found.score))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_squad_metrics([], []), "0 predictions and 0 rows cannot be compared"),
        (lambda: compute_squad_metrics(["x"], []), "1 predictions and 0 rows cannot be compared"),
        (lambda: score_answer_f1("x", [], version="1.1"), "Use those of version 2.0"),
        (lambda: choose_null_threshold([], [], references=[]), "do not go together"),
        (lambda: choose_null_threshold([1.0], ["x"], references=[]), "do not go together"),
    ],
)
def test_mistakes(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
