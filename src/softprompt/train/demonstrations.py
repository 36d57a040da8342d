"""Labeled training rows whose keys and values a prefix starts from (Lu et al. 2025, CT-KV).

The rows stand one after the other, each with its answer, as in a hard prompt with examples; the
prefix starts as their keys and values. In training, the soft tokens that were made of a row are
hidden from it (leave-one-out), or the prompt would learn to copy its answer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, zip_longest
from typing import Any

import torch

from softprompt.backbone.model import Backbone, Geometry
from softprompt.data import Table
from softprompt.data.table import to_text
from softprompt.data.tokenizer import make_text_encoder
from softprompt.errors import DataError, PromptError
from softprompt.injection.capture import capture_keys_and_values
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.methods import Method, MethodSettings, PrefixTuning, PTuningV2, build_method
from softprompt.methods.initializers import FromDemonstrations, FromPrompt
from softprompt.prompt import to
from softprompt.recipe import Recipe
from softprompt.tasks import Example, Task
from softprompt.tasks.base import WholeRowTask
from softprompt.tasks.classification import CausalVerbalizer
from softprompt.tasks.generation import TextGenerator, get_target_ids
from softprompt.train.datasets import RenderedRows

# As many as in the paper's experiments, if the recipe does not say.
_ROWS = 16
# With fewer rows, hiding one costs more than it brings (Lu et al. 2025).
_MIN_LEAVE_ONE_OUT = 4
# The share of soft tokens that a row does not attend to (the paper's code).
TOKEN_DROPOUT = 0.05
# Between two rows; the second one if the tokenizer cannot write the first.
_SEPARATORS = ("\n\n", " ")

# What a row is recognized by: the tokens that the backbone is run on.
RowKey = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Demonstration:
    """A training row in a prefix.

    Args:
        row: its number among the training rows, from 0.
        key: its tokens without the answer, by which it is recognized.
        label: its right answer, as text.
        ids: the tokens of the row, its answer and the separator.
    """

    row: int
    key: RowKey
    label: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Demonstrations:
    """The training rows that a prefix starts from.

    Args:
        chosen: in the order of the prefix.
    """

    chosen: tuple[Demonstration, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of all of them, one for each soft token."""
        return tuple(chain.from_iterable(each.ids for each in self.chosen))

    @property
    def is_leave_one_out(self) -> bool:
        """Whether a row's own soft tokens are hidden from it in training."""
        return len(self.chosen) >= _MIN_LEAVE_ONE_OUT

    def locate(self) -> dict[RowKey, tuple[int, int]]:
        """The soft tokens of each row, first and last plus one."""
        ends = [*accumulate(len(each.ids) for each in self.chosen)]
        starts = [0, *ends]
        return {
            each.key: (start, end)
            for each, start, end in zip(self.chosen, starts, ends, strict=False)
        }

    def mark(self, rows: RenderedRows) -> RenderedRows:
        """Mark in training rows the soft tokens that were made of them.

        A row with the same text as a demonstration is marked too: it would find its answer there.

        Args:
            rows: to train on.

        Returns:
            The same rows; unmarked with too few demonstrations for leave-one-out.
        """
        places = self.locate() if self.is_leave_one_out else {}
        examples = [replace(e, own_columns=places.get(make_row_key(e))) for e in rows.examples]
        return replace(rows, examples=examples)

    def drop_held_out(self, examples: Sequence[Example]) -> "Demonstrations":
        """The demonstrations without those of held-out rows, which validate.

        Args:
            examples: the held-out rows.

        Raises:
            DataError: none is left.
        """
        held_out = {make_row_key(example) for example in examples}
        left = tuple(each for each in self.chosen if each.key not in held_out)
        if not left:
            msg = (
                f"all {len(self.chosen)} demonstrations are rows of one fold, which must not start "
                "from its own rows. Use more demonstrations (rows in method.init), or fewer folds."
            )
            raise DataError(msg)
        return Demonstrations(left)

    def as_data(self) -> dict[str, Any]:
        """What a run and its artifact record, as JSON has it."""
        return {
            "rows": [each.row for each in self.chosen],
            "labels": dict(Counter(each.label for each in self.chosen)),
            "tokens": len(self.ids),
            "leave_one_out": self.is_leave_one_out,
        }

    def __str__(self) -> str:
        count, labels = len(self.chosen), Counter(each.label for each in self.chosen)
        by_label = ", ".join(f"{n} {label}" for label, n in sorted(labels.items()))
        which = f" ({by_label})" if len(labels) < count else ""
        hidden = (
            "in training, each is hidden from itself"
            if self.is_leave_one_out
            else f"none is hidden from itself, as there are fewer than {_MIN_LEAVE_ONE_OUT}"
        )
        return (
            f"the prompt starts from {count} training rows{which}, {len(self.ids):,} tokens; "
            f"{hidden}"
        )


def make_row_key(example: Example) -> RowKey:
    """The tokens that a row is recognized by."""
    return tuple(variant.input_ids for variant in example.variants)


def choose_demonstrations(
    init: FromDemonstrations, table: Table, *, task: Task, recipe: Recipe
) -> Demonstrations:
    """Choose training rows to start from, balanced by label, by the seed of the run.

    Args:
        init: the number of rows.
        table: the training rows.
        task: bound without a prompt.
        recipe: of the run.

    Raises:
        DataError: there are too few rows, or they do not fit into the backbone's window.
        PromptError: the backbone or the task has no use for demonstrations.
    """
    check_demonstrations_fit(task.backbone.geometry)
    _check_answers(task)
    if init.rows is not None and init.rows > len(table):
        msg = (
            f"{init.rows} demonstrations are wanted, but there are {len(table)} training rows. Set "
            f"rows to at most {len(table)} (in method.init, or in FromDemonstrations)."
        )
        raise DataError(msg)
    limit = _compute_limit(task.backbone.geometry, recipe.data.max_length)
    wanted = min(_ROWS, len(table)) if init.rows is None else init.rows
    truth = [to_text(value) for value in table[task.target_column][:]]
    order = _order_rows(truth, seed=recipe.seed)
    chosen = tuple(_render_distinct(table, order, wanted, task=task))
    total = [*accumulate(len(each.ids) for each in chosen)]
    fitting = sum(1 for tokens in total if limit is None or tokens <= limit)
    if not fitting or (init.rows is not None and fitting < len(chosen)):
        raise DataError(_explain_limit(total, fitting, limit or 0, recipe.data.max_length))
    if init.rows is not None and len(chosen) < init.rows:
        msg = (
            f"{init.rows} demonstrations are wanted, but the training rows have {len(chosen)} "
            f"different texts. Set rows to at most {len(chosen)} (in method.init, or in "
            "FromDemonstrations)."
        )
        raise DataError(msg)
    generator = torch.Generator().manual_seed(recipe.seed)
    mixed = torch.randperm(fitting, generator=generator).tolist()
    return Demonstrations(tuple(chosen[index] for index in mixed))


def build_from_demonstrations(
    backbone: Backbone, settings: MethodSettings, *, demonstrations: Demonstrations, seed: int
) -> Method:
    """Build a method that starts at the demonstrations' keys and values.

    Args:
        backbone: the backbone to train on.
        settings: of the method, whose length is not used.
        demonstrations: the rows.
        seed: of the run.

    Raises:
        PromptError: the method trains vectors, or the backbone cannot be split.
    """
    if not isinstance(settings, PTuningV2 | PrefixTuning):
        msg = (
            f"demonstrations are keys and values, but {settings.name} trains vectors. Use "
            "p-tuning-v2 or prefix-tuning, or another initialization, such as label words."
        )
        raise PromptError(msg)
    check_demonstrations_fit(backbone.geometry)
    captured = capture_keys_and_values(backbone, torch.tensor(demonstrations.ids))
    # Rows continue at the positions after the demonstrations, as in one text.
    start = to(replace(captured, shift_positions=True), device="cpu")
    settings = replace(settings, length=start.length)
    return build_method(backbone, settings, soft_length=0, init=FromPrompt(start), seed=seed)


def check_demonstrations_fit(geometry: Geometry) -> None:
    """Check that a prefix of a backbone can start from demonstrations.

    Args:
        geometry: of the backbone.

    Raises:
        PromptError: it cannot.
    """
    remedy = "Start from label words or a text instead, or choose another backbone."
    if geometry.architecture != "causal":
        msg = (
            f"a prompt for {geometry.model_type} cannot start from demonstrations: its tokens see "
            "what comes after them, so the keys and values of the demonstrations depend on the "
            f"row. {remedy}"
        )
        raise PromptError(msg)
    reason = explain_unsplittable(geometry)
    if reason is not None:
        msg = (
            f"a prompt for {geometry.model_type} cannot start from demonstrations: it {reason}. "
            f"{remedy}"
        )
        raise PromptError(msg)


def describe_demonstrations(demonstrations: Demonstrations | None) -> Mapping[str, Any]:
    """What a run and its artifact record of demonstrations; nothing without any."""
    return {} if demonstrations is None else {"demonstrations": demonstrations.as_data()}


def _check_answers(task: Task) -> None:
    if task.head is not None:
        msg = (
            "demonstrations are rows with their answers in words, but the task predicts with a "
            "trained head and has no label words. Add a verbalizer to the task, or choose another "
            "initialization."
        )
        raise PromptError(msg)


def _compute_limit(geometry: Geometry, max_length: int | None) -> int | None:
    """The most tokens of all demonstrations, which leave room for a row; None without a limit."""
    window = geometry.max_positions
    if window is None:
        return None
    return window // 2 if max_length is None else window - max_length


def _explain_limit(total: Sequence[int], fitting: int, limit: int, max_length: int | None) -> str:
    room = (
        "half of the backbone's window is kept for a row"
        if max_length is None
        else f"data.max_length keeps {max_length:,} positions for a row"
    )
    most = f"Set rows to at most {fitting}" if fitting else "Choose another initialization"
    shorter = "set" if max_length is None else "lower"
    return (
        f"{len(total)} demonstrations have {total[-1]:,} tokens, but {limit:,} positions are free "
        f"for them: {room}. {most}, or {shorter} data.max_length, so that rows are shorter."
    )


def _order_rows(truth: Sequence[str], *, seed: int) -> list[int]:
    """All rows in random order, each label in turn while it has rows."""
    generator = torch.Generator().manual_seed(seed)
    by_label: dict[str, list[int]] = {}
    for row in torch.randperm(len(truth), generator=generator).tolist():
        by_label.setdefault(truth[row], []).append(row)
    if len(by_label) == len(truth):  # free text
        return [row for rows in by_label.values() for row in rows]
    turns = zip_longest(*(by_label[label] for label in sorted(by_label)))
    return [row for turn in turns for row in turn if row is not None]


def _render_distinct(
    table: Table, order: Sequence[int], count: int, *, task: Task
) -> Iterator[Demonstration]:
    """Render the first rows that differ in their text."""
    encoder = make_text_encoder(
        task.backbone.tokenizer, vocab_size=task.backbone.geometry.vocab_size
    )
    written = (encoder.encode(text) for text in _SEPARATORS)
    unknown = task.backbone.tokenizer.unk_token_id
    separator = next((ids for ids in written if ids and unknown not in ids), ())
    seen: set[RowKey] = set()
    for row in order:
        if len(seen) == count or not isinstance(task, WholeRowTask):
            return
        fields = table[row]
        (rendered,) = [renderer.render(fields) for renderer in task.renderers]
        example = task.make_example(fields)
        key = make_row_key(example)
        if key not in seen:
            seen.add(key)
            ids = (*rendered.input_ids, *_get_answer(task, example), *separator)
            yield Demonstration(row, key, to_text(fields[task.target_column]), ids)


def _get_answer(task: Task, example: Example) -> Collection[int]:
    """The tokens of a row's answer, as the task scores them."""
    if isinstance(task, TextGenerator):
        return get_target_ids(example)
    if not isinstance(task, CausalVerbalizer) or not isinstance(example.target, int):
        msg = f"{type(task).__name__} has no answer in words. Choose another initialization."
        raise PromptError(msg)
    return task.words.tokens[example.target][0]
