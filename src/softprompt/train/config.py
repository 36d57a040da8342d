"""The settings of training: the recipe's, completed by the method's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from softprompt.errors import RecipeError
from softprompt.methods.defaults import Defaults, Schedule
from softprompt.recipe import Recipe, TrainConfig, explain_validation_error


@dataclass(frozen=True)
class ResolvedTraining:
    """All settings of training, none left open.

    Args:
        seed: of the order of rows.
        epochs: passes over the training rows.
        max_steps: stop after so many optimizer steps; None for all epochs.
        batch_size: rows of one optimizer step, over all processes.
        max_tokens_per_batch: the most padded tokens of a step; None for no limit.
        gradient_accumulation_steps: the number of parts that the rows of a step are run in;
            changes memory, not numbers.
        optimizer: ``adamw``, ``adafactor``, or a class of ``torch.optim``.
        optimizer_args: further arguments of that class.
        learning_rate: of the prompt.
        head_learning_rate: of a trained head.
        weight_decay: of the prompt.
        lr_scheduler: the schedule of both learning rates.
        warmup_ratio: the fraction of all steps for the warm-up.
        max_grad_norm: the norm that gradients are clipped to; None for no clipping.
        eval_every_steps: steps between validations; None for once an epoch.
        max_eval_rows: the number of rows of a validation, always the same ones; None for all. The
            selected prompt is evaluated on all of them at the end.
        eval_train_rows: the number of training rows to evaluate at each validation, always the same
            ones; None for none.
        early_stopping_patience: stop after so many validations without a better one; None for
            never.
        best_metric: the validation metric that selects the best prompt; ``loss`` and the errors
            ``ece``, ``mae`` and ``rmse`` are minimized.
        keep_dropout: whether the backbone's own dropout is active in training.
        gradient_checkpointing: whether the backbone recomputes each layer in the backward pass.
        token_dropout: the share of a prefix's soft tokens that a row does not attend to in a step.
        end: the fraction of all steps to end after, as a cross-validation chose it. The schedule of
            the learning rates is that of all steps.
    """

    seed: int = 42
    epochs: int = 5
    max_steps: int | None = None
    batch_size: int = 32
    max_tokens_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] | None = None
    learning_rate: float = 1e-2
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    lr_scheduler: Schedule = "linear"
    warmup_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    eval_every_steps: int | None = None
    max_eval_rows: int | None = None
    eval_train_rows: int | None = None
    early_stopping_patience: int | None = None
    best_metric: str = "loss"
    keep_dropout: bool = False
    gradient_checkpointing: bool = False
    token_dropout: float = 0.0
    end: float = 1.0

    @property
    def is_backbone_in_train_mode(self) -> bool:
        """Whether a training step runs the backbone in training mode, which checkpointing needs."""
        return self.keep_dropout or self.gradient_checkpointing


# ``epochs = "auto"``: a run has so many epochs, within these limits of its steps, but never fewer
# epochs than these (docs/decisions/0015).
_AUTO_EPOCHS, _AUTO_STEPS, _AUTO_FEWEST_EPOCHS = 8, (120, 1000), 3
# It validates so many times.
_AUTO_VALIDATIONS = 8
# Each fold of a cross-validation trains for so many steps, validates after every few of them, and
# the mean of the folds chooses among them.
_AUTO_FOLD_STEPS, _AUTO_FOLD_INTERVAL = 100, 10


def resolve_training(recipe: Recipe, defaults: Defaults, *, rows: int) -> ResolvedTraining:
    """The recipe's settings, completed by the method's defaults.

    Args:
        recipe: of the run.
        defaults: of the method.
        rows: the number of training rows, by which ``epochs = "auto"`` sets the length of the run.
    """
    settings: dict[str, Any] = {
        "optimizer": defaults.optimizer,
        "learning_rate": defaults.learning_rate,
        "weight_decay": defaults.weight_decay,
        "lr_scheduler": defaults.lr_scheduler,
        "warmup_ratio": defaults.warmup_ratio,
    }
    if recipe.train.epochs == "auto":
        settings |= choose_length(recipe, rows)
    settings |= {
        name: value
        for name, value in recipe.train
        if value not in (None, "auto") and name in ResolvedTraining.__dataclass_fields__
    }
    settings |= {
        "seed": recipe.seed,
        "max_grad_norm": recipe.train.max_grad_norm or None,
        "keep_dropout": recipe.backbone.keep_dropout,
    }
    return ResolvedTraining(**settings)


def choose_length(recipe: Recipe, rows: int) -> dict[str, Any]:
    """The settings of ``epochs = "auto"``; each that the recipe names takes precedence.

    Args:
        recipe: of the run.
        rows: the number of training rows.
    """
    steps = max(1, ceil(rows / recipe.train.batch_size))  # of an epoch
    if recipe.data.folds is not None:
        total, interval = _AUTO_FOLD_STEPS, _AUTO_FOLD_INTERVAL
    else:
        fewest, most = _AUTO_STEPS
        total = min(max(_AUTO_EPOCHS * steps, fewest), most)
        total = max(total, _AUTO_FEWEST_EPOCHS * steps)
        interval = ceil(min(total, recipe.train.max_steps or total) / _AUTO_VALIDATIONS)
    return {"epochs": ceil(total / steps), "max_steps": total, "eval_every_steps": interval}


def check_validation_settings(training: ResolvedTraining, *, has_validation: bool) -> None:
    """Check that settings of validations are only given with validation rows.

    Args:
        training: all settings.
        has_validation: whether there are validation rows.

    Raises:
        RecipeError: they are given without validation rows.
    """
    names = [n for n in ("max_eval_rows", "eval_train_rows") if vars(training)[n] is not None]
    if training.lr_scheduler == "plateau" and not has_validation:
        fault = (
            'train.lr_scheduler: "plateau" follows the validations, but there are no validation '
            "rows. Give some (data.validation or data.split_sizes in a recipe), or name another "
            "schedule."
        )
        raise RecipeError([fault])
    if names and not has_validation:
        faults = [
            f"train.{name}: there are no validation rows, so nothing is evaluated during training. "
            "Give some (data.validation or data.split_sizes in a recipe), or leave this setting "
            "out."
            for name in names
        ]
        raise RecipeError(faults)


class TrainingConfig(TrainConfig):
    """The settings of training: the keys of a recipe's ``[train]``, and its seed.

    Frozen and strict. A setting that is None is chosen by method and backbone.

    Args:
        seed: of all random numbers.

    Raises:
        RecipeError: a setting is unknown or wrong; all faults at once.

    Examples:
        >>> config = TrainingConfig(epochs=4, learning_rate=0.01)
        >>> config.epochs, config.seed
        (4, 42)
        >>> TrainingConfig(epoch=4)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.RecipeError: 1 fault in TrainingConfig:
          - epoch: unknown key 'epoch'. Options: ... Did you mean 'epochs'?
    """

    seed: int = Field(42, ge=0, lt=2**31, description="decides everything random")

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise a RecipeError for faults."""
        try:
            return handler(data)
        except ValidationError as error:
            raise RecipeError(
                explain_validation_error(error, owner=cls), where=cls.__name__
            ) from None

    def as_table(self) -> dict[str, Any]:
        """The settings that were given, as a recipe's ``[train]``.

        Returns:
            The settings by their keys, without the seed.
        """
        return self.model_dump(exclude_unset=True, exclude={"seed"})
