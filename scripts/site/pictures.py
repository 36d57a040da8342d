"""Draw where the vectors of each method enter the backbone: docs/pictures/*.svg.

The pictures follow the reader's light or dark setting. They have a background, so that they can be
read where that setting is not known.
"""

import html
import sys
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
WIDTH = 900
STYLE = """
svg { --ground: #fbfbfd; --line: #d9dae3; --ink: #23243a; --quiet: #676a80; --frozen: #e9ebf2;
  --frozen-line: #b4b8c9; --trained: #f4a261; --trained-line: #c2571a; --trained-ink: #46200a;
  --made: #fde6d0; --saved: #4744b5; --saved-ground: #eeedfb; }
@media (prefers-color-scheme: dark) { svg { --ground: #1d1e2b; --line: #35374b; --ink: #e8e9f3;
  --quiet: #a3a6bd; --frozen: #2c2e40; --frozen-line: #565a75; --trained: #d9803a;
  --trained-line: #f7b27a; --trained-ink: #1f0f04; --made: #4d3421; --saved: #b1affa;
  --saved-ground: #2b2a4d; } }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-size: 14px; fill: var(--ink); text-anchor: middle; dominant-baseline: central; }
.title { font-size: 15px; font-weight: 600; }
.small { font-size: 12.5px; }
.quiet { fill: var(--quiet); }
.left { text-anchor: start; }
.end { text-anchor: end; }
.on-trained { fill: var(--trained-ink); font-weight: 600; }
.code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12px; }
.ground { fill: var(--ground); stroke: var(--line); }
.frozen { fill: var(--frozen); stroke: var(--frozen-line); }
.trained { fill: var(--trained); stroke: var(--trained-line); stroke-width: 1.5; }
.made { fill: var(--made); stroke: var(--trained-line); stroke-width: 1.5; }
.dropped { fill: var(--trained); stroke: var(--trained-line); stroke-width: 2;
  stroke-dasharray: 6 4; }
.saved { fill: var(--saved-ground); stroke: var(--saved); stroke-width: 1.5; }
.fold { fill: none; stroke: var(--saved); stroke-width: 1.5; }
.flow { fill: none; stroke: var(--frozen-line); stroke-width: 1.8; }
.give { fill: none; stroke: var(--trained-line); stroke-width: 1.8; }
.keep { fill: none; stroke: var(--saved); stroke-width: 1.8; stroke-dasharray: 2 4;
  stroke-linecap: round; }
.brace { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
.flow-tip { fill: var(--frozen-line); } .give-tip { fill: var(--trained-line); }
.keep-tip { fill: var(--saved); }
"""
TIPS = "".join(
    f'<marker id="{name}-tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6.5" '
    f'markerHeight="6.5" orient="auto-start-reverse"><path class="{name}-tip" d="M0 0L10 5L0 10z"/>'
    "</marker>"
    for name in ("flow", "give", "keep")
)
LEGEND = {
    "frozen": "frozen",
    "trained": "trained",
    "dropped": "trained, not saved",
    "made": "computed by what is trained",
    "saved": "saved in the artifact",
}

PREFIX_NOTE = [
    "P keys and P values",
    "stand before those of the text",
    "in the attention of every layer",
]


@dataclass
class Picture:
    """An SVG picture, to which shapes are added one by one."""

    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, style: str, place: tuple[float, float, float, float], radius: int = 7) -> None:
        """Draw a rectangle at x, y with width and height."""
        x, y, width, height = place
        self.parts.append(
            f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{radius}"/>'
        )

    def text(self, x: float, y: float, words: str, *, style: str = "") -> None:
        """Write words around a point."""
        kind = f' class="{style}"' if style else ""
        self.parts.append(f'<text{kind} x="{x:g}" y="{y:g}">{html.escape(words)}</text>')

    def arrow(self, style: str, path: str) -> None:
        """Draw an arrow along a path."""
        self.parts.append(f'<path class="{style}" d="{path}" marker-end="url(#{style}-tip)"/>')

    def brace(self, x: float, y: float, width: float) -> None:
        """Draw a bracket below what a label names."""
        self.parts.append(f'<path class="brace" d="M{x:g} {y:g}v6h{width:g}v-6"/>')

    def artifact(self, x: float, y: float, shapes: list[str]) -> None:
        """Draw the artifact, with its tensors."""
        width, height = 168, 52 + 18 * len(shapes)
        self.parts.append(
            f'<path class="saved" d="M{x + 7:g} {y:g}h{width - 25}l18 18v{height - 25}'
            f'a7 7 0 0 1 -7 7h-{width - 14}a7 7 0 0 1 -7 -7v-{height - 14}a7 7 0 0 1 7 -7z"/>'
            f'<path class="fold" d="M{x + width - 18:g} {y:g}v18h18"/>'
        )
        self.text(x + width / 2 - 6, y + 20, "artifact", style="title")
        for row, shape in enumerate(shapes):
            self.text(x + width / 2, y + 46 + 18 * row, shape, style="code")

    def legend(self, names: list[str]) -> None:
        """Explain the colors at the bottom of the picture."""
        widths = {name: 34 + 7.1 * len(LEGEND[name]) + 22 for name in names}
        x, y = (WIDTH - sum(widths.values())) / 2 + 8, self.height - 30
        for name in names:
            self.box(name, (x, y - 8, 24, 16), 4)
            self.text(x + 34, y, LEGEND[name], style="small quiet left")
            x += widths[name]

    def render(self, title: str) -> str:
        """The SVG file as text."""
        width, height = WIDTH, self.height
        ground = (
            f'<rect class="ground" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12"/>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n<defs>{TIPS}</defs>\n"
            + "\n".join([ground, *self.parts])
            + "\n</svg>\n"
        )


def draw_layers(picture: Picture, x: float, top: float, width: float) -> list[float]:
    """Draw the frozen layers, the last one on top; return the vertical middle of each."""
    rows = {"last layer": 0, "second layer": 80, "first layer": 140}
    for name, down in rows.items():
        picture.box("frozen", (x, top + down, width, 44))
        picture.text(x + width / 2, top + down + 22, f"{name}:  attention, then MLP")
    middle = x + width / 2
    picture.text(middle, top + 62, "⋮", style="quiet")
    picture.arrow("flow", f"M{middle:g} {top + 140:g}V{top + 127:g}")
    return [top + down + 22 for down in rows.values()]


def draw_tokens(
    picture: Picture, x: float, y: float, tokens: list[tuple[str, int, str]]
) -> list[float]:
    """Draw a row of input vectors (word, width, style); return the horizontal middle of each."""
    middles = []
    for word, width, style in tokens:
        picture.box(style, (x, y, width, 38), 6)
        kind = "" if style == "frozen" else "on-trained" if style == "trained" else "title"
        picture.text(x + width / 2, y + 19, word, style=kind)
        middles.append(x + width / 2)
        x += width + 6
    return middles


def draw_head(picture: Picture, x: float, y: float, width: float, *, head: tuple[str, str]) -> None:
    """Draw the head on top of the last layer, and the answer above it."""
    words, style = head
    picture.box(style, (x + width / 2 - 140, y, 280, 36))
    kind = "on-trained" if style == "trained" else ""
    picture.text(x + width / 2, y + 18, words, style=kind)
    picture.arrow("flow", f"M{x + width / 2:g} {y + 58:g}V{y + 40:g}")
    picture.arrow("flow", f"M{x + width / 2:g} {y:g}V{y - 16:g}")
    picture.text(x + width / 2, y - 30, "answer:  positive 0.97,  negative 0.03", style="title")


def draw_prompt_tuning() -> str:
    """Vectors among the input embeddings, trained themselves."""
    picture = Picture(478)
    x, width = 50, 560
    draw_head(picture, x, 60, width, head=("language-model head", "frozen"))
    draw_layers(picture, x, 118, width)
    soft = [(name, 46, "trained") for name in ("θ₁", "θ₂", "…", "θₚ")]
    words = [
        (word, size, "frozen")
        for word, size in (
            ("Review:", 74),
            ("A", 34),
            ("delight", 68),
            (".", 28),
            ("Sentiment:", 96),
        )
    ]
    middles = draw_tokens(picture, x + 12, 338, [*words, *soft])
    for middle in middles:
        picture.arrow("flow", f"M{middle:g} 336V308")
    picture.brace(x + 12, 382, 324)
    picture.text(x + 174, 402, "embeddings of the text", style="small quiet")
    picture.brace(x + 342, 382, 202)
    picture.text(x + 443, 402, "P soft tokens, one vector each", style="small quiet")
    picture.arrow("keep", f"M{x + 550:g} 357H{x + 632:g}")
    picture.artifact(x + 640, 322, ["vectors [P, E]"])
    draw_note(
        picture,
        x + 722,
        ["P vectors", "are all that is trained;", "the template says", "where they stand"],
    )
    picture.legend(["frozen", "trained", "saved"])
    return picture.render("Prompt tuning: trained vectors stand among the input embeddings.")


def draw_p_tuning() -> str:
    """Vectors among the input embeddings, computed by an encoder."""
    picture = Picture(622)
    x, width = 50, 560
    draw_head(picture, x, 60, width, head=("language-model head, read at [MASK]", "frozen"))
    draw_layers(picture, x, 118, width)
    kinds = [
        ("e₁", 46),
        ("e₂", 46),
        ("A", 40),
        ("delight", 84),
        ("e₃", 46),
        ("e₄", 46),
        ("[MASK]", 84),
        ("e₅", 46),
        ("e₆", 46),
    ]
    tokens = [(word, size, "made" if word[0] == "e" else "frozen") for word, size in kinds]
    middles = draw_tokens(picture, x + 14, 338, tokens)
    for middle, (_, _, style) in zip(middles, tokens, strict=True):
        picture.arrow("flow", f"M{middle:g} 336V308")
        if style == "made":
            picture.arrow("give", f"M{middle:g} 424V381")
    picture.box("dropped", (x, 426, width, 48))
    picture.text(
        x + width / 2, 450, "encoder:  bidirectional LSTM with MLP, or MLP", style="on-trained"
    )
    start = x + width / 2 - 3 * 52 + 3
    for index in range(6):
        picture.box("dropped", (start + 52 * index, 508, 46, 34), 6)
        picture.arrow("give", f"M{start + 52 * index + 23:g} 506V478")
    picture.text(start - 12, 525, "embedding [P, E]", style="small quiet end")
    picture.arrow("keep", f"M{x + 550:g} 357H{x + 632:g}")
    picture.artifact(x + 640, 322, ["vectors [P, E]"])
    draw_note(
        picture,
        x + 722,
        ["Encoder output", "replaces the embeddings", "of the soft tokens;", "only it is saved"],
    )
    picture.legend(["frozen", "dropped", "made", "saved"])
    return picture.render("P-tuning: an encoder computes the vectors among the input embeddings.")


def draw_prefix(picture: Picture, layers: list[float], x: float, *, style: str) -> None:
    """Draw keys and values before the attention of every layer."""
    for middle in layers:
        for row, name in enumerate(("K", "V")):
            for column in range(3):
                picture.box(style, (x + 22 + 19 * column, middle - 20 + 21 * row, 17, 18), 3)
            picture.text(x + 10, middle - 11 + 21 * row, name, style="code")
        picture.arrow("give", f"M{x + 82:g} {middle:g}H{x + 112:g}")


def draw_note(picture: Picture, x: float, lines: list[str], *, top: float = 170) -> None:
    """Write a title and a few lines of explanation."""
    picture.text(x, top, lines[0], style="title")
    for row, words in enumerate(lines[1:]):
        picture.text(x, top + 23 + 18 * row, words, style="small quiet")


def draw_text_row(picture: Picture, x: float, words: dict[str, int]) -> None:
    """Draw the input vectors of a text, without soft tokens."""
    tokens = [(word, size, "frozen") for word, size in words.items()]
    for middle in draw_tokens(picture, x, 338, tokens):
        picture.arrow("flow", f"M{middle:g} 336V308")
    picture.brace(x, 382, 466)
    picture.text(x + 233, 402, "embeddings of the text", style="small quiet")


def draw_prefix_tuning() -> str:
    """Keys and values in every layer, computed by an MLP."""
    picture = Picture(478)
    x, width = 404, 466
    draw_head(picture, x, 60, width, head=("language-model head", "frozen"))
    layers = draw_layers(picture, x, 118, width)
    draw_prefix(picture, layers, x - 114, style="made")
    draw_text_row(picture, x, {"Review:": 100, "A": 60, "delight": 110, ".": 52, "Sentiment:": 120})
    picture.box("dropped", (170, 128, 62, 166))
    picture.text(201, 211, "MLP", style="on-trained")
    for middle in layers:
        picture.arrow("give", f"M232 {middle:g}H286")
    for column in range(3):
        picture.box("dropped", (36 + 28 * column, 196, 24, 30), 5)
    picture.arrow("give", "M120 211H166")
    picture.text(77, 246, "embedding", style="small quiet")
    picture.text(77, 264, "[P, H]", style="small quiet")
    draw_note(picture, 131, PREFIX_NOTE, top=58)
    picture.arrow("keep", "M342 306V352Q342 372 322 372H218")
    picture.artifact(40, 326, ["keys   [L, N, P, D]", "values [L, N, P, D]"])
    picture.legend(["frozen", "dropped", "made", "saved"])
    return picture.render("Prefix tuning: an MLP computes keys and values for every layer.")


def draw_p_tuning_v2() -> str:
    """Keys and values in every layer, trained themselves."""
    picture = Picture(478)
    x, width = 404, 466
    draw_head(picture, x, 60, width, head=("linear head, read at [CLS]", "trained"))
    layers = draw_layers(picture, x, 118, width)
    draw_prefix(picture, layers, x - 114, style="trained")
    words = {"[CLS]": 72, "A": 44, "delight": 84, "to": 50, "watch": 74, ".": 34, "[SEP]": 72}
    draw_text_row(picture, x, words)
    draw_note(picture, 168, PREFIX_NOTE)
    picture.arrow("keep", "M342 306V362Q342 382 322 382H218")
    picture.arrow("keep", f"M{x + 93:g} 78H76Q60 78 60 94V314")
    picture.artifact(40, 318, ["keys   [L, N, P, D]", "values [L, N, P, D]", "head   [C, H]"])
    picture.legend(["frozen", "trained", "saved"])
    return picture.render(
        "P-tuning v2: trained keys and values in every layer, and a trained head."
    )


def draw_multitask_prompt_tuning() -> str:
    """Vectors among the input embeddings: a shared prompt times the matrix of a task."""
    picture = Picture(622)
    x, width = 50, 560
    draw_head(picture, x, 60, width, head=("language-model head", "frozen"))
    draw_layers(picture, x, 118, width)
    words = [("Review:", 74), ("A", 34), ("delight", 68), (".", 28), ("Sentiment:", 96)]
    soft = [(name, 46, "made") for name in ("p₁", "p₂", "…", "pₚ")]
    tokens = [*((word, size, "frozen") for word, size in words), *soft]
    middles = draw_tokens(picture, x + 12, 338, tokens)
    for middle, (_, _, style) in zip(middles, tokens, strict=True):
        picture.arrow("flow", f"M{middle:g} 336V308")
        if style == "made":
            picture.arrow("give", f"M{middle:g} 452V381")
    picture.box("trained", (x + 342, 454, 202, 48))
    picture.text(x + 443, 478, "shared prompt", style="on-trained")
    picture.text(x + 443, 518, "[P, E], one for all tasks", style="small quiet")
    picture.text(x + 318, 478, "∘", style="title")
    picture.box("dropped", (x + 232, 454, 62, 48))
    picture.text(x + 263, 478, "rows", style="on-trained")
    picture.text(x + 263, 518, "[r, E]", style="small quiet")
    picture.text(x + 216, 478, "·", style="title")
    picture.box("dropped", (x + 114, 454, 86, 48))
    picture.text(x + 157, 478, "columns", style="on-trained")
    picture.text(x + 157, 518, "[P, r]", style="small quiet")
    picture.text(x + 204, 546, "two small matrices for each task", style="small quiet")
    picture.arrow("keep", f"M{x + 550:g} 357H{x + 632:g}")
    picture.artifact(x + 640, 322, ["vectors [P, E]"])
    note = ["Their product", "is the prompt of a task;", "only it is saved", "for the task"]
    draw_note(picture, x + 722, note)
    picture.legend(["frozen", "trained", "dropped", "made", "saved"])
    return picture.render(
        "Multitask prompt tuning: a shared prompt is multiplied by a matrix of each task."
    )


DRAWINGS = {
    "prompt-tuning": draw_prompt_tuning,
    "p-tuning": draw_p_tuning,
    "prefix-tuning": draw_prefix_tuning,
    "p-tuning-v2": draw_p_tuning_v2,
    "multitask-prompt-tuning": draw_multitask_prompt_tuning,
}


def write_pictures(folder: Path = FOLDER) -> None:
    """Write every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write_pictures(*map(Path, sys.argv[1:]))
