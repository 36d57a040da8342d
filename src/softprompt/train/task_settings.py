"""The settings of a task that rows decide: weights of labels, and the scaling of numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from softprompt.data import Table
from softprompt.errors import DataError
from softprompt.tasks import (
    Choose,
    Classify,
    Extract,
    Generate,
    Objective,
    Regress,
    Tag,
    TaskSettings,
    make_objective,
)
from softprompt.tasks.extraction import NEVER, list_answer_texts
from softprompt.tasks.label_sets import parse_label_set
from softprompt.tasks.tag_cells import resolve_tag_scheme
from softprompt.tasks.targets import (
    find_labels,
    read_numbers,
    read_targets,
    read_truth,
    resolve_target_settings,
)


def complete_task_settings(
    settings: TaskSettings, table: "Table | None", *, labels: Sequence[str] | None
) -> TaskSettings:
    """The settings of a task with the numbers that its training rows decide.

    Weights of labels become numbers whose mean over the rows is 1; ``balanced`` gives each label
    the same sum over its rows, as in scikit-learn, and where rows have any number of labels, those
    with a label the same sum as those without it. Of tags it is words that are weighted. A label
    without rows gets 1, which nothing is multiplied by. The numbers of a regression get the mean
    and the standard deviation of the rows. Questions that all have an answer are always given one.
    How targets name options is as the rows have it.

    Args:
        settings: of the task.
        table: the training rows; None if they cannot be read, which leaves the numbers out.
        labels: of the task; None if they are not known, which leaves weights out.

    Raises:
        DataError: the weights are not those of the labels, or a target is not a number.
    """
    match settings:
        case Classify(class_weights=None) | Generate():
            return settings
        case Classify():
            if table is None or labels is None:
                return replace(settings, class_weights=None)
            return _weigh_labels(settings, table, labels)
        case Tag():
            return _complete_tags(settings, table, labels)
        case Regress() | Choose() | Extract():
            return settings if table is None else _read_rows(settings, table)
        case _:
            assert_never(settings)


def _read_rows(settings: Regress | Choose | Extract, table: Table) -> TaskSettings:
    match settings:
        case Regress():
            return _scale_numbers(settings, table)
        case Choose():
            return resolve_target_settings(settings, table)
        case Extract():
            return _choose_null(settings, table)
        case _:
            assert_never(settings)


def build_objective(settings: TaskSettings, train: Table) -> Objective:
    """What a task is asked for, with all that its training rows decide.

    Args:
        settings: of the task.
        train: the training rows.

    Raises:
        DataError: the rows do not fit the settings.
    """
    labels = find_labels(settings, train)
    return make_objective(complete_task_settings(settings, train, labels=labels), labels)


def _complete_tags(settings: Tag, table: "Table | None", labels: Sequence[str] | None) -> Tag:
    if table is None:
        return replace(settings, class_weights=None)
    settings = resolve_tag_scheme(settings, table)
    weights = settings.class_weights
    settings = replace(settings, class_weights=None)
    if weights is None or labels is None:
        return settings
    counts = make_objective(settings, labels).count_labels(read_targets(table, settings))
    return replace(settings, class_weights=_scale_weights(weights, counts, labels))


def _weigh_labels(settings: Classify, table: Table, labels: Sequence[str]) -> Classify:
    truth = read_truth(table, settings.label_column)
    if settings.multi_label:
        return _weigh_sets(settings, [parse_label_set(text) for text in truth], labels)
    weights = _scale_weights(settings.class_weights or {}, Counter(truth), labels)
    return replace(settings, class_weights=weights)


def _scale_weights(
    given: str | Mapping[str, float], counts: Counter[str], labels: Sequence[str]
) -> dict[str, float]:
    """Weights whose mean over all that have a label is 1."""
    if isinstance(given, Mapping):
        weights = dict(given)
        _check_names(weights, labels)
    else:  # balanced
        weights = {label: 1 / max(1, counts[label]) for label in labels}
    rows = max(1, sum(counts[label] for label in labels))
    mean = sum(counts[label] * weights[label] for label in labels) / rows
    return {label: weights[label] / mean if counts[label] else 1.0 for label in labels}


def _weigh_sets(
    settings: Classify, rows: Sequence[Sequence[str]], labels: Sequence[str]
) -> Classify:
    """How much a row that has a label counts in its loss, against one that does not."""
    if settings.class_weights == "balanced":
        counts = Counter(label for row in rows for label in {*row})
        weights = {n: (len(rows) - counts[n]) / counts[n] if counts[n] else 1.0 for n in labels}
        # A label that every row has would get no weight at all.
        return replace(settings, class_weights={n: w or 1.0 for n, w in weights.items()})
    _check_names(dict(settings.class_weights or {}), labels)
    return settings


def _scale_numbers(settings: Regress, table: Table) -> Regress:
    values = np.array(read_numbers(table, settings.target_column))
    mean, scale = values.mean(axis=0), values.std(axis=0)
    chosen = settings.mean or [float(x) for x in mean]
    # Of numbers that are all the same nothing can be learned, but they are predicted right.
    unit = settings.scale or [float(x) if x > 0 else 1.0 for x in scale]
    if len(chosen) != len(mean) or len(unit) != len(mean):
        msg = (
            f"task.mean has {len(chosen)} numbers and task.scale {len(unit)}, but column "
            f"{settings.target_column!r} of the training data has {len(mean)}. Leave both out."
        )
        raise DataError(msg)
    return replace(settings, mean=chosen, scale=unit)


def _choose_null(settings: Extract, table: Table) -> Extract:
    """Without a question that has no answer, none is left without one."""
    truth = read_truth(table, settings.target_column)
    if settings.null_threshold != "auto" or not all(list_answer_texts(text) for text in truth):
        return settings
    return replace(settings, null_threshold=NEVER)


def _check_names(weights: dict[str, float], labels: Sequence[str]) -> None:
    missing = [label for label in labels if label not in weights]
    unknown = [label for label in weights if label not in labels]
    if missing or unknown:
        what = [f"no number for {', '.join(map(repr, missing))}"] if missing else []
        what += [f"the unknown {', '.join(map(repr, unknown))}"] if unknown else []
        msg = (
            f"task.class_weights has {' and '.join(what)}. Give each of the labels "
            f"{', '.join(map(repr, labels))} a number, or write 'balanced'."
        )
        raise DataError(msg)
