"""Metrics and confusion matrices as text."""

from collections.abc import Mapping
from typing import Any

from softprompt.cli.say import aligned

_MOST = 20
_PERCENT = {"bleu", "chrf"}


def scores(report: Mapping[str, Any]) -> str:
    """A table of metrics, and the confusion matrix if there is one and it can be read.

    Args:
        report: as ``metrics.json`` has it.
    """
    names = [name for name in report if name not in {"confusion", "rows"}]
    rows = [[name, _number(name, float(report[name]))] for name in names]
    if "rows" in report:
        rows.append(["rows", f"{report['rows']:,}"])
    found = aligned(rows)
    table = report.get("confusion")
    return found if table is None else f"{found}\n\n{confusion(table)}"


def confusion(table: Mapping[str, Any]) -> str:
    """A confusion matrix: a row a true label, a column an answer; long lists are left to --json."""
    labels, columns = table["labels"], table["predicted_labels"]
    if len(labels) > _MOST:
        return f"confusion of {len(labels)} labels: see --json"
    head = ["true \\ answered", *columns]
    counts = [[str(n) for n in row] for row in table["counts"]]
    return aligned([head, *([la, *row] for la, row in zip(labels, counts, strict=True))])


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in _PERCENT else f"{value:.4f}"
