"""Plots of similarity and attention, as matplotlib figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from softprompt.analysis.similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from softprompt.analysis.attention import AttentionPart, AttentionShare

_MAX_WRITTEN_CELLS = 12  # prompts up to which cosines are written into the cells
_MAX_TICKS = 18
_DARK_CELL = 0.5
_MARKERS: "dict[AttentionPart, str]" = {"row": "o", "decoder": "^", "cross": "D"}


def draw_similarity(similarity: Similarity, names: Sequence[str]) -> "Figure":
    """Two heat maps: the cosine of the mean soft tokens, and of the best matching ones.

    Args:
        similarity: of the prompts.
        names: of the prompts, in their order.

    Returns:
        A figure of matplotlib.

    Examples:
        >>> half = ((1.0, 0.5), (0.5, 1.0))
        >>> similarity = Similarity(pooled=half, matched=half, pairwise=half)
        >>> figure = draw_similarity(similarity, ["reviews", "tweets"])
        >>> figure.savefig("similarity.png")
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    side = max(3.2, 0.55 * len(names) + 1.6)
    figure = Figure(figsize=(2 * side + 1, side + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_matrix(left, similarity.pooled, names)
    image = _draw_matrix(right, similarity.matched, names)
    left.set_title("mean soft tokens", fontsize=10)
    right.set_title("best matching soft tokens", fontsize=10)
    figure.colorbar(image, ax=[left, right], label="cosine", shrink=0.8)
    return figure


def draw_attention(shares: "Mapping[str, Sequence[AttentionShare]]") -> "Figure":
    """The share of attention that goes to the prompt, by layer.

    For a single prompt, a second plot has the share of each soft token.

    Args:
        shares: the result of `compute_attention_shares` for each prompt, by name.

    Returns:
        A figure of matplotlib.

    Examples:
        >>> from softprompt.analysis import AttentionShare
        >>> layer = AttentionShare(0, "row", 0.25, at_readout=0.5, uniform=0.2, tokens=(0.1, 0.15))
        >>> figure = draw_attention({"reviews": [layer]})
        >>> figure.savefig("attention.png")
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    is_single = len(shares) == 1
    figure = Figure(figsize=(11 if is_single else 7, 4), layout="constrained")
    axes = figure.subplots(1, 2 if is_single else 1, squeeze=False)[0]
    for number, (name, sites) in enumerate(shares.items()):
        _draw_lines(axes[0], name, sites, number=number, is_single=is_single)
    axes[0].set_ylabel("share of attention to the prompt")
    axes[0].set_xlabel("attention site")
    axes[0].set_ylim(bottom=0)
    axes[0].grid(alpha=0.3)
    for text in axes[0].legend(fontsize=8).get_texts():
        text.set_parse_math(False)  # a folder may be named with dollar signs
    if is_single:
        _draw_tokens(figure, axes[1], next(iter(shares.values())))
    return figure


def _draw_matrix(
    axes: "Axes", values: Sequence[Sequence[float]], names: Sequence[str]
) -> "AxesImage":
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8, parse_math=False)
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    if len(names) <= _MAX_WRITTEN_CELLS:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                colour = "white" if abs(value) > _DARK_CELL else "black"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    return image


def _draw_lines(
    axes: "Axes", name: str, sites: "Sequence[AttentionShare]", *, number: int, is_single: bool
) -> None:
    colour, title = f"C{number}", "all positions" if is_single else name
    for part, marker in _MARKERS.items():
        points = [(share.site, share.share) for share in sites if share.part == part]
        label = title if part == "row" else f"{title}, {part}"
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
    # A decoder is run on one position here, which is the readout, so its line would be the same.
    points = [(s.site, s.at_readout) for s in sites if s.part == "row" and s.at_readout is not None]
    if points:
        label = "readout" if is_single else f"{name}, readout"
        axes.plot(*zip(*points, strict=True), marker="s", ls="--", color=colour, label=label)
    if is_single:
        points = [(share.site, share.uniform) for share in sites]
        axes.plot(*zip(*points, strict=True), color="#888888", ls=":", label="uniform attention")


def _draw_tokens(figure: "Figure", axes: "Axes", sites: "Sequence[AttentionShare]") -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # as above

    image = axes.imshow([share.tokens for share in sites], aspect="auto", cmap="viridis", vmin=0)
    places = range(0, len(sites), -(-len(sites) // _MAX_TICKS))
    axes.set_yticks(places, [str(sites[at].site) for at in places], fontsize=8)
    axes.set_ylabel("attention site")
    axes.set_xlabel("soft token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=axes, label="share")
