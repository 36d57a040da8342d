"""The prose of the project: documents, and the comments and strings of code."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

SCRIPT_FOLDERS = (".ci", "benchmarks", "examples", "scripts")


def iterate_prose(source: str) -> Iterator[tuple[int, str]]:
    """The comments and strings of Python source, each with its first line.

    Comments on consecutive lines are one text, as are strings that stand next to each other.
    """
    blocks: list[tuple[int, int, str, str]] = []  # kind, last line, text
    between = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind, text = "#", token.string.lstrip("#")
        elif token.type == tokenize.STRING:
            kind, text = '"', re.sub(r"^\w*(\"\"\"|'''|\"|')|(\"\"\"|'''|\"|')$", "", token.string)
        else:
            if token.type not in between and blocks:
                blocks.append((0, 0, "", ""))
            continue
        first, last = token.start[0], token.end[0]
        if blocks and blocks[-1][2] == kind and first - blocks[-1][1] <= 1:
            start, end, _, before = blocks.pop()
            text = before + "\n" * (first - end) + text
            first = start
        blocks.append((first, last, kind, text))
    yield from ((first, text) for first, _, kind, text in blocks if kind)


def flatten(text: str, *, first_line: int = 1) -> tuple[str, list[int]]:
    """A text with any white space as one space, and the line of each of its characters."""
    pieces: list[str] = []
    lines: list[int] = []
    line = first_line
    for part in re.split(r"(\s+)", text):
        piece = " " if part.isspace() else part
        pieces.append(piece)
        lines += [line] * len(piece)
        line += part.count("\n")
    return "".join(pieces), lines


def read_documents(root: Path) -> dict[str, str]:
    """Every Markdown page of the project by its path."""
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    pages += [*(root / "benchmarks").rglob("*.md"), *(root / "examples").rglob("*.md")]
    return {str(page.relative_to(root)): page.read_text("utf-8") for page in sorted(pages)}


def read_scripts(root: Path) -> dict[str, str]:
    """Every script, benchmark and example of the project by its path: Python, shell and TOML."""
    files = [file for name in SCRIPT_FOLDERS for file in (root / name).rglob("*")]
    files = [file for file in files if file.is_file() and file.suffix in {".py", ".toml", ""}]
    return {str(file.relative_to(root)): file.read_text("utf-8") for file in sorted(files)}
