"""Optimisers by name, with one rate for the prompt and one for a head, and their schedules."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import Adafactor, get_scheduler

from softprompt.errors import RecipeError, unknown
from softprompt.train.settings import Training

# What a recipe sets by keys of their own.
_OWN = {"params", "lr", "weight_decay"}


def optimiser(
    prompt: Iterable[nn.Parameter], head: Iterable[nn.Parameter], *, training: Training
) -> torch.optim.Optimizer:
    """An optimiser over the prompt's parameters and the head's.

    Raises:
        RecipeError: there is no such optimiser, or it takes no such option.
    """
    groups = [
        {
            "params": list(prompt),
            "lr": training.learning_rate,
            "weight_decay": training.weight_decay,
        },
        {"params": list(head), "lr": training.head_learning_rate, "weight_decay": 0.0},
    ]
    kind, usual = _kind(training.optimizer)
    options = usual | dict(training.optimizer_options or {})
    known = set(inspect.signature(kind).parameters)
    wrong = sorted(options.keys() - (known - _OWN))
    if wrong:
        fault = unknown(f"option of {training.optimizer}", wrong[0], options=known - _OWN)
        raise RecipeError([f"train.optimizer_options: {fault}"])
    groups = [group for group in groups if group["params"]]
    if "weight_decay" not in known:
        groups = [{k: v for k, v in group.items() if k != "weight_decay"} for group in groups]
    try:
        return kind(groups, **options)
    except (TypeError, ValueError) as error:
        msg = f"train.optimizer: {training.optimizer} cannot be made: {error} Correct its options."
        raise RecipeError([msg]) from error


def names() -> list[str]:
    """The optimisers that a recipe may name."""
    classes = [
        name.lower()
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    ]
    return sorted({*classes, "adafactor"} - {"optimizer", "lbfgs", "sparseadam"})


def schedule(optimizer: torch.optim.Optimizer, *, training: Training, steps: int) -> LRScheduler:
    """The rates over all steps: a rise over the warm-up, then the schedule."""
    kind = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    rising = round(training.warmup * steps)
    made: LRScheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=rising, num_training_steps=steps
    )
    return made


def advance(optimizer: AcceleratedOptimizer, rates: LRScheduler) -> float:
    """Make a step, and the rate's with it unless fp16's scaler left the step out.

    Returns:
        The learning rate of the step.
    """
    rate = float(rates.get_last_lr()[0])
    optimizer.step()
    if not optimizer.step_was_skipped:
        rates.step()
    optimizer.zero_grad()
    return rate


def _kind(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    if name == "adafactor":
        # Lester et al. 2021: parameter scaling off, a rate of its own, decay exponent 0.8.
        return Adafactor, {"scale_parameter": False, "relative_step": False, "decay_rate": -0.8}
    if name not in names():
        raise RecipeError([f"train.optimizer: {unknown('optimiser', name, options=names())}"])
    by_name = {key.lower(): kind for key, kind in vars(torch.optim).items()}
    return by_name[name], {}
