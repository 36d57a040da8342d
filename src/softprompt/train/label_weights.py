"""How much the rows of each label count: the numbers that ``class_weights`` stand for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from softprompt.data import Table
from softprompt.data.table import to_text
from softprompt.errors import DataError
from softprompt.tasks import Classify, TaskSettings


def weigh_labels(
    settings: TaskSettings, table: "Table | None", *, labels: Sequence[str] | None
) -> TaskSettings:
    """The settings of a task with a number for each label, whose mean over the rows is 1.

    ``balanced`` gives each label the same sum over its rows, as in scikit-learn. A label without
    rows gets 1, which nothing is multiplied by.

    Args:
        settings: of the task.
        table: the training rows; None if they cannot be read, which leaves the weights out.
        labels: of the task; None if they are not known, which leaves the weights out.

    Raises:
        DataError: the weights are not those of the labels.
    """
    if not isinstance(settings, Classify) or settings.class_weights is None:
        return settings
    if table is None or labels is None:
        return replace(settings, class_weights=None)
    counts = Counter(map(to_text, table[settings.label_column]))
    if settings.class_weights == "balanced":
        weights = {label: 1 / max(1, counts[label]) for label in labels}
    else:
        weights = dict(settings.class_weights)
        _check_names(weights, labels)
    rows = sum(counts[label] for label in labels)
    mean = sum(counts[label] * weights[label] for label in labels) / rows
    numbers = {label: weights[label] / mean if counts[label] else 1.0 for label in labels}
    return replace(settings, class_weights=numbers)


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
