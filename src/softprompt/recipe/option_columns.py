"""Find the options and the right one among a table's columns, and draft the keys of their task."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase

from softprompt.data import Table
from softprompt.data.table import drop_gaps, is_missing, map_values, to_text
from softprompt.errors import DataError
from softprompt.tasks.config import OPTION_FIELD, Choose, TargetForm
from softprompt.tasks.option_cells import (
    FEWEST_OPTIONS,
    iterate_options,
    read_choice_rows,
    resolve_target_form,
)

# Usual names of the column of all options, and of columns that have one option each.
OPTION_NAMES = ("choices", "options", "endings", "candidates", "alternatives")
_NUMBERED = re.compile(
    r"(choice|option|ending|answer|solution|sol|candidate|alternative|)[ _-]?([0-9]|[a-h])",
    re.IGNORECASE,
)
# Of the column that says which option is right, the most certain first.
_TARGET_NAMES = (
    *("label", "target", "answer", "answerkey", "answer_key", "answer_index", "answer_idx"),
    *("correct", "correct_answer", "right", "gold", "gold_label", "solution"),
)
_FORMS = {"text": "its text", "index": "its index, from 0", "label": "its label"}


@dataclass(frozen=True)
class OptionColumns:
    """The columns of a multiple choice.

    Args:
        options: the column that has all of them, or several that have one each.
        target: the column of the right one.
        target_form: how it names the option.
        fewest: the number of options of the row that has the fewest.
        most: that of the row that has the most.
        value_map: targets that count options from 1, and what they are counted from 0.
    """

    options: str | tuple[str, ...]
    target: str
    target_form: TargetForm
    fewest: int
    most: int
    value_map: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """What was found, in a sentence for the user."""
        names = [self.options] if isinstance(self.options, str) else self.options
        verb = "has" if isinstance(self.options, str) else "have"
        noun = "column" if isinstance(self.options, str) else "columns"
        count = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        form = "its index, from 1" if self.value_map else _FORMS[self.target_form]
        return (
            f"{noun} {', '.join(map(repr, names))} {verb} {count} options for a row, of which "
            f'{self.target!r} names the right one by {form}: kind = "choose"'
        )


def find_option_columns(table: Table, source: str) -> OptionColumns | None:
    """Find the columns of options by their names, and that of the right one by its values.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Returns:
        The columns; None if no column looks like options.

    Raises:
        DataError: a column of options has faults, or no column says which one is right.
    """
    whole = next((name for name in table.column_names if _has_options(table, name)), None)
    options = whole or _find_numbered(table.column_names)
    if options is None:
        return None
    faults = {}
    for name in _list_targets(table, options):
        try:
            return _read_columns(table, options, name, source=source)
        except DataError as error:
            faults[name] = error
    if whole is None:  # such names may mean something else
        return None
    told = next((f" {name!r} does not: {error}" for name, error in faults.items()), "")
    msg = (
        f"column {whole!r} of {source} has options, but no column says which one is right.{told} "
        f"Call that column 'target'; or, if it has something else, give {whole!r} another name."
    )
    raise DataError(msg)


def _has_options(table: Table, name: str) -> bool:
    """Whether a column is called so, and each of its cells has several texts."""
    if name.strip().lower() not in OPTION_NAMES:
        return False
    cells = [value for value in table[name][:] if not is_missing(value)]
    return bool(cells) and all(
        not isinstance(cell, str) or "|" in cell or cell.lstrip().startswith(("[", "{"))
        for cell in cells
    )


def _find_numbered(names: Sequence[str]) -> tuple[str, ...] | None:
    """Columns such as ``choice1`` and ``choice2``, or ``A``, ``B``, ``C``; those of most."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name.strip())
        if match is None or (not match[1] and not name.strip().isupper()):
            continue
        digit = match[2].lower()
        place = int(digit) if digit.isdecimal() else ascii_lowercase.index(digit)
        found.setdefault(f"{match[1].lower()}/{digit.isdecimal()}", {})[place] = name
    rows = [
        tuple(of_stem[at] for at in sorted(of_stem))
        for of_stem in found.values()
        if max(of_stem) - min(of_stem) + 1 == len(of_stem) >= FEWEST_OPTIONS and min(of_stem) <= 1
    ]
    return max(rows, key=len, default=None)


def _list_targets(table: Table, options: str | Sequence[str]) -> list[str]:
    """The columns that may name the right option, the likeliest first."""
    taken = {options} if isinstance(options, str) else {*options}
    names = {name.strip().lower(): name for name in table.column_names if name not in taken}
    return [names[name] for name in _TARGET_NAMES if name in names]


def _read_columns(
    table: Table, options: str | tuple[str, ...], target: str, *, source: str
) -> OptionColumns:
    rows = drop_gaps(table, [target], where=source)
    settings = Choose(options_column=options, target_column=target)
    counts = [len(found.texts) for _, found in iterate_options(rows, settings, split="train")]
    value_map: dict[str, str] = {}
    try:
        form = resolve_target_form(settings, rows).target_form
    except DataError:
        value_map = _count_from_zero(rows, target, counts)
        if not value_map:
            raise
        rows = map_values(rows, {target: value_map}, where=source)
        form = resolve_target_form(settings, rows).target_form
    return OptionColumns(options, target, form, min(counts), max(counts), value_map)


def _count_from_zero(table: Table, target: str, counts: Sequence[int]) -> dict[str, str]:
    """The new targets where all count options from 1."""
    cells = [to_text(value) for value in table[target][:]]
    if not all(cell.isdecimal() and cell.isascii() for cell in cells):
        return {}
    pairs = zip(map(int, cells), counts, strict=True)
    are_from_one = all(1 <= number <= count for number, count in pairs)
    numbers = range(1, max(counts) + 1)
    return {str(number): str(number - 1) for number in numbers} if are_from_one else {}


def draft_option_template(texts: Sequence[str], found: OptionColumns, *, has_head: bool) -> str:
    """What a row with options looks like: with the option for a head, else continued by it.

    Args:
        texts: the columns of text.
        found: the columns of the options.
        has_head: whether a head scores options.
    """
    fields = [f"{{{name}}}" for name in texts]
    if has_head:  # of a pair, the texts are one
        return "{soft:10}" + " ".join(fields) + f"{{sep}}{{{OPTION_FIELD}}}"
    first = found.options if isinstance(found.options, str) else found.options[0]
    if first.strip().lower().startswith("ending"):
        return "{soft:10}" + " ".join(fields)
    titles = [" ".join(re.findall(r"\w+", name.replace("_", " "))) or "Text" for name in texts]
    lines = [f"{t[:1].upper()}{t[1:]}: {field}" for t, field in zip(titles, fields, strict=True)]
    return "\n".join([*lines, "Answer:{soft:10}"])


def list_option_keys(found: OptionColumns, *, has_head: bool) -> Iterator[tuple[str, object, str]]:
    """The keys of the task, each with its value and a comment.

    Args:
        found: the columns of the options.
        has_head: whether a head scores options.
    """
    if isinstance(found.options, str):
        yield "options_column", found.options, "lists of texts, or texts with | between options"
    else:
        yield "options_column", [*found.options], "one option each"
    yield "target_column", found.target, "the right option"
    yield "target_form", found.target_form, f"named by {_FORMS[found.target_form]}"
    if has_head:
        yield "head", "linear", "a trained layer that scores a row with each option"
        yield "pooling", "auto", "a probe chooses what it reads, before training"
    else:
        yield "length_normalization", "none", "or tokens, characters: divides an option's score"


def check_option_rows(rows: Table, found: OptionColumns, *, split: str) -> None:
    """Check that the rows of another file have options as the training data has them.

    Args:
        rows: of the split.
        found: the columns of the options.
        split: its name.

    Raises:
        DataError: a column is missing, or a row has a fault.
    """
    settings = Choose(
        options_column=found.options, target_column=found.target, target_form=found.target_form
    )
    read_choice_rows(rows, settings, split=split)
