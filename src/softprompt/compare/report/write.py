"""Write the reports of a comparison: its table in Markdown, and an HTML page with figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from softprompt._io import replace_file
from softprompt.compare.protocol import Protocol
from softprompt.compare.report.axes import Curve, Curves
from softprompt.compare.report.html import ComparisonReport, Extra, render_html
from softprompt.compare.report.prose import Conditions
from softprompt.compare.report.table import format_markdown
from softprompt.compare.results import Failed, ResultEvent, SearchResult
from softprompt.compare.statistics import Summary
from softprompt.data import Table
from softprompt.data.duplicates import describe_splits
from softprompt.recipe import Recipe
from softprompt.train import RunDir
from softprompt.train.datasets import get_task_columns

_SOFTWARE = ("softprompt", "torch", "transformers")


@dataclass(frozen=True)
class ReportPaths:
    """The paths of the reports of a comparison.

    Args:
        table: in Markdown.
        page: in HTML.
    """

    table: Path
    page: Path

    @classmethod
    def locate(cls, folder: Path) -> Self:
        """The paths in a comparison's folder."""
        return cls(folder / "report.md", folder / "report.html")


def write_reports(
    summaries: Sequence[Summary],
    events: Sequence[ResultEvent],
    *,
    folder: Path,
    conditions: Conditions,
    extras: Sequence[Extra],
) -> ReportPaths:
    """Write the reports of a comparison into its folder.

    Args:
        summaries: of its variants and baselines.
        events: all of its results, searches and failures.
        folder: of the comparison.
        conditions: of the measurement.
        extras: further sections of the page.
    """
    measure, select = conditions.protocol.test_set.measure, conditions.base.train.best_metric
    paths = ReportPaths.locate(folder)
    with replace_file(paths.table) as fresh:
        fresh.write_text(format_markdown(summaries, measure=measure) + "\n", encoding="utf-8")
    report = ComparisonReport(
        title=f"{folder.resolve().name}: a comparison",
        summaries=summaries,
        failed=[event for event in events if isinstance(event, Failed)],
        searched=[event for event in events if isinstance(event, SearchResult)],
        curves=_read_curves(summaries, folder, metrics=dict.fromkeys([measure, select])),
        conditions=conditions,
        extras=extras,
    )
    with replace_file(paths.page) as fresh:
        fresh.write_text(render_html(report), encoding="utf-8")
    return paths


def record_conditions(
    base: Recipe, protocol: Protocol, *, folder: Path, tables: Mapping[str, Table]
) -> Conditions:
    """Record the conditions of a comparison.

    Args:
        base: the recipe that all variants share.
        protocol: seeds, search and test rows.
        folder: of the comparison, with the recipe as run.
        tables: rows by split.
    """
    return Conditions(
        protocol=protocol,
        base=base,
        recipe=(folder / "recipe.toml").read_text(encoding="utf-8"),
        rows={name: len(table) for name, table in tables.items()},
        versions={name: version(name) for name in _SOFTWARE},
        warnings=list_warnings(base, tables),
    )


def list_warnings(base: Recipe, tables: Mapping[str, Table]) -> tuple[str, ...]:
    """What makes the scores of a comparison say less than they seem to.

    Args:
        base: the recipe that all variants share.
        tables: rows by split.
    """
    fields = get_task_columns(base.task_settings).find_fields(tables["train"])
    return tuple(describe_splits(tables, fields))


def _read_curves(
    summaries: Sequence[Summary], folder: Path, *, metrics: Iterable[str]
) -> dict[str, Curves]:
    """The validations of each run by metric and variant; a metric without values is left out."""
    curves: dict[str, Curves] = {}
    for metric in metrics:
        by_variant = {
            summary.variant: [
                _read_curve(RunDir(folder / result.run), metric)
                for result in summary.results
                if result.run
            ]
            for summary in summaries
        }
        if any(map(any, by_variant.values())):
            curves[metric] = by_variant
    return curves


def _read_curve(run: RunDir, metric: str) -> Curve:
    return [
        (float(event["step"]), float(event["metrics"][metric]))
        for event in run.read_events()
        if event["event"] == "evaluation" and metric in event["metrics"]
    ]
