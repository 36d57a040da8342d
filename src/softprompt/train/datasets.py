"""The rows of a run: labels, checks and warnings, and rendering them, with a cache on disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain
from typing import TypeAlias, TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt._memory import pause_garbage_collection
from softprompt.backbone.fingerprint import digest_tokenizer
from softprompt.data import (
    Table,
    TaskColumns,
    check_columns,
    parse_template,
)
from softprompt.data.chats import ChatRenderer
from softprompt.data.disk_cache import DiskCache, StateShape, open_user_cache
from softprompt.data.duplicates import SPLITS, describe_splits
from softprompt.data.few_rows import count_rows
from softprompt.data.inputs import Row, RowsLike, has_several_rows, to_table
from softprompt.data.table import iterate_groups
from softprompt.errors import DataError, RecipeError, TemplateError, format_unknown
from softprompt.recipe import Recipe
from softprompt.tasks import Example, LengthBudget, Objective, Task, TaskSettings
from softprompt.tasks.base import WholeRowTask
from softprompt.tasks.config import get_target_column, list_row_columns
from softprompt.tasks.extraction import ContextAnswers
from softprompt.tasks.extractor import count_answer_tokens
from softprompt.tasks.targets import has_few_targets, read_task_targets
from softprompt.train.packing import PACKING, pack_examples, unpack_examples

SplitsLike: TypeAlias = Mapping[str, RowsLike]

# The fraction of the rows in memory that validate if there are no validation rows.
_VALIDATION_FRACTION = 0.1


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
    return select_rendered(rows, chosen)


# The most rows that judge a trial.
_MOST_JUDGES = 500


def choose_judges(rows: Mapping[str, RenderedRows]) -> tuple[RenderedRows, str]:
    """The rows that judge trials before the first step, and their name.

    Args:
        rows: by split; without validation rows the training rows judge.
    """
    validation = rows.get("validation")
    if validation is not None:
        judges = sample_rows(validation, _MOST_JUDGES)
        return judges, count_rows(len(judges.truth), "validation")
    judges = sample_rows(rows["train"], _MOST_JUDGES)
    return judges, f"{count_rows(len(judges.truth), 'training')}, since there are no others"


def select_rendered(rows: RenderedRows, indices: Sequence[int]) -> RenderedRows:
    """Some of the rows, in the order of their indices."""
    examples = [rows.examples[index] for index in indices]
    truth = [rows.truth[index] for index in indices]
    return RenderedRows(examples, truth, sum(example.truncated for example in examples))


def get_task_columns(settings: TaskSettings) -> TaskColumns:
    """The columns that the splits depend on; without text if the template cannot be read."""
    fields = None
    if settings.template is not None:
        try:
            fields = list_row_columns(settings, parse_template(settings.template).fields)
        except TemplateError:  # reported when the template is checked
            fields = ()
    return TaskColumns(get_target_column(settings), fields, has_few_targets(settings))


# The most labels that a warning lists.
_MAX_LISTED_LABELS = 5


def list_row_warnings(
    tables: Mapping[str, Table],
    rows: Mapping[str, RenderedRows],
    *,
    fields: Sequence[str],
    objective: Objective,
) -> tuple[str, ...]:
    """Describe what makes the scores of a run say less than they seem to.

    Args:
        tables: the rows by split.
        rows: the same rows, rendered.
        fields: the columns of the text.
        objective: of the task.
    """
    return (
        *describe_splits(tables, fields),
        *_describe_absent(rows, objective),
        *_describe_truncated(rows),
        *_describe_long_answers(rows, objective),
        *_describe_divided(rows),
    )


def _describe_absent(rows: Mapping[str, RenderedRows], objective: Objective) -> Iterator[str]:
    """Describe labels that a split lacks, although its scores count them."""
    for name in ("validation", "test"):
        if name not in rows:
            continue
        present = objective.count_labels(rows[name].truth)
        yield from _describe_unknown(present, objective, name=name)
        absent = [label for label in objective.labels if not present[label]]
        if absent and "macro_f1" in objective.metric_names:
            more = (
                f" and {len(absent) - _MAX_LISTED_LABELS} more"
                if len(absent) > _MAX_LISTED_LABELS
                else ""
            )
            yield (
                f"the {name} data has no row with the label "
                f"{', '.join(map(repr, absent[:_MAX_LISTED_LABELS]))}{more}: its macro_f1 counts "
                f"{'it' if len(absent) == 1 else 'them'} as 0. Give rows of every label, or use "
                "another metric."
            )


def _describe_unknown(
    present: Mapping[str, int], objective: Objective, *, name: str
) -> Iterator[str]:
    """Describe tags that a split has, but not the training data."""
    unknown = [label for label in present if label not in objective.labels]
    if unknown and objective.labels:
        count = sum(present[label] for label in unknown)
        yield (
            f"the {name} data has {count:,} of {sum(present.values()):,} words with a tag that no "
            f"training row has ({', '.join(map(repr, unknown[:_MAX_LISTED_LABELS]))}): they count "
            "as errors, and have no part in the loss. Give training rows with these tags."
        )


def _describe_long_answers(rows: Mapping[str, RenderedRows], objective: Objective) -> Iterator[str]:
    """Describe parts of a text that are longer than any that is predicted."""
    if not isinstance(objective, ContextAnswers):
        return
    most = objective.max_answer_tokens
    for name, part in rows.items():
        lengths = [count_answer_tokens(example) for example in part.examples]
        longer = [index for index, length in enumerate(lengths) if length > most]
        if longer:
            count = "1 answer" if len(longer) == 1 else f"{len(longer):,} answers"
            yield (
                f"{count} of the {name} data, the first in row {longer[0]} (counted from 0), can "
                f"never be predicted whole: task.max_answer_tokens is {most}, and the longest has "
                f"{max(lengths)}"
            )


def _describe_divided(rows: Mapping[str, RenderedRows]) -> Iterator[str]:
    """Describe conversations whose answers are not all read in one row."""
    train = rows.get("train")
    if train is None or not all(e.target is not None for e in train.examples[:1]):
        return
    divided = [e for e in train.examples if isinstance(e.target, tuple) and len(e.variants) > 1]
    if divided and all(e.read_positions[1:] and not e.words for e in divided):
        more = sum(len(example.variants) for example in divided)
        yield (
            f"{len(divided):,} training rows are run as {more:,}: their former turns are written "
            "in another form, or with soft tokens in another place, where a later turn follows"
        )


def _describe_truncated(rows: Mapping[str, RenderedRows]) -> Iterator[str]:
    for name, part in rows.items():
        if part.truncated:
            kind = "training" if name == "train" else name
            yield (
                f"{part.truncated:,} of {len(part.examples):,} {kind} rows are too long and were "
                "truncated"
            )


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
    columns = [*task.columns, task.target_column]
    check_columns(table, columns, where=where, flexible=task.flexible_columns)
    if examples is None:
        examples = _render_groups(task, table, columns, where=where)
    truth = read_task_targets(table, task)
    return RenderedRows(examples, truth, sum(e.truncated for e in examples))


def _render_groups(
    task: Task, table: Table, columns: Sequence[str], *, where: str
) -> list[Example]:
    """Render all rows; of conversations, an error names the row that the chat template refuses."""
    try:
        with pause_garbage_collection():
            return [*_iterate_examples(task, iterate_groups(table, columns))]
    except DataError:
        if not any(isinstance(renderer, ChatRenderer) for renderer in task.renderers):
            raise
    for index, row in enumerate(chain.from_iterable(iterate_groups(table, columns))):
        try:
            task.make_example(row)
        except DataError as error:
            msg = f"row {index} (counted from 0) of {where}: {error}"
            raise DataError(msg) from error
    return []


def _iterate_examples(task: Task, groups: Iterable[Sequence[Row]]) -> Iterator[Example]:
    """Render groups of rows; whole rows are tokenised ahead."""
    if isinstance(task, WholeRowTask):
        yield from task.iterate_examples(groups)
    else:
        for rows in groups:
            yield from task.make_examples(rows)


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
        PACKING,
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


def make_split_tables(
    rows: RowsLike | SplitsLike, validation: RowsLike | float | None
) -> tuple[dict[str, Table], float]:
    """Make the tables of rows in memory.

    Args:
        rows: training rows, or rows by split.
        validation: validation rows, or the fraction of training rows to split off for that; None
            for a tenth.

    Returns:
        The tables by split, and the fraction to split off if there are no validation rows.

    Raises:
        DataError: a split is unknown, or the validation rows are given twice.
    """
    splits = _group_by_split(rows)
    if validation is not None and "validation" in splits:
        msg = (
            "rows has a validation split, and the argument validation is given too. Leave one of "
            "them out."
        )
        raise DataError(msg)
    fraction = _VALIDATION_FRACTION
    if isinstance(validation, int | float):
        _check_fraction(validation)
        fraction = validation
    elif validation is not None:
        splits["validation"] = validation
    return {name: to_table(part) for name, part in splits.items()}, fraction


def _group_by_split(rows: RowsLike | SplitsLike) -> dict[str, RowsLike]:
    """The rows by split; all of them are training rows if they are not in splits."""
    if not _are_splits(rows):
        return {"train": rows}
    unknown = [str(name) for name in rows if name not in SPLITS]
    if unknown:
        raise DataError(format_unknown("split", unknown[0], options=SPLITS))
    return {str(name): part for name, part in rows.items()}


def _are_splits(rows: RowsLike | SplitsLike) -> TypeGuard[SplitsLike]:
    """Whether rows are given by split, under whatever names."""
    if not isinstance(rows, Mapping):
        return False
    has_train = "train" in rows and not isinstance(rows["train"], str)
    return has_train or any(has_several_rows(part) for part in rows.values())


def _check_fraction(validation: float) -> None:
    if isinstance(validation, bool) or not 0 <= validation < 1:
        msg = (
            f"validation is {validation!r}, but a fraction of the rows is at least 0 and less than "
            "1. Give such a fraction, or the validation rows themselves."
        )
        raise DataError(msg)


def check_training_rows(splits: Sequence[str]) -> None:
    """Check that there are rows to train on.

    Args:
        splits: the names of those with rows.

    Raises:
        DataError: there are none.
    """
    if "train" not in splits:
        msg = (
            f"there are no training rows: the splits are {', '.join(map(repr, splits))}. "
            "Give some under the name 'train'."
        )
        raise DataError(msg)


def check_no_validation(splits: Sequence[str]) -> None:
    """Check that rows that validate in folds are not given together with validation rows.

    Args:
        splits: the names of those with rows.

    Raises:
        DataError: there are some.
    """
    if "validation" in splits:
        msg = (
            "data.folds is set, and validation rows are given too, but with folds every training "
            "row validates once. Leave one of them out."
        )
        raise DataError(msg)


def check_validation_of_seeds(splits: Sequence[str]) -> None:
    """Check that there are rows to choose the best of several seeds by.

    Args:
        splits: the names of those with rows.

    Raises:
        RecipeError: there are none.
    """
    if "validation" not in splits:
        fault = (
            'train.combine_seeds: "best" chooses a seed by validation rows, but there are none. '
            "Give some (data.validation or data.split_sizes in a recipe), set data.folds, or "
            'train.combine_seeds = "ensemble".'
        )
        raise RecipeError([fault])
