"""Classification: the probabilities of labels.

A prediction takes three steps. `make_example` renders a row and notes which positions are read;
`compute_states` runs the backbone and returns the hidden states there, K for each row; `read` turns
the states into scores of the labels. `Classifier` makes a loss and predictions of the scores.

The classes with a verbalizer score label words with the language-model head, one class for each
architecture. A `ReadoutPlan` says which of a row's K states predicts which token of which word.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Backbone
from softprompt.data.chats import RowRenderer
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow
from softprompt.data.table import is_missing, to_text
from softprompt.errors import DataError, format_unknown
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, ReadoutTask, WholeRowTask, gather_positions
from softprompt.tasks.objectives import Prediction, ScoreObjective, SummedLoss, TargetValue
from softprompt.tasks.verbalizer import LabelWords, score_labels


class Classifier(WholeRowTask, ReadoutTask):
    """A task whose predictions are read from scores: labels, sets of labels, or numbers.

    Attributes:
        objective: what the scores mean.
    """

    objective: ScoreObjective

    def with_objective(self, objective: ScoreObjective) -> "Classifier":
        """A copy of the task with another objective that has the same scores.

        Args:
            objective: of the copy.
        """
        task = copy(self)
        task.objective = objective
        return task

    def read_target(self, row: Row) -> TargetValue:
        """A row's target.

        Raises:
            DataError: the row has none, or one that is not possible.
        """
        if self.target_column not in row:
            raise DataError(format_unknown("column", self.target_column, options=row))
        cell = row[self.target_column]
        is_blank = self.target_column in self.flexible_columns and is_missing(cell)
        return self.objective.read_target("" if is_blank else to_text(cell))

    @abstractmethod
    def compute_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """The hidden states that the prediction is read from, K for each row."""

    @abstractmethod
    def read(self, states: Float[Tensor, "B K H"]) -> Float[Tensor, "B C"]:
        """The scores of a row's outputs, in fp32, from its states."""

    def read_rows(
        self,
        examples: Sequence[Example],  # noqa: ARG002  # the states say all
        states: Sequence[Float[Tensor, "_ H"]],
    ) -> list[Prediction]:
        """The predictions of the objective."""
        return self.objective.to_predictions(self.read(torch.stack([*states])))

    def compute_scores(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C"]:
        """The scores of rows: of labels, unnormalized log-probabilities; in fp32."""
        return self.read(self.compute_states(examples, prompts, rows=rows))

    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """The loss of the objective."""
        scores = self.compute_scores(examples, prompts, rows=rows)
        return self.objective.sum_loss(scores, list_targets(examples), training=True)

    @torch.no_grad()
    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """The predictions of the objective."""
        return self.objective.to_predictions(self.compute_scores(examples, prompts, rows=rows))

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """Loss and predictions, from one run of the backbone."""
        scores = self.compute_scores(examples, [prompt])
        loss = self.objective.sum_loss(scores, list_targets(examples))
        return loss, self.objective.to_predictions(scores)


def list_targets(examples: Sequence[Example]) -> list[TargetValue]:
    """The targets of rows.

    Args:
        examples: of which each has a target.
    """
    return [example.target for example in examples if example.target is not None]


@dataclass(frozen=True)
class ReadoutPlan:
    """Which of a row's K states predict the label words.

    Args:
        readouts: for each word, by its tokens, the states (0 to K - 1) that its tokens are
            predicted from.
        continuations: tokens that the row is run with, one run for each; only where words are
            written token by token.
        offsets: for each continuation the states that are read: after how many of its tokens.
    """

    readouts: Mapping[tuple[int, ...], tuple[int, ...]]
    continuations: tuple[tuple[int, ...], ...] = ()
    offsets: tuple[tuple[int, ...], ...] = ()


def plan_continuations(words: LabelWords) -> ReadoutPlan:
    """Plan to score words token by token, each token given those before it.

    States that several continuations have in common are read in the first of them only.
    """
    continuations = words.list_continuations()
    states: dict[tuple[int, ...], int] = {}  # by the tokens that have been written so far
    offsets = []
    for tokens in continuations:
        new = tuple(n for n in range(len(tokens) + 1) if tokens[:n] not in states)
        states |= {tokens[:n]: len(states) + k for k, n in enumerate(new)}
        offsets.append(new)
    readouts = {word: tuple(states[word[:n]] for n in range(len(word))) for word in words.all}
    return ReadoutPlan(readouts, continuations, tuple(offsets))


def plan_masks(words: LabelWords) -> ReadoutPlan:
    """Plan to score words of k tokens at k masks; the row is run once for each length of word."""
    first = {k: sum(shorter for shorter in words.lengths if shorter < k) for k in words.lengths}
    readouts = {word: tuple(first[len(word)] + at for at in range(len(word))) for word in words.all}
    return ReadoutPlan(readouts)


class VerbalizerClassifier(Classifier):
    """Label words that the language-model head scores.

    Args:
        backbone: the backbone to run.
        head: the backbone's language-model head.
        words: the label words, one or several for each score.
        objective: what the scores of the words mean.
        renderers: one, or for a masked backbone one for each length of word, the shortest first.
        target_column: the column of the label.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: LMHead,
        *,
        words: LabelWords,
        objective: ScoreObjective,
        renderers: Sequence[RowRenderer],
        target_column: str,
    ) -> None:
        self.backbone = backbone
        self.words = words
        self.objective = objective
        self._plan = self.plan_readouts(words)
        self._head = head
        self._renderers = tuple(renderers)
        self.columns = self._renderers[0].template.fields
        self.target_column = target_column
        scored = sorted(set(chain.from_iterable(words.all)))
        self._scored_tokens = torch.tensor(scored, device=backbone.device)
        self._logit_columns = {token: column for column, token in enumerate(scored)}

    @property
    def plan(self) -> ReadoutPlan:
        """Which states predict the words."""
        return self._plan

    @staticmethod
    @abstractmethod
    def plan_readouts(words: LabelWords) -> ReadoutPlan:
        """Plan which states predict the words."""

    @property
    def renderers(self) -> tuple[RowRenderer, ...]:
        """One, or for a masked backbone one for each length of word."""
        return self._renderers

    @abstractmethod
    def make_variants(self, rendered: Sequence[RenderedRow]) -> tuple[RenderedRow, ...]:
        """A rendered row as the backbone is run on it, once or several times."""

    @abstractmethod
    def list_read_positions(self, variants: Sequence[RenderedRow]) -> tuple[tuple[int, ...], ...]:
        """For each variant of a row the positions whose states are read."""

    def complete_example(
        self, row: Row, rendered: Sequence[RenderedRow], *, target: bool = True
    ) -> Example:
        """The row in each of its variants."""
        label = self.read_target(row) if target else None
        variants = self.make_variants(rendered)
        return Example(variants, self.list_read_positions(variants), label)

    def read(self, states: Float[Tensor, "B K H"]) -> Float[Tensor, "B C"]:
        """The labels' scores, from the states that predict their words."""
        readouts = self._plan.readouts
        if not self.words.all_single_token:
            return score_labels(self._head(states), self.words, readouts=readouts)
        logits = self._head.score_tokens(states, self._scored_tokens)
        return score_labels(logits, self.words, readouts=readouts, columns=self._logit_columns)


class InRowVerbalizer(VerbalizerClassifier):
    """Label words that are predicted within the row, which is run in each of its variants."""

    def compute_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """Run every variant of every row and read its positions."""
        variants = list(chain.from_iterable(e.variants for e in examples))
        positions = list(chain.from_iterable(e.read_positions for e in examples))
        per_row = len(variants) // len(examples)
        states = self.compute_states_at(
            variants,
            positions=positions,
            prompts=prompts,
            prompt_index=None if rows is None else rows.repeat_interleave(per_row),
        )
        return _group_by_row(states, len(examples))


class CausalVerbalizer(InRowVerbalizer):
    """A causal backbone: the word continues the row, which is run with each continuation."""

    @property
    def renderer(self) -> RowRenderer:
        """The renderer of rows, without a continuation."""
        return self._renderers[0]

    @staticmethod
    def plan_readouts(words: LabelWords) -> ReadoutPlan:
        """Words are scored token by token."""
        return plan_continuations(words)

    def make_variants(self, rendered: Sequence[RenderedRow]) -> tuple[RenderedRow, ...]:
        """The row followed by each continuation."""
        (base,) = rendered
        return tuple(
            RenderedRow(
                input_ids=(*base.input_ids, *tokens),
                token_type_ids=(*base.token_type_ids, *[0] * len(tokens)),
                mask_positions=base.mask_positions,
                truncated=base.truncated,
            )
            for tokens in self._plan.continuations
        )

    def list_read_positions(self, variants: Sequence[RenderedRow]) -> tuple[tuple[int, ...], ...]:
        """The positions that the plan reads, counted from the row's last token."""
        plan = self._plan
        triples = zip(variants, plan.continuations, plan.offsets, strict=True)
        return tuple(
            tuple(len(variant.input_ids) - len(tokens) - 1 + n for n in offsets)
            for variant, tokens, offsets in triples
        )


class MaskedVerbalizer(InRowVerbalizer):
    """A masked backbone: a word of k tokens is scored at k masks, in one run."""

    @staticmethod
    def plan_readouts(words: LabelWords) -> ReadoutPlan:
        """Words of k tokens are scored at k masks."""
        return plan_masks(words)

    def make_variants(self, rendered: Sequence[RenderedRow]) -> tuple[RenderedRow, ...]:
        """The row with as many masks as words have tokens, once for each length."""
        return tuple(rendered)

    def list_read_positions(self, variants: Sequence[RenderedRow]) -> tuple[tuple[int, ...], ...]:
        """The masks."""
        return tuple(variant.mask_positions for variant in variants)


class Seq2SeqVerbalizer(VerbalizerClassifier):
    """An encoder-decoder: the word, with the end token, is all that the decoder writes."""

    @staticmethod
    def plan_readouts(words: LabelWords) -> ReadoutPlan:
        """Words are scored token by token."""
        return plan_continuations(words)

    def make_variants(self, rendered: Sequence[RenderedRow]) -> tuple[RenderedRow, ...]:
        """The encoder's input."""
        return tuple(rendered)

    def list_read_positions(self, variants: Sequence[RenderedRow]) -> tuple[tuple[int, ...], ...]:
        """None of the encoder's: the decoder's states are read, the same ones for every row."""
        return tuple(() for _ in variants)

    def compute_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """Encode every row once; decode it with every continuation."""
        sources = [e.variants[0] for e in examples]
        start = self.backbone.decoder_start_token_id
        decoder = [[start, *tokens] for _ in examples for tokens in self._plan.continuations]
        states = self.decode_states(sources, decoder=decoder, prompts=prompts, prompt_index=rows)
        read = gather_positions(states, [*self._plan.offsets] * len(examples))
        return _group_by_row(read, len(examples))


def _group_by_row(states: Float[Tensor, "S H"], rows: int) -> Float[Tensor, "B K H"]:
    return states.reshape(rows, -1, states.shape[-1])
