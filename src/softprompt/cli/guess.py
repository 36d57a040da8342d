"""Which columns of a table are text, and which is the label."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from softprompt.data import Rows, check_columns, labels_of
from softprompt.errors import DataError

# Names that say what a column is, the surest first.
_LABELS = (
    *("label", "labels", "sentiment", "class", "category", "target", "intent", "topic", "stars"),
    *("rating", "score", "answer", "y", "polarity", "emotion", "gold"),
)
_GROUPS = ("group", "film", "movie", "user", "author", "speaker", "patient", "document", "product")
_PAIRS = (
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "document"),
)
_MOST_LABELS = 50
_TAKEN = {"mask", "sep", "soft"}


@dataclass(frozen=True)
class Guess:
    """What the columns of a table seem to be.

    Args:
        label: the column to be answered.
        labels: its values.
        texts: the column to read, or the two of a pair.
        group: a column whose rows may belong together; None if there is none.
        rows: how many there are.
    """

    label: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    group: str | None
    rows: int


def guess(table: Rows, source: str) -> Guess:
    """Guess from the columns' names and values.

    Args:
        source: what to call the table in a message.

    Raises:
        DataError: no column can be the label or the text, or the label has faults.
    """
    words, numbers = _kinds(table)
    distinct = {name: len(set(table[name])) for name in (*words, *numbers)}
    texts = [name for name in words if _nameable(name)]
    label = _label(distinct, texts, rows=len(table))
    if label is None:
        raise DataError(_no_label(table, distinct, source))
    texts = [name for name in texts if name != label]
    if not texts:
        msg = (
            f"{source} has no column of text beside {label!r}: {', '.join(table.column_names)}. A "
            "template names columns in braces, so the text's name needs letters and no : { or }. "
            "Rename it."
        )
        raise DataError(msg)
    chosen = _texts(table, texts, distinct)
    check_columns(table, chosen, where=source)
    group = _group(distinct, {label, *chosen}, rows=len(table))
    return Guess(label, labels_of(table, label), chosen, group, len(table))


def _kinds(table: Rows) -> tuple[list[str], list[str]]:
    """The columns of text, and those of whole numbers and truth values."""
    kinds = {name: str(table.data.schema.field(name).type) for name in table.column_names}
    words = [name for name, kind in kinds.items() if kind in {"string", "large_string"}]
    numbers = [name for name, kind in kinds.items() if kind.startswith(("int", "uint", "bool"))]
    return words, numbers


def _nameable(name: str) -> bool:
    """Whether a template can name a column."""
    return (
        bool(name.strip())
        and name == name.strip()
        and name not in _TAKEN
        and not ({*name} & set("{}:"))
    )


def _label(distinct: dict[str, int], texts: Sequence[str], *, rows: int) -> str | None:
    """By its name, else the column with the fewest values, if it is not the only text."""
    limit = max(2, rows // 2)
    named = [n for n in distinct if n.strip().lower() in _LABELS and distinct[n] <= limit]
    if named:
        return min(named, key=lambda n: _LABELS.index(n.strip().lower()))
    limit = max(2, min(_MOST_LABELS, rows // 3))
    able = [name for name in distinct if [*texts] != [name]]
    few = [name for name in able if 2 <= distinct[name] <= limit]  # noqa: PLR2004  # two classes
    return min(few, key=lambda name: distinct[name], default=None)


def _no_label(table: Rows, distinct: dict[str, int], source: str) -> str:
    counts = ", ".join(f"{name!r} {n} values" for name, n in distinct.items())
    return (
        f"no column of {source} looks like a label, which has few values, each in several rows. "
        f"Its {len(table)} rows have: {counts or 'neither text nor whole numbers'}. Call the "
        "label's column 'label', or write the recipe by hand."
    )


def _texts(table: Rows, names: Sequence[str], distinct: dict[str, int]) -> tuple[str, ...]:
    """The longest column, or that and another one that makes a pair with it."""
    length = {name: fmean(len(value or "") for value in table[name]) for name in names}
    first, *others = sorted(names, key=lambda name: -length[name])
    for other in others:
        pair = tuple(name for name in table.column_names if name in {first, other})
        alike = length[other] >= max(20, 0.4 * length[first])  # characters: a sentence, too
        if _paired(*pair) or (alike and distinct[other] > len(table) // 2):
            return pair
    return (first,)


def _paired(first: str, second: str) -> bool:
    """Whether two names say that they belong together: ``premise`` and ``hypothesis``, ``s1`` and
    ``s2``.
    """  # noqa: D205
    lower = (first.lower(), second.lower())
    stems = {re.sub(r"[12ab]$", "", name) for name in lower}
    return lower in _PAIRS or lower[::-1] in _PAIRS or len(stems) == 1


def _group(distinct: dict[str, int], used: set[str], *, rows: int) -> str | None:
    """A column that says which rows belong together: known by name, and with values repeated."""
    left = [name for name in distinct if name not in used and name.lower() in _GROUPS]
    repeated = [name for name in left if 10 <= distinct[name] <= 0.8 * rows]  # noqa: PLR2004
    return min(repeated, key=lambda name: _GROUPS.index(name.lower()), default=None)
