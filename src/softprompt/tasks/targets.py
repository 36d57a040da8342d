"""The targets of tables: the labels they have, whether they are possible, and their text."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, assert_never

from softprompt.data.labels import check_answers, check_choices, check_labels, collect_labels
from softprompt.data.messages import read_answer, read_messages
from softprompt.data.table import Table, check_columns, check_names, is_missing, to_text
from softprompt.errors import DataError, format_unknown
from softprompt.tasks.base import Task
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.config import (
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TaskSettings,
    get_messages_column,
    get_target_column,
)
from softprompt.tasks.extraction import read_context_answers
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.label_sets import parse_label_set
from softprompt.tasks.option_cells import read_choice_rows, resolve_target_form
from softprompt.tasks.regression import parse_numbers
from softprompt.tasks.tag_cells import (
    check_tag_rows,
    find_tags,
    read_tag_rows,
    resolve_tag_scheme,
)
from softprompt.tasks.tag_sequences import format_tags
from softprompt.tasks.tagger import Tagger

_Found = TypeVar("_Found")


def has_few_targets(settings: TaskSettings) -> bool:
    """Whether targets are single labels or choices, which every split gets the same shares of.

    Args:
        settings: of the task.
    """
    match settings:
        case Classify():
            return not settings.multi_label
        case Generate():
            return settings.choices is not None and settings.messages_column is None
        case Regress() | Tag() | Extract() | Choose():
            return False
        case _:
            assert_never(settings)


def read_truth(table: Table, column: str) -> list[str]:
    """The target of each row as text; blank where a row has none.

    Args:
        table: the rows, checked.
        column: of the targets.
    """
    return ["" if is_missing(cell) else to_text(cell) for cell in table[column][:]]


def read_targets(table: Table, settings: TaskSettings, *, split: str = "given") -> list[str]:
    """The target of each row as text, in the form in which a task compares it with predictions.

    Args:
        table: the rows, checked.
        settings: of the task.
        split: the name of the rows, for messages.
    """
    if isinstance(settings, Tag):
        return [format_tags(tags) for tags in read_tag_rows(table, settings, split=split)]
    if isinstance(settings, Generate) and settings.messages_column is not None:
        return _read_messages(table, settings.messages_column, read_answer, split=split)
    if isinstance(settings, Choose):
        rows = read_choice_rows(table, settings, split=split)
        return [options.texts[choice] for options, choice in rows]
    return read_truth(table, get_target_column(settings))


def read_task_targets(table: Table, task: Task) -> list[str]:
    """As `read_targets`, for a task that is bound to its backbone.

    Args:
        table: the rows, checked.
        task: of the rows.
    """
    if isinstance(task, Tagger | Chooser):
        return read_targets(table, task.settings)
    if isinstance(task, TextGenerator) and task.is_chat:
        return _read_messages(table, task.target_column, read_answer, split="given")
    return read_truth(table, task.target_column)


def resolve_target_settings(settings: TaskSettings, train: Table) -> TaskSettings:
    """The settings by which targets are checked, as the training rows decide them.

    Args:
        settings: of the task.
        train: the training rows.

    Raises:
        DataError: tags are of no one scheme, or the options' targets of no one form.
    """
    match settings:
        case Tag():
            return resolve_tag_scheme(settings, train)
        case Choose():
            return resolve_target_form(settings, train)
        case _:
            return settings


def find_labels(settings: TaskSettings, table: Table) -> tuple[str, ...]:
    """The labels of a task, or the answers that generation is constrained to.

    Args:
        settings: of the task.
        table: the training rows.

    Raises:
        DataError: there is only one label, the verbalizer has no word for one, the order of
            ordinal labels is not known, or targets name options in no one form.
    """
    match settings:
        case Classify(multi_label=True):
            return _collect_sets(settings, table)
        case Classify():
            return _find_classes(settings, table)
        case Generate(choices="from-data"):
            return _collect_answers(settings, table)
        case Generate(choices=choices):
            return tuple(choices or ())
        case Regress() | Extract() | Choose():
            resolve_target_settings(settings, table)  # which refuses targets of no one form
            return ()
        case Tag():
            return find_tags(settings, table)
        case _:
            assert_never(settings)


def _collect_answers(settings: Generate, table: Table) -> tuple[str, ...]:
    """The different answers of the training rows."""
    if settings.messages_column is None:
        return collect_labels(table, settings.target_column)
    return tuple(sorted({*read_targets(table, settings, split="train")}))


def _find_classes(settings: Classify, table: Table) -> tuple[str, ...]:
    labels = collect_labels(table, settings.label_column)
    if settings.verbalizer is None and settings.labels is not None:
        return _order_labels(labels, settings)
    if settings.verbalizer is None:
        return _order_by_number(labels) if settings.ordinal else labels
    missing = sorted(set(labels) - set(settings.verbalizer))
    if missing:
        msg = (
            f"column {settings.label_column!r} of the training data has labels without a word in "
            f"the verbalizer: {', '.join(map(repr, missing))}. The verbalizer has "
            f"{', '.join(map(repr, settings.verbalizer))}. Add a word for each label."
        )
        raise DataError(msg)
    return tuple(settings.verbalizer)


def _collect_sets(settings: Classify, table: Table) -> tuple[str, ...]:
    """All labels of rows that have any number of them."""
    column = settings.label_column
    rows = _read_cells(table, column, parse_label_set, split="train")
    found = {label for of_row in rows for label in of_row}
    # A listed label may have no row: each has a decision of its own, here always against it.
    listed = [*settings.labels] if found and settings.labels is not None else []
    labels = tuple(sorted(found.union(listed)))
    if len(labels) < 2:  # noqa: PLR2004  # a choice
        what = f"the label {labels[0]!r} alone" if labels else "no label"
        msg = (
            f"column {column!r} of the training data has {what}. At least two different labels are "
            "needed: write lists, or labels with | between them."
        )
        raise DataError(msg)
    return labels if settings.labels is None else _order_labels(labels, settings)


def _order_labels(labels: Sequence[str], settings: Classify) -> tuple[str, ...]:
    """Labels in the order of ``task.labels``, which must list the same ones."""
    listed = tuple(settings.labels or ())
    if sorted(listed) != sorted(labels):
        msg = (
            f"task.labels lists {', '.join(map(repr, listed))}, but column "
            f"{settings.label_column!r} of the training data has {', '.join(map(repr, labels))}. "
            "List each of these once, or leave task.labels out."
        )
        raise DataError(msg)
    return listed


def _order_by_number(labels: Sequence[str]) -> tuple[str, ...]:
    """Ordinal labels in the order of their numbers: as text, 10 would come before 2."""
    try:
        return tuple(sorted(labels, key=float))
    except ValueError as error:
        msg = (
            f"task.ordinal: the order of the labels {', '.join(map(repr, labels))} is not known, "
            "since they are not numbers. List them in their order in task.labels."
        )
        raise DataError(msg) from error


def check_tables(
    tables: Mapping[str, Table], settings: TaskSettings, *, labels: Sequence[str]
) -> None:
    """Check that every split has the target column, and no target that is not possible.

    Args:
        tables: the rows by split.
        settings: of the task.
        labels: of the task.

    Raises:
        DataError: a target is missing, unknown, or not of the task's form.
    """
    if "train" in tables:
        settings = resolve_target_settings(settings, tables["train"])
    for name, table in tables.items():
        check_targets(table, settings, labels=labels, split=name)


def check_targets(
    table: Table, settings: TaskSettings, *, labels: Sequence[str], split: str
) -> None:
    """Check that rows have the target column, and no target that is not possible.

    Args:
        table: the rows.
        settings: of the task.
        labels: of the task.
        split: the name of the rows, for messages.

    Raises:
        DataError: a target is missing, unknown, or not of the task's form.
    """
    column, messages = get_target_column(settings), get_messages_column(settings)
    if messages is not None:
        check_names([messages], table.column_names, where=f"the {split} data")
        _read_messages(table, messages, read_messages, split=split)
    match settings:
        case Classify(multi_label=True):
            _check_sets(table, column, labels=labels, split=split)
        case Classify():
            check_labels(table, column, known=labels, split=split)
        case Generate(messages_column=str()):
            answers = read_targets(table, settings, split=split)
            check_answers(answers, column, choices=labels, split=split)
        case Generate():
            check_columns(table, [column], where=f"the {split} data")
            check_choices(table, column, choices=labels, split=split)
        case Regress():
            _check_numbers(table, settings, split=split)
        case Tag():
            check_tag_rows(table, settings, split=split)
        case Extract():
            _check_answers(table, settings, split=split)
        case Choose():
            read_choice_rows(table, settings, split=split)
        case _:
            assert_never(settings)


def _check_sets(table: Table, column: str, *, labels: Sequence[str], split: str) -> None:
    for row in _read_cells(table, column, parse_label_set, split=split):
        unknown = [label for label in row if label not in labels]
        if unknown:
            fault = format_unknown("label", unknown[0], options=labels)
            msg = f"in column {column!r} of the {split} data: {fault}"
            raise DataError(msg)


def _check_numbers(table: Table, settings: Regress, *, split: str) -> None:
    column = settings.target_column
    rows = _read_cells(table, column, parse_numbers, split=split)
    count = len(rows[0]) if settings.mean is None else len(settings.mean)
    for index, values in enumerate(rows):
        if len(values) != count:
            msg = (
                f"row {index} (counted from 0) of the {split} data has {len(values)} numbers in "
                f"column {column!r}, but others have {count}. Give each row as many numbers."
            )
            raise DataError(msg)


def _check_answers(table: Table, settings: Extract, *, split: str) -> None:
    names = (settings.context_column, settings.target_column)
    check_names(names, table.column_names, where=f"the {split} data")
    contexts = read_truth(table, settings.context_column)
    for index, text in enumerate(read_truth(table, settings.target_column)):
        where = f"row {index} (counted from 0) of the {split} data"
        try:
            read_context_answers(text, contexts[index], where=where)
        except DataError as error:
            if where in str(error):
                raise
            msg = f"{where}, column {settings.target_column!r}: {error}"
            raise DataError(msg) from error


def _read_messages(
    table: Table, column: str, read: Callable[[object], _Found], *, split: str
) -> list[_Found]:
    """What the conversations of a table hold; an error names the row."""
    found = []
    for index, cell in enumerate(table[column][:]):
        try:
            found.append(read(cell))
        except DataError as error:
            msg = f"row {index} (counted from 0) of the {split} data, column {column!r}: {error}"
            raise DataError(msg) from error
    return found


def read_numbers(table: Table, column: str) -> list[tuple[float, ...]]:
    """The numbers of each training row.

    Args:
        table: the rows.
        column: of the numbers.

    Raises:
        DataError: a cell has none.
    """
    return _read_cells(table, column, parse_numbers, split="train")


def _read_cells(
    table: Table, column: str, parse: Callable[[str], _Found], *, split: str
) -> list[_Found]:
    """What the cells of a column hold; an error names the row."""
    check_names([column], table.column_names, where=f"the {split} data")
    found = []
    for index, text in enumerate(read_truth(table, column)):
        try:
            found.append(parse(text))
        except DataError as error:
            msg = f"row {index} (counted from 0) of the {split} data, column {column!r}: {error}"
            raise DataError(msg) from error
    return found
