"""Soft prompts as a scikit-learn classifier: pipelines, cross-validation, grid search.

``import softprompt`` does not import it: ``from softprompt.sklearn import SoftPromptClassifier``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from softprompt.artifact import Artifact
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row, iterate_rows, to_table
from softprompt.data.splits import split_rows
from softprompt.data.table import to_text
from softprompt.data.template import parse_template
from softprompt.inference.loops import stack_probabilities
from softprompt.injection.verify import load_backbone
from softprompt.methods import MethodSettings, PrefixTuning, PTuningV2
from softprompt.methods.defaults import Schedule
from softprompt.methods.initializers import Initializer
from softprompt.recipe.schema import HeadInit
from softprompt.tasks import Classify
from softprompt.tasks.pooling import PoolingChoice
from softprompt.train.api import (
    TrainingConfig,
    find_method,
    make_fit_recipe,
    make_shares,
    run_prepared,
)
from softprompt.train.display import ProgressOption, make_callbacks
from softprompt.train.events import Callback
from softprompt.train.setup import setup_run

# Texts, mappings of fields, a data frame or an array, for which scikit-learn has no type.
Texts: TypeAlias = Any
ClassLabels: TypeAlias = Any

__all__ = ["SoftPromptClassifier", "release_backbone"]

# Soft tokens where neither length nor template sets their number.
LENGTH = 20
# The field of a text, and the column of its label.
_TEXT, _LABEL = "text", "label"
_PAIR = 2


class SoftPromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped there
    """A frozen language model with a trained soft prompt, as a classifier of scikit-learn.

    ``X`` is a list, array or series of texts; a list of mappings of fields; a data frame, whose
    columns are the fields; or a two-dimensional array. Numbers in it are read as texts. ``y`` holds
    labels of any type, and predictions have the same type.

    A backbone named by a string or a path is loaded once per process and shared, so that
    cross-validation does not load it again: see `release_backbone`. Copies of the classifier also
    share a backbone that is passed as an object.

    Args:
        backbone: a name as `load_backbone` takes it, or a loaded backbone.
        template: of a row, with its fields and soft tokens; None puts the soft tokens in front of
            the fields.
        verbalizer: for each label its word or words, which the language-model head scores; None
            trains a head instead.
        pooling: the readout of a trained head, as in `Classify`; ``auto`` chooses it by a probe.
        class_weight: how much a row of each class counts: numbers by class, or ``balanced``.
        method: settings, or a name such as ``"p-tuning-v2"``.
        length: the number of soft tokens, or of keys and values per layer; None for 20, or the
            method's default. A method that trains soft tokens takes it only without a template,
            which sets their number itself.
        init: the initialization, such as `FromText`, or an artifact to start from; None for label
            words if there are some.
        validation_fraction: of the rows of each class, split off to select the best prompt by; 0
            to use the last prompt.
        folds: of a cross-validation that chooses the number of steps instead; None for none.
        max_length: of a row, in tokens; None for the positions that the backbone has.
        device: as in `load_backbone`.
        dtype: as in `load_backbone`.
        random_state: the seed; None for a random one.
        epochs: passes over the rows. This and the arguments up to ``mixed_precision`` are those of
            `TrainingConfig`, with its defaults.
        max_steps: stop after so many optimizer steps.
        batch_size: rows per optimizer step, and per batch in prediction.
        max_tokens_per_batch: the most padded tokens per step.
        gradient_accumulation_steps: the number of parts in which the rows of a step are run.
        optimizer: ``adamw``, ``adafactor``, or a class of ``torch.optim``.
        optimizer_args: further arguments of that class.
        learning_rate: of the prompt; None for the method's default, ``auto`` to search for it.
        head_learning_rate: of a trained head; None for 0.001, or what a search chooses.
        head_init: what a linear head starts as: a logistic ``regression``, or ``random``.
        weight_decay: of the prompt; None for the method's default.
        lr_scheduler: the schedule of the learning rates; None for the method's default.
        warmup_ratio: the fraction of all steps for the warm-up.
        max_grad_norm: the norm that gradients are clipped to; 0 for no clipping.
        eval_every_steps: steps between validations; None for once an epoch.
        max_eval_rows: the most rows of a validation.
        eval_train_rows: the number of training rows to evaluate at each validation.
        early_stopping_patience: stop after so many validations without a better one.
        best_metric: the validation metric that the best prompt is selected by.
        seeds: how often a prompt is trained, with the seed, the next one, and so on.
        combine_seeds: the result of several: the ``best`` one, or an ``ensemble`` of all.
        keep_plain_head: whether to keep a logistic regression where no prompt is better.
        gradient_checkpointing: whether the backbone recomputes each layer in the backward pass.
        mixed_precision: of training, by accelerate.
        callbacks: called with every event of a training run.
        progress: as in `fit`; False by default, since a search trains many times.

    Attributes:
        classes_: the labels, sorted, with the type of ``y``.
        model_: the trained prompt, or the ensemble; ``model_.save(folder)`` saves it.
        n_features_in_: the number of columns, if ``X`` is a data frame or a two-dimensional array.
        feature_names_in_: the names of the columns, if ``X`` is a data frame.

    Examples:
        ```python
        classifier = SoftPromptClassifier("builtin:minilm", epochs=4)
        cross_val_score(classifier, texts, labels)
        GridSearchCV(classifier, {"learning_rate": [0.003, 0.01, 0.03]}).fit(texts, labels)
        ```

        >>> classifier = SoftPromptClassifier(epochs=3).set_params(learning_rate=0.03)
        >>> classifier.get_params()["learning_rate"]
        0.03
        >>> classifier
        SoftPromptClassifier(epochs=3, learning_rate=0.03)
    """

    classes_: NDArray[Any]

    def __init__(  # noqa: PLR0913  # scikit-learn wants every setting as an argument
        self,
        backbone: Backbone | str | Path = "builtin:minilm",
        *,
        template: str | None = None,
        verbalizer: Mapping[Any, str | Sequence[str]] | None = None,
        pooling: PoolingChoice = "auto",
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        method: MethodSettings | str = "prompt-tuning",
        length: int | None = None,
        init: Initializer | Artifact | None = None,
        validation_fraction: float = 0.1,
        folds: int | None = None,
        max_length: int | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        random_state: int | np.random.RandomState | None = 42,
        epochs: int | Literal["auto"] = 5,
        max_steps: int | None = None,
        batch_size: int = 32,
        max_tokens_per_batch: int | None = None,
        gradient_accumulation_steps: int = 1,
        optimizer: str | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        learning_rate: float | Literal["auto"] | None = None,
        head_learning_rate: float | None = None,
        head_init: HeadInit = "regression",
        weight_decay: float | None = None,
        lr_scheduler: Schedule | None = None,
        warmup_ratio: float | None = None,
        max_grad_norm: float = 1.0,
        eval_every_steps: int | None = None,
        max_eval_rows: int | None = None,
        eval_train_rows: int | None = None,
        early_stopping_patience: int | None = None,
        best_metric: str = "loss",
        seeds: int = 1,
        combine_seeds: Literal["best", "ensemble"] = "best",
        keep_plain_head: bool = False,
        gradient_checkpointing: bool = False,
        mixed_precision: Literal["no", "bf16", "fp16"] = "no",
        callbacks: Sequence[Callback] = (),
        progress: ProgressOption = False,
    ) -> None:
        self.backbone = backbone
        self.template = template
        self.verbalizer = verbalizer
        self.pooling = pooling
        self.class_weight = class_weight
        self.method = method
        self.length = length
        self.init = init
        self.validation_fraction = validation_fraction
        self.folds = folds
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.optimizer = optimizer
        self.optimizer_args = optimizer_args
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.head_init = head_init
        self.weight_decay = weight_decay
        self.lr_scheduler = lr_scheduler
        self.warmup_ratio = warmup_ratio
        self.max_grad_norm = max_grad_norm
        self.eval_every_steps = eval_every_steps
        self.max_eval_rows = max_eval_rows
        self.eval_train_rows = eval_train_rows
        self.early_stopping_patience = early_stopping_patience
        self.best_metric = best_metric
        self.seeds = seeds
        self.combine_seeds = combine_seeds
        self.keep_plain_head = keep_plain_head
        self.gradient_checkpointing = gradient_checkpointing
        self.mixed_precision = mixed_precision
        self.callbacks = callbacks
        self.progress = progress

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  # scikit-learn's Tags, which are untyped
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def fit(self, X: Texts, y: ClassLabels) -> Self:
        """Train a prompt, and select the best one by validation.

        Args:
            X: the rows.
            y: their labels, one for each row.

        Returns:
            The classifier itself.

        Raises:
            ValueError: the rows or labels are not valid, or there is only one class.
            SoftpromptError: settings and rows do not fit; the message says what to do.
        """
        labels = self._read_labels(y)
        rows = self._read_rows(X, reset=True)
        check_consistent_length(rows, labels)
        self.classes_ = np.unique(labels)
        _check_classes(self.classes_)
        backbone = self._load_backbone()
        method = self._read_method()
        template = self.template or self._make_template(method, backbone)
        target = _LABEL + "_" * (_LABEL in self._fields)
        task = self._make_task(template, target)
        seed = self._draw_seed()
        table = to_table(
            [{**row, target: str(label)} for row, label in zip(rows, labels, strict=True)]
        )
        # With folds, every row validates once.
        fraction = 0.0 if self.folds else self.validation_fraction
        tables = {"train": table}
        if fraction:
            sizes = {"train": 1 - fraction, "validation": fraction}
            tables = split_rows(table, seed=seed, shares=sizes, stratify=target)
        data = {"split_sizes": make_shares(fraction), "folds": self.folds}
        data |= {"max_length": self.max_length}
        config = self._make_config(seed)
        recipe = make_fit_recipe(backbone, task, method=method, config=config, data=data)
        with make_callbacks(self.callbacks, progress=self.progress) as callbacks:
            prepared = setup_run(
                recipe, backbone=backbone, tables=tables, init=self.init, callbacks=callbacks
            )
            self.model_ = run_prepared(prepared, callbacks=callbacks)
        return self

    def predict_proba(self, X: Texts) -> NDArray[np.float64]:
        """The probability of each class.

        Args:
            X: the rows.

        Returns:
            Probabilities ``[rows, classes]``; the columns are in the order of ``classes_``.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """
        check_is_fitted(self, "model_")
        rows = self._read_rows(X, reset=False)
        names = [str(label) for label in self.classes_]
        return stack_probabilities(self.model_.predict(rows, batch_size=self.batch_size), names)

    def predict(self, X: Texts) -> NDArray[Any]:
        """The most probable class of each row.

        Args:
            X: the rows.

        Returns:
            The labels, with the type of ``y``.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """
        best = self.predict_proba(X).argmax(axis=1)
        return cast("NDArray[Any]", self.classes_[best])

    def _read_labels(self, y: ClassLabels) -> NDArray[Any]:
        if y is None:
            name = type(self).__name__
            msg = f"{name} requires y to be passed, but the target y is None. Give labels."
            raise ValueError(msg)
        labels: NDArray[Any] = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return labels

    def _read_rows(self, X: Texts, *, reset: bool) -> list[dict[str, str]]:
        """The rows as mappings of texts; those of training (``reset``) decide on the fields."""
        items = _list_items(X)
        if items is None:
            return self._read_table(X, reset=reset)
        if reset:
            self._forget_columns()
        if isinstance(items[0], str):
            return self._read_texts(items, reset=reset)
        return self._read_mappings(items, reset=reset)

    def _forget_columns(self) -> None:
        """Remove the attributes on columns that an earlier fit set."""
        for name in ("n_features_in_", "feature_names_in_"):
            if name in vars(self):
                delattr(self, name)

    def _read_table(self, X: Texts, *, reset: bool) -> list[dict[str, str]]:
        table = validate_data(self, X, dtype=None, reset=reset)
        if reset:
            self._fields = self._choose_fields(table.shape[1])
        self._check_count(table.shape[1])
        rows = iterate_rows([dict(zip(self._fields, row, strict=True)) for row in table])
        return self._make_texts(list(rows))

    def _read_texts(self, items: Sequence[object], *, reset: bool) -> list[dict[str, str]]:
        wrong = next((at for at, item in enumerate(items) if not isinstance(item, str)), None)
        if wrong is not None:
            msg = (
                f"row {wrong} (counted from 0) of X is {items[wrong]!r}, but the first is a "
                "text. Give a text for each row."
            )
            raise ValueError(msg)
        if reset:
            self._fields = self._choose_fields(1)
        self._check_count(1)
        return [{self._fields[0]: str(item)} for item in items]

    def _read_mappings(self, items: Sequence[Any], *, reset: bool) -> list[dict[str, str]]:
        rows = list(iterate_rows(items))
        if reset:
            self._fields = _list_fields(self.template) or tuple(rows[0])
        return self._make_texts(rows)

    def _make_texts(self, rows: Sequence[Row]) -> list[dict[str, str]]:
        """The rows with a text in every field."""
        for at, row in enumerate(rows):
            missing = [name for name in self._fields if row.get(name) is None]
            if missing:
                msg = (
                    f"row {at} (counted from 0) of X has no {missing[0]!r}. Give it in every row, "
                    "or leave that row out."
                )
                raise ValueError(msg)
        return [{name: to_text(row[name]) for name in self._fields} for row in rows]

    def _choose_fields(self, count: int) -> tuple[str, ...]:
        """The fields of rows with ``count`` columns: by their names, or by the template."""
        names = vars(self).get("feature_names_in_")
        if names is not None:
            return tuple(str(name) for name in names)
        if (fields := _list_fields(self.template)) and len(fields) != count:
            msg = (
                f"X has {count} column{'' if count == 1 else 's'}, but the template has the fields "
                f"{', '.join(fields)}. Give a data frame or mappings that have them."
            )
            raise ValueError(msg)
        return fields or ((_TEXT,) if count == 1 else tuple(f"x{at}" for at in range(count)))

    def _check_count(self, count: int) -> None:
        """Check that there is a column for each field."""
        if len(self._fields) != count:
            msg = (
                f"X has {count} column{'' if count == 1 else 's'}, but the classifier was trained "
                f"with {', '.join(self._fields)}. Give exactly that."
            )
            raise ValueError(msg)

    def _make_template(self, method: MethodSettings, backbone: Backbone) -> str:
        """The template of fields alone: two texts of an encoder are a pair."""
        is_pair = len(self._fields) == _PAIR and backbone.geometry.architecture == "encoder"
        text = ("{sep}" if is_pair else "\n").join(f"{{{name}}}" for name in self._fields)
        soft = f"{{soft:{self.length or LENGTH}}}" if method.prompt_kind == "input" else ""
        return soft + text

    def _read_method(self) -> MethodSettings:
        method = find_method(self.method)
        if self.length is None:
            return method
        if self.length < 1:
            msg = f"length is {self.length}, but must be 1 or more. Give None for the default."
            raise ValueError(msg)
        if isinstance(method, PrefixTuning | PTuningV2):
            return replace(method, length=self.length)
        if self.template is not None:
            msg = f"length is {self.length}, but the template has one too. Leave length at None."
            raise ValueError(msg)
        return method

    def _make_task(self, template: str, target: str) -> Classify:
        words, weights = self.verbalizer, self.class_weight
        if isinstance(weights, Mapping):
            weights = {str(label): float(weight) for label, weight in weights.items()}
        return Classify(
            template,
            label_column=target,
            verbalizer=words and {str(label): word for label, word in words.items()},
            pooling=self.pooling,
            class_weights=weights,
        )

    def _draw_seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _make_config(self, seed: int) -> TrainingConfig:
        settings = {name: vars(self)[name] for name in SETTINGS}
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
        return TrainingConfig(seed=seed, **{k: v for k, v in plain.items() if v is not None})

    def _load_backbone(self) -> Backbone:
        if isinstance(self.backbone, Backbone):
            return self.backbone
        return _load_shared_backbone(str(self.backbone), self.dtype, self.device)


# The settings of TrainingConfig that are arguments here, all but seed and trackers.
SETTINGS = tuple(name for name in TrainingConfig.model_fields if name not in {"seed", "trackers"})


@lru_cache(maxsize=1)
def _load_shared_backbone(
    name: str, dtype: str | torch.dtype | None, device: str | torch.device
) -> Backbone:
    """Load a backbone, unless it is the last one that was loaded."""
    return load_backbone(name, dtype=dtype, device=device)


def release_backbone() -> None:
    """Release the backbone that classifiers of this process share, to free its memory.

    Examples:
        >>> release_backbone()
    """
    _load_shared_backbone.cache_clear()


def _list_items(X: Texts) -> list[object] | None:
    """The rows of a sequence of texts or mappings; None for anything else."""
    if isinstance(X, str):
        msg = f"X is one text, {X[:40]!r}, but must be a list of texts. Give [X]."
        raise ValueError(msg)  # noqa: TRY004  # as scikit-learn's own vectorizers
    if not isinstance(X, list | tuple) and not _is_column(X):
        return None
    items = list(X)
    return items if items and isinstance(items[0], str | Mapping) else None


def _is_column(X: Texts) -> bool:
    """Whether it is an array or a series with one dimension."""
    try:
        return len(X.shape) == 1 and not issparse(X)
    except AttributeError:
        return False


def _list_fields(template: str | None) -> tuple[str, ...]:
    """The fields of a template, each once, in their order."""
    return () if template is None else tuple(dict.fromkeys(parse_template(template).fields))


def _check_classes(classes: NDArray[Any]) -> None:
    if len(only := classes.tolist()) == 1:
        msg = f"y has one class only, {only[0]!r}, but must have at least 2. Give rows of another."
        raise ValueError(msg)
