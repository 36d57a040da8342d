"""The first inputs of `scripts/bench robust`: all of them are refused, or answered as before."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from softprompt.errors import DataError

HERE = Path(__file__).parents[2] / "benchmarks" / "robust"
OUTCOMES = ("refused", "answered", "crashed", "changed")


@pytest.fixture(scope="module")
def trials() -> Iterator[ModuleType]:
    sys.path.insert(0, str(HERE))
    try:
        yield import_module("trials")
    finally:
        sys.path.remove(str(HERE))


def raise_error(error: BaseException) -> None:
    raise error


def loop_for_ever() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("use", "outcome", "error"),
    [
        (lambda: None, "answered", None),
        (lambda: raise_error(DataError("it has no rows. Give some.")), "refused", None),
        (lambda: raise_error(DataError(" ")), "crashed", None),
        (lambda: {}["x"], "crashed", "KeyError"),
        (lambda: raise_error(MemoryError()), "crashed", "MemoryError"),
        (lambda: raise_error(RecursionError()), "crashed", "RecursionError"),
        (loop_for_ever, "crashed", "TimeLimitError"),
    ],
)
def test_what_an_input_comes_to(trials, monkeypatch, tmp_path, use, outcome, error):
    monkeypatch.setattr(trials, "SECONDS", 0.2)

    def trial(given):
        given.damage = f"{given.random.random()}"
        use()
        return "answered"

    arguments = {"kind": "any", "seed": 3, "index": 5, "folder": tmp_path / "input"}
    found, facts = trials.try_input(trial, **arguments)
    assert (found, facts.get("error")) == (outcome, error)
    assert facts == trials.try_input(trial, **arguments)[1], "the seed and the index decide it"
    assert not (tmp_path / "input").exists()


def test_another_answer_without_a_word_is_a_change(trials, tmp_path):
    def trial(_given):
        message = "'bad': yes instead of no"
        raise trials.ChangedError(message)

    found, facts = trials.try_input(trial, kind="", seed=0, index=0, folder=tmp_path / "input")
    assert (found, facts["message"]) == ("changed", "'bad': yes instead of no")


def test_the_first_inputs_of_every_kind_are_refused_or_answered_as_before(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, HERE / "run.py", "--scale", "0.01", "--fresh", "--results", path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    kinds = json.loads(path.read_text("utf-8"))["kinds"]
    assert {name: kind["findings"] for name, kind in kinds.items() if kind["findings"]} == {}
    assert list(counts) == ["inputs", *OUTCOMES]
    assert counts["inputs"] == sum(counts[name] for name in OUTCOMES) > 250
    assert min(counts["refused"], counts["answered"]) > 50
    assert counts["crashed"] == counts["changed"] == 0
