"""Which rows of a drafted recipe are held back: for validation, for the test, or in folds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from softprompt._paths import expand_user, is_file
from softprompt.data import Table, check_columns, check_labels, map_values, split_rows
from softprompt.data.duplicates import describe_splits
from softprompt.data.readers import AS_IT_SEEMS, TextFormat
from softprompt.data.sources import read_source
from softprompt.data.table import drop_gaps, to_text
from softprompt.errors import DataError
from softprompt.recipe.column_roles import ColumnRoles
from softprompt.recipe.option_columns import check_option_rows
from softprompt.tasks.config import Tag
from softprompt.tasks.tag_cells import check_tag_rows

_SPLIT_FILES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARES = (
    {"train": 0.8, "validation": 0.1, "test": 0.1},
    {"train": 0.6, "validation": 0.2, "test": 0.2},
)
# Of fewer rows than an automatic recipe tests by, none are held back for that.
_WITHOUT_TEST = ({"train": 0.8, "validation": 0.2, "test": 0.0},)
_ALL_TRAINED = {"train": 1.0, "validation": 0.0, "test": 0.0}
_SEED = 42
# An automatic recipe validates fewer rows in folds, and holds none of still fewer back for a test.
_FEWEST_VALIDATED, _FEWEST_TESTED, _MOST_FOLDS = 500, 50, 5
# A single row says nothing of a prompt.
_FEWEST_VALIDATING = 2


@dataclass(frozen=True)
class HeldOut:
    """The validation and test rows.

    Args:
        files: of validation and test rows, by the name of the split.
        shares: of the data, for splits without a file.
        seed: of the split.
        notes: for the user.
        folds: of the training rows, where they are too few to hold some back for validation.
        validation_rows: the number of rows that are for validation only.
    """

    files: Mapping[str, str]
    shares: Mapping[str, float]
    seed: int
    notes: tuple[str, ...]
    folds: int | None = None
    validation_rows: int = 0


def choose_held_out(
    table: Table,
    source: str,
    *,
    columns: ColumnRoles,
    text_format: TextFormat = AS_IT_SEEMS,
    automatic: bool = False,
) -> HeldOut:
    """Choose the validation and test rows, so that the recipe can be run as it stands.

    Args:
        table: the training data.
        source: its name; files such as ``test.csv`` next to a ``train.csv`` are used.
        columns: of the table.
        text_format: how files of text are written.
        automatic: whether few rows validate in folds.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    tables = {"train": table}
    for name, path in _find_split_files(source).items():
        try:
            rows = read_source(str(path), text_format=text_format)
            rows = prepare_rows(rows, columns, where=str(path))
            _check_rows(rows, columns, split=name, where=str(path))
        except DataError as error:
            notes.append(f"{path} is left out: {error}")
        else:
            files[name], tables[name] = str(path), rows
    shares: Mapping[str, float] = _ALL_TRAINED
    folds = _choose_folds(table, columns, files) if automatic else None
    if folds is not None:
        if "test" not in files and columns.rows >= _FEWEST_TESTED:
            shares = {"train": 0.8, "validation": 0.0, "test": 0.2}
    elif "validation" not in files:
        is_few = automatic and columns.rows < _FEWEST_TESTED
        split = _choose_split(
            table, columns, has_test="test" in files, shares=_WITHOUT_TEST if is_few else _SHARES
        )
        if split is None:
            notes.append(f"{columns.rows} rows are too few to hold some back: all are trained on")
        else:
            shares, parts = split
            tables |= parts
    notes += describe_splits(tables, columns.texts)
    validation_rows = len(tables.get("validation", ()))
    return HeldOut(files, shares, _SEED, tuple(notes), folds, validation_rows)


def _check_rows(rows: Table, columns: ColumnRoles, *, split: str, where: str) -> None:
    """Check that the rows of a file fit the training data."""
    flexible = [] if columns.labels else [columns.label]
    flexible += columns.texts if columns.kind == "tag" else ()
    check_columns(rows, [*columns.texts, columns.label], where=where, flexible=flexible)
    if columns.options is not None:
        check_option_rows(rows, columns.options, split=split)
    if columns.kind == "tag":
        settings = Tag(
            words_column=columns.texts[0],
            target_column=columns.label,
            scheme=columns.scheme or "auto",
        )
        check_tag_rows(rows, settings, split=split)
    if columns.labels:
        check_labels(rows, columns.label, known=columns.labels, split=split)


def _choose_folds(table: Table, columns: ColumnRoles, files: Mapping[str, str]) -> int | None:
    """The folds of few rows, each with every label; None where they are many, or one is alone."""
    if "validation" in files or not columns.has_head or columns.rows >= _FEWEST_VALIDATED:
        return None
    fewest = columns.rows  # without single labels no label can be missing in a fold
    if columns.labels:
        fewest = min(Counter(map(to_text, table[columns.label][:])).values())
    kept = 0.8 if "test" not in files and columns.rows >= _FEWEST_TESTED else 1.0
    folds = min(_MOST_FOLDS, int(kept * fewest))
    return folds if folds > 1 else None


def _find_split_files(source: str) -> dict[str, Path]:
    """The files of other splits next to ``train.…``."""
    path = expand_user(source)
    if not is_file(path) or "train" not in path.name:
        return {}
    files: dict[str, Path] = {}
    for name, words in _SPLIT_FILES.items():
        candidates = [path.with_name(path.name.replace("train", word)) for word in words]
        existing = [candidate for candidate in candidates if is_file(candidate)]
        files |= {name: existing[0]} if existing else {}
    return files


def _choose_split(
    table: Table,
    columns: ColumnRoles,
    *,
    has_test: bool,
    shares: Sequence[Mapping[str, float]],
) -> tuple[Mapping[str, float], dict[str, Table]] | None:
    """Shares with every label in all splits, else in training, and the splits; None if none do."""
    stratify = columns.label if columns.labels else None
    for names, with_test in product(({"train", "validation", "test"}, {"train"}), shares):
        # As in training: a test file of its own leaves its share to the others.
        used = {n: s for n, s in with_test.items() if s and (n != "test" or not has_test)}
        scaled = {name: share / sum(used.values()) for name, share in used.items()}
        with suppress(DataError):  # a split would be empty
            parts = split_rows(table, seed=_SEED, shares=scaled, stratify=stratify)
            if len(parts["validation"]) < _FEWEST_VALIDATING and shares is _WITHOUT_TEST:
                continue
            if not columns.labels:
                return with_test, parts
            found = [{*map(to_text, parts[n][columns.label][:])} for n in names & {*parts}]
            if all(labels == {*columns.labels} for labels in found):
                return with_test, parts
    return None


def prepare_rows(rows: Table, columns: ColumnRoles, *, where: str) -> Table:
    """The rows as the recipe's drop_missing and value_map change them.

    Args:
        rows: of a split.
        columns: of the training data.
        where: names the rows in messages.
    """
    complete = drop_gaps(rows, columns.gaps, where=where)
    if not columns.value_map:
        return complete
    return map_values(complete, {columns.label: columns.value_map}, where=where)
