"""The arithmetic of a vote, by hand."""

import pytest

from softprompt.inference import combine
from softprompt.tasks import Prediction


def answer(a: float, b: float, c: float) -> Prediction:
    shares = {"a": a, "b": b, "c": c}
    return Prediction(max(shares, key=shares.__getitem__), shares)


def test_a_majority_outvotes_one_that_is_surer() -> None:
    given = [answer(0.4, 0.35, 0.25), answer(0.5, 0.4, 0.1), answer(0.0, 1.0, 0.0)]
    mean = {"a": 0.3, "b": 1.75 / 3, "c": 0.35 / 3}
    by_count, by_mean = combine(given, "majority"), combine(given, "mean")
    assert (by_count.label, by_mean.label) == ("a", "b")
    assert by_count.probabilities == by_mean.probabilities == pytest.approx(mean)


def test_a_tie_goes_to_the_higher_mean() -> None:
    given = [answer(0.5, 0.3, 0.2), answer(0.0, 0.9, 0.1)]
    assert combine(given, "majority").label == "b"
    # c has more than either, but nobody's vote
    given = [answer(0.5, 0.04, 0.46), answer(0.06, 0.48, 0.46)]
    assert (combine(given, "majority").label, combine(given, "mean").label) == ("a", "c")


def test_a_tie_in_both_goes_to_the_first_label() -> None:
    given = [answer(0.25, 0.5, 0.25), answer(0.5, 0.25, 0.25)]
    assert combine(given, "majority").label == "a"
    assert combine(given, "mean").label == "a"


def test_one_is_itself_to_the_last_bit() -> None:
    only = answer(0.1, 0.2, 0.7)
    assert combine([only], "majority") == combine([only], "mean") == only


def test_texts_are_counted_and_the_first_of_a_tie_is_taken() -> None:
    def texts(*given: str) -> Prediction:
        return combine([Prediction(text, {}) for text in given], "majority")

    assert texts("x", "y", "y") == Prediction("y", {})
    assert texts("z", "y", "x") == Prediction("z", {})
    assert texts("z", "y", "x", "x", "y") == Prediction("y", {})
