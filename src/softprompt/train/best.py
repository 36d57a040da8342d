"""The best prompt so far, apart from the method that goes on changing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

from torch import Tensor, nn

from softprompt.errors import RecipeError, TrainingError, unknown
from softprompt.prompt import InputPrompt, KVPrefix, Prompt, cast, detached


@dataclass(frozen=True, eq=False)
class Best:
    """The best prompt so far, as inference needs it.

    Args:
        prompt: on the CPU, apart from the method.
        head: the trained head's tensors; empty without one.
        score: by which it is the best; higher is better.
        step: after which step.
        metrics: on the validation rows.
    """

    prompt: Prompt
    head: Mapping[str, Tensor]
    score: float
    step: int
    metrics: Mapping[str, float]

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {
            "prompt": self.prompt.tensors(),
            "head": dict(self.head),
            "score": self.score,
            "step": self.step,
            "metrics": dict(self.metrics),
        }


def score_of(metrics: Mapping[str, float], *, select: str, step: int) -> float:
    """What to choose by: a metric as it is, or the loss turned round, so that more is better.

    Raises:
        RecipeError: there is no such metric.
        TrainingError: it is no number.
    """
    if select not in metrics:
        raise RecipeError([f"train.select: {unknown('metric', select, options=metrics)}"])
    if math.isnan(metrics[select]):
        msg = (
            f"validation after step {step}: {select} is no number, so no prompt can be chosen by "
            'it. The precision may be too low: try backbone.dtype = "float32".'
        )
        raise TrainingError(msg)
    return -metrics[select] if select == "loss" else metrics[select]


def snapshot(
    prompt: Prompt, head: nn.Module | None, *, score: float, step: int, metrics: Mapping[str, float]
) -> Best:
    """A copy of what is trained, as it is now."""
    tensors = {} if head is None else head.state_dict()
    kept = {name: t.detach().cpu().clone() for name, t in tensors.items()}
    return Best(cast(detached(prompt), device="cpu"), kept, score, step, metrics)


def restored(state: Mapping[str, Any], *, like: Prompt) -> Best:
    """What :meth:`Best.state` was made of."""
    prompt = with_tensors(like, state["prompt"])
    return Best(prompt, state["head"], state["score"], state["step"], state["metrics"])


def with_tensors(like: Prompt, tensors: Mapping[str, Tensor]) -> Prompt:
    """A prompt of the same kind with other tensors."""
    match like:
        case InputPrompt():
            return replace(like, vectors=tensors["vectors"])
        case KVPrefix():
            return replace(like, keys=tensors["keys"], values=tensors["values"])
        case _:
            assert_never(like)
