"""Linear models on the frozen backbone's states, for any objective of a trained head.

They are what a head starts as, what a prompt has to beat, and what readouts are chosen by: logistic
regression for one label (`softprompt.train.regression`), one for each label for sets of labels, and
ridge regression for numbers. The strength of their regularization is chosen by folds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import Objective, ScoreObjective, SingleLabel
from softprompt.tasks.regression import Numbers
from softprompt.train.regression import (
    REGRESSIONS,
    STANDARDIZED_REGRESSIONS,
    Part,
    divide_by_label,
    fit_calibrated,
    list_parts,
    weigh_regressions,
)

_FOLDS = 4
# From strong to weak regularization: C of logistic regressions, and the penalty of ridge ones.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_PENALTIES = (1e5, 1e4, 1e3, 1e2, 10.0, 1.0)
# Of the mean deviation of all features, below which a feature counts as constant.
_LEAST_DEVIATION = 1e-5
# The logit of a label that all rows have, or none.
_CERTAIN = 10.0

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A linear model whose settings were chosen by folds.

    Args:
        settings: that were chosen, by name.
        weight: ``[C, H]`` of a linear head.
        bias: ``[C]``.
        judged: the indices of the rows that were scored by a model fitted without them.
        unseen: their scores, ``[rows, C]``.
    """

    settings: dict[str, Any]
    weight: Tensor
    bias: Tensor
    judged: NDArray[np.int64]
    unseen: Tensor

    def score(self, features: NDArray[np.floating[Any]]) -> Tensor:
        """The scores ``[rows, C]`` of states, as the head has them.

        Args:
            features: states as the head reads them, ``[rows, H]``.
        """
        return torch.from_numpy(features).float() @ self.weight.T + self.bias


def can_fit(objective: Objective) -> bool:
    """Whether there is a linear model for an objective.

    Args:
        objective: of a head.
    """
    return isinstance(objective, SingleLabel | LabelSets | Numbers)


def divide_rows(
    truth: Sequence[str], objective: ScoreObjective, *, seed: int
) -> list[NDArray[np.int64]]:
    """The indices of rows in folds; every single label is spread over all of them.

    Args:
        truth: the target of each row as text.
        objective: of the rows.
        seed: of their order.
    """
    if isinstance(objective, SingleLabel):
        return divide_by_label(np.array(truth), seed=seed)
    order = np.random.default_rng(seed).permutation(len(truth))
    return [order[at::_FOLDS] for at in range(min(_FOLDS, len(truth)))]


def list_fold_parts(
    truth: Sequence[str],
    folds: Sequence[Sequence[int] | NDArray[np.int64]],
    *,
    objective: ScoreObjective,
) -> list[Part]:
    """The rows to fit on and those of the fold to judge, of the folds that can be fitted.

    Args:
        truth: the target of each row as text.
        folds: the indices of the rows of each.
        objective: of the rows.
    """
    if isinstance(objective, SingleLabel):
        return list_parts(np.array(truth), folds)
    every = np.arange(len(truth))
    parts = [(np.setdiff1d(every, fold), np.asarray(fold)) for fold in folds]
    return [(fit, judge) for fit, judge in parts if len(fit) > 1]


def fit_linear_model(
    features: NDArray[np.floating[Any]],
    truth: Sequence[str],
    *,
    objective: ScoreObjective,
    parts: Sequence[Part],
    is_normalized: bool,
) -> LinearModel:
    """Choose a linear model by folds and fit it on all rows.

    Args:
        features: of each row, ``[rows, H]``; of length 1 where the head normalizes states.
        truth: the target of each row as text.
        objective: what the scores mean.
        parts: the rows to fit on and those to judge, again and again.
        is_normalized: whether the head is ``linear-normalized``, which gives states length √H.

    Returns:
        The model. Of logistic regressions for one label the scores are calibrated.
    """
    if isinstance(objective, SingleLabel):
        return _fit_classifier(
            features, truth, objective=objective, parts=parts, is_normalized=is_normalized
        )
    states = features.astype(np.float64) * (features.shape[1] ** 0.5 if is_normalized else 1.0)
    targets = _stack_targets(truth, objective)
    fit = _fit_logits if isinstance(objective, LabelSets) else _fit_numbers
    strengths = _STRENGTHS if isinstance(objective, LabelSets) else _PENALTIES
    judged = np.concatenate([np.empty(0, dtype=np.int64), *(judge for _, judge in parts)])
    found = dict(zip(strengths, _score_parts(fit, states, targets, parts, strengths), strict=True))
    losses = {s: _compute_losses(scores, targets[judged], objective) for s, scores in found.items()}
    best = min(losses.values(), key=lambda of_rows: of_rows.mean() if len(of_rows) else 0.0)
    chosen = next(s for s in strengths if not is_clearly_higher(losses[s], best, errors=1))
    weight, bias = fit(states, targets, chosen)
    return LinearModel(
        {"strength": chosen, "is_standardized": True},
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias).float(),
        judged,
        torch.from_numpy(found[chosen]).float(),
    )


def _fit_classifier(
    features: NDArray[np.floating[Any]],
    truth: Sequence[str],
    *,
    objective: SingleLabel,
    parts: Sequence[Part],
    is_normalized: bool,
) -> LinearModel:
    labels, weights = objective.labels, objective.weights
    by_label = None if weights is None else dict(zip(labels, weights, strict=True))
    among = REGRESSIONS if is_normalized else STANDARDIZED_REGRESSIONS
    found = fit_calibrated(
        features,
        np.array(truth),
        labels=labels,
        parts=parts,
        among=weigh_regressions(among, by_label),
    )
    weight, bias = found.fold(labels, is_normalized=is_normalized)
    judged = np.concatenate([np.empty(0, dtype=np.int64), *(judge for _, judge in parts)])
    return LinearModel(
        asdict(found.settings), weight, bias, judged, found.unseen.scores * found.factor
    )


def list_answers(scores: Tensor, objective: ScoreObjective) -> list[str]:
    """The predictions of rows as text.

    Args:
        scores: of each row, ``[rows, C]``.
        objective: what they mean.
    """
    if isinstance(objective, SingleLabel):  # of thousands of labels no probabilities are needed
        return [objective.labels[at] for at in scores.argmax(dim=-1).tolist()]
    return [found.label for found in objective.to_predictions(scores)]


def is_clearly_higher(losses: _Array, best: _Array, *, errors: float) -> bool:
    """Whether losses are higher than others of the same rows by more than chance explains.

    Args:
        losses: of each row.
        best: the others.
        errors: how many standard errors of the difference chance explains.
    """
    lead = losses - best
    return len(lead) > 0 and bool(lead.mean() > errors * lead.std() / len(lead) ** 0.5)


def _stack_targets(truth: Sequence[str], objective: ScoreObjective) -> _Array:
    """Which row has which label, or the scaled numbers of each row, ``[rows, C]``."""
    targets = [objective.read_target(text) for text in truth]
    if isinstance(objective, LabelSets):
        marks = np.zeros((len(truth), objective.num_outputs))
        for row, target in enumerate(targets):
            marks[row, [*target] if isinstance(target, tuple) else [target]] = 1.0
        return marks
    return np.array(targets, dtype=np.float64)


def _score_parts(
    fit: Callable[[_Array, _Array, float], tuple[_Array, _Array]],
    states: _Array,
    targets: _Array,
    parts: Sequence[Part],
    strengths: Sequence[float],
) -> Iterator[_Array]:
    """The scores of the judged rows by models of each strength that were fitted without them."""
    for strength in strengths:
        scores = [np.zeros((0, targets.shape[1]))]
        for rows, judge in parts:
            weight, bias = fit(states[rows], targets[rows], strength)
            scores.append(states[judge] @ weight.T + bias)
        yield np.concatenate(scores)


def _compute_losses(scores: _Array, targets: _Array, objective: ScoreObjective) -> _Array:
    """The loss of each row."""
    if isinstance(objective, LabelSets):
        losses = np.logaddexp(0.0, scores) - targets * scores
    else:
        losses = (scores - targets) ** 2
    means: _Array = losses.mean(axis=1)
    return means


def _standardize(states: _Array) -> tuple[_Array, _Array, _Array]:
    """States with a mean of 0 and a variance of 1, and both before; constant ones are kept."""
    mean, deviation = states.mean(axis=0), states.std(axis=0)
    deviation = np.where(deviation < _LEAST_DEVIATION * deviation.mean(), 1.0, deviation)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (states - mean) / deviation, mean, deviation


def _unstandardize(
    weight: _Array, bias: _Array, mean: _Array, deviation: _Array
) -> tuple[_Array, _Array]:
    weight = weight / deviation
    return weight, bias - weight @ mean


def _fit_logits(states: _Array, marks: _Array, strength: float) -> tuple[_Array, _Array]:
    """A logistic regression for each label; one that all rows have, or none, has a bias alone."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  # slow to import
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    scaled, mean, deviation = _standardize(states)
    weight = np.zeros((marks.shape[1], states.shape[1]))
    bias = np.where(marks.mean(axis=0) > 0.5, _CERTAIN, -_CERTAIN)  # noqa: PLR2004  # half
    for label, wanted in enumerate(marks.T):
        if 0 < wanted.sum() < len(wanted):
            with catch_warnings():
                simplefilter("ignore", ConvergenceWarning)
                found = LogisticRegression(C=strength, max_iter=1000).fit(scaled, wanted)
            weight[label], bias[label] = found.coef_[0], found.intercept_[0]
    return _unstandardize(weight, bias, mean, deviation)


def _fit_numbers(states: _Array, numbers: _Array, penalty: float) -> tuple[_Array, _Array]:
    """Ridge regressions, in closed form."""
    scaled, mean, deviation = _standardize(states)
    center = numbers.mean(axis=0)
    gram = scaled.T @ scaled + penalty * np.eye(scaled.shape[1])
    weight = np.linalg.solve(gram, scaled.T @ (numbers - center)).T
    return _unstandardize(weight, center, mean, deviation)
