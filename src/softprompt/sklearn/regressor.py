"""Soft prompts as a regressor of scikit-learn: one or several numbers for each row."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_array, check_consistent_length

from softprompt.sklearn.estimator import SoftPromptEstimator, Texts
from softprompt.tasks import NumberPrediction, Regress
from softprompt.tasks.regression import RegressionLoss

Targets: TypeAlias = Any


@dataclass(repr=False, eq=False, match_args=False)
class SoftPromptRegressor(RegressorMixin, SoftPromptEstimator):  # type: ignore[misc]  # untyped
    """A frozen language model with a trained soft prompt, as a regressor of scikit-learn.

    ``y`` holds one number for each row, or is a matrix ``[rows, numbers]``; predictions have the
    same form, and ``score`` is R².

    Args:
        words: number words that the language-model head scores, by their numbers: the prediction is
            the mean of the numbers, weighted with the probabilities of their words. None trains a
            head instead, which several numbers need.
        loss: ``mse``, the squared error, or ``huber``, in which outliers count less.

    The other settings are those of `SoftPromptEstimator`, which also says what ``X`` may be.

    Examples:
        ```python
        regressor = SoftPromptRegressor("builtin:minilm", epochs=10, best_metric="r2")
        cross_val_score(regressor, texts, stars)
        regressor.fit(texts, stars).predict(["moving and funny"])
        ```

        >>> SoftPromptRegressor(epochs=3, loss="huber").get_params()["loss"]
        'huber'
    """

    _: KW_ONLY
    words: Mapping[float, str | Sequence[str]] | None = None
    loss: RegressionLoss = "mse"

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  # scikit-learn's Tags, which are untyped
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Texts, y: Targets) -> Self:
        """Train a prompt, and select the best one by validation.

        Args:
            X: the rows.
            y: one number for each row, or a matrix ``[rows, numbers]``.

        Returns:
            The regressor itself.

        Raises:
            ValueError: the rows, numbers or settings are not valid, or there are words for several
                numbers.
            SoftpromptError: settings and rows do not fit; the message says what to do.
        """
        self._require_targets(y)
        numbers = _read_numbers(y)
        rows = self._read_rows(X, reset=True)
        check_consistent_length(rows, numbers)
        if self.words is not None and numbers.size > len(numbers):
            msg = (
                f"y has {numbers.shape[1]} numbers a row, but number words predict one. Leave "
                "words at None, which trains a head."
            )
            raise ValueError(msg)
        if self.words is not None:
            self._check_pooling("words")
        self._has_matrix = numbers.ndim > 1
        self._train(rows, numbers.tolist(), target="target")
        return self

    def predict(self, X: Texts) -> NDArray[np.float64]:
        """The numbers of each row.

        Args:
            X: the rows.

        Returns:
            Numbers ``[rows]``, or ``[rows, numbers]`` if ``y`` was a matrix.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """
        predictions = self._predict_rows(X)
        rows = [found.values for found in predictions if isinstance(found, NumberPrediction)]
        values = np.array(rows, dtype=np.float64)
        return values if self._has_matrix else values[:, 0]

    def _make_task(self, template: str, target: str) -> Regress:
        words = {str(number): word for number, word in (self.words or {}).items()}
        return Regress(
            template,
            target_column=target,
            words=words or None,
            loss=self.loss,
            pooling=self.pooling,
        )


def _read_numbers(y: Targets) -> NDArray[np.float64]:
    """Finite numbers ``[rows]`` or ``[rows, numbers]``."""
    try:
        numbers: NDArray[np.float64] = check_array(
            y, dtype=np.float64, ensure_2d=False, input_name="y"
        )
    except (TypeError, ValueError) as error:
        msg = (
            f"y cannot be read as numbers: {error}\nGive one finite number for each row, or a "
            "dense matrix [rows, numbers]."
        )
        raise ValueError(msg) from error
    return numbers
