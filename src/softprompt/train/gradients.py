"""The gradient of one step, which does not depend on the number of parts and processes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from softprompt.errors import TrainingError
from softprompt.tasks import Example, Task
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

    Returns:
        The mean loss, and the number of scored tokens.
    """
    count = sum(_count_scored_tokens(example) for example in batch)
    total = torch.zeros((), device=accelerator.device)
    for part in _split_batch(batch, parts, accelerator=accelerator):
        if not part and not task.backbone.sharded:
            continue
        # Without autocast: the prompt is small, and its parameters are trained.
        prompt = method()
        with accelerator.autocast():
            loss = task.compute_loss(part or batch[:1], [prompt])
        weight = 1 if part else 0
        accelerator.backward(weight * loss.total / count)
        total += weight * loss.total.detach().to(total)
    if accelerator.num_processes > 1:
        total = _sum_over_processes(total, list_trainable_parameters(task, method), accelerator)
    return float(total) / count, count


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
        torch.manual_seed((seed * 1_000_003 + step) * _MAX_PROCESSES + process)
        yield


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


def _count_scored_tokens(example: Example) -> int:
    return len(example.target) if isinstance(example.target, tuple) else 1


def _split_batch(
    batch: Sequence[Example], count: int, *, accelerator: Accelerator
) -> Iterator[Sequence[Example]]:
    """A process's share of the rows, in as many parts as the largest share; some may be empty."""
    processes = accelerator.num_processes
    share = batch[accelerator.process_index :: processes]
    largest = ceil(len(batch) / processes)
    size = ceil(largest / count)
    for begin in range(0, largest, size):
        yield share[begin : begin + size]
