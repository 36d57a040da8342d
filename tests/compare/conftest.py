"""Made-up outcomes, and a report of them: what pictures and pages are drawn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from softprompt.compare import Cost, Exam, Failed, Outcome, Protocol, Searched, summaries
from softprompt.compare.conditions import Conditions
from softprompt.compare.html import Report
from softprompt.evaluate import Confusion
from softprompt.recipe import make_recipe

LABELS = ("negative", "positive")
TUNED = {"fine-tuning": 900_000, "lora": 4_000}


def outcome(arm: str, seed: int | None, right: str, **more: Any) -> Outcome:
    """An arm's answers, a digit a row; true labels are negative and positive in turn."""
    counts = [[0, 0], [0, 0]]
    for at, digit in enumerate(right):
        counts[at % 2][at % 2 if digit == "1" else 1 - at % 2] += 1
    given = {
        "control": seed is None or arm in TUNED,
        "confusion": Confusion(LABELS, LABELS, tuple(map(tuple, counts))),
        "cost": None if seed is None else Cost(1_000, 900_000, 4_400, 20.0, 90, 12.5),
        "rate": None if seed is None else 0.01,
    }
    return Outcome(arm, seed, tuple(map(float, right)), **given | more)


OUTCOMES = (
    outcome("majority", None, "1010101010"),
    outcome("prompt-tuning", 42, "1111111100"),
    outcome("p-tuning-v2", 42, "1111100000", cost=Cost(30_000, 900_000, 120_000, 31.0, 90, 9.0)),
    outcome("lora", 42, "1111111000", cost=Cost(4_000, 900_000, 16_000, 60.0, 90, 4.0)),
    outcome("prompt-tuning", 43, "1111111110"),
    outcome("p-tuning-v2", 43, "1111110000", cost=Cost(30_000, 900_000, 120_000, 33.0, 90, 9.0)),
    outcome("lora", 43, "1111111000", cost=Cost(4_000, 900_000, 16_000, 64.0, 90, 4.0)),
)
CURVES = {
    "prompt-tuning": [[(0, 0.5), (10, 0.7), (20, 0.9)], [(0, 0.5), (10, 0.8)]],
    "p-tuning-v2": [[(0, 0.4), (20, 0.6)], [(0, 0.5), (10, 0.5), (20, 0.5)]],
    "lora": [[(0, 0.5), (20, 0.7)], [(0, 0.5), (20, 0.7)]],
}
RECIPE = {
    "backbone": {"name": "some-backbone"},
    "data": {"train": "train.jsonl"},
    "task": {
        "kind": "classify",
        "template": "{text}{soft:4}",
        "verbalizer": {"negative": " bad", "positive": " good"},
    },
    "method": {"name": "prompt-tuning"},
    "train": {"epochs": 3},
}


@pytest.fixture(scope="session")
def answered() -> Callable[..., Outcome]:
    """Makes an outcome of an arm, a seed and a digit a row."""
    return outcome


@pytest.fixture(scope="session")
def report() -> Callable[..., Report]:
    """Makes a report of outcomes; what is not given is made up."""

    def make(
        outcomes: Sequence[Outcome] = OUTCOMES,
        *,
        curves: Mapping[str, Any] | None = None,
        failed: Sequence[Failed] = (),
        labels: tuple[str, ...] = LABELS,
        **more: Any,
    ) -> Report:
        known = {outcome.arm for outcome in outcomes}
        usual = {"accuracy": {arm: runs for arm, runs in CURVES.items() if arm in known}}
        rows = [{"text": "a"}] * 10
        exam = Exam(rows, [LABELS[at % 2] for at in range(len(rows))], labels)
        conditions = Conditions(
            protocol=Protocol(2, (0.3, 1.0, 3.0), 0.1, exam),
            base=make_recipe(RECIPE),
            recipe='[backbone]\nname = "some-backbone"\n',
            rows={"train": 960, "validation": 120, "test": 10},
            versions={"softprompt": "0.1.0", "torch": "9.9"},
        )
        made = Report(
            title="a comparison",
            summaries=summaries([*outcomes]),
            failed=failed,
            searched=[Searched("prompt-tuning", {0.3: -1.0, 1.0: -0.5, 3.0: -2.0}, 1.0, 0.1, "m")],
            curves=usual if curves is None else curves,
            conditions=conditions,
        )
        return replace(made, **more)

    return make
