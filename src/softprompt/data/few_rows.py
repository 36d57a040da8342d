"""How much the score on few rows says."""

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist

from softprompt.errors import DataError

# The 95 % interval of a share of 75 % reaches from 62 % to 85 % with so many rows.
MIN_ROWS = 50
# What the rows of a split are for.
_PURPOSES = {"validation": "to choose the best prompt by", "test": "to measure by"}
_EXAMPLE_SHARE = 0.75
_Z = NormalDist().inv_cdf(0.975)


def compute_wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of right answers.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        share: of the rows that are right, 0 to 1.
        rows: their number.

    Returns:
        The lower and the upper end, each 0 to 1.

    Raises:
        DataError: there are no rows.
    """
    if rows < 1:
        msg = "there are no rows to score. Give at least one."
        raise DataError(msg)
    center = share + _Z**2 / (2 * rows)
    spread = _Z * math.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    scale = 1 + _Z**2 / rows
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def count_rows(rows: int, kind: str = "") -> str:
    """A number of rows as a text.

    Args:
        rows: their number.
        kind: of rows, such as ``validation``.
    """
    noun = "row" if rows == 1 else "rows"
    return f"{rows:,} {kind} {noun}" if kind else f"{rows:,} {noun}"


def describe_few_rows(counts: Mapping[str, int]) -> Iterator[str]:
    """Describe how little the scores of small splits say.

    Args:
        counts: the number of rows by split.

    Yields:
        A message, if a split that is scored is small.
    """
    few = {name: counts[name] for name in _PURPOSES if 0 < counts.get(name, 0) < MIN_ROWS}
    if not few:
        return
    listed = " and ".join(
        f"{count_rows(count, name)} {_PURPOSES[name]}" for name, count in few.items()
    )
    fewest = min(few.values())
    right = round(_EXAMPLE_SHARE * fewest)
    low, high = compute_wilson_interval(right / fewest, fewest)
    yield (
        f"few rows: {listed}. With {right} of {fewest} answers right, the share of right answers "
        f"is between {low:.0%} and {high:.0%} (95 % interval). Give more rows, or split off a "
        "larger part (data.split_sizes in a recipe, the argument validation in fit)"
        f"{', or cross-validate (data.folds)' if 'validation' in few else ''}."
    )
