"""Optimizers by name, with one learning rate for the prompt and one for a head, and schedules."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from softprompt.errors import RecipeError, format_unknown, summarize_error
from softprompt.train.config import ResolvedTraining

# Arguments that have their own keys in a recipe.
_SEPARATE_KEYS = {"params", "lr", "weight_decay"}


def build_optimizer(
    prompt: Iterable[nn.Parameter], head: Iterable[nn.Parameter], *, training: ResolvedTraining
) -> torch.optim.Optimizer:
    """Build an optimizer of the prompt's parameters and the head's.

    Args:
        prompt: the parameters of the method, or the backbone's where these are trained.
        head: the parameters of the trained head; they are not decayed.
        training: the optimizer's name and arguments, learning rates and weight decay.

    Raises:
        RecipeError: there is no such optimizer, or it does not take these arguments.
    """
    groups = [
        {
            "params": list(prompt),
            "lr": training.learning_rate,
            "weight_decay": training.weight_decay,
        },
        {"params": list(head), "lr": training.head_learning_rate, "weight_decay": 0.0},
    ]
    optimizer_class, default_args = _find_optimizer_class(training.optimizer)
    args = default_args | dict(training.optimizer_args or {})
    known = set(inspect.signature(optimizer_class).parameters)
    allowed = known - _SEPARATE_KEYS
    unknown = sorted(args.keys() - allowed)
    if unknown:
        fault = format_unknown(f"argument of {training.optimizer}", unknown[0], options=allowed)
        raise RecipeError([f"train.optimizer_args: {fault}"])
    groups = [group for group in groups if group["params"]]
    if "weight_decay" not in known:
        groups = [{k: v for k, v in group.items() if k != "weight_decay"} for group in groups]
    try:
        optimizer = optimizer_class(groups, **args)
        _try_step(optimizer_class, groups, args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of its class, which checks its settings in many ways
        msg = (
            f"train.optimizer: cannot use {training.optimizer} ({summarize_error(error)}). Correct "
            "train.optimizer_args."
        )
        raise RecipeError([msg]) from error
    return optimizer


def _try_step(
    optimizer_class: type[torch.optim.Optimizer],
    groups: Sequence[Mapping[str, Any]],
    args: Mapping[str, Any],
) -> None:
    """Make a step on a copy of the smallest parameter: some settings fail at the first one."""
    for group in groups:
        smallest = min(group["params"], key=torch.Tensor.numel)
        copy = nn.Parameter(torch.zeros_like(smallest))
        copy.grad = torch.ones_like(copy)
        optimizer_class([{**group, "params": [copy]}], **args).step()


def list_optimizers() -> list[str]:
    """The names of the optimizers that a recipe may use."""
    classes = [
        name.lower()
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    ]
    return sorted({*classes, "adafactor"} - {"optimizer", "lbfgs", "sparseadam"})


# On a plateau of the validation loss: so many validations without a better one, and the factor.
_PLATEAU_PATIENCE, _PLATEAU_FACTOR = 2, 1 / 3


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, *, training: ResolvedTraining, steps: int
) -> LRScheduler:
    """Build the learning rate schedule of all steps, with its warm-up.

    The schedules are those of `transformers.optimization`, whose import takes a second. That of a
    plateau goes on at each validation, not at each step, and has no warm-up.
    """
    if training.lr_scheduler == "plateau":
        patience = _PLATEAU_PATIENCE - 1  # torch counts the validations before the one that acts
        return ReduceLROnPlateau(
            optimizer, mode="max", factor=_PLATEAU_FACTOR, patience=patience, threshold=0, eps=0
        )
    warmup = round(training.warmup_ratio * steps)

    def compute_factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        rest = max(1, steps - warmup)
        match training.lr_scheduler:
            case "constant" | "plateau":
                return 1.0
            case "linear":
                return max(0.0, (steps - step) / rest)
            case "cosine":
                return max(0.0, 0.5 * (1 + math.cos(math.pi * ((step - warmup) / rest))))
            case _:
                assert_never(training.lr_scheduler)

    return LambdaLR(optimizer, compute_factor)


def refresh_learning_rates(optimizer: AcceleratedOptimizer, scheduler: LRScheduler) -> None:
    """Set the rates of the next step as the schedule has them, which may have another end now."""
    if isinstance(scheduler, LambdaLR):
        factors = [of_step(scheduler.last_epoch) for of_step in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates  # noqa: SLF001  # what `get_last_lr` returns


def observe_validation(scheduler: LRScheduler, score: float) -> None:
    """Tell the schedule of a plateau the score of a validation; higher is better."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(score)


def update_parameters(optimizer: AcceleratedOptimizer, scheduler: LRScheduler) -> float:
    """Make an optimizer step, and one of the schedule unless fp16's scaler skipped the step.

    Returns:
        The learning rate of the step.
    """
    rate = float(scheduler.get_last_lr()[0])
    optimizer.step()
    if not optimizer.step_was_skipped and not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
    optimizer.zero_grad()
    return rate


def _find_optimizer_class(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class of a name, and the arguments that it gets unless the recipe has others."""
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # Lester et al. 2021: no parameter scaling, no relative step, decay exponent 0.8.
        return Adafactor, {"scale_parameter": False, "relative_step": False, "decay_rate": -0.8}
    if name not in list_optimizers():
        raise RecipeError(
            [f"train.optimizer: {format_unknown('optimizer', name, options=list_optimizers())}"]
        )
    by_name = {key.lower(): value for key, value in vars(torch.optim).items()}
    return by_name[name], {}
