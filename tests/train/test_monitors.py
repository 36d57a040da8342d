"""Each warning appears for its symptom and for no other; and the learning curves."""

import math

import pytest
import torch

from softprompt.inference.loops import EvaluatedRows
from softprompt.prompt import InputPrompt, KVPrefix
from softprompt.tasks import Prediction
from softprompt.train.monitors import find_warnings, measure_distance
from softprompt.train.plots import _smooth, draw_run


def evaluated(truth: str, predicted: str) -> EvaluatedRows:
    return EvaluatedRows(
        1.0, len(truth), tuple(truth), tuple(Prediction(label, {}) for label in predicted)
    )


def collect(parts: list[EvaluatedRows], **changes: object) -> dict[str, str]:
    good = {"labels": ("a", "b"), "moved": 0.5, "norm": 1.0, "family": "llama"}
    return dict(find_warnings(parts, **{**good, **changes}))


def test_a_good_run_has_no_warnings():
    assert collect([evaluated("aab", "aba")]) == {}


def test_constant_predictions_warn():
    found = collect([evaluated("aab", "bbb")])
    assert found == {
        "majority": "the prediction is 'b' for every validation row (the most frequent label has a "
        "share of 67%): the prompt has learned nothing yet. If this persists, try another learning "
        "rate, three times as high or a third, or initialize from a text."
    }


def test_a_trained_backbone_has_no_warnings_of_a_prompt():
    assert collect([evaluated("aab", "aba")], moved=None, norm=None) == {}
    assert collect([evaluated("aab", "bbb")], moved=None, norm=None) == {
        "majority": "the prediction is 'b' for every validation row (the most frequent label has a "
        "share of 67%): the backbone has learned nothing yet. If this persists, try another "
        "learning rate, three times as high or a third."
    }


def test_answers_of_all_processes_count_together():
    assert collect([evaluated("ab", "aa"), evaluated("ab", "bb")]) == {}
    assert {*collect([evaluated("ab", "aa"), evaluated("a", "a")])} == {"majority"}


def test_constant_predictions_of_one_label_do_not_warn():
    assert collect([evaluated("aaa", "aaa")]) == {}


def test_free_text_has_no_majority():
    assert collect([evaluated("ab", "xx")], labels=()) == {}


def test_a_prompt_that_has_not_moved_warns():
    assert collect([evaluated("ab", "ab")], moved=0.0009) == {
        "still": "the prompt has changed by 0.09% of its norm since initialization: the learning "
        "rate is too low. Try ten times the rate."
    }
    assert collect([evaluated("ab", "ab")], moved=0.0011) == {}


@pytest.mark.parametrize(
    ("family", "norm", "warned"),
    [("llama", 49, False), ("llama", 51, True), ("t5", 4999, False), ("t5", 5001, True)],
)
def test_a_prompt_that_diverges_warns(family, norm, warned):
    found = collect([evaluated("ab", "ab")], norm=float(norm), family=family)
    assert found == (
        {
            "runaway": f"the prompt's norm is {norm} times that of its initialization: it is "
            "diverging. Lower the learning rate to a third."
        }
        if warned
        else {}
    )


def test_the_distance_is_over_all_tensors():
    ones = torch.ones(2, 1, 3, 4)
    start = KVPrefix(ones, 0 * ones, (0, 1))
    now = KVPrefix(ones, ones, (0, 1))
    norm, moved = measure_distance(start, now)
    assert (norm, moved) == (pytest.approx(math.sqrt(2)), pytest.approx(1.0))
    assert measure_distance(start, start) == (pytest.approx(1.0), 0.0)


def test_an_initialization_of_zeros_is_not_divided_by():
    zero = InputPrompt(torch.zeros(2, 3))
    assert measure_distance(zero, zero) == (0.0, 0.0)


def test_the_running_mean_is_the_mean_of_its_window():
    losses = [float(n * n % 17) for n in range(150)]
    steps = [{"loss": loss, "epoch": n / 10} for n, loss in enumerate(losses)]
    epochs, means = _smooth(steps)
    assert epochs == [n / 10 for n in range(150)]
    wanted = [
        sum(losses[max(0, n - 2) : n + 1]) / len(losses[max(0, n - 2) : n + 1]) for n in range(150)
    ]
    assert means == pytest.approx(wanted)


def test_a_picture_is_drawn_of_few_events_and_under_any_title(tmp_path):
    """A folder's name may look like mathematics, and a run may have no validation, or no step."""
    step = {"event": "step", "epoch": 0.5, "loss": 1.0}
    for number, events in enumerate([[], [step], [step] * 3]):
        path = tmp_path / f"{number}.png"
        draw_run(events, path, title="my $run_{ and $\\frac")
        assert path.read_bytes().startswith(b"\x89PNG")
