"""A matplotlib figure as SVG that stands in a page: the same bytes every time, the page's colours.

Text stays text, so that it can be searched and read aloud; colours become the page's variables, so
that a dark page has a dark picture.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from markupsafe import Markup, escape

from softprompt.compare.looks import CONTROLS, PROMPTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a figure is drawn with; the page's variables take their place.
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
    "text.parse_math": False,  # an arm may be named with dollar signs
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
_TAG = re.compile(r"<[^>]*>")
_COLOUR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
_NAME = re.compile(r'( id="|href="#|url\(#)')
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
# Verdana is as wide as the font that places are measured with; other fonts are narrower.
_FONTS = f"'{_FONT}', Verdana, sans-serif"
_NOTHING_MORE = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def themed(colour: str) -> str:
    """A colour as the page has it: ``var(--name, colour)``."""
    name = variables().get(colour)
    return colour if name is None else f"var(--{name}, {colour})"


def variables() -> dict[str, str]:
    """The names of the page's variables by the colour that they stand for."""
    own = {light: f"arm-{at}" for at, (light, _) in enumerate(PROMPTS)}
    theirs = {light: f"control-{at}" for at, (light, _) in enumerate(CONTROLS)}
    return {INK: "ink", FAINT: "faint", RULE: "rule"} | own | theirs


@contextmanager
def styled() -> Iterator[None]:
    """What is drawn meanwhile has the report's fonts and colours, whatever else is set."""
    from matplotlib import rc_context  # noqa: PLC0415  # slow to import, and only needed here

    with rc_context(_STYLE), catch_warnings():
        # The browser has letters that this font lacks.
        filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        yield


def svg(figure: "Figure", *, name: str, said: str) -> Markup:
    """A figure as an ``<svg>`` element.

    Args:
        name: of the picture, unlike that of any other in the page.
        said: what it shows, for those who do not see it.
    """
    written = StringIO()
    with styled():
        figure.savefig(written, format="svg", metadata=_NOTHING_MORE)
    _, begin, rest = written.getvalue().partition("<svg")
    drawn = _TAG.sub(lambda tag: _fitted(tag[0], name), begin + rest)
    opened, end, body = drawn.partition(">")
    opened = f'{_SIZE.sub("", opened)} role="img" aria-label="{escape(said)}"'
    # matplotlib escapes what it writes, and nothing but its tags is changed here.
    return Markup((opened + end + body).strip())  # noqa: S704


def _fitted(tag: str, name: str) -> str:
    tag = _COLOUR.sub(lambda found: f"{found[1]}: {themed(found[2])}", tag)
    tag = tag.replace(f"'{_FONT}'", _FONTS)
    return _NAME.sub(lambda found: f"{found[1]}{name}-", tag)
