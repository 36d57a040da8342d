"""What is shown of a run: each phase by its name, and the time that is left of all of them."""

import pytest

from softprompt.inference import EvaluationReport
from softprompt.train import Evaluation, Finished, PhaseStarted, Started, Step
from softprompt.train import display as module
from softprompt.train.display import ProgressDisplay

REPORT = EvaluationReport(40, {"loss": 0.5, "accuracy": 0.75}, None)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "perf_counter", made)
    return made


def start(step: int = 0, **more: int) -> Started:
    rows = {"train": 80, "validation": 40}
    return Started(step, 10, rows, {"train": 0}, 5, 1000, "a prompt", "loss", **more)


def validate(display: ProgressDisplay, clock: Clock, *, step: int, seconds: float) -> None:
    display.show(PhaseStarted("validating", "40 rows", 40, step))
    clock.now += seconds
    display.show(Evaluation(step, step / 5, None, REPORT, best=True))


def take_steps(display: ProgressDisplay, clock: Clock, steps: range, *, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        display.show(Step(step, step / 5, 0.5, 8, 0.1, 1.0))


def test_the_time_left_counts_steps_validations_and_tests(clock: Clock) -> None:
    """Of ten steps of 2 s, three validations of 4 s, and a test of 100 rows at 0.1 s."""
    with ProgressDisplay(quiet=True) as display:
        display.show(start(validations=3, final_rows=100))
        validate(display, clock, step=0, seconds=4.0)
        assert display.estimate_seconds_left() is None
        take_steps(display, clock, range(1, 5), seconds=2.0)
        assert display.estimate_seconds_left() == pytest.approx(6 * 2 + 2 * 4 + 10)
        take_steps(display, clock, range(5, 6), seconds=2.0)
        validate(display, clock, step=5, seconds=4.0)
        take_steps(display, clock, range(6, 11), seconds=2.0)
        assert display.estimate_seconds_left() == pytest.approx(4 + 10)
        validate(display, clock, step=10, seconds=4.0)
        assert display.estimate_seconds_left() == pytest.approx(10)


def test_a_resumed_run_counts_what_is_left(clock: Clock) -> None:
    with ProgressDisplay(quiet=True) as display:
        display.show(start(step=6, validations=1))
        take_steps(display, clock, range(7, 9), seconds=3.0)
        # There was no validation yet, so a row is as slow as one of a step.
        assert display.estimate_seconds_left() == pytest.approx(2 * 3 + 40 * 3 / 8)


def test_each_phase_has_its_name(clock: Clock, capsys) -> None:
    with ProgressDisplay(quiet=False) as display:
        display.show(PhaseStarted("reading", "train.csv, test.csv"))
        display.show(PhaseStarted("loading", "builtin:minilm"))
        display.show(PhaseStarted("tokenizing", "80 rows", 80))
        display.show(start(validations=2))
        validate(display, clock, step=0, seconds=1.0)
        take_steps(display, clock, range(1, 11), seconds=1.0)
        validate(display, clock, step=10, seconds=1.0)
        display.show(Finished(10, "all 2 epochs done"))
        display.show(PhaseStarted("testing", "100 rows", 100, 10))
    shown = [line for line in capsys.readouterr().err.splitlines() if line.endswith("…")]
    assert shown == [
        "reading train.csv, test.csv …",
        "loading the backbone builtin:minilm …",
        "tokenizing 80 rows …",
        "validating 40 rows …",
        "testing 100 rows …",
    ]
