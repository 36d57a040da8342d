"""Rows as they arrive: in order, and before an error that comes after them."""

from collections.abc import Iterator

import pytest

from softprompt.cli.streaming import WINDOW, InputRow, group_rows


def test_groups_have_all_rows_in_order() -> None:
    rows = [InputRow(f"line {n}", "x") for n in range(3 * WINDOW + 5)]
    groups = list(group_rows(iter(rows)))
    assert [row for group in groups for row in group] == rows
    assert max(map(len, groups)) <= WINDOW


def test_rows_that_arrived_before_an_error_come_first() -> None:
    def read() -> Iterator[InputRow]:
        yield InputRow("line 1", "x")
        msg = "cut off"
        raise OSError(msg)

    groups = group_rows(read())
    assert [row.place for row in next(groups)] == ["line 1"]
    with pytest.raises(OSError, match="cut off"):
        next(groups)
