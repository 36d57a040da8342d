"""From the settings of a task to its objective, and back to what an artifact records."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, assert_never

from pydantic import ValidationError

from softprompt.errors import DataError, PromptError
from softprompt.tasks.choices import Choices, make_choices
from softprompt.tasks.config import (
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TaskSettings,
    list_answer_settings,
)
from softprompt.tasks.extraction import (
    DEFAULT_NULL_THRESHOLD,
    NEVER,
    ContextAnswers,
)
from softprompt.tasks.label_sets import DEFAULT_THRESHOLD, LabelSets
from softprompt.tasks.objectives import FreeText, Objective, SingleLabel
from softprompt.tasks.regression import Numbers, WordNumbers, make_numbers
from softprompt.tasks.strict_settings import build_settings
from softprompt.tasks.tag_cells import get_scheme
from softprompt.tasks.tag_sequences import TagSequences
from softprompt.tasks.unused_settings import find_unused_settings


def make_objective(settings: TaskSettings, labels: Sequence[str]) -> Objective:
    """What a task is asked for, apart from a backbone.

    Automatic settings that only rows can decide are at their defaults.

    Args:
        settings: of the task.
        labels: the classes, or the choices of a generator.

    Raises:
        DataError: weights or thresholds are not those of the labels.
    """
    match settings:
        case Classify(multi_label=True):
            return _make_label_sets(settings, tuple(labels))
        case Classify():
            weights = _match_labels(settings.class_weights, labels, key="class_weights")
            temperature = settings.temperature
            return SingleLabel(
                tuple(labels),
                weights=weights,
                smoothing=settings.label_smoothing,
                is_ordinal=settings.ordinal,
                temperature=1.0 if temperature == "auto" else temperature,
                abstain_below=settings.abstain_below,
            )
        case Regress():
            mean = tuple(settings.mean or (0.0,))
            scale = tuple(settings.scale or (1.0,) * len(mean))
            return make_numbers(mean, scale, loss=settings.loss, words=settings.list_words())
        case Generate():
            return FreeText(tuple(labels))
        case Tag() | Extract() | Choose():
            return _make_structured(settings, tuple(labels))
        case _:
            assert_never(settings)


def _make_structured(settings: Tag | Extract | Choose, labels: tuple[str, ...]) -> Objective:
    """What is asked where answers have parts, or depend on the row."""
    match settings:
        case Tag():
            return _make_tag_sequences(settings, labels)
        case Extract(null_threshold=threshold):
            value = DEFAULT_NULL_THRESHOLD if threshold == "auto" else threshold
            return ContextAnswers(
                None if value == NEVER else float(value),
                n_best=settings.n_best,
                max_answer_tokens=settings.max_answer_tokens,
            )
        case Choose():
            return make_choices(settings)
        case _:
            assert_never(settings)


def get_loss_unit(settings: TaskSettings) -> str:
    """What the loss of a task is a mean over.

    Args:
        settings: of the task.
    """
    match settings:
        case Classify() | Regress() | Extract() | Choose():
            return Objective.loss_unit
        case Generate():
            return FreeText.loss_unit
        case Tag():
            return TagSequences.loss_unit
        case _:
            assert_never(settings)


def describe_objective(objective: Objective) -> dict[str, Any]:
    """The settings that rows have decided, as an artifact records them.

    Args:
        objective: of a task.
    """
    found: dict[str, Any] = {}
    match objective:
        case SingleLabel(labels, weights):
            by_label = None if weights is None else dict(zip(labels, weights, strict=True))
            found = {"class_weights": by_label, "temperature": objective.temperature}
        case LabelSets(labels, thresholds, weights):
            by_label = None if weights is None else dict(zip(labels, weights, strict=True))
            chosen = dict(zip(labels, thresholds, strict=True))
            found = {"class_weights": by_label, "thresholds": chosen}
        case Numbers() | WordNumbers(numbers=Numbers()):
            numbers = objective if isinstance(objective, Numbers) else objective.numbers
            found = {"mean": [*numbers.mean], "scale": [*numbers.scale]}
        case TagSequences(labels=labels, weights=weights):
            by_label = None if weights is None else dict(zip(labels, weights, strict=True))
            found = {"class_weights": by_label, "scheme": objective.source}
        case ContextAnswers(null_threshold=threshold):
            found = {"null_threshold": NEVER if threshold is None else threshold}
        case Choices():
            found = {"target_form": objective.target_form}
        case _:
            pass
    return found


def change_answer_settings(
    settings: TaskSettings, changes: Mapping[str, Any], *, labels: Sequence[str]
) -> dict[str, Any]:
    """Change how the answers of a trained prompt are read.

    Args:
        settings: of its task.
        changes: of the settings that `list_answer_settings` lists.
        labels: of the task.

    Returns:
        The settings that are changed, as an artifact records them.

    Raises:
        PromptError: a setting cannot be changed, its value is not possible, or it has no effect.
        DataError: thresholds are not those of the labels.
    """
    allowed = list_answer_settings(settings)
    fixed = [name for name in changes if name not in allowed]
    if fixed:
        options = f"only {', '.join(allowed)} can" if allowed else "nothing can"
        msg = f"task.{fixed[0]} is part of what was trained: of this task {options} be changed."
        raise PromptError(msg)
    values = {f.name: vars(settings)[f.name] for f in fields(settings)} | dict(changes)
    try:
        changed = build_settings(type(settings), values)
    except ValidationError as error:
        first, *_ = error.errors()
        where = ".".join(str(part) for part in first["loc"] if part in values or part in changes)
        msg = f"task.{where} is {first['input']!r}: {first['msg']}."
        raise PromptError(msg) from error
    for fault in find_unused_settings(changed):
        if fault.removeprefix("task.").partition(":")[0] in changes:
            raise PromptError(fault)
    return {**changes, **describe_objective(make_objective(changed, labels))}


def _make_label_sets(settings: Classify, labels: tuple[str, ...]) -> LabelSets:
    match settings.thresholds:
        case "auto":
            thresholds = (DEFAULT_THRESHOLD,) * len(labels)
        case float() as threshold:
            thresholds = (threshold,) * len(labels)
        case by_label:
            thresholds = _match_labels(by_label, labels, key="thresholds") or ()
    weights = _match_labels(settings.class_weights, labels, key="class_weights")
    return LabelSets(labels, thresholds, weights=weights, smoothing=settings.label_smoothing)


def _make_tag_sequences(settings: Tag, labels: tuple[str, ...]) -> TagSequences:
    source = get_scheme(settings)
    return TagSequences(
        labels,
        settings.output_scheme or source,
        source,
        repairs=settings.repair_tags,
        aggregation=settings.aggregation,
        is_constrained=settings.constrained_decoding,
        weights=_match_labels(settings.class_weights, labels, key="class_weights"),
        smoothing=settings.label_smoothing,
    )


def _match_labels(
    numbers: str | Mapping[str, float] | None, labels: Sequence[str], *, key: str
) -> tuple[float, ...] | None:
    """The numbers in the order of the labels; None if there are none, or only rows tell them.

    Raises:
        DataError: they are not those of the labels.
    """
    if not isinstance(numbers, Mapping):
        return None
    if {*numbers} != {*labels}:
        msg = (
            f"task.{key} has the labels {', '.join(map(repr, numbers))}, but the task has "
            f"{', '.join(map(repr, labels))}. Give each of these a number."
        )
        raise DataError(msg)
    return tuple(numbers[label] for label in labels)
