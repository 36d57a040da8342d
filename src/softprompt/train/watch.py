"""Signs that a run goes wrong, told early.

The loudest complaint about soft prompts is that they "do not converge" and nothing says so.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.evaluate.predict import Judged
from softprompt.methods.defaults import T5
from softprompt.prompt import Prompt

STILL = 1e-3
RUNAWAY = 50.0
# T5 normalises what it is given, so its prompts grow a hundredfold and are well: Lester et al.'s
# released ones have entries around 50.
RUNAWAY_T5 = 5000.0


def distance(start: Prompt, now: Prompt) -> tuple[float, float]:
    """The prompt's norm and its distance from the start, both relative to the start's norm."""
    before, after = _flat(start), _flat(now)
    norm = float(before.norm().clamp(min=1e-12))
    return float(after.norm()) / norm, float((after - before).norm()) / norm


def warnings(
    parts: Sequence[Judged], *, labels: Sequence[str], moved: float, norm: float, family: str
) -> Iterator[tuple[str, str]]:
    """What looks wrong at a validation: its kind, and what to say."""
    if labels:
        yield from _majority(parts)
    if moved < STILL:
        msg = (
            f"the prompt has moved by {moved:.2%} of its norm since the start: the learning rate "
            "is too low for it. Try ten times as much."
        )
        yield "still", msg
    if norm > (RUNAWAY_T5 if family in T5 else RUNAWAY):
        msg = (
            f"the prompt's norm is {norm:.0f} times what it was at the start: it runs away. Lower "
            "the learning rate to a third."
        )
        yield "runaway", msg


def _majority(parts: Sequence[Judged]) -> Iterator[tuple[str, str]]:
    given = Counter(answer.label for part in parts for answer in part.answers)
    truth = Counter(label for part in parts for label in part.truth)
    if len(given) == 1 and len(truth) > 1:
        only, share = next(iter(given)), max(truth.values()) / truth.total()
        msg = (
            f"every validation row is answered {only!r} (the commonest label has a share of "
            f"{share:.0%}): the prompt has learnt nothing yet. If it stays so, try another "
            "learning rate, three times as high or a third, or start from a text."
        )
        yield "majority", msg


def _flat(prompt: Prompt) -> Tensor:
    return torch.cat([t.detach().float().flatten() for t in prompt.tensors().values()]).cpu()
