"""Invented results of a comparison, and a report of them, for tests of figures and pages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.compare import (
    Cost,
    Failed,
    HeldOutTest,
    Protocol,
    RunResult,
    SearchResult,
    summarize_variants,
)
from softprompt.compare.report.html import ComparisonReport
from softprompt.compare.report.prose import Conditions
from softprompt.inference import ConfusionMatrix
from softprompt.recipe import make_recipe
from softprompt.tasks.objectives import FreeText, SingleLabel

LABELS = ("negative", "positive")
TUNED = {"fine-tuning": 900_000, "lora": 4_000}


def make_result(variant: str, seed: int | None, hits: str, **changes: Any) -> RunResult:
    """A result of a variant.

    Args:
        variant: its name.
        seed: of the run; None for a baseline without training.
        hits: a digit per row, 1 if the prediction is right. True labels alternate, negative first.
        **changes: fields that replace the defaults.
    """
    counts = [[0, 0], [0, 0]]
    for row, digit in enumerate(hits):
        truth = row % 2
        counts[truth][truth if digit == "1" else 1 - truth] += 1
    defaults = {
        "is_baseline": seed is None or variant in TUNED,
        "confusion": ConfusionMatrix(LABELS, LABELS, tuple(map(tuple, counts))),
        "cost": None if seed is None else Cost(1_000, 900_000, 4_400, 20.0, 90, 12.5),
        "rate": None if seed is None else 0.01,
    }
    return RunResult(variant, seed, tuple(map(float, hits)), **defaults | changes)


RESULTS = (
    make_result("majority", None, "1010101010"),
    make_result("prompt-tuning", 42, "1111111100"),
    make_result(
        "p-tuning-v2", 42, "1111100000", cost=Cost(30_000, 900_000, 120_000, 31.0, 90, 9.0)
    ),
    make_result("lora", 42, "1111111000", cost=Cost(4_000, 900_000, 16_000, 60.0, 90, 4.0)),
    make_result("prompt-tuning", 43, "1111111110"),
    make_result(
        "p-tuning-v2", 43, "1111110000", cost=Cost(30_000, 900_000, 120_000, 33.0, 90, 9.0)
    ),
    make_result("lora", 43, "1111111000", cost=Cost(4_000, 900_000, 16_000, 64.0, 90, 4.0)),
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


def make_report(
    results: Sequence[RunResult] = RESULTS,
    *,
    curves: Mapping[str, Any] | None = None,
    failed: Sequence[Failed] = (),
    labels: tuple[str, ...] = LABELS,
    **changes: Any,
) -> ComparisonReport:
    """A report of results; ``changes`` replace its other fields."""
    if curves is None:
        variants = {result.variant for result in results}
        curves = {"accuracy": {name: runs for name, runs in CURVES.items() if name in variants}}
    rows = [{"text": "a"}] * 10
    test_set = HeldOutTest(
        rows,
        [LABELS[row % 2] for row in range(len(rows))],
        FreeText() if not labels else SingleLabel(labels),
    )
    conditions = Conditions(
        protocol=Protocol(2, (0.3, 1.0, 3.0), 0.1, test_set),
        base=make_recipe(RECIPE),
        recipe='[backbone]\nname = "some-backbone"\n',
        rows={"train": 960, "validation": 120, "test": 10},
        versions={"softprompt": "0.1.0", "torch": "9.9"},
    )
    report = ComparisonReport(
        title="a comparison",
        summaries=summarize_variants([*results]),
        failed=failed,
        searched=[SearchResult("prompt-tuning", {0.3: -1.0, 1.0: -0.5, 3.0: -2.0}, 1.0, 0.1, "m")],
        curves=curves,
        conditions=conditions,
    )
    return replace(report, **changes)
