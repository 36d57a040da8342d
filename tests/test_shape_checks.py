"""The checks of the tests find what jaxtyping's own find, and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from support.shape_checks import check_shapes

Rows = Float[Tensor, "B H"]
SMALL, WIDE, TALL = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(5, 3)


def join(first: Rows, second: Rows) -> Float[Tensor, "B"]:
    return first.sum(1) + second.sum(1)


def drop(rows: Rows, *, count: int = 1) -> Rows:
    return rows[count:]


def keep(rows: list[Rows] | None) -> list[Rows] | None:
    return rows


def name(value: int) -> str:
    return str(value) if value else b""  # type: ignore[return-value]


def apply(step: Callable[[Rows], Int[Tensor, "B"]], rows: Rows) -> Int[Tensor, "B"]:
    return step(rows)


def walk(rows: Rows) -> Iterator[Rows]:
    yield from (rows, rows[:1])


@dataclass
class Pair:
    first: Rows
    second: Rows


CASES: list[tuple[Callable[..., Any], tuple[Any, ...], bool]] = [
    (join, (SMALL, SMALL), True),
    (join, (SMALL, WIDE), False),
    (join, (SMALL, TALL), False),
    (join, (SMALL[0], SMALL[0]), False),
    (join, (SMALL.int(), SMALL), False),
    (drop, (SMALL,), False),
    (keep, ([SMALL, SMALL],), True),
    (keep, ([WIDE],), True),
    (keep, ([SMALL[0]],), False),
    (keep, (None,), True),
    (name, (1,), True),
    (name, (0,), False),
    (name, ("1",), False),
    (apply, (lambda rows: rows.argmax(1), SMALL), True),
    (apply, (lambda rows: rows.argmax(0), SMALL), False),
    (walk, (SMALL,), True),
    (walk, (SMALL[0],), False),
    (Pair.__init__, (object.__new__(Pair), SMALL, SMALL), True),
    (Pair.__init__, (object.__new__(Pair), SMALL, WIDE), False),
]


def is_accepted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    try:
        function(*arguments)
    except TypeCheckError:
        return False
    return True


@pytest.mark.parametrize(("function", "arguments", "accepted"), CASES)
def test_the_verdict_is_that_of_jaxtyping(function, arguments, accepted) -> None:
    theirs = jaxtyped(function, typechecker=beartype)
    assert is_accepted(theirs, arguments) == is_accepted(check_shapes(function), arguments)
    assert is_accepted(theirs, arguments) == accepted


def test_an_axis_has_its_length_in_one_call() -> None:
    """A call in a call has its own, and so has the next one."""
    checked = check_shapes(join)

    def twice(rows: Rows) -> Float[Tensor, "H"]:
        return checked(rows.T, rows.T)

    outer = check_shapes(twice)
    assert outer(SMALL).shape == (3,)
    assert outer(WIDE).shape == (4,)
    assert checked(TALL, TALL).shape == (5,)
