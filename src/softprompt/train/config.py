"""The settings of training: the recipe's, completed by the method's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.errors import RecipeError
from softprompt.methods.defaults import Defaults, Schedule
from softprompt.recipe import Recipe


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
        best_metric: the validation metric that selects the best prompt; ``loss`` is minimized.
        keep_dropout: whether the backbone's own dropout is active in training.
        gradient_checkpointing: whether the backbone recomputes each layer in the backward pass.
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
    end: float = 1.0

    @property
    def is_backbone_in_train_mode(self) -> bool:
        """Whether a training step runs the backbone in training mode, which checkpointing needs."""
        return self.keep_dropout or self.gradient_checkpointing


def resolve_training(recipe: Recipe, defaults: Defaults) -> ResolvedTraining:
    """The recipe's settings, completed by the method's defaults."""
    settings: dict[str, Any] = {
        "optimizer": defaults.optimizer,
        "learning_rate": defaults.learning_rate,
        "weight_decay": defaults.weight_decay,
        "lr_scheduler": defaults.lr_scheduler,
        "warmup_ratio": defaults.warmup_ratio,
    }
    settings |= {
        name: value
        for name, value in recipe.train
        if value is not None and name in ResolvedTraining.__dataclass_fields__
    }
    settings |= {
        "seed": recipe.seed,
        "max_grad_norm": recipe.train.max_grad_norm or None,
        "keep_dropout": recipe.backbone.keep_dropout,
    }
    return ResolvedTraining(**settings)


def check_validation_settings(training: ResolvedTraining, *, has_validation: bool) -> None:
    """Check that settings of validations are only given with validation rows.

    Args:
        training: all settings.
        has_validation: whether there are validation rows.

    Raises:
        RecipeError: they are given without validation rows.
    """
    names = [n for n in ("max_eval_rows", "eval_train_rows") if vars(training)[n] is not None]
    if names and not has_validation:
        faults = [
            f"train.{name}: there are no validation rows, so nothing is evaluated during training. "
            "Give some (data.validation or data.split_sizes in a recipe), or leave this setting "
            "out."
            for name in names
        ]
        raise RecipeError(faults)
