"""How a run is trained, with nothing left open: the recipe's word, else the method's default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.errors import RecipeError
from softprompt.methods.defaults import Defaults, Schedule
from softprompt.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """Everything that decides a run but its data.

    Args:
        seed: of the order of rows.
        epochs: how often every row is seen.
        steps: stop after so many optimiser steps; None for all epochs.
        batch_size: rows of one optimiser step, over all processes.
        token_budget: at most so many padded tokens in a step; None for no limit.
        accumulate: run a step's rows in so many parts; changes memory, not numbers.
        optimizer: ``adamw``, ``adafactor``, or a class of ``torch.optim``.
        optimizer_options: further arguments of that class.
        learning_rate: of the prompt.
        head_learning_rate: of a trained head.
        weight_decay: of the prompt.
        schedule: how both rates fall.
        warmup: the share of all steps in which they rise first.
        clip: the largest norm of the gradient; None for any.
        evaluate_every: steps between validations; None for once an epoch.
        evaluate_rows: validate on so many rows, always the same; None for all. The chosen prompt is
            judged on all of them at the end.
        evaluate_train: judge so many training rows too, always the same; None for none.
        patience: stop after so many validations without a better one; None for never.
        select: the validation metric that decides which prompt is best; ``loss`` is minimised.
        dropout: whether the backbone's own dropout is at work in training.
        gradient_checkpointing: whether the backbone runs each layer again in the backward pass.
    """

    seed: int = 42
    epochs: int = 5
    steps: int | None = None
    batch_size: int = 32
    token_budget: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] | None = None
    learning_rate: float = 1e-2
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "linear"
    warmup: float = 0.0
    clip: float | None = 1.0
    evaluate_every: int | None = None
    evaluate_rows: int | None = None
    evaluate_train: int | None = None
    patience: int | None = None
    select: str = "loss"
    dropout: bool = False
    gradient_checkpointing: bool = False

    @property
    def awake(self) -> bool:
        """Whether the backbone is in training mode while it trains, which checkpointing needs."""
        return self.dropout or self.gradient_checkpointing


def resolve(recipe: Recipe, usual: Defaults) -> Training:
    """The recipe's settings, completed by the method's defaults."""
    own = {
        name: value
        for name, value in recipe.train
        if value is not None and name in Training.__dataclass_fields__
    }
    given: dict[str, Any] = {
        "optimizer": usual.optimizer,
        "learning_rate": usual.learning_rate,
        "weight_decay": usual.weight_decay,
        "schedule": usual.schedule,
        "warmup": usual.warmup,
    }
    fixed = {
        "seed": recipe.seed,
        "clip": recipe.train.clip or None,
        "dropout": recipe.backbone.dropout,
    }
    return Training(**(given | own | fixed))


def check_judging(training: Training, *, validated: bool) -> None:
    """Check that what is to be judged at validations can be.

    Args:
        validated: whether there are validation rows.

    Raises:
        RecipeError: there are none, so nothing would be.
    """
    asked = [n for n in ("evaluate_rows", "evaluate_train") if vars(training)[n] is not None]
    if asked and not validated:
        faults = [
            f"train.{name}: there are no validation rows, so nothing is judged while training. "
            "Name some in [data], or take it out."
            for name in asked
        ]
        raise RecipeError(faults)
