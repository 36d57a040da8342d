"""Soft prompts as a classifier of scikit-learn: one label for each row, or any number."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets, is_multilabel
from sklearn.utils.validation import assert_all_finite, column_or_1d

from softprompt.errors import SoftpromptWarning
from softprompt.inference.loops import stack_probabilities
from softprompt.sklearn.estimator import SoftPromptEstimator, Texts
from softprompt.tasks import Classify, LabelSetPrediction

ClassLabels: TypeAlias = Any


@dataclass(repr=False, eq=False, match_args=False)
class SoftPromptClassifier(ClassifierMixin, SoftPromptEstimator):  # type: ignore[misc]  # untyped
    """A frozen language model with a trained soft prompt, as a classifier of scikit-learn.

    ``y`` holds labels of any type, one for each row, and predictions have the same type. Or rows
    have any number of labels: then ``y`` is an indicator matrix ``[rows, labels]`` of 0 and 1, an
    array, a sparse matrix or a data frame, as ``MultiLabelBinarizer`` makes it. A prediction is an
    array of that kind too, and ``score`` is the share of rows all of whose labels are right.

    Args:
        verbalizer: for each label its word or words, which the language-model head scores; None
            trains a head instead, which an indicator matrix needs.
        class_weight: how much a row of each class counts: numbers by class, or ``balanced``; with
            an indicator matrix, how much a row that has a label counts in that label's loss.
        temperature: divides the scores of single labels, so that probabilities are the shares of
            right answers; ``auto`` is chosen on validation rows.
        thresholds: with an indicator matrix, the least probability of a label that is predicted: a
            number by class, or one for all. ``auto`` is chosen on validation rows by F1; 0.5
            without such rows.

    The other settings are those of `SoftPromptEstimator`, which also says what ``X`` may be.

    Attributes:
        classes_: the labels, sorted, with the type of ``y``; of an indicator matrix the numbers of
            its columns, or their names, if it is a data frame.

    Examples:
        ```python
        classifier = SoftPromptClassifier("builtin:minilm", epochs=4)
        cross_val_score(classifier, texts, labels)
        GridSearchCV(classifier, {"learning_rate": [0.003, 0.01, 0.03]}).fit(texts, labels)
        classifier.fit(texts, MultiLabelBinarizer().fit_transform(topics))
        ```

        >>> classifier = SoftPromptClassifier(epochs=3).set_params(learning_rate=0.03)
        >>> classifier.get_params()["learning_rate"]
        0.03
        >>> classifier
        SoftPromptClassifier(epochs=3, learning_rate=0.03)
    """

    _: KW_ONLY
    verbalizer: Mapping[Any, str | Sequence[str]] | None = None
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None
    temperature: float | Literal["auto"] = 1.0
    thresholds: float | Mapping[Any, float] | Literal["auto"] = "auto"

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  # scikit-learn's Tags, which are untyped
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Texts, y: ClassLabels) -> Self:
        """Train a prompt, and select the best one by validation.

        Args:
            X: the rows.
            y: their labels, one for each row, or an indicator matrix.

        Returns:
            The classifier itself.

        Raises:
            ValueError: the rows or labels are not valid, or there is only one class.
            SoftpromptError: settings and rows do not fit; the message says what to do.

        Warns:
            SoftpromptWarning: no row has one of the labels.
        """
        self._require_targets(y)
        labels = _read_labels(y)
        rows = self._read_rows(X, reset=True)
        check_consistent_length(rows, labels)
        self._label_type, self._has_sets = labels.dtype, labels.ndim > 1
        self.classes_: NDArray[Any] = np.unique(labels)
        if self._has_sets:
            columns = _list_columns(y)
            self.classes_ = np.arange(labels.shape[1]) if columns is None else columns
            self._check_set_settings()
            _check_sets(labels, self.classes_)
            names = np.array(self._names, dtype=object)
            self._train(rows, [names[of_row != 0].tolist() for of_row in labels], target="label")
        else:
            self._check_label_settings()
            self._train(rows, [str(label) for label in labels], target="label")
        return self

    def predict_proba(self, X: Texts) -> NDArray[np.float64]:
        """The probability of each class.

        Args:
            X: the rows.

        Returns:
            Probabilities ``[rows, classes]``; the columns are in the order of ``classes_``. Those
            of a row sum to one; with an indicator matrix each is a label's own.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """
        return stack_probabilities(self._predict_rows(X), self._names)

    def predict(self, X: Texts) -> NDArray[Any]:
        """The most probable class of each row, or the labels that reach their thresholds.

        Args:
            X: the rows.

        Returns:
            The labels, with the type of ``y``; or an indicator matrix ``[rows, labels]``.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """
        predictions = self._predict_rows(X)
        names = self._names
        if not self._has_sets:
            best = stack_probabilities(predictions, names).argmax(axis=1)
            return cast("NDArray[Any]", self.classes_[best])
        sets = [found.labels for found in predictions if isinstance(found, LabelSetPrediction)]
        return np.array([[name in of_row for name in names] for of_row in sets], self._label_type)

    @property
    def _names(self) -> list[str]:
        """The classes as the task has them."""
        return [str(label) for label in self.classes_]

    def _make_task(self, template: str, target: str) -> Classify:
        words = self.verbalizer
        temperature = self.temperature
        return Classify(
            template,
            label_column=target,
            verbalizer=words and {str(label): word for label, word in words.items()},
            # Of sets all columns, also those that no row has; words have their own order.
            labels=self._names if self._has_sets else None,
            pooling=self.pooling,
            class_weights=_name_numbers(self.class_weight),
            multi_label=self._has_sets,
            thresholds=_name_numbers(self.thresholds),
            temperature=temperature if isinstance(temperature, str) else float(temperature),
        )

    def _check_set_settings(self) -> None:
        """Check that there are only settings that rows with any number of labels have."""
        if self.verbalizer is not None:
            msg = (
                "y is an indicator matrix, but the words of a verbalizer share one probability, so "
                "that two labels cannot both be likely. Leave verbalizer at None, which trains a "
                "head."
            )
            raise ValueError(msg)
        if self.temperature != 1:
            msg = (
                f"temperature is {self.temperature!r}, but y is an indicator matrix, whose labels "
                "have thresholds instead. Leave temperature at 1.0."
            )
            raise ValueError(msg)

    def _check_label_settings(self) -> None:
        """Check that there are only settings that rows with one label have."""
        if len(only := self.classes_.tolist()) == 1:
            msg = (
                f"y has one class only, {only[0]!r}, but must have at least 2. Give rows of "
                "another."
            )
            raise ValueError(msg)
        if self.thresholds != "auto":
            msg = (
                f"thresholds is {self.thresholds!r}, but y has one label a row, and the most "
                "probable is predicted. Leave thresholds at 'auto', or give an indicator matrix."
            )
            raise ValueError(msg)
        if self.verbalizer is not None:
            self._check_pooling("verbalizer")


def _read_labels(y: ClassLabels) -> NDArray[Any]:
    """Labels ``[rows]``, or a dense indicator matrix ``[rows, labels]``."""
    _check_names(y)
    if is_multilabel(y):
        return y.toarray() if issparse(y) else np.asarray(y)
    try:
        labels: NDArray[Any] = column_or_1d(y, warn=True)
    except (TypeError, ValueError) as error:
        msg = (
            "y is neither one label for each row nor an indicator matrix [rows, labels] of 0 and "
            "1 with two columns or more. Give labels, or the matrix that MultiLabelBinarizer makes."
        )
        raise ValueError(msg) from error
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    return labels


def _list_columns(y: ClassLabels) -> NDArray[Any] | None:
    """The names of the columns of a data frame; None for anything else."""
    try:
        return np.asarray(y.columns)
    except AttributeError:
        return None


def _check_names(y: ClassLabels) -> None:
    """Check that the columns of a data frame have different names, also as texts."""
    columns = _list_columns(y)
    names = [] if columns is None else [str(name) for name in columns]
    double = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if double is not None:
        msg = f"y has two columns called {double!r}. Rename one of them."
        raise ValueError(msg)


def _check_sets(marks: NDArray[Any], classes: NDArray[Any]) -> None:
    """Check that an indicator matrix has 0 and 1, and that labels have rows."""
    wrong = marks[~np.isin(marks, (0, 1))].tolist()
    if wrong:
        msg = (
            f"y is a matrix with {wrong[0]!r} in it, but an indicator matrix has only 0 and 1. "
            "Give the matrix that MultiLabelBinarizer makes."
        )
        raise ValueError(msg)
    names = [str(name) for name in classes]
    present = (marks != 0).any(axis=0).tolist()
    absent = [name for name, has_rows in zip(names, present, strict=True) if not has_rows]
    if len(absent) == len(names):
        msg = "y has no row with a label. Give rows that have some."
        raise ValueError(msg)
    if absent:
        msg = (
            f"no row of y has the label {', '.join(map(repr, absent))}, so that a prompt can only "
            "learn not to predict it. Give rows that have it."
        )
        warnings.warn(msg, SoftpromptWarning, stacklevel=3)


def _name_numbers(numbers: Any) -> Any:  # noqa: ANN401  # a text, a number, numbers by class
    """Numbers by the text of each class; a text, a number or None is returned as it is."""
    if isinstance(numbers, Mapping):
        return {str(label): float(number) for label, number in numbers.items()}
    return numbers if numbers is None or isinstance(numbers, str) else float(numbers)
