"""A comparison as one HTML page without scripts and without external files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias, assert_never

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from softprompt.compare.report.axes import Curves
from softprompt.compare.report.figures import (
    Price,
    draw_against,
    draw_curves,
    draw_leads,
    get_price,
)
from softprompt.compare.report.prose import Conditions, describe_conditions, summarize
from softprompt.compare.report.style import (
    BASELINE_COLORS,
    PROMPTS,
    Style,
    assign_styles,
    get_theme_color,
    render_svg,
)
from softprompt.compare.report.table import (
    MOST_LABELS,
    format_header,
    format_rows,
    make_matrices,
    sort_by_score,
)
from softprompt.compare.results import Failed, SearchResult
from softprompt.compare.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PRICES: dict[Price, str] = {
    "trainable": "trained parameters",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a section.

    Args:
        text: plain; it is escaped.
    """

    text: str


@dataclass(frozen=True)
class Grid:
    """A table of a section; the first cell of a row is its header.

    Args:
        head: the names of the columns.
        rows: their cells, plain text; it is escaped.
        caption: of the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of a section.

    Args:
        drawing: as :func:`softprompt.compare.report.style.render_svg` makes it; a plain string is
            escaped.
        caption: of the picture.
    """

    drawing: Markup
    caption: str = ""


ReportPart: TypeAlias = Paragraph | Grid | Picture


@dataclass(frozen=True)
class Extra:
    """A further section, before the conditions of measurement.

    Args:
        title: its heading.
        parts: from top to bottom; consecutive pictures stand side by side.
    """

    title: str
    parts: Sequence[ReportPart]


@dataclass(frozen=True)
class ComparisonReport:
    """The content of a page.

    Args:
        title: of the page.
        summaries: of the variants and baselines, in the order that they were run.
        failed: variants and baselines that could not be run.
        searched: the searches for learning rates.
        curves: of the validation metrics over the steps, by metric and variant.
        conditions: of the measurement.
        extras: further sections.
    """

    title: str
    summaries: Sequence[Summary]
    failed: Sequence[Failed]
    searched: Sequence[SearchResult]
    curves: Mapping[str, Curves]
    conditions: Conditions
    extras: Sequence[Extra] = ()

    @property
    def measure(self) -> str:
        """The name of the score."""
        return self.conditions.protocol.test_set.measure


def render_html(report: ComparisonReport) -> str:
    """The page of a comparison; the same report gives the same page, byte for byte."""
    styles, summaries = assign_styles(report.summaries), sort_by_score(report.summaries)
    variables = {
        "report": report,
        "verdict": summarize(summaries, failed=report.failed, measure=report.measure),
        "head": format_header(report.measure),
        "rows": [*zip(summaries, format_rows(summaries), strict=True)],
        "colours": {variant: get_theme_color(style.colour) for variant, style in styles.items()},
        "pictures": [*_draw_pictures(report, summaries, styles)],
        "matrices": make_matrices(summaries),
        "most_labels": MOST_LABELS,
        "conditions": describe_conditions(
            report.conditions, summaries=summaries, searched=report.searched
        ),
        "group_parts": _group_parts,
        "css_colors": [*_list_css_colors()],
    }
    return _load_template().render(variables) + "\n"


def _load_template() -> Template:
    """The template of the page; all values are escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("softprompt.compare.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _list_css_colors() -> Iterator[tuple[str, str, str]]:
    """The page's colours: the name, on a light page, on a dark page."""
    for name, pairs in (("variant", PROMPTS), ("baseline", BASELINE_COLORS)):
        for at, (light, dark) in enumerate(pairs):
            yield f"{name}-{at}", light, dark


def _group_parts(parts: Sequence[ReportPart]) -> list[tuple[str, Sequence[ReportPart]]]:
    """Consecutive parts of one kind, with the name of the kind."""
    return [(kind, [*group]) for kind, group in groupby(parts, key=_name_kind)]


def _name_kind(part: ReportPart) -> str:
    match part:
        case Paragraph():
            return "paragraphs"
        case Grid():
            return "grids"
        case Picture():
            return "pictures"
        case _:
            assert_never(part)


def _draw_pictures(
    report: ComparisonReport, summaries: Sequence[Summary], styles: Mapping[str, Style]
) -> Iterator[Picture]:
    """The figures of a page, from top to bottom."""
    measure = report.measure
    if any(summary.difference for summary in summaries):
        caption = "Test: difference from the best baseline in points, with 95 % intervals over rows"
        yield _make_picture(draw_leads(summaries, styles=styles), "leads", caption)
    curves = [*_draw_curves(report, styles)]
    yield from curves[:1]
    if any(get_price(summary, "seconds") is not None for summary in summaries):
        for price, label in _PRICES.items():
            figure = draw_against(summaries, styles=styles, price=price, measure=measure)
            caption = f"Test: {measure} against {label}, ±1 deviation over seeds"
            yield _make_picture(figure, price, caption)
    yield from curves[1:]


def _draw_curves(report: ComparisonReport, styles: Mapping[str, Style]) -> Iterator[Picture]:
    for number, (metric, curves) in enumerate(report.curves.items()):
        if any(run for runs in curves.values() for run in runs):
            caption = f"Validation: {metric} during training, mean and ±1 deviation over seeds"
            figure = draw_curves(curves, styles=styles, metric=metric)
            yield _make_picture(figure, f"curves-{number}", caption)


def _make_picture(figure: "Figure", name: str, caption: str) -> Picture:
    return Picture(render_svg(figure, name=name, description=caption), caption)
