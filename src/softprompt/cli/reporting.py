"""What a comparison leaves to be read: its table in Markdown, and a page with its pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from softprompt.compare import Event, Failed, Protocol, Searched, Summary, markdown
from softprompt.compare.band import Curve, Curves
from softprompt.compare.conditions import Conditions
from softprompt.compare.html import Extra, Report, html
from softprompt.data import Rows as Table
from softprompt.recipe import Recipe
from softprompt.train import RunFolder

_SOFTWARE = ("softprompt", "torch", "transformers")


@dataclass(frozen=True)
class Written:
    """Where it is to be read.

    Args:
        table: in Markdown.
        page: in HTML.
    """

    table: Path
    page: Path


def write_reports(
    found: Sequence[Summary],
    events: Sequence[Event],
    *,
    folder: Path,
    base: Recipe,
    protocol: Protocol,
    tables: Mapping[str, Table],
    extras: Sequence[Extra],
) -> Written:
    """Write what a comparison says into its folder.

    Args:
        found: the summaries of its outcomes.
        events: all that came of it.
        folder: of the comparison.
        base: the recipe that all arms begin with.
        tables: rows by split.
        extras: further sections of the page.
    """
    measure = protocol.exam.measure
    written = Written(folder / "report.md", folder / "report.html")
    written.table.write_text(markdown(found, measure=measure) + "\n", encoding="utf-8")
    conditions = Conditions(
        protocol=protocol,
        base=base,
        recipe=(folder / "recipe.toml").read_text(encoding="utf-8"),
        rows={name: len(table) for name, table in tables.items()},
        versions={name: version(name) for name in _SOFTWARE},
    )
    report = Report(
        title=f"{folder.resolve().name}: a comparison",
        summaries=found,
        failed=[event for event in events if isinstance(event, Failed)],
        searched=[event for event in events if isinstance(event, Searched)],
        curves=_curves(found, folder, names=dict.fromkeys([measure, base.train.select])),
        conditions=conditions,
        extras=extras,
    )
    written.page.write_text(html(report), encoding="utf-8")
    return written


def _curves(
    found: Sequence[Summary], folder: Path, *, names: Mapping[str, None]
) -> dict[str, Curves]:
    """The validations of each run by metric and arm; what was not measured has no curve."""
    runs = {s.arm: [RunFolder(folder / o.run) for o in s.outcomes if o.run] for s in found}
    made = {
        name: {arm: [_curve(run, name) for run in folders] for arm, folders in runs.items()}
        for name in names
    }
    return {name: by_arm for name, by_arm in made.items() if any(map(any, by_arm.values()))}


def _curve(run: RunFolder, name: str) -> Curve:
    return [*_points(run, name)]


def _points(run: RunFolder, name: str) -> Iterator[tuple[float, float]]:
    for event in run.events():
        if event["event"] == "evaluation" and name in event["metrics"]:
            yield float(event["step"]), float(event["metrics"][name])
