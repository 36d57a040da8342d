"""Multitask prompt tuning: a shared prompt times a matrix of each task (Wang et al. 2023).

The product is folded when the prompt is saved: the artifact of a task holds its vectors alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softprompt.backbone.model import Geometry
from softprompt.methods.base import Method
from softprompt.methods.initializers import PromptKind
from softprompt.prompt import InputPrompt, Prompt


@dataclass(frozen=True)
class MultitaskPromptTuning:
    """Multitask prompt tuning: a shared prompt, multiplied by a matrix of low rank for each task.

    P_k = P ∘ (U_k V_k), with the shared prompt P, and U_k and V_k of task k (Wang et al. 2023). All
    entries of U_k V_k start at 1, so the prompt starts exactly at its initialization. Several tasks
    train one shared prompt with `train_multitask`; in a run of one task, the shared prompt is the
    initialization, such as the artifact of another run.

    Args:
        layers: the layers that see the soft tokens: ``"all"``, or ``"12:"`` for layer 12 and later.
        num_ranks: the rank of the task's matrix (1 in the paper).
        train_shared: whether the shared prompt is trained too, or only the task's matrix: P + E
            numbers for each rank.

    Examples:
        >>> MultitaskPromptTuning(train_shared=False).num_ranks
        1
    """

    name: ClassVar = "multitask-prompt-tuning"
    prompt_kind: ClassVar[PromptKind] = "input"
    is_direct: ClassVar = True

    layers: str = "all"
    num_ranks: int = 1
    train_shared: bool = True

    def build(
        self, _geometry: Geometry, start: InputPrompt, *, generator: torch.Generator
    ) -> "MultitaskPromptTuningMethod":
        """Build the shared prompt and the matrix of a task, whose product is the initial prompt.

        Args:
            start: the initial prompt, for its shape and values.
            generator: the generator of the columns beyond the first.

        Returns:
            The method.
        """
        return MultitaskPromptTuningMethod(
            start, num_ranks=self.num_ranks, train_shared=self.train_shared, generator=generator
        )


class MultitaskPromptTuningMethod(Method):
    """A shared prompt ``[P, E]``, and the columns ``[P, r]`` and rows ``[r, E]`` of a task.

    The first column and the first row are 1. Further columns are N(0, 1) and their rows 0, so that
    they do not change the start, but learn in different directions.
    """

    shared: Tensor

    def __init__(
        self,
        start: InputPrompt,
        *,
        num_ranks: int,
        train_shared: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layer = start.start_layer
        vectors = start.vectors.detach().float().clone()
        length, width = vectors.shape
        columns = torch.randn(length, num_ranks, generator=generator)
        columns[:, 0] = 1
        rows = torch.zeros(num_ranks, width)
        rows[0] = 1
        if train_shared:
            self.shared = nn.Parameter(vectors)
        else:
            self.register_buffer("shared", vectors)
        self.columns, self.rows = nn.Parameter(columns), nn.Parameter(rows)

    def compute_task_matrix(self) -> Float[Tensor, "P W"]:
        """Multiply the columns by the rows; each entry multiplies one of the shared prompt."""
        return self.columns @ self.rows

    def forward(self) -> Prompt:
        """Multiply the shared prompt by the task's matrix, entry by entry."""
        return InputPrompt(self.shared * self.compute_task_matrix(), self.layer)
