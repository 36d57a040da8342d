"""Rendered rows, kept: tokenising a large table takes far longer than reading what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.backbone.fingerprint import tokenizer_digest
from softprompt.data import Rows as Table
from softprompt.data.cache import Shape, Shelf, users_shelf
from softprompt.data.tokenise import Tokenised
from softprompt.recipe import Recipe
from softprompt.tasks import Example, Room, Task
from softprompt.train.rows import Rows, render

# To be raised whenever rows are rendered otherwise.
_SCHEMA = "1"
# Fewer rows are rendered in less than a second.
_MANY = 2000


def rendered(
    tables: Mapping[str, Table],
    task: Task,
    *,
    recipe: Recipe,
    room: Room,
    template: str,
    hashes: Mapping[str, str],
) -> dict[str, Rows]:
    """The rows of each split with their right answers, as an earlier run left them or made now.

    Args:
        room: as bound.
        template: as used.
        hashes: of each split's contents.

    Raises:
        DataError: a column is missing or has gaps.
    """
    shelf, found = users_shelf(recipe.cache.disk), {}
    for name, table in tables.items():
        where = f"the {name} data"
        if len(table) < _MANY or not shelf.limit:
            found[name] = render(task, table, where=where)
            continue
        mark = _mark(recipe, task, room, template=template, rows=hashes[name])
        known = _found(shelf, mark)
        found[name] = render(task, table, where=where, examples=known)
        if known is None:
            _keep(shelf, mark, packed(found[name].examples))
    return found


def _mark(recipe: Recipe, task: Task, room: Room, *, template: str, rows: str) -> str:
    """What tells rendered rows from any others."""
    backbone = task.backbone
    facts = (
        _SCHEMA,
        *(version(name) for name in ("softprompt", "tokenizers", "transformers")),
        tokenizer_digest(backbone.tokenizer),
        backbone.geometry,
        backbone.decoder_start,
        backbone.ends,
        recipe.task.model_dump_json(),
        room,
        template,
        task.labels,
        rows,
    )
    return blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def packed(examples: Iterable[Example]) -> Int[Tensor, "S 1"]:
    """Examples as one row of numbers."""
    numbers: list[int] = []

    def put(values: Sequence[int]) -> None:
        numbers.append(len(values))
        numbers.extend(values)

    for example in examples:
        numbers.append(len(example.variants))
        for variant, points in zip(example.variants, example.points, strict=True):
            numbers.append(variant.cut)
            for values in (variant.ids, variant.types, variant.masks, points):
                put(values)
        written = isinstance(example.target, tuple)
        numbers.append(written)
        put(example.target if isinstance(example.target, tuple) else [int(example.target or 0)])
    return torch.tensor(numbers, dtype=torch.int32)[:, None]


def unpacked(lines: Int[Tensor, "S 1"]) -> list[Example]:
    """The examples that were packed."""
    stream = iter(lines.flatten().tolist())

    def take() -> tuple[int, ...]:
        return tuple(islice(stream, next(stream)))

    examples = []
    for count in stream:
        variants, points = [], []
        for _ in range(count):
            cut = bool(next(stream))
            variants.append(Tokenised(take(), take(), take(), cut))
            points.append(take())
        written, target = next(stream), take()
        examples.append(Example(tuple(variants), tuple(points), target if written else target[0]))
    return examples


# Where the cache cannot be read or written, every run takes as long as the first: no more.


def _found(shelf: Shelf, mark: str) -> list[Example] | None:
    with suppress(OSError), shelf.locked(mark):
        lines = shelf.open(mark, width=1, dtype=torch.int32)
        return None if lines is None else unpacked(lines)
    return None


def _keep(shelf: Shelf, mark: str, lines: Int[Tensor, "S 1"]) -> None:
    shape = Shape(len(lines), 1, torch.int32)
    with suppress(OSError), shelf.locked(mark):
        if shelf.fits(shape):
            for _ in shelf.fill(mark, shape, parts=[lines]):
                pass
