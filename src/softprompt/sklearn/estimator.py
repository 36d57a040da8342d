"""What the estimators have in common: their settings, reading rows, and training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from softprompt.artifact import Artifact
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row, iterate_rows, to_table
from softprompt.data.table import to_text
from softprompt.data.template import parse_template
from softprompt.injection.verify import load_backbone
from softprompt.methods import MethodSettings, PrefixTuning, PTuningV2
from softprompt.methods.defaults import Schedule
from softprompt.methods.initializers import Initializer
from softprompt.recipe.schema import HeadInit
from softprompt.tasks import Prediction, TaskSettings
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

# Soft tokens where neither length nor template sets their number.
LENGTH = 20
# The field of a text.
_TEXT = "text"
_PAIR = 2


# The settings are fields: scikit-learn reads them off the signature of ``__init__``, which a
# dataclass writes, with those of its bases. Estimators are compared and printed as elsewhere.
@dataclass(repr=False, eq=False, match_args=False)
class SoftPromptEstimator(BaseEstimator, ABC):  # type: ignore[misc]  # untyped there
    """The settings that the estimators share; `SoftPromptClassifier` is one.

    ``X`` is a list, array or series of texts; a list of mappings of fields; a data frame, whose
    columns are the fields; or a two-dimensional array. Numbers in it are read as texts.

    A backbone named by a string or a path is loaded once per process and shared, so that
    cross-validation does not load it again: see `release_backbone`. Copies of an estimator also
    share a backbone that is passed as an object.

    Args:
        backbone: a name as `load_backbone` takes it, or a loaded backbone.
        template: of a row, with its fields and soft tokens; None puts the soft tokens in front of
            the fields.
        pooling: the readout of a trained head, as in `Classify`; ``auto`` chooses it by a probe.
        method: settings, or a name such as ``"p-tuning-v2"``.
        length: the number of soft tokens, or of keys and values per layer; None for 20, or the
            method's default. A method that trains soft tokens takes it only without a template,
            which sets their number itself.
        init: the initialization, such as `FromText`, or an artifact to start from; None for the
            words of labels if there are some.
        validation_fraction: of the rows, split off to select the best prompt by, with the same
            share of each single label; 0 to use the last prompt.
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
        model_: the trained prompt, or the ensemble; ``model_.save(folder)`` saves it.
        n_features_in_: the number of columns, if ``X`` is a data frame or a two-dimensional array.
        feature_names_in_: the names of the columns, if ``X`` is a data frame.

    Examples:
        >>> from softprompt.sklearn import SoftPromptRegressor
        >>> SoftPromptRegressor(epochs=3).set_params(seeds=2)
        SoftPromptRegressor(epochs=3, seeds=2)
    """

    backbone: Backbone | str | Path = "builtin:minilm"
    _: KW_ONLY
    template: str | None = None
    pooling: PoolingChoice = "auto"
    method: MethodSettings | str = "prompt-tuning"
    length: int | None = None
    init: Initializer | Artifact | None = None
    validation_fraction: float = 0.1
    folds: int | None = None
    max_length: int | None = None
    device: str | torch.device = "auto"
    dtype: str | torch.dtype | None = "auto"
    random_state: int | np.random.RandomState | None = 42
    epochs: int | Literal["auto"] = 5
    max_steps: int | None = None
    batch_size: int = 32
    max_tokens_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    optimizer: str | None = None
    optimizer_args: Mapping[str, Any] | None = None
    learning_rate: float | Literal["auto"] | None = None
    head_learning_rate: float | None = None
    head_init: HeadInit = "regression"
    weight_decay: float | None = None
    lr_scheduler: Schedule | None = None
    warmup_ratio: float | None = None
    max_grad_norm: float = 1.0
    eval_every_steps: int | None = None
    max_eval_rows: int | None = None
    eval_train_rows: int | None = None
    early_stopping_patience: int | None = None
    best_metric: str = "loss"
    seeds: int = 1
    combine_seeds: Literal["best", "ensemble"] = "best"
    keep_plain_head: bool = False
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    callbacks: Sequence[Callback] = ()
    progress: ProgressOption = False

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  # scikit-learn's Tags, which are untyped
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    @abstractmethod
    def predict(self, X: Texts) -> NDArray[Any]:
        """The prediction for each row.

        Args:
            X: the rows.

        Returns:
            Predictions, in the form of ``y``.

        Raises:
            NotFittedError: it is not trained yet.
            ValueError: the rows are not like those that it was trained on.
        """

    @abstractmethod
    def _make_task(self, template: str, target: str) -> TaskSettings:
        """The task of rows that were read, with the column of their targets."""

    def _require_targets(self, y: object) -> None:
        if y is None:
            name = type(self).__name__
            msg = f"{name} requires y to be passed, but the target y is None. Give targets."
            raise ValueError(msg)

    def _check_pooling(self, words: str) -> None:
        """Check that no readout of a head is given with words, the argument of this name."""
        if self.pooling != "auto":
            msg = (
                f"pooling is {self.pooling!r}, but the language-model head scores the words of "
                f"{words}, so that no head has a readout. Leave pooling at 'auto', or {words} at "
                "None."
            )
            raise ValueError(msg)

    def _train(
        self, rows: Sequence[Mapping[str, str]], cells: Sequence[object], *, target: str
    ) -> None:
        """Train a prompt on rows and their targets, and keep it."""
        backbone = self._load_backbone()
        method = self._read_method()
        while target in self._fields:
            target += "_"
        task = self._make_task(self.template or self._make_template(method, backbone), target)
        pairs = zip(rows, cells, strict=True)
        table = to_table([{**row, target: cell} for row, cell in pairs])
        # With folds, every row validates once.
        fraction = 0.0 if self.folds else self.validation_fraction
        data = {"split_sizes": make_shares(fraction), "folds": self.folds}
        data |= {"max_length": self.max_length}
        config = self._make_config(self._draw_seed())
        recipe = make_fit_recipe(backbone, task, method=method, config=config, data=data)
        with make_callbacks(self.callbacks, progress=self.progress) as callbacks:
            prepared = setup_run(
                recipe,
                backbone=backbone,
                tables={"train": table},
                init=self.init,
                callbacks=callbacks,
            )
            self.model_ = run_prepared(prepared, callbacks=callbacks)

    def _predict_rows(self, X: Texts) -> list[Prediction]:
        check_is_fitted(self, "model_")
        rows = self._read_rows(X, reset=False)
        return self.model_.predict(rows, batch_size=self.batch_size)

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
                f"X has {count} column{'' if count == 1 else 's'}, but the estimator was trained "
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
    """Release the backbone that estimators of this process share, to free its memory.

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
