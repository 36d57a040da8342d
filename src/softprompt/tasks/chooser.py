"""Multiple choice on a backbone: the scores of a row's options, and the loss and choice of them.

The loss is the cross-entropy of the right option in a softmax over the scores of a row's options:
accuracy counts that it is likelier than the others, not that it is likely. It is the same for every
number of options, and with a head that of transformers' ``AutoModelForMultipleChoice``.

By default options are scored as wholes, by the language-model head
(`softprompt.tasks.continuations`). A trained head reads the row with each option in its template,
and gives it one score.
"""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row
from softprompt.data.rendering import Renderer
from softprompt.errors import DataError
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, ReadoutTask
from softprompt.tasks.choices import Choices
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.config import (
    OPTION_FIELD,
    Choose,
    LengthNormalization,
    list_row_columns,
)
from softprompt.tasks.heads import PooledHeadTask, locate_cls
from softprompt.tasks.objectives import Prediction, SummedLoss
from softprompt.tasks.option_cells import find_choice, read_options
from softprompt.tasks.pooling import Pooling

OptionStates = list[Float[Tensor, "_ H"]]


class Chooser(ReadoutTask):
    """A task whose predictions are one of each row's own options.

    Attributes:
        settings: of the task.
    """

    objective: Choices
    settings: Choose

    def with_objective(self, objective: Choices) -> "Chooser":
        """A copy of the task that chooses in another way.

        Args:
            objective: of the copy.
        """
        task = copy(self)
        task.objective = objective
        return task

    @abstractmethod
    def compute_option_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> OptionStates:
        """The hidden states of each row that the scores of its options are read from.

        Args:
            examples: the rows.
            prompts: a single prompt for all rows, or several.
            rows: for each row the index of its prompt; None with a single prompt.
        """

    @abstractmethod
    def score_states(
        self, examples: Sequence[Example], states: OptionStates
    ) -> list[Float[Tensor, " _"]]:
        """The score of each option of each row, in fp32, without regard to its length.

        Args:
            examples: the rows.
            states: of each row, as `compute_option_states` returns them.
        """

    def compute_scores(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Float[Tensor, " _"]]:
        """The score of each option of each row, in fp32, without regard to its length.

        Args:
            examples: the rows.
            prompts: a single prompt for all rows, or several.
            rows: for each row the index of its prompt; None with a single prompt.
        """
        states = self.compute_option_states(examples, prompts, rows=rows)
        return self.score_states(examples, states)

    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """The cross-entropy of the right options, and their likelihood if the settings say so."""
        scores = self.compute_scores(examples, prompts, rows=rows)
        loss = self._sum_loss(examples, scores)
        weight = self.settings.likelihood_weight
        if not weight:
            return loss
        triples = zip(examples, scores, _list_choices(examples), strict=True)
        logs = [of_row[at] / len(example.option_ids[at]) for example, of_row, at in triples]
        return SummedLoss(loss.total - weight * torch.stack(logs).sum(), loss.count)

    def read_rows(
        self, examples: Sequence[Example], states: Sequence[Float[Tensor, "_ H"]]
    ) -> list[Prediction]:
        """The likeliest options."""
        return self._choose(examples, self.score_states(examples, [*states]))

    @torch.no_grad()
    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """The likeliest options."""
        return self._choose(examples, self.compute_scores(examples, prompts, rows=rows))

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """The cross-entropy alone, and predictions, from one run of the backbone."""
        scores = self.compute_scores(examples, [prompt])
        return self._sum_loss(examples, scores), self._choose(examples, scores)

    def _sum_loss(
        self, examples: Sequence[Example], scores: Sequence[Float[Tensor, " _"]]
    ) -> SummedLoss:
        rule = self.objective.normalization
        pairs = zip(examples, scores, strict=True)
        logits = [divide_scores(*pair, normalization=rule) for pair in pairs]
        return sum_choice_loss(logits, _list_choices(examples))

    def _choose(
        self, examples: Sequence[Example], scores: Sequence[Float[Tensor, " _"]]
    ) -> list[Prediction]:
        """The predictions of rows."""
        found: list[Prediction] = []
        for example, of_row in zip(examples, scores, strict=True):
            own = divide_scores(example, of_row, normalization=self.objective.normalization)
            twin = divide_scores(example, of_row, normalization=self.objective.twin)
            found.append(
                self.objective.choose(
                    dict(zip(example.options, own.softmax(dim=0).tolist(), strict=True)),
                    scores=of_row.tolist(),
                    twin_shares=twin.softmax(dim=0).tolist() if self.objective.has_twin else (),
                )
            )
        return found


def divide_scores(
    example: Example, scores: Float[Tensor, " n"], *, normalization: LengthNormalization
) -> Float[Tensor, " n"]:
    """The scores of a row's options divided by the options' lengths.

    Args:
        example: the row.
        scores: of its options.
        normalization: what the lengths are.
    """
    match normalization:
        case "none":
            return scores
        case "tokens":
            lengths = [len(ids) for ids in example.option_ids]
        case "characters":
            lengths = [len(text) for text in example.options]
    return scores / scores.new_tensor(lengths)


def sum_choice_loss(scores: Sequence[Float[Tensor, " _"]], choices: Sequence[int]) -> SummedLoss:
    """The cross-entropy of the right option of each row, summed.

    Args:
        scores: of the options of each row.
        choices: the index of the right one of each row.
    """
    # One softmax for each row: what fills up shorter ones has no probability.
    padded = pad_sequence([*scores], batch_first=True, padding_value=-torch.inf)
    targets = torch.tensor(choices, device=padded.device)
    total = F.cross_entropy(padded, targets, reduction="sum")
    return SummedLoss(total, len(choices))


def _list_choices(examples: Sequence[Example]) -> list[int]:
    """The index of the right option of each row.

    Raises:
        DataError: a row was rendered without its target.
    """
    found = [example.target for example in examples if isinstance(example.target, int)]
    if len(found) < len(examples):
        msg = "an example without its target has no loss. Render it with target=True."
        raise DataError(msg)
    return found


class HeadChooser(Chooser, PooledHeadTask):
    """A trained head with one score for a row with each of its options.

    Args:
        backbone: the backbone to run.
        head: the head to train, of one output.
        objective: how options are chosen.
        renderer: of rows with an option.
        settings: of the task.
        pooling: the readout.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        *,
        objective: Choices,
        renderer: Renderer,
        settings: Choose,
        pooling: Pooling,
    ) -> None:
        self.backbone = backbone
        self.objective = objective
        self.settings = settings
        self.pooling = pooling
        self.columns = list_row_columns(settings, renderer.template.fields)
        self.target_column = settings.target_column
        self._head = head.to(backbone.device)
        self._renderer = renderer
        self._cls = locate_cls(backbone, renderer)

    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """The row with each of its options."""
        return self.make_examples([row], target=target)[0]

    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """The rows, each with each of its options, which are all rendered together."""
        options = [read_options(row, self.settings) for row in rows]
        triples = zip(rows, options, strict=True)
        pairs = [{**row, OPTION_FIELD: text} for row, of_row in triples for text in of_row.texts]
        rendered = iter(self._renderer.render_all(pairs))
        found = []
        for row, of_row in zip(rows, options, strict=True):
            choice = find_choice(row, self.settings, options=of_row) if target else None
            variants = tuple(islice(rendered, len(of_row.texts)))
            positions = tuple(self.list_positions(variant) for variant in variants)
            found.append(Example(variants, positions, choice, options=of_row.texts))
        return found

    def compute_option_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> OptionStates:
        """The state that is read of each row with each of its options."""
        counts = [len(example.variants) for example in examples]
        variants = [variant for example in examples for variant in example.variants]
        index = None
        if rows is not None:
            index = rows.repeat_interleave(torch.tensor(counts, device=rows.device))
        return list(self.pool_variants(variants, prompts, rows=index).split(counts))

    def score_states(
        self, examples: Sequence[Example], states: OptionStates
    ) -> list[Float[Tensor, " _"]]:
        """The head's scores."""
        scores: Tensor = self._head(torch.cat(states).float())[:, 0]
        return list(scores.split([len(example.options) for example in examples]))
