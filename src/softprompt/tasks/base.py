"""The interface of tasks: rows in, a loss or predictions out, for any prompt and method."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.backbone.model import Backbone, BatchInputs
from softprompt.data.chats import RowRenderer
from softprompt.data.collate import Side, collate
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow, TokenizedRows
from softprompt.data.words import WordStates
from softprompt.injection.forward import forward
from softprompt.injection.prefix_sharing import (
    SharedPrefix,
    compute_shared_prefix,
    plan_split,
    run_split,
)
from softprompt.injection.row_prompts import CachedInput
from softprompt.injection.state_cache import (
    CachedStates,
    compute_row_key,
    find_first_affected_layer,
)
from softprompt.prompt import Prompt
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import Objective, Prediction, SingleLabel, SummedLoss, TargetValue
from softprompt.tasks.tag_sequences import TagSequences


def pad_rows(
    backbone: Backbone, rows: Sequence[RenderedRow], *, side: Side = "right"
) -> BatchInputs:
    """Pad rows to one batch on the backbone's device."""
    batch = collate(rows, range(len(rows)), pad=backbone.pad_token_id, side=side).to(
        backbone.device
    )
    return BatchInputs(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
    )


def with_decoder_inputs(inputs: BatchInputs, decoder: Sequence[Sequence[int]]) -> BatchInputs:
    """The batch with the decoder's input ids; short rows are padded on the right."""
    width = max(len(row) for row in decoder)
    padded = [[*row, *[0] * (width - len(row))] for row in decoder]
    return replace(inputs, decoder_input_ids=torch.tensor(padded, device=inputs.input_ids.device))


def gather_positions(
    states: Float[Tensor, "B T H"], positions: Sequence[Sequence[int]]
) -> Float[Tensor, "S H"]:
    """The hidden states at some positions of each row, one row after the other."""
    rows = [row for row, of_row in enumerate(positions) for _ in of_row]
    columns = [position for of_row in positions for position in of_row]
    return states[rows, columns]


# The most positions of a pass without a gradient.
_MOST_POSITIONS = 1 << 17
# Fewer rows are one batch, within which their common prefix is run once anyway.
_MIN_ROWS_TO_SHARE = 33


@dataclass(frozen=True)
class Example:
    """A rendered row, as a task runs it.

    Args:
        variants: the row as the backbone is run on it, once or with several continuations.
        read_positions: for each variant the positions whose hidden states are needed.
        target: the label's index, the indices of several, numbers, or the ids of the target text;
            None if it is not known.
        own_columns: the soft tokens of the prompt that were made of this row, first and last plus
            one, which are hidden from it in training; None if there are none.
        words: whose states are read, of a task that tags them; None for other tasks.
        text: of the field that a prediction is a part of; empty for most tasks.
        characters: the range in that text of each of its tokens that is read; empty for most tasks.
        options: the texts to choose from; empty for most tasks.
        option_ids: the tokens of each option, where these are scored.
    """

    variants: tuple[RenderedRow, ...]
    read_positions: tuple[tuple[int, ...], ...]
    target: TargetValue | None
    own_columns: tuple[int, int] | None = None
    words: WordStates | None = None
    text: str = ""
    characters: tuple[tuple[int, int], ...] = ()
    options: tuple[str, ...] = ()
    option_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens of the longest variant, by which rows are batched."""
        return max([len(v.input_ids) for v in self.variants])

    @property
    def truncated(self) -> bool:
        """Whether a field was truncated."""
        return any(v.truncated for v in self.variants)


class Task(ABC):
    """What a backbone's output is used for: a loss and predictions, bound to one backbone.

    Attributes:
        backbone: the backbone that is run.
        kind: the name of the task, as a recipe has it.
        objective: what is asked for: how targets are read and predictions scored.
        columns: the columns that a row must have for a prediction: the template's fields.
        target_column: the column of the target, which training and evaluation need as well.
        flexible_columns: those of them whose cells the task checks itself, so that they may be
            lists, records or empty.
        cached: states of rows that were computed before, if there are any.
    """

    backbone: Backbone
    kind: str = ""
    objective: Objective
    columns: tuple[str, ...]
    target_column: str
    flexible_columns: tuple[str, ...] = ()
    cached: CachedStates | SharedPrefix | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels or choices; empty if any text is possible."""
        return self.objective.labels

    def with_cached_states(self, cached: CachedStates | SharedPrefix) -> "Task":
        """A copy of the task that takes states of rows from a cache."""
        task = copy(self)
        task.cached = cached
        return task

    def with_shared_prefix(self, examples: Sequence[Example], prompt: Prompt | None) -> "Task":
        """A copy of the task that runs the common prefix of these rows once for all of them."""
        rows = [variant.input_ids for example in examples for variant in example.variants]
        if self.cached is not None or prompt is None or len(rows) < _MIN_ROWS_TO_SHARE:
            return self
        shared = compute_shared_prefix(self.backbone, rows, prompt=prompt)
        return self if shared is None else self.with_cached_states(shared)

    def list_training_rows(self, example: Example) -> tuple[RenderedRow, ...]:
        """The rows that the backbone is run on to train on an example."""
        return example.variants

    def make_cached_input(
        self, rows: Sequence[RenderedRow], prompts: Sequence[Prompt | None]
    ) -> CachedInput | None:
        """The cached states of rows; None if a prompt affects a lower layer or a row is missing."""
        cached = self.cached
        if not isinstance(cached, CachedStates) or cached.layer is None:
            return None
        affected = [find_first_affected_layer(prompt) for prompt in prompts]
        if any(layer is not None and layer < cached.layer for layer in affected):
            return None
        states = cached.find(
            [compute_row_key(r.input_ids, r.token_type_ids) for r in rows],
            device=self.backbone.device,
        )
        return None if states is None else CachedInput(cached.layer, states)

    def compute_states_at(
        self,
        rows: Sequence[RenderedRow],
        *,
        positions: Sequence[Sequence[int]],
        prompts: Sequence[Prompt | None],
        prompt_index: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "S H"]:
        """The hidden states at some positions of each row; only what these need is run.

        Args:
            rows: the rows to run.
            positions: for each row the positions.
            prompts: a single prompt for all rows, or several.
            prompt_index: for each row the index of its prompt; None with a single prompt.
        """
        if prompt_index is None and len(prompts) == 1:
            ids = [row.input_ids for row in rows]
            needed = [min(of_row, default=0) for of_row in positions]
            split = plan_split(
                self.backbone, ids, prompt=prompts[0], needed=needed, cached=self.cached
            )
            if split is not None:
                states = run_split(self.backbone, ids, split=split)
                pairs = zip(positions, split.lengths, strict=True)
                return gather_positions(states, [[p - n for p in of_row] for of_row, n in pairs])
        inputs = pad_rows(self.backbone, rows)
        states = self.run_rows(rows, inputs, prompts=prompts, prompt_index=prompt_index)
        return gather_positions(states, positions)

    def run_rows(
        self,
        rows: Sequence[RenderedRow],
        inputs: BatchInputs,
        *,
        prompts: Sequence[Prompt | None],
        prompt_index: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "B T H"]:
        """The last hidden states at all positions, computed from cached states if there are any.

        Args:
            rows: the rows to run.
            inputs: the same rows, padded.
            prompts: a single prompt for all rows, or several.
            prompt_index: for each row the index of its prompt; None with a single prompt.
        """
        cached = self.make_cached_input(rows, prompts)
        return forward(self.backbone, inputs, prompts=prompts, rows=prompt_index, cached=cached)

    def decode_states(
        self,
        rows: Sequence[RenderedRow],
        *,
        decoder: Sequence[Sequence[int]],
        prompts: Sequence[Prompt | None],
        prompt_index: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "Bd Td H"]:
        """The decoder's hidden states; there may be several decoder inputs for each row."""
        inputs = with_decoder_inputs(pad_rows(self.backbone, rows), decoder)
        cached = self.make_cached_input(rows, prompts)
        return forward(self.backbone, inputs, prompts=prompts, rows=prompt_index, cached=cached)

    @property
    def class_weights(self) -> dict[str, float] | None:
        """How much a row of each label counts in the loss; None if all count the same."""
        match self.objective:
            case (
                SingleLabel(labels, tuple(weights))
                | LabelSets(labels, weights=tuple(weights))
                | TagSequences(labels, weights=tuple(weights))
            ):
                return dict(zip(labels, weights, strict=True))
            case _:
                return None

    @property
    def head(self) -> nn.Module | None:
        """A module that is trained with the prompt; None for most tasks."""
        return None

    @property
    def reads_whole_rows(self) -> bool:
        """Whether states of all positions are read, so that no part of a row is run separately."""
        return False

    @property
    def parameters(self) -> int:
        """The number of the backbone's parameters, without the LM head's if a head is trained."""
        used = self.backbone.model if self.head is None else self.backbone.body
        return sum(p.numel() for p in used.parameters())

    @property
    @abstractmethod
    def renderers(self) -> tuple[RowRenderer, ...]:
        """What renders a row; most tasks have one."""

    @abstractmethod
    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row; with ``target`` also its target."""

    @abstractmethod
    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """Render many rows, which is faster than one by one."""

    @abstractmethod
    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """The summed loss of a batch."""

    @abstractmethod
    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """The predictions for a batch."""

    @abstractmethod
    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """The summed loss of a batch without label smoothing, and its predictions."""


class WholeRowTask(Task):
    """A task whose renderers each make one row of tokens of a row, and shorten what is too long."""

    @abstractmethod
    def complete_example(
        self, row: Row, rendered: Sequence[RenderedRow], *, target: bool = True
    ) -> Example:
        """Make an example of a row that each of the renderers has rendered."""

    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row; with ``target`` also its target."""
        rendered = [renderer.render(row) for renderer in self.renderers]
        return self.complete_example(row, rendered, target=target)

    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """Render many rows, which is faster than one by one."""
        tokenized = [renderer.tokenize(rows) for renderer in self.renderers]
        return self._complete_all(rows, tokenized, target=target)

    def iterate_examples(self, groups: Iterable[Sequence[Row]]) -> Iterator[Example]:
        """Render groups of rows with their targets; while one is completed, the next is tokenised.

        Tokenizers run without Python, so that it takes little more than the longer of the two.
        """

        def tokenize(rows: Sequence[Row]) -> list[TokenizedRows]:
            return [renderer.tokenize(rows) for renderer in self.renderers]

        with ThreadPoolExecutor(1, thread_name_prefix="softprompt-tokenizer") as thread:
            started = ((rows, thread.submit(tokenize, rows)) for rows in groups)
            first = next(started, None)
            while first is not None:
                following = next(started, None)
                yield from self._complete_all(first[0], first[1].result(), target=True)
                first = following

    def _complete_all(
        self, rows: Sequence[Row], tokenized: Sequence[TokenizedRows], *, target: bool
    ) -> list[Example]:
        parts = [r.join_all(part) for r, part in zip(self.renderers, tokenized, strict=True)]
        pairs = zip(rows, zip(*parts, strict=True), strict=True)
        return [self.complete_example(*pair, target=target) for pair in pairs]


class ReadoutTask(Task):
    """A task whose predictions are read from hidden states, in one run of the backbone.

    Rows of different tasks of this kind can share a forward pass: each task reads its own rows.
    """

    @abstractmethod
    def read_rows(
        self, examples: Sequence[Example], states: Sequence[Float[Tensor, "_ H"]]
    ) -> list[Prediction]:
        """The predictions for rows.

        Args:
            examples: the rows.
            states: of each row those at its read positions, one variant after the other; or what
                the task pools of them.
        """

    def compute_row_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Float[Tensor, "_ H"]]:
        """The hidden states at the read positions of each row, one variant after the other.

        Args:
            examples: the rows, each of any number of variants.
            prompts: a single prompt for all rows, or several.
            rows: for each row the index of its prompt; None with a single prompt.
        """
        counts = torch.tensor([len(example.variants) for example in examples])
        variants = [variant for example in examples for variant in example.variants]
        positions = [at for example in examples for at in example.read_positions]
        index = None if rows is None else rows.repeat_interleave(counts.to(rows.device))
        # A long text has many windows. The gradient needs those of a row in one graph anyway.
        longest = max(example.length for example in examples)
        size = len(variants) if torch.is_grad_enabled() else max(1, _MOST_POSITIONS // longest)
        states = torch.cat(
            [
                self.compute_states_at(
                    variants[begin : begin + size],
                    positions=positions[begin : begin + size],
                    prompts=prompts,
                    prompt_index=None if index is None else index[begin : begin + size],
                )
                for begin in range(0, len(variants), size)
            ]
        )
        return list(states.split([sum(map(len, e.read_positions)) for e in examples]))


class HeadTask(ReadoutTask):
    """A task with a trained head on hidden states."""

    @property
    @abstractmethod
    def head(self) -> ClassifierHead:
        """The head, which is trained with the prompt."""

    @abstractmethod
    def with_head(self, head: ClassifierHead) -> "HeadTask":
        """A copy of the task with another head.

        Args:
            head: of the same shapes.
        """
