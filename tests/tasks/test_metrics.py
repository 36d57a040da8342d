"""Metrics by hand and by the libraries; an error where they are not defined."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from softprompt.errors import DataError
from softprompt.tasks.metrics import (
    ConfusionMatrix,
    compute_class_scores,
    compute_classification_metrics,
    compute_confusion_matrix,
    compute_majority_accuracy,
    list_confusions,
)
from softprompt.tasks.text_metrics import compute_generation_metrics


def close(value: float) -> object:
    return pytest.approx(value, abs=1e-12)


# Two labels, ten rows: 3 hits and 1 miss of "bad", 4 hits and 2 misses of "good".
TRUTH = ["bad"] * 4 + ["good"] * 6
PREDICTED = [*["bad"] * 3, "good", *["good"] * 4, *["bad"] * 2]


def test_two_labels_by_hand():
    assert compute_classification_metrics(TRUTH, PREDICTED, labels=["bad", "good"]) == {
        "accuracy": close(7 / 10),
        # F1 = 2 hits / (rows + answers): bad 6 / (4 + 5), good 8 / (6 + 5)
        "macro_f1": close((6 / 9 + 8 / 11) / 2),
        "matthews": close((4 * 3 - 1 * 2) / math.sqrt((4 + 1) * (4 + 2) * (3 + 1) * (3 + 2))),
        "f1": close(8 / 11),
    }


def test_the_second_label_is_the_positive_one():
    first = compute_classification_metrics(TRUTH, PREDICTED, labels=["bad", "good"])
    second = compute_classification_metrics(TRUTH, PREDICTED, labels=["good", "bad"])
    assert first["f1"] == close(8 / 11)
    assert second["f1"] == close(6 / 9)
    assert {k: v for k, v in second.items() if k != "f1"} == {
        k: close(v) for k, v in first.items() if k != "f1"
    }


def test_three_labels_have_no_f1_of_one():
    scores = compute_classification_metrics(
        ["a", "b", "c"], ["a", "b", "b"], labels=["a", "b", "c"]
    )
    assert scores == {
        "accuracy": close(2 / 3),
        "macro_f1": close((1 + 2 / 3 + 0) / 3),
        # Gorodkin's covariances; of the rows 1 + 1 + 1, of the answers 1 + 4 + 0, subtracted from 9
        "matthews": close(3 / math.sqrt(4 * 6)),
    }


def test_an_answer_that_is_not_a_label_is_wrong():
    truth, predicted = ["no", "no", "yes", "yes"], ["no", "maybe", "yes", "I think so"]
    assert compute_classification_metrics(truth, predicted, labels=["no", "yes"]) == {
        "accuracy": close(2 / 4),
        "macro_f1": close(2 / 3),  # each: 2·1 / (2 + 1)
        # 2 hits of 4; rows 2, 2, 0; answers 1, 1, 2
        "matthews": close((2 * 4 - 4) / math.sqrt((16 - 6) * (16 - 8))),
        "f1": close(2 / 3),
    }
    nothing = compute_classification_metrics(["no", "yes"], ["", "?"], labels=["no", "yes"])
    assert nothing == {"accuracy": 0.0, "macro_f1": 0.0, "matthews": 0.0, "f1": 0.0}


def test_a_label_that_no_row_has():
    scores = compute_classification_metrics(
        ["a", "a", "b"], ["a", "b", "b"], labels=["a", "b", "c"]
    )
    assert scores["accuracy"] == close(2 / 3)
    assert scores["macro_f1"] == close((2 / 3 + 2 / 3 + 0) / 3)
    one_sided = compute_classification_metrics(["a", "a"], ["a", "a"], labels=["a", "b"])
    assert one_sided == {"accuracy": 1.0, "macro_f1": 0.5, "matthews": 0.0, "f1": 0.0}
    wrong = compute_classification_metrics(["a", "a"], ["b", "b"], labels=["a", "b"])
    assert wrong == {"accuracy": 0.0, "macro_f1": 0.0, "matthews": 0.0, "f1": 0.0}


def test_many_labels_with_few_rows_each_warn_of_nothing():
    labels = [f"intent {n}" for n in range(40)]
    scores = compute_classification_metrics(labels, labels, labels=labels)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": close(1.0)}


LABELS = ["a", "b", "c", "d"]
rows = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "x", "y"])), min_size=1
)


@pytest.mark.filterwarnings("ignore")  # sklearn's own, about small tests; ours has none to give
@given(pairs=rows)
@settings(deadline=None, max_examples=60)
def test_as_scikit_learn_counts(pairs):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

    truth, predicted = zip(*pairs, strict=True)
    known = [answer if answer in LABELS else "zzz" for answer in predicted]
    scores = compute_classification_metrics(truth, predicted, labels=LABELS)
    f1 = f1_score(truth, known, labels=LABELS, average="macro", zero_division=0.0)
    assert scores["accuracy"] == close(accuracy_score(truth, known))
    assert scores["macro_f1"] == close(f1)
    assert scores["matthews"] == close(matthews_corrcoef(truth, known))
    table = compute_confusion_matrix(truth, predicted, labels=LABELS)
    columns = [*LABELS, "zzz"] if "zzz" in known else LABELS
    matrix = confusion_matrix(truth, known, labels=[*LABELS, "zzz"])
    assert [*map(list, table.counts)] == matrix[:4, : len(columns)].tolist()


@given(pairs=rows, seed=st.randoms())
@settings(deadline=None, max_examples=40)
def test_neither_the_order_of_rows_nor_the_names_matter(pairs, seed):
    scores = compute_classification_metrics(*zip(*pairs, strict=True), labels=LABELS)
    new = dict(zip(LABELS, seed.sample(["ä", "other", "", "b c"], 4), strict=True))
    renamed = [(new[truth], new.get(answer, "no label")) for truth, answer in pairs]
    seed.shuffle(renamed)
    other = compute_classification_metrics(
        *zip(*renamed, strict=True), labels=seed.sample([*new.values()], 4)
    )
    assert other == {name: close(value) for name, value in scores.items()}


def test_confusion_rows_are_truth_and_columns_answers():
    assert compute_confusion_matrix(TRUTH, PREDICTED, labels=["good", "bad"]) == ConfusionMatrix(
        labels=("good", "bad"),
        predicted_labels=("good", "bad"),
        counts=((4, 2), (1, 3)),
    )


def test_confusion_has_a_column_for_other_answers_only_if_there_are_any():
    table = compute_confusion_matrix(["a", "b", "b"], ["a", "x", "y"], labels=["a", "b"])
    assert table == ConfusionMatrix(("a", "b"), ("a", "b", "other"), ((1, 0, 0), (0, 0, 2)))


def test_a_label_may_be_called_other():
    table = compute_confusion_matrix(["other", "b"], ["other", "x"], labels=["other", "b"])
    assert table.predicted_labels == ("other", "b", "(other)")
    assert table.counts == ((1, 0, 0), (0, 0, 1))
    assert (
        compute_classification_metrics(["other", "b"], ["x", "b"], labels=["other", "b"])[
            "accuracy"
        ]
        == 0.5
    )


@given(pairs=rows)
@settings(deadline=None, max_examples=40)
def test_confusion_counts_every_row_once(pairs):
    truth, predicted = zip(*pairs, strict=True)
    table = compute_confusion_matrix(truth, predicted, labels=LABELS)
    assert [sum(row) for row in table.counts] == [truth.count(label) for label in LABELS]
    hits = sum(table.counts[k][k] for k in range(len(LABELS)))
    scores = compute_classification_metrics(truth, predicted, labels=LABELS)
    assert scores["accuracy"] == close(hits / len(pairs))


@pytest.mark.parametrize("score", [compute_classification_metrics, compute_confusion_matrix])
@pytest.mark.parametrize(
    ("truth", "predicted", "labels", "message"),
    [
        ([], [], ["a", "b"], "there are no rows to score. Give at least one."),
        (["a"], ["a", "b"], ["a", "b"], "1 true answers and 2 predicted ones: give one for each."),
        (
            ["a"],
            ["a"],
            ["a"],
            "the labels are ['a']. At least two are needed, all of them different.",
        ),
        (["a"], ["a"], ["a", "a"], "the labels are ['a', 'a']. At least two are needed"),
        (
            ["a", "c", "d", "c"],
            ["a"] * 4,
            ["a", "b"],
            "the true labels 'c', 'd' are not among the labels 'a', 'b'. Add them, or leave out",
        ),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(score, truth, predicted, labels, message):
    with pytest.raises(DataError) as error:
        score(truth, predicted, labels=labels)
    assert message in str(error.value)


@settings(max_examples=50)
@given(st.integers(2, 200), st.integers(1, 400), st.integers(0, 2**31))
def test_scores_of_each_label_are_those_of_scikit_learn(count, rows, seed):
    random = Random(seed)  # noqa: S311  # labels, not keys
    labels = [f"label {n}" for n in range(count)]
    truth = random.choices(labels, k=rows)
    predicted = [random.choice([label, random.choice([*labels, "?"])]) for label in truth]
    scores = compute_class_scores(compute_confusion_matrix(truth, predicted, labels=labels))
    expected = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    found = [(one.precision, one.recall, one.f1, one.rows) for one in scores]
    assert np.allclose(np.array(found).T, np.array(expected, dtype=float))
    assert [one.predicted for one in scores] == [predicted.count(label) for label in labels]
    assert [one.label for one in scores] == labels


def test_confusions_are_ordered_by_their_rows():
    truth = ["a"] * 5 + ["b"] * 4 + ["c"]
    predicted = [*"aabbb", *"bbc", "?", "c"]
    pairs = list_confusions(compute_confusion_matrix(truth, predicted, labels=[*"abc"]))
    assert [(pair.label, pair.predicted, pair.rows, pair.share) for pair in pairs] == [
        ("a", "b", 3, 0.6),
        ("b", "c", 1, 0.25),
        ("b", "other", 1, 0.25),
    ]


def test_generation_by_hand():
    scores = compute_generation_metrics(["the cat sat", "a dog"], ["the cat", "a dog"])
    assert scores["exact_match"] == close(1 / 2)
    # unigrams: 2 of 2 answered and 2 of 3 wanted, then all; bigrams: 1 of 1 and 1 of 2, then all
    assert scores["rouge1"] == close((0.8 + 1) / 2)
    assert scores["rouge2"] == close((2 / 3 + 1) / 2)
    assert scores["rougeL"] == close((0.8 + 1) / 2)


def test_rouge_l_follows_the_order_of_words():
    scores = compute_generation_metrics(["police killed the gunman"], ["the gunman killed police"])
    assert scores["rouge1"] == close(1.0)
    assert scores["rouge2"] == close(1 / 3)  # "the gunman"
    assert scores["rougeL"] == close(2 / 4)  # "the gunman" too, as long as any


def test_bleu_by_hand():
    # Ten words against eleven: too short. Of its n-grams 10, 8, 6 and 4 stand in the reference.
    truth = ["it is a guide to action that ensures all goes well"]
    answer = ["it is a guide to action that all goes well"]
    precisions = (10 / 10, 8 / 9, 6 / 8, 4 / 7)
    bleu = math.exp(1 - 11 / 10) * math.prod(precisions) ** 0.25
    assert compute_generation_metrics(truth, answer)["bleu"] == pytest.approx(100 * bleu)


def test_the_same_text_scores_full():
    text = ["ein langer Satz mit mehr als vier Worten", "noch ein Satz mit vielen Worten"]
    assert compute_generation_metrics(text, text) == {
        "exact_match": 1.0,
        "bleu": pytest.approx(100),
        "chrf": pytest.approx(100),
        "rouge1": 1.0,
        "rouge2": 1.0,
        "rougeL": 1.0,
    }


def test_empty_answers_score_nothing():
    scores = compute_generation_metrics(["yes it is", "no"], ["", " "])
    assert scores == dict.fromkeys(
        ("exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL"), 0.0
    )


def test_space_around_a_text_does_not_count():
    scores = compute_generation_metrics(["yes", "Yes"], [" yes\n", "yes"])
    assert scores["exact_match"] == close(1 / 2)  # but capitals do


# A word of its own for each English word: with spaces between them, and one character without.
SPACED = {
    "Cyrillic": ["кот", "сидел", "на", "ковре", "дома"],
    "Greek": ["γάτα", "κάθισε", "στο", "χαλί", "σπίτι"],
    "Devanagari": ["बिल्ली", "चटाई", "पर", "बैठी", "घर"],
    "Hangul": ["고양이", "매트", "위에", "앉았다", "집"],
    "Arabic": ["قط", "جلس", "على", "سجادة", "بيت"],
    "German": ["Kätzchen", "saß", "über", "Füßen", "häuslich"],
}
UNSPACED = {"Chinese": "猫坐在垫子", "Japanese": "ねこはマの", "Thai": "กขคงจ", "Khmer": "កខគឃង"}
ENGLISH = ["cat", "sat", "on", "mat", "home"]
english = st.lists(st.sampled_from(ENGLISH), min_size=1, max_size=9)


@pytest.mark.parametrize("script", [*SPACED, *UNSPACED])
@given(pairs=st.lists(st.tuples(english, english), min_size=1, max_size=3))
@settings(deadline=None, max_examples=15)
def test_words_of_every_script_count_as_those_of_english(script, pairs):
    """The same pattern of words in another script has the scores of the English text."""
    between = " " if script in SPACED else ""
    other = dict(zip(ENGLISH, (SPACED | UNSPACED)[script], strict=True))
    texts = [[" ".join(words) for words in side] for side in zip(*pairs, strict=True)]
    written = [
        [between.join(other[word] for word in words) for words in side]
        for side in zip(*pairs, strict=True)
    ]
    scores, expected = (compute_generation_metrics(*side) for side in (written, texts))
    for name in ("exact_match", "bleu", "rouge1", "rouge2", "rougeL"):
        assert scores[name] == close(expected[name]), name


def test_bleu_of_chinese_is_sacrebleus():
    import sacrebleu

    truth = ["他喜欢看电影,但是不喜欢2个小时的电影。", "一部好电影(good film)!"]
    predicted = ["他不喜欢看2个小时的电影。", "一部电影(good film)!"]
    expected = sacrebleu.corpus_bleu(predicted, [truth], tokenize="zh").score
    assert 0 < expected < 100
    assert compute_generation_metrics(truth, predicted)["bleu"] == close(expected)


words = st.lists(st.sampled_from([*"abc", "the", "cat", "sat", "on", ".", ","]), max_size=12)
sentences = st.lists(st.tuples(words.map(" ".join), words.map(" ".join)), min_size=1, max_size=4)


@given(pairs=sentences)
@settings(deadline=None, max_examples=30)
def test_as_the_libraries_count(pairs):
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    truth, predicted = ([*side] for side in zip(*pairs, strict=True))
    scores = compute_generation_metrics(truth, predicted)
    assert scores["bleu"] == close(sacrebleu.corpus_bleu(predicted, [truth]).score)
    assert scores["chrf"] == close(sacrebleu.corpus_chrf(predicted, [truth]).score)
    for name in ("rouge1", "rouge2", "rougeL"):
        single = [RougeScorer([name]).score(t, p)[name].fmeasure for t, p in pairs]
        assert scores[name] == close(sum(single) / len(single))


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([], [], "there are no rows to score. Give at least one."),
        (["a", "b"], ["a"], "2 true answers and 1 predicted ones: give one for each."),
    ],
)
def test_text_that_cannot_be_scored_is_refused(truth, predicted, message):
    with pytest.raises(DataError) as error:
        compute_generation_metrics(truth, predicted)
    assert str(error.value) == message


def test_majority_by_hand():
    assert compute_majority_accuracy(["a", "b", "b"], ["b", "a", "b", "c"]) == close(2 / 4)
    assert compute_majority_accuracy(["c"], ["a", "b"]) == 0.0  # a label that the test has not
    assert compute_majority_accuracy(["a", "a", "b"], ["a"]) == 1.0


@given(train=st.lists(st.sampled_from(LABELS), min_size=1), test=rows, seed=st.randoms())
def test_majority_answers_one_commonest_label_whatever_the_order(train, test, seed):
    truth = [label for label, _ in test]
    accuracy = compute_majority_accuracy(train, truth)
    most = max(map(train.count, LABELS))
    commonest = sorted(label for label in LABELS if train.count(label) == most)
    assert accuracy == close(truth.count(commonest[0]) / len(truth))
    assert compute_majority_accuracy(seed.sample(train, len(train)), truth) == accuracy


@given(labels=st.lists(st.sampled_from(LABELS), min_size=2))
def test_majority_is_what_classification_says_of_that_answer(labels):
    assume(len({*labels}) > 1)
    answer = min(labels, key=lambda label: (-labels.count(label), label))
    scores = compute_classification_metrics(
        labels, [answer] * len(labels), labels=sorted({*labels})
    )
    assert compute_majority_accuracy(labels, labels) == close(scores["accuracy"])
    assert scores["matthews"] == 0.0


@pytest.mark.parametrize(
    ("train", "test", "name"), [([], ["a"], "training"), (["a"], [], "test"), ([], [], "training")]
)
def test_majority_needs_both(train: Sequence[str], test: Sequence[str], name):
    with pytest.raises(DataError) as error:
        compute_majority_accuracy(train, test)
    assert str(error.value) == (
        f"there are no {name} labels to compare with. Give at least one row."
    )
