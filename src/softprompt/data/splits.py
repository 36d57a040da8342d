"""Fixed, seeded splits and samples, the same on every machine and with every library version."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import TypeVar

from softprompt.data.table import Table, check_columns, take_rows, to_text
from softprompt.errors import DataError

Item = TypeVar("Item")

DEFAULT_SPLIT: Mapping[str, float] = MappingProxyType(
    {"train": 0.8, "validation": 0.1, "test": 0.1}
)


def split_rows(
    rows: Table,
    *,
    seed: int,
    shares: Mapping[str, float] = DEFAULT_SPLIT,
    group: str | None = None,
    stratify: str | None = None,
) -> dict[str, Table]:
    """Divide rows into named splits; each row is in exactly one.

    Args:
        rows: the data.
        seed: the seed; the same rows, seed and shares always give the same split.
        shares: the fraction of the rows in each split, by its name; they sum to 1.
        group: a column; rows with the same value in it are in the same split, and the fractions are
            approximate.
        stratify: a column whose values have (nearly) the same distribution in every split. The
            first split has a row of every value, as long as it has room.

    Returns:
        The rows by the name of the split, in the order of ``shares``; rows keep their order.

    Raises:
        DataError: the fractions do not sum to 1, a column is missing, ``group`` and ``stratify``
            are both given, or a split would be empty.
    """
    _check_shares(shares)
    match group, stratify:
        case None, None:
            parts = _split_by_rows(range(len(rows)), seed=seed, shares=shares)
        case str(), None:
            parts = _split_by_groups(_group_rows(rows, group), seed=seed, shares=shares)
        case None, str():
            parts = _split_by_strata(_group_rows(rows, stratify), seed=seed, shares=shares)
        case _:
            msg = (
                f"a split cannot be grouped by {group!r} and stratified by {stratify!r} at once. "
                "Choose group or stratify."
            )
            raise DataError(msg)
    for name, indices in parts.items():
        if not indices:
            raise DataError(_describe_empty(name, shares, count=len(rows), group=group))
    return {name: take_rows(rows, sorted(indices)) for name, indices in parts.items()}


def divide_into_folds(
    rows: Table, folds: int, *, seed: int, group: str | None = None, stratify: str | None = None
) -> list[list[int]]:
    """Divide rows into folds of equal sizes, each to within one row; each row is in exactly one.

    Args:
        rows: the data.
        folds: their number.
        seed: the seed; the same rows and seed always give the same folds.
        group: a column; rows with the same value in it are in the same fold, and the sizes are
            approximate.
        stratify: a column each of whose values is as often in every fold, to within one row;
            without effect if there is ``group``.

    Returns:
        The indices of the rows of each fold, in order.

    Raises:
        DataError: there are fewer rows or groups than folds, or a column is missing.
    """
    groups = None if group is None else _group_rows(rows, group)
    count = len(rows) if groups is None else len(groups)
    if count < folds:
        what = "rows" if group is None else f"values of {group!r}"
        msg = (
            f"{folds} folds need as many {what}, but there are {count}. Give more, or fewer folds."
        )
        raise DataError(msg)
    if groups is not None:
        shares = {str(number): 1 / folds for number in range(folds)}
        return [
            sorted(part) for part in _split_by_groups(groups, seed=seed, shares=shares).values()
        ]
    strata = {None: [*range(len(rows))]} if stratify is None else _group_rows(rows, stratify)
    order = [index for indices in strata.values() for index in _shuffle(indices, seed=seed)]
    return [sorted(order[number::folds]) for number in range(folds)]


def sample(rows: Table, count: int, *, seed: int) -> Table:
    """Sample rows without replacement, in random order.

    Args:
        rows: the data.
        count: the most rows. With the same seed, a smaller sample is the beginning of a larger one.
        seed: the seed.

    Returns:
        The sample.

    Raises:
        DataError: ``count`` is not positive.
    """
    if count < 1:
        msg = f"a sample of {count} rows is not possible. Give at least 1, or no limit."
        raise DataError(msg)
    return rows.select(_shuffle(range(len(rows)), seed=seed)[:count])


def _check_shares(shares: Mapping[str, float]) -> None:
    listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    total = math.fsum(shares.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        msg = f"the shares of the splits ({listed}) sum to {total:g}, but must sum to 1."
        raise DataError(msg)
    if any(share <= 0 for share in shares.values()):
        msg = f"the shares of the splits ({listed}) must all be above 0. Leave out what is unused."
        raise DataError(msg)


def _describe_empty(
    name: str, shares: Mapping[str, float], *, count: int, group: str | None
) -> str:
    whole = f"{count} rows" if group is None else f"{count} rows grouped by {group!r}"
    return (
        f"the split {name!r} (a share of {shares[name]:g} of {whole}) would be empty. "
        "Give more rows, fewer splits or a larger share."
    )


def _shuffle(
    items: Sequence[Item], *, seed: int, key: Callable[[Item], object] = str
) -> list[Item]:
    """Sort items by their hashes; the algorithm of a random generator could change."""

    def digest(item: Item) -> bytes:
        return blake2b(f"{seed}/{key(item)}".encode(), digest_size=16).digest()

    return sorted(items, key=digest)


def _group_rows(rows: Table, column: str) -> dict[Hashable, list[int]]:
    """The indices of the rows of each value of a column."""
    check_columns(rows, [column], where="the data to split")
    groups: dict[Hashable, list[int]] = {}
    for index, value in enumerate(rows[column][:]):
        groups.setdefault(value, []).append(index)
    return groups


def _split_by_rows(
    indices: Sequence[int], *, seed: int, shares: Mapping[str, float]
) -> dict[str, list[int]]:
    return _cut(_shuffle(indices, seed=seed), shares)


def _cut(order: Sequence[int], shares: Mapping[str, float]) -> dict[str, list[int]]:
    # Boundaries are rounded, not sizes, so the sizes add up and each is within one row of exact.
    ends = [round(sum(list(shares.values())[: i + 1]) * len(order)) for i in range(len(shares))]
    starts = [0, *ends[:-1]]
    return {n: [*order[a:b]] for n, a, b in zip(shares, starts, ends, strict=True)}


def _split_by_strata(
    strata: Mapping[Hashable, list[int]], *, seed: int, shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """Cut the rows in the order of their places within their strata, each from 0 to 1.

    So each cut is at the same place of every stratum, to within one row.
    """
    places: dict[int, float] = {}
    for indices in strata.values():
        first, *rest = _shuffle(indices, seed=seed)
        places[first] = 0.0
        places |= {index: (at + 0.5) / len(indices) for at, index in enumerate(rest, start=1)}
    # Rows at the same place of different strata are in random order, as the sort is stable.
    order = sorted(_shuffle(list(places), seed=seed), key=places.__getitem__)
    return _cut(order, shares)


def _split_by_groups(
    groups: Mapping[Hashable, list[int]], *, seed: int, shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """Assign each group, in shuffled order, to the least full split; no split stays empty."""
    parts: dict[str, list[int]] = {name: [] for name in shares}
    # A number and its text, as a csv file has it, are in the same place.
    order = _shuffle(list(groups), seed=seed, key=lambda value: repr(to_text(value)))
    for assigned, value in enumerate(order):
        indices = groups[value]
        empty = [name for name, part in parts.items() if not part]
        candidates = empty if len(empty) >= len(order) - assigned else list(parts)
        fill = {name: (len(parts[name]) + len(indices)) / shares[name] for name in candidates}
        parts[min(candidates, key=fill.__getitem__)].extend(indices)
    return parts
