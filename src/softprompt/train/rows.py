"""A recipe's rows: read, split, limited, checked, hashed and rendered."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from softprompt.data import Rows as Table
from softprompt.data import check_columns, check_labels, labels_of, named, read, split, subset
from softprompt.errors import DataError
from softprompt.recipe import DataSection
from softprompt.tasks import Classify, Example, Task, TaskSettings

_PART = re.compile(r"^(?P<source>.+)\[(?P<split>[^\[\]]+)\]$")


@dataclass(frozen=True)
class Rows:
    """Rendered rows with their right answers.

    Args:
        examples: as the task runs them.
        truth: the right answer of each, as text.
        cut: how many had a field truncated.
    """

    examples: Sequence[Example]
    truth: Sequence[str]
    cut: int


def sampled(rows: Rows, count: int | None) -> Rows:
    """So many of the rows, always the same, whatever a run's seed; all of them for None."""
    if count is None or count >= len(rows.examples):
        return rows
    generator = torch.Generator().manual_seed(0)
    chosen = sorted(torch.randperm(len(rows.examples), generator=generator)[:count].tolist())
    examples = [rows.examples[i] for i in chosen]
    return Rows(examples, [rows.truth[i] for i in chosen], sum(e.cut for e in examples))


def read_source(source: str) -> Table:
    """Read a file, a Hub data set as ``name:config[split]``, or a ``builtin:`` one."""
    found = _PART.match(source)
    if found is None:
        return read(source)
    return read(found["source"], split=found["split"])


def read_splits(data: DataSection, *, seed: int) -> dict[str, Table]:
    """The splits of a recipe by name.

    Raises:
        DataError: a source cannot be read or split.
    """
    return complete(read_sources(data), data, seed=seed)


def read_sources(data: DataSection) -> dict[str, Table]:
    """What a recipe names, each source by the split it stands for."""
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: read_source(source) for name, source in given.items() if source is not None}


def complete(given: Mapping[str, Table], data: DataSection, *, seed: int) -> dict[str, Table]:
    """Name values as asked, split off the training data what is missing, and keep to the limits."""
    tables = {
        name: named(table, data.names, where=f"the {name} data") for name, table in given.items()
    }
    shares = {"train": data.shares.train, "validation": data.shares.validation}
    if "test" not in tables and "validation" not in tables:
        shares["test"] = data.shares.test
    if "validation" not in tables:
        total = sum(shares.values())
        normal = {name: share / total for name, share in shares.items() if share}
        tables |= split(tables["train"], seed=seed, shares=normal, group=data.group)
    limits = {"train": data.limit.train, "validation": data.limit.validation}
    limits["test"] = data.limit.test
    for name, limit in limits.items():
        if limit is not None and name in tables:
            tables[name] = subset(tables[name], min(limit, len(tables[name])), seed=seed)
    return tables


def find_labels(settings: TaskSettings, table: Table) -> tuple[str, ...]:
    """The labels that a task chooses from, or the only answers that it may give.

    Raises:
        DataError: there is one label only, or one that the verbalizer has no word for.
    """
    if not isinstance(settings, Classify):
        if settings.choices == "any":
            return ()
        if settings.choices == "data":
            return labels_of(table, settings.target_column)
        return tuple(settings.choices)
    found = labels_of(table, settings.label_column)
    if settings.verbalizer is None:
        return found if settings.labels is None else _ordered(found, settings)
    without = sorted(set(found) - set(settings.verbalizer))
    if without:
        msg = (
            f"column {settings.label_column!r} of the training data has labels without a word in "
            f"the verbalizer: {', '.join(map(repr, without))}. The verbalizer has "
            f"{', '.join(map(repr, settings.verbalizer))}. Add a word for each label."
        )
        raise DataError(msg)
    return tuple(settings.verbalizer)


def _ordered(found: Sequence[str], settings: Classify) -> tuple[str, ...]:
    """The labels as the task lists them, if they are those of the data."""
    listed = tuple(settings.labels or ())
    if sorted(listed) != sorted(found):
        msg = (
            f"task.labels lists {', '.join(map(repr, listed))}, but column "
            f"{settings.label_column!r} of the training data has {', '.join(map(repr, found))}. "
            "List each of these once, or leave task.labels out."
        )
        raise DataError(msg)
    return listed


def check_tables(
    tables: Mapping[str, Table], settings: TaskSettings, *, labels: Sequence[str]
) -> None:
    """Check that every split has the target column, and no label that is not known."""
    column = target_column(settings)
    for name, table in tables.items():
        if isinstance(settings, Classify):
            check_labels(table, column, known=labels, split=name)
        else:
            check_columns(table, [column], where=f"the {name} data")


def target_column(settings: TaskSettings) -> str:
    """Where the right answer stands."""
    return settings.label_column if isinstance(settings, Classify) else settings.target_column


def render(
    task: Task, table: Table, *, where: str, examples: Sequence[Example] | None = None
) -> Rows:
    """Render every row with its right answer.

    Args:
        examples: the rendered rows, where they are known already.

    Raises:
        DataError: a column is missing or has gaps.
    """
    check_columns(table, [*task.columns, task.target_column], where=where)
    if examples is None:
        rows = table.select_columns([*{*task.columns, task.target_column}]).to_list()
        examples = [task.example(row) for row in rows]
    truth = [str(answer) for answer in table[task.target_column]]
    return Rows(examples, truth, sum(e.cut for e in examples))


def digest(table: Table, columns: Sequence[str]) -> str:
    """A hash of the rows' contents in these columns, whatever file they came from."""
    found = hashlib.sha256()
    for row in table.select_columns(sorted(set(columns))):
        found.update(json.dumps(row, sort_keys=True, default=str).encode())
    return found.hexdigest()
