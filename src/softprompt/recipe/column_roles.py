"""Guess the roles of a table's columns from their names and values, and the task that fits."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import Literal, TypeAlias

from softprompt.data import Table, check_columns, collect_labels
from softprompt.data.labels import describe_labels, join_labels
from softprompt.data.table import (
    drop_gaps,
    is_missing,
    list_text_columns,
    map_values,
    to_text,
)
from softprompt.data.tag_schemes import TagScheme
from softprompt.errors import DataError
from softprompt.recipe.number_columns import (
    count_values,
    find_number_column,
    list_whole_numbers,
)
from softprompt.recipe.option_columns import OPTION_NAMES, OptionColumns, find_option_columns
from softprompt.recipe.question_columns import QuestionColumns, find_question_columns
from softprompt.tasks.config import Tag
from softprompt.tasks.label_sets import parse_label_set
from softprompt.tasks.tag_cells import find_tag_columns, find_tags, get_scheme, resolve_tag_scheme
from softprompt.tasks.targets import read_truth

# Usual names of columns, the most certain first.
_LABEL_NAMES = (
    *("label", "labels", "sentiment", "class", "category", "target", "intent", "topic", "stars"),
    *("rating", "score", "answer", "y", "polarity", "emotion", "gold"),
)
_GROUP_NAMES = (
    *("group", "film", "movie", "user", "author", "speaker", "patient", "document", "product"),
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
_SPAN_NAMES = ("answers", "spans", "entities", "annotations")
_ANSWER_NAMES = {*_LABEL_NAMES, *_TAG_NAMES, *OPTION_NAMES, *_SPAN_NAMES}
_MAX_LABELS = 50
_MIN_GROUPS = 10
RoleKind: TypeAlias = Literal["classify", "regress", "generate", "tag", "extract", "choose"]
# Names in braces that mean something else in a template.
_RESERVED_FIELDS = {"mask", "sep", "bos", "soft"}
_SETS = "several labels for a row"
_TAGS = "a tag for each word"
_SPANS = "spans of the text"
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)

# What softprompt has no task for, and what can be done instead.
_UNSUPPORTED = {
    _TAGS: (
        "For kind = \"tag\", write the words into a column called 'words', a list with as many "
        "texts as there are tags."
    ),
    _SPANS: (
        'For kind = "tag", write each as {"start": 0, "end": 5, "label": "PER"} next to a column '
        "of text."
    ),
}


@dataclass(frozen=True)
class ColumnRoles:
    """The roles of a table's columns.

    Args:
        label: the column of the labels, of the numbers, or of the text to be written.
        labels: its values; empty if a row has not one of a few labels.
        texts: the column of the text, or the two of a pair.
        group: a column whose values may group rows; None if there is none.
        rows: the number of rows.
        unused: the other columns.
        value_map: the new names of labels that differ only in whitespace.
        gaps: those of the columns that have no value in some rows, which are left out.
        notes: for the user, a sentence each.
        max_new_tokens: enough for nearly all texts to be written.
        kind: of the task: to choose labels, to predict numbers, to write text, to tag words, to
            answer by a part of a text, which then is the second of ``texts``, or to choose one of a
            row's own options.
        multi_label: whether a row has any number of labels.
        scheme: of tags; None without any.
        options: the columns of the options; None without any.
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
    kind: RoleKind = "classify"
    multi_label: bool = False
    scheme: TagScheme | None = None
    options: OptionColumns | None = None

    @property
    def has_head(self) -> bool:
        """Whether the task can be done with a trained head."""
        return self.kind != "generate"

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations, whose answer is a part of them."""
        return self.label in self.texts


def guess_columns(table: Table, source: str) -> ColumnRoles:
    """Guess the roles of columns from their names and values.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Raises:
        DataError: no column can be the label or the text, the label has faults, or no task fits.
    """
    if tagged := find_tag_columns(table):
        return _describe_tags(table, *tagged)
    questions = find_question_columns(table, source)
    if questions is not None:
        return _describe_questions(table, source, questions)
    options = find_option_columns(table, source)
    if options is not None:
        return _describe_options(table, source, options)
    return _guess_labels(table, source)


def _guess_labels(table: Table, source: str) -> ColumnRoles:
    """The roles where a row has a label, labels, numbers, or a text to be written."""
    text_columns = list_text_columns(table)
    distinct = count_values(table, [*text_columns, *list_whole_numbers(table)])
    fields = [name for name in text_columns if _can_be_field(name)]
    label = _guess_label(distinct, fields, rows=len(table))
    is_named = label is not None and label.strip().lower() in _LABEL_NAMES
    special = _find_sets(table, source) or (None if is_named else _find_numbers(table))
    if special is not None:
        return _describe_special(table, source, *special)
    target = label or _guess_target(fields)
    answers = {*OPTION_NAMES, label} if is_named else _ANSWER_NAMES
    _check_task(table, answers if target is not None else table.column_names, source)
    if target is None:
        raise DataError(_explain_missing_label(table, distinct, source))
    texts = _guess_texts(table, [name for name in fields if name != target], source, label=target)
    gaps, gap_notes = _find_gaps(table, [*texts, target])
    table = drop_gaps(table, gaps, where=source)
    check_columns(table, [*texts, target], where=source)
    group = _guess_group(distinct, {target, *texts}, rows=len(table))
    unused = _list_unused(table, {target, *texts, group})
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
            kind="generate",
        )
    counts = Counter(map(to_text, table[label][:]))
    labels, value_map = _join_labels(table, label, counts)
    notes = (*describe_labels(counts, label), *gap_notes, *_describe_unused(unused))
    return ColumnRoles(label, labels, texts, group, len(table), unused, value_map, gaps, notes)


def _describe_tags(table: Table, words: str, target: str) -> ColumnRoles:
    """The roles where words have tags, or texts have spans."""
    settings = resolve_tag_scheme(Tag(words_column=words, target_column=target), table)
    tags = find_tags(settings, table)
    scheme = get_scheme(settings)
    what = f"{len(tags)} tags, written in {scheme}" if scheme != "none" else f"{len(tags)} tags"
    note = f'column {target!r} has a tag for each word of {words!r} ({what}): kind = "tag"'
    if _find_answers(table, target) == _SPANS:
        note = f'column {target!r} has spans of the text {words!r}: kind = "tag"'
    unused = _list_unused(table, {words, target})
    return ColumnRoles(
        target,
        (),
        (words,),
        group=None,
        rows=len(table),
        unused=unused,
        notes=(note, *_describe_unused(unused)),
        kind="tag",
        scheme=scheme,
    )


def _describe_special(table: Table, source: str, target: str, kind: RoleKind) -> ColumnRoles:
    """The roles where rows have any number of labels, or numbers."""
    names = [n for n in list_text_columns(table) if _can_be_field(n) and n != target]
    texts = _guess_texts(table, names, source, label=target)
    gaps, gap_notes = _find_gaps(table, [*texts, *([target] if kind == "regress" else [])])
    table = drop_gaps(table, gaps, where=source)
    distinct = count_values(table, [n for n in names if n not in texts])
    group = _guess_group(distinct, {target, *texts}, rows=len(table))
    unused = _list_unused(table, {target, *texts, group})
    if kind == "regress":
        note = (
            f'column {target!r} has numbers, so they are to be predicted: kind = "regress". If '
            "they are labels, name the column 'label'"
        )
    else:
        rows = [parse_label_set(text) for text in read_truth(table, target)]
        bare = sum(not row for row in rows)
        note = (
            f"column {target!r} has any number of labels for a row, so multi_label = true; "
            f"{bare:,} of {len(rows):,} rows have none"
        )
    return ColumnRoles(
        target,
        (),
        texts,
        group,
        len(table),
        unused,
        gaps=gaps,
        notes=(note, *gap_notes, *_describe_unused(unused)),
        kind=kind,
        multi_label=kind == "classify",
    )


def _describe_questions(table: Table, source: str, found: QuestionColumns) -> ColumnRoles:
    """The roles where answers are parts of a text."""
    texts = (found.question, found.context)
    gaps, gap_notes = _find_gaps(table, [*texts, found.answers])
    table = drop_gaps(table, gaps, where=source)
    names = [name for name in ("title", found.context) if name in table.column_names]
    distinct = count_values(table, names)
    group = next((n for n in names if _MIN_GROUPS <= distinct[n] <= 0.8 * len(table)), None)
    unused = tuple(n for n in table.column_names if n not in {*texts, found.answers, group})
    note = (
        f"column {found.answers!r} has answers that are parts of {found.context!r}, so kind = "
        f'"extract"; {found.unanswerable:,} of {len(table):,} questions have none'
    )
    return ColumnRoles(
        found.answers,
        (),
        texts,
        group,
        len(table),
        unused,
        gaps=gaps,
        notes=(note, *gap_notes, *_describe_unused(unused)),
        kind="extract",
    )


def _describe_options(table: Table, source: str, found: OptionColumns) -> ColumnRoles:
    """The roles where each row has its own options."""
    columns = [found.options] if isinstance(found.options, str) else [*found.options]
    taken = {*columns, found.target}
    names = [n for n in list_text_columns(table) if _can_be_field(n) and n not in taken]
    texts = _guess_texts(table, names, source, label=found.target)
    gaps, gap_notes = _find_gaps(table, [*texts, found.target])
    table = drop_gaps(table, gaps, where=source)
    distinct = count_values(table, [name for name in names if name not in texts])
    group = _guess_group(distinct, {*texts}, rows=len(table))
    unused = _list_unused(table, {*taken, *texts, group})
    return ColumnRoles(
        found.target,
        (),
        texts,
        group,
        len(table),
        unused,
        found.value_map,
        gaps,
        notes=(found.describe(), *gap_notes, *_describe_unused(unused)),
        kind="choose",
        options=found,
    )


def _find_sets(table: Table, source: str) -> tuple[str, RoleKind] | None:
    """The column that has several labels for a row: by its name, or the only one with lists."""
    found = [name for name in table.column_names if _find_answers(table, name) == _SETS]
    named = [name for name in found if name.strip().lower() in _LABEL_NAMES]
    if not named and any(name.strip().lower() in _ANSWER_NAMES for name in table.column_names):
        return None
    for name in named or (found if len(found) == 1 else []):
        try:
            for text in read_truth(table, name):
                parse_label_set(text)
        except DataError as error:
            msg = f"column {name!r} of {source}: {error}"
            raise DataError(msg) from error
        return name, "classify"
    return None


def _find_numbers(table: Table) -> tuple[str, RoleKind] | None:
    """The column of numbers that are too many to be labels."""
    name = find_number_column(table, _LABEL_NAMES)
    return None if name is None else (name, "regress")


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


def _list_unused(table: Table, used: Collection[str | None]) -> tuple[str, ...]:
    return tuple(name for name in table.column_names if name not in used)


def _describe_unused(unused: Sequence[str]) -> list[str]:
    if not unused:
        return []
    noun = "column" if len(unused) == 1 else "columns"
    return [f"the recipe does not use the {noun} {', '.join(map(repr, unused))}"]


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
        what = _find_answers(table, name) if is_meant else None
        if what in _UNSUPPORTED:
            msg = (
                f"column {name!r} of {source} has {what}, for which softprompt has no task: kind = "
                '"classify" chooses labels of a row, "regress" predicts numbers, and "generate" '
                "writes text. "
                f"{_UNSUPPORTED[what]}"
            )
            raise DataError(msg)


def _find_answers(table: Table, name: str) -> str | None:
    """What a column has that is not one text or one number; None if it may be one."""
    kind, lower = str(table.data.schema.field(name).type), name.strip().lower()
    if "struct" in kind and ("start" in kind or "offset" in kind):
        return _SPANS
    if "list" in kind or _has_written_lists(table, name):
        is_tags = lower in _TAG_NAMES or lower.endswith("_tags")
        return _TAGS if is_tags else _SETS
    return _SETS if _has_separated_labels(table, name) else None


def _has_separated_labels(table: Table, name: str) -> bool:
    """Whether cells have labels with ``|`` between them, some of them the same in several rows."""
    cells = [value for value in table[name][:] if not is_missing(value)]
    if not cells or not all(isinstance(value, str) for value in cells):
        return False
    is_divided = any("|" in value for value in cells)
    if not is_divided or any(value.lstrip().startswith("[") for value in cells):
        return False
    count = Counter(label for value in cells for label in parse_label_set(value))
    return len(count) <= max(2, len(cells) // 2)


def _has_written_lists(table: Table, name: str) -> bool:
    """Whether all cells are texts that look like lists, some of them of several things."""
    cells = [value for value in table[name][:] if not is_missing(value)]
    are_lists = all(isinstance(v, str) and _LIST.fullmatch(v) for v in cells)
    return are_lists and any("," in value for value in cells)


def _explain_missing_label(table: Table, distinct: Mapping[str, int], source: str) -> str:
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
        is_varied = count_values(table, [other])[other] > len(table) // 2
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
