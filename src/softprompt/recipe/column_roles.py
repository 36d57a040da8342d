"""Guess the roles of a table's columns from their names and values, and the task that fits."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import Literal

from softprompt.data import Table, check_columns, collect_labels
from softprompt.data.labels import describe_labels, join_labels
from softprompt.data.table import (
    drop_gaps,
    has_numbers_only,
    is_missing,
    list_text_columns,
    map_values,
    to_text,
)
from softprompt.errors import DataError

# Usual names of columns, the most certain first.
_LABEL_NAMES = (
    *("label", "labels", "sentiment", "class", "category", "target", "intent", "topic", "stars"),
    *("rating", "score", "answer", "y", "polarity", "emotion", "gold"),
)
_GROUP_NAMES = (
    "group",
    "film",
    "movie",
    "user",
    "author",
    "speaker",
    "patient",
    "document",
    "product",
)
_PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "document"),
)
# Of text that is to be written.
_TARGET_NAMES = (
    *("target", "summary", "answer", "response", "output", "completion", "translation", "reply"),
    *("highlights", "headline", "title", *_LABEL_NAMES),
)
# Of columns that have several answers for a row.
_TAG_NAMES = ("tag", "tags", "ner_tags", "pos_tags", "chunk_tags", "iob", "bio")
_CHOICE_NAMES = ("choices", "options", "endings", "candidates")
_SPAN_NAMES = ("answers", "spans", "entities", "annotations")
_ANSWER_NAMES = {*_LABEL_NAMES, *_TAG_NAMES, *_CHOICE_NAMES, *_SPAN_NAMES}
_MAX_LABELS = 50
_MIN_GROUPS = 10
# With fewer, numbers may be labels that are not repeated yet.
_MIN_ROWS = 10
# Names in braces that mean something else in a template.
_RESERVED_FIELDS = {"mask", "sep", "bos", "soft"}
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)

# What softprompt has no task for, and what can be done instead.
_UNSUPPORTED = {
    "several labels for a row": (
        'Keep one label for a row; or join them to one text, such as "a, b", for kind = "generate".'
    ),
    "a tag for each word": 'Write the tagged text into a column, for kind = "generate".',
    "spans of the text": 'Write the words of the span into a column, for kind = "generate".',
    "several choices for a row": (
        'Write a row for each choice, labelled right or wrong, for kind = "classify".'
    ),
}


@dataclass(frozen=True)
class ColumnRoles:
    """The roles of a table's columns.

    Args:
        label: the column of the labels, or of the text to be written.
        labels: its values; empty if it is text to be written.
        texts: the column of the text, or the two of a pair.
        group: a column whose values may group rows; None if there is none.
        rows: the number of rows.
        unused: the other columns.
        value_map: the new names of labels that differ only in whitespace.
        gaps: those of the columns that have no value in some rows, which are left out.
        notes: for the user, a sentence each.
        max_new_tokens: enough for nearly all texts to be written.
    """

    label: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    group: str | None
    rows: int
    unused: tuple[str, ...] = ()
    value_map: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_new_tokens: int = 32

    @property
    def kind(self) -> Literal["classify", "generate"]:
        """The kind of the task: to choose a label, or to write text."""
        return "classify" if self.labels else "generate"


def guess_columns(table: Table, source: str) -> ColumnRoles:
    """Guess the roles of columns from their names and values.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Raises:
        DataError: no column can be the label or the text, the label has faults, or no task fits.
    """
    text_columns = list_text_columns(table)
    distinct = _count_values(table, [*text_columns, *_list_whole_numbers(table)])
    fields = [name for name in text_columns if _can_be_field(name)]
    label = _guess_label(distinct, fields, rows=len(table))
    target = label or _guess_target(fields)
    is_named = label is not None and label.strip().lower() in _LABEL_NAMES
    _check_task(table, {*_CHOICE_NAMES, label} if is_named else _ANSWER_NAMES, source)
    if target is None:
        _check_task(table, table.column_names, source)
        raise DataError(_explain_missing_label(table, distinct, source))
    texts = _guess_texts(table, [name for name in fields if name != target], source, label=target)
    gaps, gap_notes = _find_gaps(table, [*texts, target])
    table = drop_gaps(table, gaps, where=source)
    check_columns(table, [*texts, target], where=source)
    group = _guess_group(distinct, {target, *texts}, rows=len(table))
    used = {target, *texts, group}
    unused = tuple(name for name in table.column_names if name not in used)
    if label is None:
        notes = (_describe_target(target, distinct, rows=len(table)), *gap_notes)
        return ColumnRoles(
            target,
            (),
            texts,
            group,
            len(table),
            unused,
            gaps=gaps,
            notes=(*notes, *_describe_unused(unused)),
            max_new_tokens=_estimate_max_tokens(table, target),
        )
    counts = Counter(map(to_text, table[label][:]))
    labels, value_map = _join_labels(table, label, counts)
    notes = (*describe_labels(counts, label), *gap_notes, *_describe_unused(unused))
    return ColumnRoles(label, labels, texts, group, len(table), unused, value_map, gaps, notes)


def _find_gaps(table: Table, names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The columns that have no value in some rows, with a note on each."""
    gaps, notes = [], []
    for name in names:
        empty = [index for index, value in enumerate(table[name][:]) if is_missing(value)]
        if empty:
            gaps.append(name)
            count = "1 row has" if len(empty) == 1 else f"{len(empty):,} rows have"
            notes.append(
                f"{count} no value in column {name!r}, the first is row {empty[0]} (counted from "
                "0): the recipe leaves them out by drop_missing"
            )
    return (*gaps,), notes


def _join_labels(
    table: Table, label: str, counts: Counter[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The labels, and the new names of those that differ only in whitespace if there are any."""
    value_map = join_labels(counts, str.strip)
    if len({*value_map.values()}) == len(value_map):
        return collect_labels(table, label), {}
    return collect_labels(map_values(table, {label: value_map}, where=label), label), value_map


def _describe_target(target: str, distinct: Mapping[str, int], *, rows: int) -> str:
    return (
        f"column {target!r} has {distinct[target]:,} different texts in {rows:,} rows, so it is "
        'to be written: kind = "generate". If they are labels, more rows of each are needed'
    )


def _estimate_max_tokens(table: Table, target: str) -> int:
    """The tokens of the longest texts, at two characters for each, in steps of 16."""
    longest = max(len(to_text(value)) for value in table[target][:])
    return min(256, 16 * max(1, ceil(longest / 32)))


def _describe_unused(unused: Sequence[str]) -> list[str]:
    if not unused:
        return []
    noun = "column" if len(unused) == 1 else "columns"
    return [f"the recipe does not use the {noun} {', '.join(map(repr, unused))}"]


def _count_values(table: Table, names: Sequence[str]) -> dict[str, int]:
    """The number of different values of columns."""
    return {n: len({value for value in table[n][:] if not is_missing(value)}) for n in names}


def _list_whole_numbers(table: Table) -> list[str]:
    """The columns of whole numbers, as text too, and of truth values."""
    kinds = {name: str(table.data.schema.field(name).type) for name in table.column_names}
    return [
        name
        for name, kind in kinds.items()
        if kind.startswith(("int", "uint", "bool"))
        or (_is_number(table, name, kind) and not _has_fractions(table, name))
    ]


def _is_number(table: Table, name: str, kind: str) -> bool:
    is_text = kind in {"string", "large_string"}
    return kind in {"float", "double"} or (is_text and has_numbers_only(table, name))


def _has_fractions(table: Table, name: str) -> bool:
    cells = (value for value in table[name][:] if not is_missing(value))
    return not all(_WHOLE.fullmatch(to_text(value)) for value in cells)


def _can_be_field(name: str) -> bool:
    """Whether a template can name a column."""
    is_plain = bool(name) and name == name.strip() and not {*name} & set("{}:")
    return is_plain and name not in _RESERVED_FIELDS


def _guess_label(distinct: Mapping[str, int], texts: Sequence[str], *, rows: int) -> str | None:
    """By its name, else the column with the fewest values, if it is not the only text."""
    limit = max(2, rows // 2)
    named = [n for n in distinct if n.strip().lower() in _LABEL_NAMES and distinct[n] <= limit]
    if named:
        return min(named, key=lambda n: _LABEL_NAMES.index(n.strip().lower()))
    limit = max(2, min(_MAX_LABELS, rows // 3))
    others = [name for name in distinct if [*texts] != [name]]
    few = [name for name in others if 2 <= distinct[name] <= limit]  # noqa: PLR2004  # two classes
    return min(few, key=lambda name: distinct[name], default=None)


def _guess_target(texts: Sequence[str]) -> str | None:
    """The column of text that is to be written, by its name, if there is another one."""
    named = [name for name in texts if name.lower() in _TARGET_NAMES]
    if len(texts) < 2:  # noqa: PLR2004  # what is read, and what is written
        return None
    return min(named, key=lambda name: _TARGET_NAMES.index(name.lower()), default=None)


def _check_task(table: Table, names: Collection[str | None], source: str) -> None:
    """Check that columns of these names have no answers for which there is no task."""
    for name in table.column_names:
        is_meant = name in names or name.strip().lower() in names
        what = _find_unsupported(table, name) if is_meant else None
        if what is not None:
            msg = (
                f"column {name!r} of {source} has {what}, for which softprompt has no task: kind = "
                '"classify" chooses one label of a row, and kind = "generate" writes text. '
                f"{_UNSUPPORTED[what]}"
            )
            raise DataError(msg)


def _find_unsupported(table: Table, name: str) -> str | None:
    """What a column has for which there is no task; None if there may be one."""
    kind, lower = str(table.data.schema.field(name).type), name.strip().lower()
    if "struct" in kind and ("start" in kind or "offset" in kind):
        return "spans of the text"
    if "list" in kind or _has_written_lists(table, name):
        if lower in _CHOICE_NAMES:
            return "several choices for a row"
        is_tags = lower in _TAG_NAMES or lower.endswith("_tags")
        return "a tag for each word" if is_tags else "several labels for a row"
    return None


def _has_numbers_to_estimate(table: Table, name: str) -> bool:
    kind = str(table.data.schema.field(name).type)
    is_number = kind.startswith("int") or _is_number(table, name, kind)
    return is_number and name.strip().lower() in _LABEL_NAMES and len(table) >= _MIN_ROWS


def _has_written_lists(table: Table, name: str) -> bool:
    """Whether all cells are texts that look like lists, some of them of several things."""
    cells = [value for value in table[name][:] if not is_missing(value)]
    are_lists = all(isinstance(v, str) and _LIST.fullmatch(v) for v in cells)
    return are_lists and any("," in value for value in cells)


def _explain_missing_label(table: Table, distinct: Mapping[str, int], source: str) -> str:
    numbers = [name for name in table.column_names if _has_numbers_to_estimate(table, name)]
    if numbers:
        return (
            f"column {numbers[0]!r} of {source} has too many different numbers to be labels, and "
            "softprompt has no task that estimates numbers. Write classes, such as low and high, "
            'into a column, for kind = "classify".'
        )
    counts = ", ".join(f"{name!r} {n} values" for name, n in distinct.items())
    advice = "Call the label's column 'label', or that of a text to be written 'target'"
    if {"label", "target"} & {name.strip().lower() for name in distinct}:
        advice = "Give several rows for each label, or a text next to the one to be written"
    return (
        f"no column of {source} looks like a label, which has few values, each in several rows. "
        f"Its {len(table)} rows have: {counts or 'neither text nor whole numbers'}. {advice}; or "
        "write the recipe by hand."
    )


def _guess_texts(table: Table, names: Sequence[str], source: str, *, label: str) -> tuple[str, ...]:
    """The longest column, or that and another one that makes a pair with it."""
    if not names:
        raise DataError(_explain_missing_text(table, source, label=label))
    length = {name: fmean(len(value or "") for value in table[name][:]) for name in names}
    first, *others = sorted(names, key=lambda name: -length[name])
    for other in others:
        pair = tuple(name for name in table.column_names if name in {first, other})
        is_similar = length[other] >= max(20, 0.4 * length[first])  # 20 characters: a sentence
        is_varied = _count_values(table, [other])[other] > len(table) // 2
        if _is_pair(*pair) or (is_similar and is_varied):
            return pair
    return (first,)


def _explain_missing_text(table: Table, source: str, *, label: str) -> str:
    fault = f"{source} has no column of text next to {label!r}: {', '.join(table.column_names)}."
    if any(name != label and not _can_be_field(name) for name in list_text_columns(table)):
        return (
            f"{fault} A template names columns in braces, so the text's name needs letters and no "
            ": { or }. Rename it."
        )
    return f"{fault} Add the text that the label is about."


def _is_pair(first: str, second: str) -> bool:
    """Whether two names belong together, as ``premise`` and ``hypothesis`` or ``s1`` and ``s2``."""
    names = (first.lower(), second.lower())
    stems = {re.sub(r"[12ab]$", "", name) for name in names}
    return names in _PAIR_NAMES or names[::-1] in _PAIR_NAMES or len(stems) == 1


def _guess_group(distinct: Mapping[str, int], used: set[str], *, rows: int) -> str | None:
    """A column that says which rows belong together: by its name, and with repeated values."""
    named = [name for name in distinct if name not in used and name.lower() in _GROUP_NAMES]
    repeated = [name for name in named if _MIN_GROUPS <= distinct[name] <= 0.8 * rows]
    return min(repeated, key=lambda name: _GROUP_NAMES.index(name.lower()), default=None)
