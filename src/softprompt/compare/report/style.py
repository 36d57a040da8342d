"""The style of a variant in every figure, and figures as SVG in the page's colours."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from markupsafe import Markup, escape

from softprompt.compare.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The most characters of a label.
_MAX_LABEL = 28

# Okabe & Ito 2008, "Color universal design", without the yellow and the black: distinguishable with
# any of the common kinds of colour blindness. The second of each pair is for dark pages.
PROMPTS = (
    ("#0072b2", "#56a8e0"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2fc79b"),
    ("#cc79a7", "#e39ac1"),
    ("#e69f00", "#f2b630"),
    ("#56b4e9", "#86cdf5"),
)
BASELINE_COLORS = (("#4a4a4f", "#c9c9cf"), ("#77777d", "#a0a0a8"), ("#8d8d94", "#83838c"))
_PROMPT_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
_BASELINE_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """How a variant is drawn.

    Args:
        label: its name, shortened to fit a figure.
        colour: on a light page, as ``#rrggbb``.
        marker: of its points, as matplotlib names it.
        line: the line style, as matplotlib names it.
        filled: whether its points are filled; those of baselines are hollow.
    """

    label: str
    colour: str
    marker: str
    line: str
    filled: bool


def assign_styles(summaries: Sequence[Summary]) -> dict[str, Style]:
    """A style for each variant, by the order of the variants: the same in all figures.

    Prompts have colours and solid lines; baselines are grey, hollow and dashed.
    """
    prompts = [summary.variant for summary in summaries if not summary.is_baseline]
    baselines = [summary.variant for summary in summaries if summary.is_baseline]
    styles = {name: _style_prompt(at, name) for at, name in enumerate(prompts)}
    return styles | {name: _style_baseline(at, name) for at, name in enumerate(baselines)}


def shorten_label(name: str) -> str:
    """A name on one line, shortened to fit a figure."""
    label = " ".join(name.split())
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"


def _style_prompt(at: int, name: str) -> Style:
    colour, _ = PROMPTS[at % len(PROMPTS)]
    return Style(
        shorten_label(name), colour, _PROMPT_MARKERS[at % len(_PROMPT_MARKERS)], "-", filled=True
    )


def _style_baseline(at: int, name: str) -> Style:
    colour, _ = BASELINE_COLORS[at % len(BASELINE_COLORS)]
    marker, line = _BASELINE_MARKERS[at % len(_BASELINE_MARKERS)], _DASHES[at % len(_DASHES)]
    return Style(shorten_label(name), colour, marker, line, filled=False)


# The colours of a figure, which the page replaces by its variables.
INK, FAINT, RULE = "#1d1d21", "#5c5c64", "#d8d8de"

_FONT = "DejaVu Sans"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10.5,
    "font.family": [_FONT],
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "softprompt",
    "text.color": INK,
    "text.parse_math": False,  # a variant may be named with dollar signs
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
# In an SVG: a tag, a colour, the beginning of a name or of a reference to it, the size.
_TAG = re.compile(r"<[^>]*>")
_COLOUR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
_NAME = re.compile(r'( id="|href="#|url\(#)')
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
# Verdana is as wide as the font that labels are measured with; other fonts are narrower.
_FONTS = f"'{_FONT}', Verdana, sans-serif"
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def get_theme_color(colour: str) -> str:
    """A colour as a variable of the page: ``var(--name, colour)``."""
    name = make_css_variables().get(colour)
    return colour if name is None else f"var(--{name}, {colour})"


def make_css_variables() -> dict[str, str]:
    """The names of the page's variables by their colours."""
    variants = {light: f"variant-{at}" for at, (light, _) in enumerate(PROMPTS)}
    baselines = {light: f"baseline-{at}" for at, (light, _) in enumerate(BASELINE_COLORS)}
    return {INK: "ink", FAINT: "faint", RULE: "rule"} | variants | baselines


@contextmanager
def use_style() -> Iterator[None]:
    """Draw with the report's fonts and colours, whatever the user's matplotlib settings."""
    from matplotlib import rc_context  # noqa: PLC0415  # slow to import, and only needed here

    with rc_context(_STYLE), catch_warnings():
        # The browser has glyphs that this font lacks.
        filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        yield


def render_svg(figure: "Figure", *, name: str, description: str) -> Markup:
    """A figure as an ``<svg>`` element.

    Args:
        figure: drawn with `use_style`.
        name: of the picture, unique in the page.
        description: for screen readers.
    """
    file = StringIO()
    with use_style():
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    _, begin, rest = file.getvalue().partition("<svg")
    svg = _TAG.sub(lambda tag: _adapt_tag(tag[0], name), begin + rest)
    first_tag, end, body = svg.partition(">")
    first_tag = f'{_SIZE.sub("", first_tag)} role="img" aria-label="{escape(description)}"'
    # matplotlib escapes what it writes, and nothing but its tags is changed here.
    return Markup((first_tag + end + body).strip())  # noqa: S704


def _adapt_tag(tag: str, name: str) -> str:
    """A tag with the page's colours and fonts, and with names that are unique in the page."""
    tag = _COLOUR.sub(lambda match: f"{match[1]}: {get_theme_color(match[2])}", tag)
    tag = tag.replace(f"'{_FONT}'", _FONTS)
    return _NAME.sub(lambda match: f"{match[1]}{name}-", tag)
