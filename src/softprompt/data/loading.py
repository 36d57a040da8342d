"""Loading the rows of a recipe's table ``[data]``: reading, splitting, sampling and hashing."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from softprompt._memory import pause_garbage_collection
from softprompt.data.duplicates import SPLITS, drop_shared_rows
from softprompt.data.readers import TextFormat
from softprompt.data.sources import read_source
from softprompt.data.splits import sample, split_rows
from softprompt.data.table import (
    Table,
    drop_gaps,
    is_missing,
    iterate_groups,
    list_text_columns,
    map_values,
    to_text,
)
from softprompt.errors import FaultCollector, UnreachableError


class _RecipeTable(BaseModel):
    """A table of the recipe: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitSizes(_RecipeTable):
    """The fraction of the rows in each split; they sum to 1."""

    train: PositiveFloat = Field(0.8, description="The fraction of training rows.")
    validation: NonNegativeFloat = Field(0.1, description="The fraction of validation rows.")
    test: NonNegativeFloat = Field(0.1, description="The fraction of test rows.")


class MaxRows(_RecipeTable):
    """The most rows of each split, sampled with the recipe's seed."""

    train: PositiveInt | None = Field(None, description="The most training rows.")
    validation: PositiveInt | None = Field(None, description="The most validation rows.")
    test: PositiveInt | None = Field(None, description="The most test rows.")


class DataConfig(_RecipeTable):
    """Where the rows come from: files, Hub data sets (`name:config[split]`), `builtin:` names."""

    train: str = Field(
        description="The training rows: a file, a Hub data set such as `nyu-mll/glue:sst2[train]`, "
        "or a built-in one such as `builtin:rotten-tomatoes`."
    )
    validation: str | None = Field(
        None, description="The validation rows. Left out, they are split off the training rows."
    )
    test: str | None = Field(
        None, description="The test rows. Left out, they are split off the training rows."
    )
    split_sizes: SplitSizes = Field(
        SplitSizes(), description="The fraction of the rows in each split. They sum to 1."
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="The number of folds of a cross-validation, for few rows. Instead of "
        "validation rows, all rows but those of one fold are trained on in turn; the mean of the "
        "scores chooses the number of steps, and the prompt is trained on all rows.",
    )
    group_by: str | None = Field(
        None, description="A column; rows that have the same value in it are in the same split."
    )
    separator: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="The character between the cells of csv and tsv files. Left out: that of the "
        "suffix, or another one that the first line has instead.",
    )
    encoding: str | None = Field(
        None,
        description="The encoding of files of text, such as `cp1252`. Left out: UTF-8, or what a "
        "byte order mark says.",
    )
    header: bool | None = Field(
        None,
        description="Whether the first line of csv, tsv and xlsx files has the names of the "
        "columns; if not, they are `column_1`, `column_2`, …. Left out: it has, and a first line "
        "that seems to be a row is refused.",
    )
    drop_missing: list[str] = Field(
        [],
        description="Columns; rows that have no value in one of them are left out.",
    )
    value_map: dict[str, dict[str, str]] = Field(
        {},
        description="New names for the values of a column: "
        '`{ label = { neg = "negative", pos = "positive" } }`.',
    )
    drop_duplicates: bool = Field(
        default=False,
        description="Whether to drop rows whose text is in a later split too, apart from case and "
        "white space: training rows that are validation or test rows, and validation rows that "
        "are test rows.",
    )
    max_rows: MaxRows = Field(
        MaxRows(), description="The most rows of each split, sampled with the recipe's seed."
    )
    max_length: PositiveInt | None = Field(
        None,
        description="The most tokens of a row, soft tokens included; longer text is truncated. "
        "Left out: the backbone's limit.",
    )

    @property
    def text_format(self) -> TextFormat:
        """How files of text are written."""
        return TextFormat(self.separator, self.encoding, self.header)


@dataclass(frozen=True)
class TaskColumns:
    """The columns of a task, as far as the splits depend on them.

    Args:
        target: the column of the labels or of the text to be written.
        fields: the columns of the text. None: all columns of text except the target.
        has_labels: whether the target is one of a few labels, which get the same shares in every
            split.
    """

    target: str
    fields: tuple[str, ...] | None
    has_labels: bool

    def find_fields(self, table: Table) -> tuple[str, ...]:
        """The columns of the text in a table."""
        if self.fields is not None:
            return self.fields
        return tuple(name for name in list_text_columns(table) if name != self.target)


def read_splits(
    data: DataConfig, *, seed: int, columns: TaskColumns | None = None
) -> dict[str, Table]:
    """Read the splits of a recipe.

    Args:
        data: the recipe's table ``[data]``.
        seed: the seed of splits and samples.
        columns: of the task; None: splits do not depend on labels, and no duplicates are dropped.

    Returns:
        The rows by the name of the split.

    Raises:
        DataError: a source cannot be read or split.
    """
    collector = FaultCollector()
    tables = read_sources(data, collector)
    return complete_splits(tables, data, seed=seed, columns=columns, collector=collector)


def list_sources(data: DataConfig) -> dict[str, str]:
    """The sources that a recipe names, by split."""
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: source for name, source in sources.items() if source is not None}


def read_sources(data: DataConfig, collector: FaultCollector) -> dict[str, Table]:
    """Read the sources that a recipe names.

    Args:
        data: the recipe's table ``[data]``.
        collector: collects the faults. If it keeps going, sources that cannot be read are left
            out; an unreachable data set is requested only once, since that takes long.

    Returns:
        The rows by split.
    """
    tables: dict[str, Table] = {}
    unreachable: set[str] = set()
    for name, source in list_sources(data).items():
        data_set = source.partition("[")[0]
        if data_set in unreachable:
            continue
        try:
            table = collector.attempt(read_source, source, text_format=data.text_format)
        except UnreachableError:
            if not collector.keep_going:
                raise
            unreachable.add(data_set)
            collector.add_note(
                f"not checked: the data set {data_set!r} and what depends on it. The Hub cannot be "
                "reached and nothing is cached on this machine; training would fetch it from there."
            )
            continue
        if table is not None:
            tables[name] = table
    return tables


def complete_splits(
    sources: Mapping[str, Table],
    data: DataConfig,
    *,
    seed: int,
    columns: TaskColumns | None,
    collector: FaultCollector,
) -> dict[str, Table]:
    """Drop gaps, map values, split missing splits off, drop duplicates, sample to the limits.

    Args:
        sources: the rows by split, as they were read.
        data: the recipe's table ``[data]``.
        seed: the seed of splits and samples.
        columns: of the task, as in `read_splits`.
        collector: collects the faults. If it keeps going, a table whose values cannot be mapped or
            that cannot be split stays as it is, so that the rest of it can be checked.

    Returns:
        The rows by split.
    """
    tables = dict(sources)
    for name, table in sources.items():
        prepared = collector.attempt(_prepare_rows, table, data, where=f"the {name} data")
        tables[name] = table if prepared is None else prepared
    if "train" in tables:
        # A source that could not be read is not split off in its place.
        splits = {*list_sources(data), *sources}
        parts = collector.attempt(
            split_off, tables["train"], data, seed=seed, splits=splits, columns=columns
        )
        tables |= parts or {}
        tables = {name: tables[name] for name in SPLITS if name in tables}
    if data.drop_duplicates and columns is not None and "train" in tables:
        fields = columns.find_fields(tables["train"])
        tables = collector.attempt(drop_shared_rows, tables, fields) or tables
    for name, limit in data.max_rows:
        if limit is not None and name in tables:
            tables[name] = sample(tables[name], min(limit, len(tables[name])), seed=seed)
    return tables


def _prepare_rows(rows: Table, data: DataConfig, *, where: str) -> Table:
    """Leave out rows without a value, and map values."""
    complete = drop_gaps(rows, data.drop_missing, where=where)
    return map_values(complete, data.value_map, where=where)


def split_off(
    train: Table,
    data: DataConfig,
    *,
    seed: int,
    splits: Collection[str],
    columns: TaskColumns | None = None,
) -> dict[str, Table]:
    """Split missing splits off the training rows.

    Args:
        train: the training rows.
        data: the recipe's table ``[data]``.
        seed: the seed of the split.
        splits: the names of the splits that exist. Rows are split off only if there are no
            validation rows: these, and test rows if they are missing too.
        columns: of the task. Its labels get the same shares in every split, unless rows are
            grouped.

    Returns:
        The rows by split, including the remaining training rows.

    Raises:
        DataError: the rows cannot be split in this way.
    """
    if "validation" in splits:
        return {"train": train}
    shares = {"train": data.split_sizes.train, "validation": data.split_sizes.validation}
    if "test" not in splits:
        shares["test"] = data.split_sizes.test
    if data.folds is not None:  # each of which validates once
        shares["train"] += shares.pop("validation")
    total = sum(shares.values())
    normalized = {name: share / total for name, share in shares.items() if share}
    stratify = find_strata(train, data, columns=columns)
    return split_rows(train, seed=seed, shares=normalized, group=data.group_by, stratify=stratify)


def find_strata(train: Table, data: DataConfig, *, columns: TaskColumns | None) -> str | None:
    """The column of the labels, if every split gets the same shares of them.

    Args:
        train: the training rows.
        data: the recipe's table ``[data]``.
        columns: of the task.
    """
    if columns is None or not columns.has_labels or data.group_by is not None:
        return None
    return columns.target if columns.target in train.column_names else None


@pause_garbage_collection()
def digest_rows(table: Table, columns: Sequence[str]) -> str:
    """A hash of the rows' contents in these columns, independent of the file format."""
    digest, names = hashlib.sha256(), sorted({*columns})
    for rows in iterate_groups(table, names):
        # By column, which takes a fifth of the time of one JSON object after the other.
        cells = [[f"{_encode(name)}: {_encode(row[name])}" for row in rows] for name in names]
        lines = zip(*cells, strict=True)
        digest.update("".join(f"{{{', '.join(line)}}}" for line in lines).encode())
    return digest.hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def _encode(value: object) -> str:
    """A cell as JSON, a number as the text that it is in a csv file."""
    is_number = isinstance(value, int | float) and not is_missing(value)
    return _ENCODER.encode(to_text(value) if is_number else value)
