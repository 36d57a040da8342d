"""The rows of a run: their labels and checks, and rendering them, with a cache on disk."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.backbone.fingerprint import digest_tokenizer
from softprompt.data import Table, check_columns, check_labels, collect_labels
from softprompt.data.disk_cache import DiskCache, StateShape, open_user_cache
from softprompt.data.rendering import RenderedRow
from softprompt.data.table import to_text
from softprompt.errors import DataError
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Example, LengthBudget, Task, TaskSettings


@dataclass(frozen=True)
class RenderedRows:
    """Rendered rows with their right answers.

    Args:
        examples: as the task runs them.
        truth: the right answer of each, as text.
        truncated: the number of rows with a truncated field.
    """

    examples: Sequence[Example]
    truth: Sequence[str]
    truncated: int


def sample_rows(rows: RenderedRows, count: int | None) -> RenderedRows:
    """A sample of the rows, the same for every seed of a run; all rows for None."""
    if count is None or count >= len(rows.examples):
        return rows
    generator = torch.Generator().manual_seed(0)
    chosen = sorted(torch.randperm(len(rows.examples), generator=generator)[:count].tolist())
    examples = [rows.examples[i] for i in chosen]
    return RenderedRows(
        examples, [rows.truth[i] for i in chosen], sum(e.truncated for e in examples)
    )


def find_labels(settings: TaskSettings, table: Table) -> tuple[str, ...]:
    """The labels of a task, or the answers that generation is constrained to.

    Raises:
        DataError: there is only one label, or the verbalizer has no word for one.
    """
    if not isinstance(settings, Classify):
        if settings.choices is None:
            return ()
        if settings.choices == "from-data":
            return collect_labels(table, settings.target_column)
        return tuple(settings.choices)
    labels = collect_labels(table, settings.label_column)
    if settings.verbalizer is None:
        return labels if settings.labels is None else _order_labels(labels, settings)
    missing = sorted(set(labels) - set(settings.verbalizer))
    if missing:
        msg = (
            f"column {settings.label_column!r} of the training data has labels without a word in "
            f"the verbalizer: {', '.join(map(repr, missing))}. The verbalizer has "
            f"{', '.join(map(repr, settings.verbalizer))}. Add a word for each label."
        )
        raise DataError(msg)
    return tuple(settings.verbalizer)


def _order_labels(labels: Sequence[str], settings: Classify) -> tuple[str, ...]:
    """The data's labels in the order of ``task.labels``, which must list the same ones."""
    listed = tuple(settings.labels or ())
    if sorted(listed) != sorted(labels):
        msg = (
            f"task.labels lists {', '.join(map(repr, listed))}, but column "
            f"{settings.label_column!r} of the training data has {', '.join(map(repr, labels))}. "
            "List each of these once, or leave task.labels out."
        )
        raise DataError(msg)
    return listed


def check_tables(
    tables: Mapping[str, Table], settings: TaskSettings, *, labels: Sequence[str]
) -> None:
    """Check that every split has the target column, and no unknown label or choice."""
    column = get_target_column(settings)
    for name, table in tables.items():
        if isinstance(settings, Classify):
            check_labels(table, column, known=labels, split=name)
        else:
            check_columns(table, [column], where=f"the {name} data")
            _check_choices(table, column, choices=labels, split=name)


def _check_choices(table: Table, column: str, *, choices: Sequence[str], split: str) -> None:
    """Check that every answer is one of the choices, if there are any."""
    unknown = sorted({str(answer) for answer in table[column]} - {*choices}) if choices else []
    if unknown:
        msg = (
            f"column {column!r} of the {split} data has {', '.join(map(repr, unknown[:5]))}, but "
            f"the choices are {', '.join(map(repr, choices[:20]))}. Correct them, leave those rows "
            "out, or list them in choices."
        )
        raise DataError(msg)


def get_target_column(settings: TaskSettings) -> str:
    """The column of the right answers."""
    return settings.label_column if isinstance(settings, Classify) else settings.target_column


def render_table(
    task: Task, table: Table, *, where: str, examples: Sequence[Example] | None = None
) -> RenderedRows:
    """Render every row with its right answer.

    Args:
        task: renders the rows.
        table: the rows.
        where: names the table in messages.
        examples: the rendered rows, if a cache has them.

    Raises:
        DataError: a column is missing or has gaps.
    """
    check_columns(table, [*task.columns, task.target_column], where=where)
    if examples is None:
        rows = table.select_columns([*{*task.columns, task.target_column}]).to_list()
        examples = [task.make_example(row) for row in rows]
    truth = [*map(to_text, table[task.target_column][:])]
    return RenderedRows(examples, truth, sum(e.truncated for e in examples))


# Part of the cache's key. Increase it whenever the rendering of rows changes.
_SCHEMA = "2"
# Fewer rows are rendered in less than a second, so they are not cached.
_MIN_CACHED_ROWS = 2000


def render_splits(
    tables: Mapping[str, Table],
    task: Task,
    *,
    recipe: Recipe,
    budget: LengthBudget,
    template: str,
    hashes: Mapping[str, str],
) -> dict[str, RenderedRows]:
    """Render the rows of each split, or load them from the cache.

    Args:
        tables: the rows by split.
        task: renders the rows.
        recipe: of the run.
        budget: the length budget of a row.
        template: the recipe's or the default one.
        hashes: of each split's contents.

    Raises:
        DataError: a column is missing or has gaps.
    """
    cache, rendered = open_user_cache(recipe.cache.disk_gb), {}
    for name, table in tables.items():
        where = f"the {name} data"
        if len(table) < _MIN_CACHED_ROWS or not cache.limit:
            rendered[name] = render_table(task, table, where=where)
            continue
        key = _compute_cache_key(recipe, task, budget, template=template, rows_hash=hashes[name])
        cached = _load_examples(cache, key)
        rendered[name] = render_table(task, table, where=where, examples=cached)
        if cached is None:
            _store_examples(cache, key, pack_examples(rendered[name].examples))
    return rendered


def _compute_cache_key(
    recipe: Recipe, task: Task, budget: LengthBudget, *, template: str, rows_hash: str
) -> str:
    """A digest of everything that rendered rows depend on."""
    backbone = task.backbone
    facts = (
        _SCHEMA,
        *(version(name) for name in ("softprompt", "tokenizers", "transformers")),
        digest_tokenizer(backbone.tokenizer),
        backbone.geometry,
        backbone.decoder_start_token_id,
        backbone.eos_token_ids,
        recipe.task.model_dump_json(),
        budget,
        template,
        task.labels,
        rows_hash,
    )
    return blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def pack_examples(examples: Iterable[Example]) -> Int[Tensor, "S 1"]:
    """Convert examples to one column of numbers.

    Of each example: the number of its variants; of each variant, whether it is truncated and four
    lists; whether the target is token ids, and the target. A list is its length and its values.
    """
    numbers: list[int] = []

    def put(values: Sequence[int]) -> None:
        numbers.append(len(values))
        numbers.extend(values)

    for example in examples:
        numbers.append(len(example.variants))
        for variant, positions in zip(example.variants, example.read_positions, strict=True):
            numbers.append(variant.truncated)
            for values in (
                variant.input_ids,
                variant.token_type_ids,
                variant.mask_positions,
                positions,
            ):
                put(values)
        is_text = isinstance(example.target, tuple)
        numbers.append(is_text)
        put(example.target if isinstance(example.target, tuple) else [int(example.target or 0)])
    return torch.tensor(numbers, dtype=torch.int32)[:, None]


def unpack_examples(packed: Int[Tensor, "S 1"]) -> list[Example]:
    """Convert packed numbers back to examples."""
    stream = iter(packed.flatten().tolist())

    def take() -> tuple[int, ...]:
        return tuple(islice(stream, next(stream)))

    examples = []
    for count in stream:
        variants, positions = [], []
        for _ in range(count):
            truncated = bool(next(stream))
            variants.append(RenderedRow(take(), take(), take(), truncated))
            positions.append(take())
        is_text, target = next(stream), take()
        examples.append(
            Example(tuple(variants), tuple(positions), target if is_text else target[0])
        )
    return examples


# If the cache cannot be read or written, the rows are rendered again; nothing else changes.


def _load_examples(cache: DiskCache, key: str) -> list[Example] | None:
    with suppress(OSError), cache.lock(key):
        packed = cache.load(key, width=1, dtype=torch.int32)
        return None if packed is None else unpack_examples(packed)
    return None


def _store_examples(cache: DiskCache, key: str, packed: Int[Tensor, "S 1"]) -> None:
    shape = StateShape(len(packed), 1, torch.int32)
    with suppress(OSError), cache.lock(key):
        if cache.has_room(shape):
            for _ in cache.write(key, shape, parts=[packed]):
                pass
