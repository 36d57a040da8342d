"""Pictures of what is seen of prompts. The figures are matplotlib's, to be saved in any format."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from softprompt.evaluate.look.attend import Attended, Part
from softprompt.evaluate.look.similar import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_WRITTEN = 12
_TICKS = 18
_DARK = 0.5
_MARKERS: dict[Part, str] = {"row": "o", "decoder": "^", "cross": "D"}


def draw_similarity(found: Similarity, names: Sequence[str]) -> "Figure":
    """Two heat maps: the cosine of the mean soft tokens, and of the best matching ones.

    Args:
        names: of the prompts, in their order.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    side = max(3.2, 0.55 * len(names) + 1.6)
    figure = Figure(figsize=(2 * side + 1, side + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _matrix(left, found.pooled, names)
    image = _matrix(right, found.matched, names)
    left.set_title("mean soft tokens", fontsize=10)
    right.set_title("best matching soft tokens", fontsize=10)
    figure.colorbar(image, ax=[left, right], label="cosine", shrink=0.8)
    return figure


def draw_attention(found: Mapping[str, Sequence[Attended]]) -> "Figure":
    """The share of attention that goes to the prompt, by layer.

    Of a single prompt, beside it the share of each soft token.

    Args:
        found: what `shares` gives, by the prompt's name.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    alone = len(found) == 1
    figure = Figure(figsize=(11 if alone else 7, 4), layout="constrained")
    axes = figure.subplots(1, 2 if alone else 1, squeeze=False)[0]
    for number, (name, sites) in enumerate(found.items()):
        _lines(axes[0], name, sites, number=number, alone=alone)
    axes[0].set_ylabel("share of attention to the prompt")
    axes[0].set_xlabel("attention site")
    axes[0].set_ylim(bottom=0)
    axes[0].grid(alpha=0.3)
    for text in axes[0].legend(fontsize=8).get_texts():
        text.set_parse_math(False)  # a folder may be named with dollar signs
    if alone:
        _tokens(figure, axes[1], next(iter(found.values())))
    return figure


def _matrix(axes: "Axes", values: Sequence[Sequence[float]], names: Sequence[str]) -> "AxesImage":
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8, parse_math=False)
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    if len(names) <= _WRITTEN:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                colour = "white" if abs(value) > _DARK else "black"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    return image


def _lines(axes: "Axes", name: str, sites: Sequence[Attended], *, number: int, alone: bool) -> None:
    colour, whole = f"C{number}", "all positions" if alone else name
    for part, marker in _MARKERS.items():
        own = [one for one in sites if one.part == part]
        label = whole if part == "row" else f"{whole}, {part}"
        if own:
            pairs = [one.site for one in own], [one.share for one in own]
            axes.plot(*pairs, marker=marker, color=colour, label=label)
    # What a decoder is fed here is one position, which its answer is read from.
    scored = [(s.site, s.scored) for s in sites if s.part == "row" and s.scored is not None]
    if scored:
        label = "where the answer is read" if alone else f"{name}, where the answer is read"
        axes.plot(*zip(*scored, strict=True), marker="s", ls="--", color=colour, label=label)
    if alone:
        even = [one.site for one in sites], [one.even for one in sites]
        axes.plot(*even, color="#888888", ls=":", label="if all were attended to alike")


def _tokens(figure: "Figure", axes: "Axes", sites: Sequence[Attended]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # as above

    image = axes.imshow([one.tokens for one in sites], aspect="auto", cmap="viridis", vmin=0)
    places = range(0, len(sites), -(-len(sites) // _TICKS))
    axes.set_yticks(places, [str(sites[at].site) for at in places], fontsize=8)
    axes.set_ylabel("attention site")
    axes.set_xlabel("soft token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=axes, label="share")
