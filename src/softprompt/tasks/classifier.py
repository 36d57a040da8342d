"""What all tasks share whose answers are probabilities of labels."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.errors import DataError, unknown
from softprompt.prompt import Prompt
from softprompt.tasks.base import Answer, Example, Loss, Row, Task


class Classifier(Task):
    """A task whose answers are probabilities of labels."""

    def target(self, row: Row) -> int:
        """The index of a row's label.

        Raises:
            DataError: the row has no label, or an unknown one.
        """
        if self.target_column not in row:
            raise DataError(unknown("column", self.target_column, options=row))
        label = str(row[self.target_column])
        if label not in self.labels:
            raise DataError(unknown("label", label, options=self.labels))
        return self.labels.index(label)

    @abstractmethod
    def states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """The hidden states that the answer is read from, K for each row."""

    @abstractmethod
    def read(self, states: Float[Tensor, "B K H"]) -> Float[Tensor, "B C"]:
        """Unnormalised log-probabilities of the labels, in fp32, from a row's states."""

    def scores(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Unnormalised log-probabilities of the labels, in fp32."""
        return self.read(self.states(examples, prompts, rows=rows))

    def loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Loss:
        """Cross-entropy over the labels."""
        scores = self.scores(examples, prompts, rows=rows)
        targets = torch.tensor([e.target for e in examples], device=scores.device)
        total = nn.functional.cross_entropy(scores, targets, reduction="sum")
        return Loss(total, len(examples))

    @torch.no_grad()
    def answer(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Answer]:
        """The likeliest label of each row and the probabilities of all."""
        return self.answers(self.scores(examples, prompts, rows=rows))

    def answers(self, scores: Float[Tensor, "B C"]) -> list[Answer]:
        """Scores as probabilities and the likeliest label."""
        return by_probability(self.labels, scores)


def by_probability(labels: Sequence[str], scores: Float[Tensor, "B C"]) -> list[Answer]:
    """The likeliest label of each row and the probabilities of all.

    Args:
        scores: unnormalised log-probabilities of the labels.
    """
    answers = []
    for row in scores.softmax(dim=-1).tolist():
        by_label = dict(zip(labels, row, strict=True))
        answers.append(Answer(max(by_label, key=by_label.__getitem__), by_label))
    return answers
