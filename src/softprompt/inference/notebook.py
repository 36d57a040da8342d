"""HTML tables that notebooks show for values; all text in them is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = ' style="text-align: left"'


def make_fact_table(title: str, facts: Mapping[str, object]) -> str:
    """A table of names and values under a title.

    Args:
        title: of the table.
        facts: the values by name.

    Returns:
        HTML.

    Examples:
        >>> make_fact_table("Model", {"labels": "<a>, <b>"})
        '<table><caption>Model</caption><tr><th style="text-align: left">labels</th><td style="text-align: left">&lt;a&gt;, &lt;b&gt;</td></tr></table>'
    """  # noqa: E501  # the HTML is one line
    rows = "".join(
        f"<tr><th{_STYLE}>{escape(name)}</th><td{_STYLE}>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def make_grid(title: str, *, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a header; the first cell of each row is a name.

    Args:
        title: of the table.
        head: the columns' names.
        rows: the cells.

    Returns:
        HTML.
    """
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr><th{_STYLE}>{escape(str(first))}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><caption>{escape(title)}</caption><tr>{top}</tr>{lines}</table>"
