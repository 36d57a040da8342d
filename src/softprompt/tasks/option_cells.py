"""The cells of multiple choice: the options of a row, and which of them its target names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from softprompt.data.inputs import Row
from softprompt.data.table import Table, check_names, is_missing, iterate_groups, to_text
from softprompt.errors import DataError, format_unknown
from softprompt.tasks.config import Choose, TargetForm
from softprompt.tasks.objectives import parse_list

FEWEST_OPTIONS = 2
# How a target may name an option, the likeliest first.
_FORMS: tuple[TargetForm, ...] = ("text", "label", "index")
_MOST_SHOWN = 6


@dataclass(frozen=True)
class Options:
    """The options of a row.

    Args:
        texts: of each, in their order.
        labels: of each; None where the data has none, so that they are A, B, C.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def find(self, target: str) -> dict[TargetForm, int]:
        """The option that a target names, by each form in which it names one.

        An index is not looked for where options have labels of their own, which may be numbers.

        Args:
            target: as text.
        """
        found: dict[TargetForm, int] = {}
        if target in self.texts or target.strip() in self.texts:
            text = target if target in self.texts else target.strip()
            found["text"] = self.texts.index(text)
        labels = self.labels or tuple(ascii_uppercase[: len(self.texts)])
        label = target.strip() if self.labels else target.strip().upper()
        if label in labels:
            found["label"] = labels.index(label)
        digits = target.strip()
        if self.labels is None and digits.isdecimal() and int(digits) < len(self.texts):
            found["index"] = int(digits)
        return found


def read_options(row: Row, settings: Choose) -> Options:
    """The options of a row.

    Args:
        row: with the columns of the options.
        settings: of the task.

    Raises:
        DataError: there are fewer than two, one is empty, or two are the same.
    """
    columns = settings.list_columns()
    missing = [name for name in columns if name not in row]
    if missing:
        raise DataError(format_unknown("column", missing[0], options=row))
    if isinstance(settings.options_column, str):
        found = _parse_cell(row[settings.options_column])
    else:
        found = Options(_join_cells([row[name] for name in columns], columns))
    _check_options(found)
    return found


def _join_cells(cells: Sequence[object], columns: Sequence[str]) -> tuple[str, ...]:
    """Options that have a column each; the last ones may be empty."""
    filled = [at for at, cell in enumerate(cells) if not is_missing(cell)]
    if filled and filled[-1] + 1 != len(filled):
        gap = next(at for at, cell in enumerate(cells) if is_missing(cell))
        msg = (
            f"column {columns[gap]!r} has no option, but {columns[filled[-1]]!r} after it has one, "
            "so it is not clear which option an index means. Fill the columns from the first."
        )
        raise DataError(msg)
    return tuple(to_text(cells[at]).strip() for at in filled)


def _parse_cell(cell: object) -> Options:
    """The options in a cell: a list, a record with ``text`` and ``label``, or ``a|b``."""
    text = "" if is_missing(cell) else to_text(cell).strip()
    if text.startswith("{"):
        return _parse_record(text)
    if not text.startswith("["):
        return Options(tuple(part.strip() for part in text.split("|")) if text else ())
    return Options(_read_texts(parse_list(text), text))


def _parse_record(text: str) -> Options:
    """Options with labels of their own, as ARC and CommonsenseQA have them."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    match value:
        case {"text": [*texts], "label": [*labels]} if len(texts) == len(labels):
            names = _read_texts(labels, text)
            if len({*names}) < len(names):
                msg = f"the options {text[:80]!r} have a label twice. Give each a label of its own."
                raise DataError(msg)
            return Options(_read_texts(texts, text), names)
        case {"text": [*texts], **others} if "label" not in others:
            return Options(_read_texts(texts, text))
        case _:
            msg = (
                f"the options {text[:80]!r} are neither a list of texts nor a record with as many "
                'of "text" as of "label". Write ["one", "two"].'
            )
            raise DataError(msg)


def _read_texts(items: Sequence[object], text: str) -> tuple[str, ...]:
    """The items of a list as texts."""
    if any(isinstance(item, list | tuple | Mapping) for item in items):
        msg = f'the options {text[:80]!r} are not a list of texts. Write ["one", "two"].'
        raise DataError(msg)
    return tuple("" if is_missing(item) else to_text(item) for item in items)


def _check_options(options: Options) -> None:
    texts = options.texts
    if len(texts) < FEWEST_OPTIONS:
        msg = (
            f"the row has {len(texts)} option{'s' * (len(texts) != 1)}{_show(texts)}, but a choice "
            'needs at least 2. Write ["one", "two"], or one|two; or leave the row out.'
        )
        raise DataError(msg)
    if not all(text.strip() for text in texts):
        msg = f"the row has an empty option{_show(texts)}. Give it a text, or leave the option out."
        raise DataError(msg)
    twice = next((text for at, text in enumerate(texts) if text in texts[:at]), None)
    if twice is not None:
        msg = (
            f"the option {twice!r} stands twice in a row{_show(texts)}, so that either may be "
            "chosen. Write each option once, or leave the row out."
        )
        raise DataError(msg)


def _show(texts: Sequence[str]) -> str:
    """The options of a row in parentheses."""
    more = ", …" * (len(texts) > _MOST_SHOWN)
    return f" ({', '.join(repr(text[:40]) for text in texts[:_MOST_SHOWN])}{more})" if texts else ""


def find_choice(row: Row, settings: Choose, *, options: Options) -> int:
    """The index of the option that a row's target names.

    Args:
        row: with the target's column.
        settings: of the task; while the form of targets is ``auto``, a target is read in any form,
            if all forms in which it names an option name the same one.
        options: of the row.

    Raises:
        DataError: it names none, or different forms name different ones.
    """
    column = settings.target_column
    if column not in row:
        raise DataError(format_unknown("column", column, options=row))
    target = "" if is_missing(row[column]) else to_text(row[column])
    found = options.find(target)
    if settings.target_form != "auto":
        if settings.target_form not in found:
            raise DataError(_explain_unknown(target, options, form=settings.target_form))
        return found[settings.target_form]
    if not found:
        raise DataError(_explain_unknown(target, options, form="auto"))
    if len({*found.values()}) > 1:
        raise DataError(_explain_ambiguity(target, found))
    return next(iter(found.values()))


def _explain_unknown(target: str, options: Options, *, form: str) -> str:
    """Why a target names no option."""
    count = len(options.texts)
    labels = options.labels or tuple(ascii_uppercase[:count])
    forms = {
        "text": f"the text of one{_show(options.texts)}",
        "index": f"its index, 0 to {count - 1}",
        "label": f"its label, {', '.join(labels)}",
    }
    if options.labels is not None:
        del forms["index"]
    wanted = forms.get(form, ", or ".join(forms.values()))
    shown = f"target {target[:60]!r} is not" if target.strip() else "target has no value, so not"
    remedy = "Correct the target or the options, or leave the row out."
    if target.strip() == str(count) and "index" in forms:
        remedy = "Indices count from 0: subtract 1 from all of them."
    return f"the {shown} {wanted}. {remedy}"


def _explain_ambiguity(target: str, found: Mapping[TargetForm, int]) -> str:
    readings = ", ".join(f"as {_NOUNS[form]} option {at}" for form, at in found.items())
    return (
        f"the target {target[:60]!r} is, with options counted from 0, {readings}. Say which is "
        f"meant: task.target_form = {' or '.join(repr(form) for form in found)}."
    )


_NOUNS: dict[TargetForm, str] = {"text": "a text", "label": "a label", "index": "an index"}


def iterate_options(
    table: Table, settings: Choose, *, split: str, target: bool = True
) -> Iterator[tuple[Row, Options]]:
    """The rows of a table, each with its options; an error names the row.

    Args:
        table: the rows.
        settings: of the task.
        split: the name of the rows, for messages.
        target: whether the column of the target is needed.

    Raises:
        DataError: a column is missing, or the options of a row have a fault.
    """
    columns = [*settings.list_columns(), *([settings.target_column] if target else [])]
    check_names(columns, table.column_names, where=f"the {split} data")
    rows = (row for group in iterate_groups(table, columns) for row in group)
    for index, row in enumerate(rows):
        try:
            yield row, read_options(row, settings)
        except DataError as error:
            msg = f"{_name_row(index, split)}: {error}"
            raise DataError(msg) from error


def _name_row(index: int, split: str) -> str:
    return f"row {index} (counted from 0) of the {split} data"


def read_choice_rows(table: Table, settings: Choose, *, split: str) -> list[tuple[Options, int]]:
    """The options of each row, and the index of the right one; an error names the row.

    Args:
        table: the rows.
        settings: of the task.
        split: the name of the rows, for messages.

    Raises:
        DataError: a column is missing, or options or target of a row have a fault.
    """
    found = []
    for index, (row, options) in enumerate(iterate_options(table, settings, split=split)):
        try:
            found.append((options, find_choice(row, settings, options=options)))
        except DataError as error:
            where = f"{_name_row(index, split)}, column {settings.target_column!r}"
            msg = f"{where}: {error}"
            raise DataError(msg) from error
    return found


def resolve_target_form(settings: Choose, table: Table) -> Choose:
    """The settings of a task with the one form in which all targets of its training rows are read.

    Args:
        settings: of the task.
        table: the training rows.

    Raises:
        DataError: no form fits all rows, or several do, and name different options.
    """
    if settings.target_form != "auto":
        return settings
    column = settings.target_column
    rows: list[tuple[str, dict[TargetForm, int]]] = []
    for index, (row, options) in enumerate(iterate_options(table, settings, split="train")):
        target = "" if is_missing(row[column]) else to_text(row[column])
        found = options.find(target)
        if not found:
            reason = _explain_unknown(target, options, form="auto")
            raise DataError(_name_cell(index, column, reason))
        rows.append((target, found))
    possible = [form for form in _FORMS if all(form in found for _, found in rows)]
    if not possible:
        raise DataError(_explain_mixture([found for _, found in rows], column=column))
    for index, (target, found) in enumerate(rows):
        readings = {form: found[form] for form in possible}
        if len({*readings.values()}) > 1:
            raise DataError(_name_cell(index, column, _explain_ambiguity(target, readings)))
    return replace(settings, target_form=possible[0])


def _name_cell(index: int, column: str, reason: str) -> str:
    return f"{_name_row(index, 'train')}, column {column!r}: {reason}"


def _explain_mixture(rows: Sequence[Mapping[TargetForm, int]], *, column: str) -> str:
    """Why no form fits all targets."""
    first = {
        form: next(at for at, found in enumerate(rows) if form not in found) for form in _FORMS
    }
    faults = ", ".join(f"row {at} is not {_NOUNS[form]}" for form, at in first.items())
    return (
        f"the targets in column {column!r} of the training data are not all of one form: {faults} "
        "(rows are counted from 0). Write all of them as the option's text, its index or its label."
    )
