"""The gradient of one step, which does not depend on the number of parts and processes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from softprompt.errors import TrainingError
from softprompt.prompt import KVPrefix, Prompt
from softprompt.tasks import Example, Task
from softprompt.tasks.objectives import FreeText
from softprompt.train.config import ResolvedTraining

# Far more processes than a run has, so that no two steps share a seed.
_MAX_PROCESSES = 4096


def accumulate_gradients(
    task: Task,
    method: nn.Module,
    *,
    batch: Sequence[Example],
    parts: int,
    accelerator: Accelerator,
    visible: Bool[Tensor, "B P"] | None = None,
) -> tuple[float, int]:
    """Compute the gradient of the batch's mean loss per scored token.

    The number of scored tokens is known in advance, so the loss of each part is divided by the
    count of the whole batch, not by its own.

    A sharded backbone must be run equally often by all processes: a process without rows runs one
    row with weight 0.

    Args:
        task: that computes the loss.
        method: returns the prompt, or None where the backbone itself is trained.
        batch: of all processes; each runs its share.
        parts: the number of parts that a process runs its share in.
        accelerator: of the run.
        visible: the soft tokens of a prefix that each row attends to; None for all.

    Returns:
        The mean loss, and the number of scored tokens.
    """
    count = sum(_count_scored(example, task) for example in batch)
    total = torch.zeros((), device=accelerator.device)
    for part in _split_batch(range(len(batch)), parts, accelerator=accelerator):
        if not part and not task.backbone.sharded:
            continue
        examples = [batch[index] for index in part or [0]]
        # Without autocast: the prompt is small, and its parameters are trained.
        prompts, rows = _hide_columns(method(), visible, part or [0])
        with accelerator.autocast():
            loss = task.compute_loss(examples, prompts, rows=rows)
        weight = 1 if part else 0
        accelerator.backward(weight * loss.total / count)
        total += weight * loss.total.detach().to(total)
    if accelerator.num_processes > 1:
        total = _sum_over_processes(total, list_trainable_parameters(task, method), accelerator)
    return float(total) / count, count


def draw_visible_columns(
    batch: Sequence[Example], length: int, *, dropout: float, seed: int, step: int
) -> Bool[Tensor, "B P"] | None:
    """Choose the soft tokens of a prefix that each row of a step attends to.

    A row does not attend to those that were made of it (leave-one-out), nor to a random share of
    the others (token dropout). The draw depends on seed and step alone, so that a resumed run, and
    a run in more parts or processes, has the same numbers.

    Source: Lu et al. 2025, "Context Tuning", section 3.

    Args:
        batch: the rows of the step.
        length: P, the number of soft tokens.
        dropout: the share of soft tokens that a row does not attend to.
        seed: of the run.
        step: its number.

    Returns:
        None if every row attends to everything.
    """
    if not dropout and all(example.own_columns is None for example in batch):
        return None
    # No process has this number, so nothing else is drawn from this seed.
    generator = torch.Generator().manual_seed(_derive_seed(seed, step, _MAX_PROCESSES - 1))
    visible = torch.rand(len(batch), length, generator=generator) >= dropout
    for row, example in zip(visible, batch, strict=True):
        if example.own_columns is not None:
            row[slice(*example.own_columns)] = False
    return visible


def _hide_columns(
    prompt: Prompt | None, visible: Bool[Tensor, "B P"] | None, part: Sequence[int]
) -> tuple[list[Prompt | None], Int[Tensor, " b"] | None]:
    """The prompts of some rows, and the index of each row's: one for each row if they differ."""
    if visible is None or not isinstance(prompt, KVPrefix):
        return [prompt], None
    chosen = visible[list(part)].to(prompt.keys.device)
    return [replace(prompt, visible=row) for row in chosen], torch.arange(len(part))


def list_trainable_parameters(task: Task, method: nn.Module) -> list[nn.Parameter]:
    """The parameters that a run trains."""
    head = [] if task.head is None else task.head.parameters()
    return [*method.parameters(), *head]


def check_finite_step(
    step: int, loss: float, *, norm: float, training: ResolvedTraining, scaler: GradScaler | None
) -> None:
    """Refuse a step with NaN or infinity; with fp16 the scaler skips such steps itself.

    Args:
        step: the next one.
        loss: of the step.
        norm: of the gradient.
        training: all settings.
        scaler: of the loss, with fp16; None otherwise.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    is_skipped = scaler is not None and scaler.get_scale() >= 1
    if math.isfinite(loss) and (math.isfinite(norm) or is_skipped):
        return
    msg = (
        f"step {step}: the loss is {loss} and the norm of its gradient {norm}. The learning rate "
        f"{training.learning_rate:g} is too high, or the precision too low: try a third of the "
        'rate, or backbone.dtype = "float32".'
    )
    raise TrainingError(msg)


@contextmanager
def use_step_rng(seed: int, *, step: int, process: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for one step by the run's seed, the step and the process.

    Dropout draws from these generators, so earlier computations do not change a step.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_derive_seed(seed, step, process))
        yield


def _derive_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * _MAX_PROCESSES + process


def _sum_over_processes(
    loss: Tensor, parameters: Sequence[nn.Parameter], accelerator: Accelerator
) -> Tensor:
    """Sum loss and gradients over all processes: a prompt is small, so one message does."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([loss.reshape(1), *(g.flatten().to(loss) for g in gradients)])
    message = accelerator.reduce(message, "sum")
    sizes = [1, *(p.numel() for p in parameters)]
    total: Tensor
    total, *sums = message.split(sizes)
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter).clone()
    return total


def _count_scored(example: Example, task: Task) -> int:
    """What the loss of a row is a sum over: its tokens, or the row itself."""
    is_text = task.objective.loss_unit == FreeText.loss_unit
    return len(example.target) if is_text and isinstance(example.target, tuple) else 1


def _split_batch(
    batch: Sequence[int], count: int, *, accelerator: Accelerator
) -> Iterator[Sequence[int]]:
    """A process's share of indices, in as many parts as the largest share; some may be empty."""
    processes = accelerator.num_processes
    share = batch[accelerator.process_index :: processes]
    largest = ceil(len(batch) / processes)
    size = ceil(largest / count)
    for begin in range(0, largest, size):
        yield share[begin : begin + size]
