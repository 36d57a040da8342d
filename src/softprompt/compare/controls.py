"""Controls that nothing random is in: what a trained prompt must beat, or its number means nothing.

Fine-tuning and LoRA are controls too, but they are trained like prompts: see
:func:`softprompt.compare.arms.tuned_arms`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from softprompt.compare.exam import Row
from softprompt.compare.outcome import Cost
from softprompt.evaluate import bare_answers
from softprompt.tasks import Task


class Control(Interface):
    """Answers test rows."""

    @property
    def cost(self) -> Cost | None:
        """What it took; None where nothing was trained."""

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """One answer a row."""


@dataclass(frozen=True)
class Majority:
    """The commonest answer of the training rows.

    Args:
        answer: that one.
    """

    answer: str
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The same for every row."""
        return [self.answer] * len(rows)


@dataclass(frozen=True, eq=False)
class Untrained:
    """A task without a prompt.

    Args:
        task: whose template has no soft tokens.
    """

    task: Task
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The backbone's own answers."""
        return bare_answers(self.task, rows)


def majority(answers: Sequence[str]) -> Majority:
    """The commonest of these; of equally common ones the first in alphabetical order."""
    count = Counter(answers)
    return Majority(min(count, key=lambda answer: (-count[answer], answer)))
