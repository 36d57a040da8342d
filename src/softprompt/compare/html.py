"""A comparison as one page of HTML: nothing to load, nothing that runs, made to be read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias, assert_never

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from softprompt.compare.band import Curves
from softprompt.compare.conditions import Conditions, told
from softprompt.compare.figures import Price, draw_against, draw_curves, draw_leads, price_of
from softprompt.compare.looks import CONTROLS, PROMPTS, Look, looks
from softprompt.compare.matrix import MOST_LABELS, matrices
from softprompt.compare.outcome import Failed, Searched
from softprompt.compare.report import best_first, head, rows_of
from softprompt.compare.statistics import Summary
from softprompt.compare.vector import svg, themed
from softprompt.compare.verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRICES: dict[Price, str] = {
    "trainable": "trained parameters",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class Paragraph:
    """Words in a section.

    Args:
        text: plain; it is escaped.
    """

    text: str


@dataclass(frozen=True)
class Grid:
    """A table in a section; the first cell of a row names it.

    Args:
        head: the names of the columns.
        rows: their cells, plain text; it is escaped.
        caption: what the table says.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture in a section.

    Args:
        drawing: as :func:`softprompt.compare.vector.svg` makes it; a plain string is escaped.
        caption: what it shows.
    """

    drawing: Markup
    caption: str = ""


Part: TypeAlias = Paragraph | Grid | Picture


@dataclass(frozen=True)
class Extra:
    """A section of its own, between the pictures and how they were measured.

    Args:
        title: its heading.
        parts: from top to bottom; pictures that follow each other stand side by side.
    """

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Args:
        title: of the page.
        summaries: of the arms and controls, in the order that they were run.
        failed: what could not be run.
        searched: the searches for learning rates.
        curves: by metric, of the validations of each run.
        conditions: under which all was measured.
        extras: further sections.
    """

    title: str
    summaries: Sequence[Summary]
    failed: Sequence[Failed]
    searched: Sequence[Searched]
    curves: Mapping[str, Curves]
    conditions: Conditions
    extras: Sequence[Extra] = ()

    @property
    def measure(self) -> str:
        """What a score is called."""
        return self.conditions.protocol.exam.measure


def html(report: Report) -> str:
    """The page of a comparison; of the same report the same page, to the byte."""
    styles, found = looks(report.summaries), best_first(report.summaries)
    cells = {
        "report": report,
        "verdict": verdict(found, failed=report.failed, measure=report.measure),
        "head": head(report.measure),
        "rows": [*zip(found, rows_of(found), strict=True)],
        "colours": {arm: themed(look.colour) for arm, look in styles.items()},
        "pictures": [*_pictures(report, found, styles)],
        "matrices": matrices(found),
        "most_labels": MOST_LABELS,
        "told": told(report.conditions, found=found, searched=report.searched),
        "blocks": _blocks,
        "variables": [*_variables()],
    }
    return _template().render(cells) + "\n"


def _template() -> Template:
    """The page without its numbers; all that is put into it is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("softprompt.compare").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _variables() -> Iterator[tuple[str, str, str]]:
    """The page's colours: the name, on white, on black."""
    for name, pairs in (("arm", PROMPTS), ("control", CONTROLS)):
        for at, (light, dark) in enumerate(pairs):
            yield f"{name}-{at}", light, dark


def _blocks(parts: Sequence[Part]) -> list[tuple[str, Sequence[Part]]]:
    """Parts by kind; pictures that follow each other are together."""
    return [(kind, [*group]) for kind, group in groupby(parts, key=_kind)]


def _kind(part: Part) -> str:
    match part:
        case Paragraph():
            return "paragraphs"
        case Grid():
            return "grids"
        case Picture():
            return "pictures"
        case _:
            assert_never(part)


def _pictures(
    report: Report, found: Sequence[Summary], styles: Mapping[str, Look]
) -> Iterator[Picture]:
    measure = report.measure
    if any(summary.difference for summary in found):
        said = "Test: points above the best control, with the 95 % interval over rows"
        yield _drawn(draw_leads(found, looks=styles), "leads", said)
    curves = [*_curves(report, styles)]
    yield from curves[:1]
    if any(price_of(summary, "seconds") is not None for summary in found):
        for price, said in _PRICES.items():
            figure = draw_against(found, looks=styles, price=price, measure=measure)
            text = f"Test: {measure} against {said}, ±1 deviation over seeds"
            yield _drawn(figure, price, text)
    yield from curves[1:]


def _curves(report: Report, styles: Mapping[str, Look]) -> Iterator[Picture]:
    for at, (metric, curves) in enumerate(report.curves.items()):
        if any(point for runs in curves.values() for point in runs):
            said = f"Validation: {metric} while training, mean and ±1 deviation over seeds"
            figure = draw_curves(curves, looks=styles, metric=metric)
            yield _drawn(figure, f"curves-{at}", said)


def _drawn(figure: "Figure", name: str, said: str) -> Picture:
    return Picture(svg(figure, name=name, said=said), said)
