"""Predictions as rows to write to a file: the row's own columns, and what was predicted."""

from collections.abc import Sequence

from softprompt.data import Row
from softprompt.errors import DataError
from softprompt.tasks import Prediction, Task
from softprompt.tasks.objectives import SingleLabel

PREDICTION, PROBABILITY, RIGHT = "prediction", "probability", "right"
PROBABILITIES, ABSTAINED = "probabilities", "abstained"


def name_answer_columns(task: Task, *, flat: bool, evaluated: bool) -> list[str]:
    """The columns that `make_answer_row` adds.

    Args:
        task: that predicts.
        flat: whether each probability has a column of its own.
        evaluated: whether it is known which predictions are right.
    """
    objective = task.objective
    names = [PREDICTION, *([RIGHT] if evaluated else [])]
    if isinstance(objective, SingleLabel):
        names += [PROBABILITY]
        names += [ABSTAINED] if objective.abstain_below is not None else []
    if not flat:
        names += [f"{PREDICTION}_{name}" for name in objective.detail_names]
    if not objective.has_probabilities:
        return names
    each = [f"{PROBABILITY}_{label}" for label in task.labels] if flat else [PROBABILITIES]
    return [*names, *each]


def check_own_columns(own: Sequence[str], added: Sequence[str], *, where: str) -> None:
    """Check that no column of the rows has the name of one that is added.

    Args:
        own: the columns of the rows.
        added: as `name_answer_columns` returns them.
        where: the name of the rows in messages.

    Raises:
        DataError: a name is in both.
    """
    both = [name for name in own if name in added]
    if both:
        msg = (
            f"{where} has a column {both[0]!r} already, and predictions are written to a column of "
            "that name. Rename yours."
        )
        raise DataError(msg)


def make_answer_row(
    row: Row, prediction: Prediction, *, flat: bool, right: bool | None = None
) -> dict[str, object]:
    """A row with its own columns, then the prediction, whether it is right, and probabilities.

    Args:
        row: with its own columns.
        prediction: for the row.
        flat: whether each probability has a column of its own.
        right: whether the prediction is right; None if it is not known.
    """
    answer: dict[str, object] = {**row, PREDICTION: prediction.label}
    if right is not None:
        answer[RIGHT] = right
    rounded = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    if prediction.label in rounded and type(prediction) is Prediction:
        answer[PROBABILITY] = rounded[prediction.label]
    if prediction.abstained:
        answer[ABSTAINED] = True
    if not flat:
        own = {f"{PREDICTION}_{n}": v for n, v in prediction.details.items() if n != ABSTAINED}
        return answer | own | ({PROBABILITIES: rounded} if rounded else {})
    return answer | {f"{PROBABILITY}_{label}": p for label, p in rounded.items()}
