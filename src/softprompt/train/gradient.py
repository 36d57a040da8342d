"""The gradient of one step: the same whatever the split into parts and processes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from softprompt.errors import TrainingError
from softprompt.methods import Method
from softprompt.tasks import Example, Task
from softprompt.train.settings import Training

# Far more processes than a run has.
_PROCESSES = 4096


def gradients(
    task: Task,
    method: Method | None,
    *,
    batch: Sequence[Example],
    parts: int,
    accelerator: Accelerator,
) -> tuple[float, int]:
    """Leave the gradient of the batch's mean loss per scored token at the parameters.

    How many tokens are scored is known before anything runs, so each part is divided by the
    whole's count, not by its own.

    A sharded backbone must be run equally often by all processes: one that has no rows left runs
    any row, for nothing.

    Args:
        method: makes the prompt; None where the backbone itself is trained.
        batch: of all processes; each runs its share.
        parts: how many parts a process runs its share in.

    Returns:
        The mean loss, and the number of scored tokens.
    """
    count = sum(_scored(example) for example in batch)
    total = torch.zeros((), device=accelerator.device)
    for part in _parts(batch, parts, accelerator=accelerator):
        if not part and not task.backbone.sharded:
            continue
        # In full precision: the prompt is small, and it is what is trained.
        prompt = None if method is None else method()
        with accelerator.autocast():
            loss = task.loss(part or batch[:1], [prompt])
        weight = 1 if part else 0
        accelerator.backward(weight * loss.total / count)
        total += weight * loss.total.detach().to(total)
    if accelerator.num_processes > 1 and method is not None:
        total = _summed(total, trained(task, method), accelerator)
    return float(total) / count, count


def trained(task: Task, method: Method) -> list[nn.Parameter]:
    """Everything that a run trains."""
    head = [] if task.head is None else task.head.parameters()
    return [*method.parameters(), *head]


def check_step(
    step: int, loss: float, *, norm: float, training: Training, scaler: GradScaler | None
) -> None:
    """No step is made of what is no number; fp16's scaler leaves out such steps by itself.

    Args:
        step: that is about to be made.
        norm: of the gradient.
        scaler: of fp16.

    Raises:
        TrainingError: the loss or the gradient is none.
    """
    tamed = scaler is not None and scaler.get_scale() >= 1
    if math.isfinite(loss) and (math.isfinite(norm) or tamed):
        return
    msg = (
        f"step {step}: the loss is {loss} and its gradient's norm {norm}. The learning rate "
        f"{training.learning_rate:g} is too high, or the precision too low: try a third of the "
        'rate, or backbone.dtype = "float32".'
    )
    raise TrainingError(msg)


@contextmanager
def seeded(seed: int, *, step: int, process: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's own generators; here they depend on seed, step and process alone.

    So nothing that ran before, in this run or in another, changes a step.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed((seed * 1_000_003 + step) * _PROCESSES + process)
        yield


def _summed(total: Tensor, given: Sequence[nn.Parameter], accelerator: Accelerator) -> Tensor:
    """Add up losses and gradients of all processes: a prompt is small, so one message does."""
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in given]
    message = torch.cat([total.reshape(1), *(g.flatten().to(total) for g in flat)])
    message = accelerator.reduce(message, "sum")
    sizes = [1, *(p.numel() for p in given)]
    first: Tensor
    first, *rest = message.split(sizes)
    for parameter, gradient in zip(given, rest, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter).clone()
    return first


def _scored(example: Example) -> int:
    return len(example.target) if isinstance(example.target, tuple) else 1


def _parts(
    batch: Sequence[Example], count: int, *, accelerator: Accelerator
) -> Iterator[Sequence[Example]]:
    """A process's share of the rows, in as many parts as the largest share; some may be empty."""
    processes = accelerator.num_processes
    own = batch[accelerator.process_index :: processes]
    largest = ceil(len(batch) / processes)
    size = ceil(largest / count)
    for begin in range(0, largest, size):
        yield own[begin : begin + size]
