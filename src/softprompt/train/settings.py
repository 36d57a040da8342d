"""How a run is trained, with nothing left open: the recipe's word, else the method's default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.methods.defaults import Defaults, Schedule
from softprompt.recipe import TrainSection


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
        patience: stop after so many validations without a better one; None for never.
        select: the validation metric that decides which prompt is best; ``loss`` is minimised.
        mixed_precision: autocast of the forward pass.
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
    patience: int | None = None
    select: str = "loss"


def resolve(section: TrainSection, usual: Defaults, *, seed: int) -> Training:
    """The recipe's settings, completed by the method's defaults."""
    own = {
        name: value
        for name, value in section
        if value is not None and name in Training.__dataclass_fields__
    }
    given: dict[str, Any] = {
        "optimizer": usual.optimizer,
        "learning_rate": usual.learning_rate,
        "weight_decay": usual.weight_decay,
        "schedule": usual.schedule,
        "warmup": usual.warmup,
        "clip": section.clip,
        "seed": seed,
    }
    return Training(**(given | own))
