"""Rows whose text is in two splits: finding, describing and dropping them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

from softprompt.data.few_rows import describe_few_rows
from softprompt.data.table import Table, take_rows
from softprompt.errors import DataError

# In the order in which rows are trained on, selected by and measured by.
SPLITS = ("train", "validation", "test")
_SEPARATOR = "\x1f"  # between the values of a row; folding leaves none in them


@dataclass(frozen=True)
class SharedRows:
    """The rows of a split whose text is in another split too, apart from case and white space.

    Args:
        split: its name.
        other: the name of the other split, which is trained on or selected by.
        count: the number of rows of ``split``.
        identical: the number of those whose text is the same to the letter.
        first: the index of the first of them.
        rows: the number of all rows of ``split``.
    """

    split: str
    other: str
    count: int
    identical: int
    first: int
    rows: int

    def __str__(self) -> str:
        noun = "rows has its" if self.count == 1 else "rows have their"
        folded = self.count - self.identical
        how = f", {folded:,} of them in another case or spacing" if folded else ""
        return (
            f"{self.count:,} of {self.rows:,} {self.split} {noun} text in the {self.other} data "
            f"too{how}; the first is row {self.first} (counted from 0)"
        )


def find_shared_rows(tables: Mapping[str, Table], fields: Sequence[str]) -> tuple[SharedRows, ...]:
    """Find rows whose text is in two splits.

    Args:
        tables: by the name of the split, those that are trained on first.
        fields: the columns of the text; rows are the same if they agree in all of them, apart from
            case and white space.

    Returns:
        The pairs of splits that share rows; none if a column is missing.
    """
    if not _have_all(tables, fields):
        return ()
    folded = {name: _digest_texts(table, fields, fold=True) for name, table in tables.items()}
    found = []
    for other, split in combinations(tables, 2):
        known = {*folded[other]}
        shared = [index for index, key in enumerate(folded[split]) if key in known]
        if shared:
            raw = {*_digest_texts(tables[other], fields, fold=False)}
            texts = _digest_texts(take_rows(tables[split], shared), fields, fold=False)
            identical = sum(text in raw for text in texts)
            found.append(
                SharedRows(split, other, len(shared), identical, shared[0], len(tables[split]))
            )
    return tuple(found)


def describe_splits(tables: Mapping[str, Table], fields: Sequence[str]) -> list[str]:
    """Describe splits whose scores say less than they seem to: of few rows, or of shared ones.

    Args:
        tables: the rows by split.
        fields: the columns of the text.
    """
    ordered = {name: tables[name] for name in SPLITS if name in tables}
    messages = [*describe_few_rows({name: len(table) for name, table in ordered.items()})]
    messages += [
        f"{shared}. Scores on them say little about new text. Drop them from the {shared.other} "
        "data (data.drop_duplicates = true in a recipe), or correct the data."
        for shared in find_shared_rows(ordered, fields)
    ]
    return messages


def drop_shared_rows(tables: Mapping[str, Table], fields: Sequence[str]) -> dict[str, Table]:
    """Drop each row whose text is in a later split too, so that the last one stays as it is.

    Args:
        tables: by the name of the split, those that are trained on first.
        fields: as in `find_shared_rows`.

    Returns:
        The tables; unchanged if a column is missing.

    Raises:
        DataError: no row of a split would be left.
    """
    if not _have_all(tables, fields):
        return dict(tables)
    left: dict[str, Table] = {}
    later: set[bytes] = set()
    for name, table in reversed([*tables.items()]):
        keys = _digest_texts(table, fields, fold=True)
        rows = [index for index, key in enumerate(keys) if key not in later]
        if not rows:
            msg = (
                f"all {len(table)} rows of the {name} data have their text in a later split too, "
                "so data.drop_duplicates would leave none. Give other rows, or leave it out."
            )
            raise DataError(msg)
        left[name] = table if len(rows) == len(table) else take_rows(table, rows)
        later.update(keys)
    return {name: left[name] for name in tables}


def _have_all(tables: Mapping[str, Table], fields: Sequence[str]) -> bool:
    return bool(fields) and all({*fields} <= {*table.column_names} for table in tables.values())


def _digest_texts(table: Table, fields: Sequence[str], *, fold: bool) -> list[bytes]:
    """A digest of each row's text, with ``fold`` apart from case and white space."""
    columns = [table[field][:] for field in fields]  # at once: one by one takes 30 times as long
    fold_text = _fold if fold else str
    texts = (_SEPARATOR.join(map(fold_text, values)) for values in zip(*columns, strict=True))
    return [blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts]


def _fold(value: object) -> str:
    return " ".join(str(value).casefold().split())
