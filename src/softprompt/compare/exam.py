"""The test rows of a comparison, and what answers to them are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.evaluate import Confusion, classification, confusion, generation
from softprompt.evaluate.metrics import nearness

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Marks:
    """What answers are worth.

    Args:
        scores: of each row, 0 to 1.
        metrics: of all rows.
        confusion: who was taken for whom; None for free text.
    """

    scores: tuple[float, ...]
    metrics: Mapping[str, float]
    confusion: Confusion | None


@dataclass(frozen=True)
class Exam:
    """The test rows.

    Args:
        rows: as the arms see them.
        truth: their right answers.
        labels: that are chosen from; none for free text.
    """

    rows: Sequence[Row]
    truth: Sequence[str]
    labels: tuple[str, ...]

    @property
    def measure(self) -> str:
        """What a row's score is called: ``accuracy``, or ``chrf`` for free text."""
        return "accuracy" if self.labels else "chrf"

    def mark(self, answers: Sequence[str]) -> Marks:
        """Judge answers, one a row, in the rows' order."""
        if not self.labels:
            return Marks(nearness(self.truth, answers), generation(self.truth, answers), None)
        pairs = zip(answers, self.truth, strict=True)
        return Marks(
            scores=tuple(float(answer == wanted) for answer, wanted in pairs),
            metrics=classification(self.truth, answers, labels=self.labels),
            confusion=confusion(self.truth, answers, labels=self.labels),
        )
