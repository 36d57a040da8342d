"""Warnings for runs that do not converge: no change, divergence, or constant predictions."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.inference.loops import EvaluatedRows
from softprompt.methods.defaults import T5
from softprompt.prompt import Prompt

# The distance from initialization and the norm, both relative to the norm of the initialization,
# below and above which there is a warning.
MIN_DISTANCE = 1e-3
MAX_NORM = 50.0
# T5 normalizes its inputs, so its prompts may grow a hundredfold: those that Lester et al. released
# have entries around 50.
MAX_NORM_T5 = 5000.0


def measure_distance(start: Prompt, now: Prompt) -> tuple[float, float]:
    """The prompt's norm and its distance from initialization, both relative to that norm."""
    before, after = _flatten(start), _flatten(now)
    norm = float(before.norm().clamp(min=1e-12))
    return float(after.norm()) / norm, float((after - before).norm()) / norm


def find_warnings(
    parts: Sequence[EvaluatedRows],
    *,
    labels: Sequence[str],
    moved: float | None,
    norm: float | None,
    family: str,
) -> Iterator[tuple[str, str]]:
    """Find what looks wrong at a validation.

    Args:
        parts: the evaluated validation rows.
        labels: of the task.
        moved: the prompt's distance from initialization, relative to the initialization's norm;
            None where the backbone is trained.
        norm: of the prompt, relative to the initialization's; None where the backbone is trained.
        family: the backbone's model type.

    Yields:
        The kind of each warning, and its message.
    """
    if labels:
        yield from _find_constant_predictions(parts, has_prompt=moved is not None)
    if moved is not None and moved < MIN_DISTANCE:
        msg = (
            f"the prompt has changed by {moved:.2%} of its norm since initialization: the learning "
            "rate is too low. Try ten times the rate."
        )
        yield "still", msg
    if norm is not None and norm > (MAX_NORM_T5 if family in T5 else MAX_NORM):
        msg = (
            f"the prompt's norm is {norm:.0f} times that of its initialization: it is diverging. "
            "Lower the learning rate to a third."
        )
        yield "runaway", msg


def _find_constant_predictions(
    parts: Sequence[EvaluatedRows], *, has_prompt: bool
) -> Iterator[tuple[str, str]]:
    predicted = Counter(answer.label for part in parts for answer in part.predictions)
    truth = Counter(label for part in parts for label in part.truth)
    if len(predicted) == 1 and len(truth) > 1:
        label, share = next(iter(predicted)), max(truth.values()) / truth.total()
        trained = "prompt" if has_prompt else "backbone"
        another_start = ", or initialize from a text" if has_prompt else ""
        msg = (
            f"the prediction is {label!r} for every validation row (the most frequent label has a "
            f"share of {share:.0%}): the {trained} has learned nothing yet. If this persists, try "
            f"another learning rate, three times as high or a third{another_start}."
        )
        yield "majority", msg


def _flatten(prompt: Prompt) -> Tensor:
    return torch.cat([t.detach().float().flatten() for t in prompt.to_tensors().values()]).cpu()
