"""Logistic regression on the frozen backbone's states: its settings, their choice, and its head.

A head that is kept or compared with is fitted on states of length 1, as in SetFit (Tunstall et al.
2022, https://arxiv.org/abs/2209.11055), whose embeddings have length 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# The indices of rows to fit on, and of rows to judge by.
Part = tuple[np.ndarray, np.ndarray]

_FOLDS = 4
# Of the mean standard deviation of all features, below which a feature counts as constant.
_LEAST_DEVIATION = 1e-5
# The bias of a label that the regression has not seen, below the others': almost no probability.
_UNSEEN = 30.0
# What scores are multiplied by so that they are probabilities.
_FACTORS = np.geomspace(1e-2, 1e5, 141)


@dataclass(frozen=True)
class RegressionSettings:
    """The settings of a logistic regression.

    Args:
        strength: C, the inverse of the regularization.
        is_standardized: whether each feature is shifted and scaled to a mean of 0 and a variance
            of 1 first.
        weights: how much the rows of each label count, as pairs; None if all count the same.
    """

    strength: float
    is_standardized: bool = False
    weights: tuple[tuple[str, float], ...] | None = None


# From strong to weak regularization.
STANDARDIZED_REGRESSIONS = tuple(
    RegressionSettings(c, is_standardized=True) for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
)
# For states of length 1; the first is the default of scikit-learn, which SetFit has.
REGRESSIONS = (
    *(RegressionSettings(c) for c in (1.0, 3.0, 10.0, 30.0, 100.0)),
    *STANDARDIZED_REGRESSIONS,
)


def weigh_regressions(
    among: Sequence[RegressionSettings], weights: Mapping[str, float] | None
) -> tuple[RegressionSettings, ...]:
    """Settings with rows of each label that count more or less.

    Args:
        among: the settings.
        weights: by label; None if all rows count the same.
    """
    pairs = None if weights is None else (*weights.items(),)
    return tuple(replace(settings, weights=pairs) for settings in among)


def normalize_features(features: np.ndarray) -> np.ndarray:
    """Features divided by their length; those of zeros stay zeros.

    Args:
        features: of each row, ``[rows, H]``.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    normalized: np.ndarray = features / np.maximum(lengths, np.finfo(features.dtype).tiny)
    return normalized


def fit_regression(
    features: np.ndarray, labels: Sequence[str] | np.ndarray, *, settings: RegressionSettings
) -> "Pipeline":
    """Fit a logistic regression.

    Args:
        features: of each row, ``[rows, H]``.
        labels: of each row.
        settings: of the regression.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  # slow to import
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    scaler: StandardScaler | str = "passthrough"
    scaled = features
    if settings.is_standardized:
        scaler = StandardScaler().fit(features)
        # A state that differs by rounding alone would get a weight beyond the range of floats.
        deviations = scaler.var_**0.5
        scaler.scale_[deviations < _LEAST_DEVIATION * deviations.mean()] = 1.0
        scaled = scaler.transform(features)
    weights = None if settings.weights is None else dict(settings.weights)
    counts = None if weights is None else [weights[str(label)] for label in labels]
    regression = LogisticRegression(C=settings.strength, max_iter=1000)
    with catch_warnings():
        # A fit that has not converged is scored like the others.
        simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(scaler, regression.fit(scaled, labels, sample_weight=counts))


def fold_regression(fitted: "Pipeline", labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The weight ``[C, H]`` and bias ``[C]`` of a linear head with its probabilities.

    Args:
        fitted: as `fit_regression` makes it.
        labels: in the order of the head's scores. One that the regression has not seen gets a
            probability of almost 0.
    """
    scaler, regression = fitted[0], fitted[-1]
    weight, bias = regression.coef_, regression.intercept_
    if scaler != "passthrough":
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes, for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    by_label = {str(label): at for at, label in enumerate(regression.classes_)}
    folded = torch.zeros(len(labels), weight.shape[1])
    biases = torch.full((len(labels),), float(bias.min()) - _UNSEEN)
    for at, label in enumerate(labels):
        if label in by_label:
            folded[at] = torch.from_numpy(weight[by_label[label]])
            biases[at] = float(bias[by_label[label]])
    return folded, biases


def divide_by_label(labels: np.ndarray, *, seed: int) -> list[np.ndarray]:
    """The indices of rows in folds, over which every label is spread.

    Args:
        labels: of the rows.
        seed: of their order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [order[at::_FOLDS] for at in range(min(_FOLDS, len(labels)))]


def list_parts(labels: np.ndarray, folds: Sequence[Sequence[int] | np.ndarray]) -> list[Part]:
    """The rows to fit on and those of the fold to judge, where more than one label is fitted.

    Args:
        labels: of the rows.
        folds: the indices of the rows of each.
    """
    every = np.arange(len(labels))
    parts = [(np.setdiff1d(every, fold), np.asarray(fold)) for fold in folds]
    return [(fit, judge) for fit, judge in parts if len({*labels[fit]}) > 1]


@dataclass(frozen=True, eq=False)
class UnseenScores:
    """The scores of rows, each by a regression that was not fitted on it.

    Without any rows the accuracy is 0 and the loss infinite.

    Args:
        scores: ``[rows, C]``, in the order of the labels.
        targets: the label of each row, by its number.
    """

    scores: Tensor
    targets: Tensor

    @property
    def accuracy(self) -> float:
        """The part of the rows whose likeliest label is right, 0 to 1."""
        if not len(self.targets):
            return 0.0
        return float(self.hits.mean())

    @property
    def hits(self) -> np.ndarray:
        """Whether the likeliest label of each row is right."""
        found: np.ndarray = (self.scores.argmax(dim=-1) == self.targets).numpy()
        return found

    def compute_loss(self, factor: float = 1.0, *, weights: Sequence[float] | None = None) -> float:
        """The mean cross entropy.

        Args:
            factor: that the scores are multiplied by.
            weights: how much a row of each label counts; None if all count the same.
        """
        if not len(self.targets):
            return float("inf")
        scores = self.scores.double() * factor
        weight = None if weights is None else scores.new_tensor(weights)
        total = F.cross_entropy(scores, self.targets, weight=weight, reduction="sum")
        return float(total) / len(self.targets)

    def find_factor(self) -> float:
        """The factor of the scores with the lowest cross entropy, which calibrates them."""
        return float(min(_FACTORS, key=self.compute_loss)) if len(self.targets) else 1.0


def is_clearly_worse(hits: np.ndarray, best: np.ndarray, *, errors: float) -> bool:
    """Whether one is less accurate than another on the same rows by more than chance explains.

    Without any rows it is not.

    Args:
        hits: whether it is right on each row.
        best: whether the other is.
        errors: how many standard errors of the difference chance explains.
    """
    lead = best.astype(float) - hits.astype(float)
    return len(lead) > 0 and bool(lead.mean() > errors * lead.std() / len(lead) ** 0.5)


def score_rows(
    fitted: "Pipeline", features: np.ndarray, *, truth: np.ndarray, labels: Sequence[str]
) -> UnseenScores:
    """The scores of rows by a regression that was fitted without them.

    Args:
        fitted: the regression.
        features: of each row, ``[rows, H]``.
        truth: the label of each row.
        labels: in the order of the scores.
    """
    weight, bias = fold_regression(fitted, labels)
    numbers = {label: number for number, label in enumerate(labels)}
    targets = torch.tensor([numbers[str(label)] for label in truth])
    return UnseenScores(torch.from_numpy(features).float() @ weight.T + bias, targets)


def score_unseen(
    features: np.ndarray,
    truth: np.ndarray,
    *,
    labels: Sequence[str],
    parts: Sequence[Part],
    settings: RegressionSettings,
) -> UnseenScores:
    """The scores of rows by regressions that were fitted without them.

    Args:
        features: of each row, ``[rows, H]``.
        truth: the label of each row.
        labels: in the order of the scores.
        parts: the rows to fit on and those to judge, again and again.
        settings: of the regressions.
    """

    def score() -> Iterator[UnseenScores]:
        for fit, judge in parts:
            fitted = fit_regression(features[fit], truth[fit], settings=settings)
            yield score_rows(fitted, features[judge], truth=truth[judge], labels=labels)

    none = UnseenScores(torch.zeros(0, len(labels)), torch.zeros(0, dtype=torch.long))
    found = [none, *score()]
    return UnseenScores(
        torch.cat([of_part.scores for of_part in found]),
        torch.cat([of_part.targets for of_part in found]),
    )


@dataclass(frozen=True, eq=False)
class CalibratedRegression:
    """A logistic regression whose settings were chosen by folds, with calibrated scores.

    Args:
        settings: that were chosen.
        fitted: on all rows.
        unseen: the scores by which they were chosen.
        factor: of the scores, so that they are probabilities.
    """

    settings: RegressionSettings
    fitted: "Pipeline"
    unseen: UnseenScores
    factor: float

    def fold(self, labels: Sequence[str], *, is_normalized: bool) -> tuple[Tensor, Tensor]:
        """The weight ``[C, H]`` and bias ``[C]`` of a linear head with its probabilities.

        Args:
            labels: in the order of the head's scores.
            is_normalized: whether the features had length 1. A ``linear-normalized`` head divides
                states by their root mean square, which gives them the length √H.
        """
        weight, bias = fold_regression(self.fitted, labels)
        if is_normalized:
            weight = weight / weight.shape[1] ** 0.5
        return weight * self.factor, bias * self.factor


def fit_calibrated(
    features: np.ndarray,
    truth: np.ndarray,
    *,
    labels: Sequence[str],
    parts: Sequence[Part],
    among: Sequence[RegressionSettings] = REGRESSIONS,
) -> CalibratedRegression:
    """Choose the settings of a regression by folds, which also calibrate its scores, and fit it.

    Args:
        features: as in `choose_regression`.
        truth: the label of each row.
        labels: in the order of the scores.
        parts: as in `score_unseen`.
        among: the settings to choose from, from strong to weak regularization.
    """
    settings, unseen = choose_regression(features, truth, labels=labels, parts=parts, among=among)
    fitted = fit_regression(features, truth, settings=settings)
    return CalibratedRegression(settings, fitted, unseen, unseen.find_factor())


def choose_regression(
    features: np.ndarray,
    truth: np.ndarray,
    *,
    labels: Sequence[str],
    parts: Sequence[Part],
    among: Sequence[RegressionSettings] = REGRESSIONS,
) -> tuple[RegressionSettings, UnseenScores]:
    """The strongest regularization that is not clearly worse than the best, and its scores.

    Clear is one standard error of the difference on the same rows, the rule of Breiman et al. 1984:
    with few rows the most accurate settings are often so by chance. Accuracy decides, not the loss:
    a strong regularization is often right with scores that are too small, which a factor corrects.

    Args:
        features: of each row, ``[rows, H]``; by default of length 1.
        truth: the label of each row.
        labels: in the order of the scores.
        parts: as in `score_unseen`.
        among: the settings to choose from, from strong to weak regularization.
    """
    found = {
        settings: score_unseen(features, truth, labels=labels, parts=parts, settings=settings)
        for settings in among
    }
    best = max(found.values(), key=lambda unseen: unseen.accuracy)
    chosen = next(s for s in among if not is_clearly_worse(found[s].hits, best.hits, errors=1))
    return chosen, found[chosen]
