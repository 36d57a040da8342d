"""Text generation: the loss of the target's tokens, and the generated text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Backbone
from softprompt.data.chats import AnsweredTurn, ChatRenderer, RowRenderer
from softprompt.data.collate import Side
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow
from softprompt.data.table import to_text
from softprompt.data.tokenizer import TextEncoder
from softprompt.decoding import Decoding
from softprompt.errors import DataError, format_unknown
from softprompt.injection.generation import generate
from softprompt.prompt import Prompt
from softprompt.tasks.answers import Answers
from softprompt.tasks.base import Example, WholeRowTask, gather_positions, pad_rows
from softprompt.tasks.config import Generate, get_target_column, make_decoding
from softprompt.tasks.objectives import FreeText, Prediction, SummedLoss

# The most logits that are in memory at once: 64 MB of fp32.
LOGITS = 1 << 24


def compute_chunked_cross_entropy(
    head: LMHead, states: Float[Tensor, "S H"], *, targets: Int[Tensor, " S"], vocabulary: int
) -> Float[Tensor, ""]:
    """Cross-entropy of the target tokens, summed.

    The gradient of the states is computed with the loss, chunk by chunk, so that the logits of
    only one chunk are in memory. (As in fused losses such as Liger's, 2024; here the head is
    frozen, so nothing else has a gradient.)

    Args:
        head: the language-model head, which computes logits from the states.
        states: the hidden states ``[S, H]`` that predict the target tokens.
        targets: the target tokens ``[S]``.
        vocabulary: V, the number of logits per state.
    """
    size = max(1, LOGITS // vocabulary)
    if any(parameter.requires_grad for parameter in head.parameters()) or len(states) <= size:
        return F.cross_entropy(head(states).float(), targets, reduction="sum")
    if torch.is_grad_enabled() and states.requires_grad:
        total: Tensor = _ChunkedCrossEntropy.apply((head, targets, size), states)  # type: ignore[no-untyped-call]  # torch's own
        return total
    chunks = zip(states.split(size), targets.split(size), strict=True)
    return torch.stack(
        [F.cross_entropy(head(s).float(), t, reduction="sum") for s, t in chunks]
    ).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """A summed cross-entropy whose gradient is computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        options: tuple[LMHead, Tensor, int],
        *tensors: Tensor,
    ) -> Tensor:
        head, targets, size = options
        (states,) = tensors
        losses, gradients = [], []
        for chunk, of_chunk in zip(states.split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_()
                loss = F.cross_entropy(head(leaf).float(), of_chunk, reduction="sum")
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        (gradients,) = ctx.saved_tensors
        return None, gradients * grad


class TextGenerator(WholeRowTask):
    """Text generation, free-form or constrained to a list of answers.

    Args:
        backbone: the backbone to run.
        head: its language-model head.
        renderer: the renderer of rows.
        settings: the settings of the task.
        positions: the number of positions for a row and its answer (for an encoder-decoder, for the
            answer alone); None without a limit.
        choices: the possible answers; empty for any text.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: LMHead,
        *,
        renderer: RowRenderer,
        settings: Generate,
        positions: int | None,
        choices: Sequence[str],
    ) -> None:
        decoding = make_decoding(settings)
        if isinstance(renderer, ChatRenderer):
            decoding = replace(decoding, stop_token_ids=renderer.end_token_ids)
        self.backbone = backbone
        self.objective = FreeText(tuple(choices))
        self._head = head
        self._renderer = renderer
        self.columns = renderer.template.fields
        self.target_column = get_target_column(settings)
        self._all_turns = settings.train_on == "all"
        self._positions = positions
        self._max_target_length = settings.max_target_length
        self._answers = Answers(
            TextEncoder(renderer.safe_tokenizer, renderer.vocab_size),
            continue_rows=backbone.geometry.architecture == "causal",
            choices=choices,
            chat=renderer if isinstance(renderer, ChatRenderer) else None,
        )
        allowed = self._answers.choice_ids
        _check_choices(choices, allowed, longest=decoding.max_new_tokens)
        self._decoding = (
            replace(decoding, allowed_answers=allowed or None)
            if settings.constrained_decoding
            else decoding
        )

    @property
    def renderer(self) -> RowRenderer:
        """The renderer of rows."""
        return self._renderer

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations."""
        return isinstance(self._renderer, ChatRenderer)

    @property
    def decoding(self) -> Decoding:
        """The settings of generation."""
        return self._decoding

    @property
    def renderers(self) -> tuple[RowRenderer, ...]:
        """The only renderer."""
        return (self._renderer,)

    def complete_example(
        self, row: Row, rendered: Sequence[RenderedRow], *, target: bool = True
    ) -> Example:
        """The target is the ids of the target text and the end token."""
        (source,) = rendered
        if not target:
            return Example((source,), ((),), None)
        if self.target_column not in row:
            raise DataError(format_unknown("column", self.target_column, options=row))
        if isinstance(self._renderer, ChatRenderer):
            return self._complete_turns(row, self._renderer)
        text = to_text(row[self.target_column])
        source, target_ids = self._cut_target(source, self._answers.encode(text), text=text)
        return Example((source,), ((),), target_ids)

    def _complete_turns(self, row: Row, renderer: ChatRenderer) -> Example:
        """The last turn, and before it those that its row has; the others in rows of their own."""
        turns = [
            self._cut_target(turn.row, turn.answer, text=self._answers.spell(turn.answer))
            for turn in renderer.render_turns(row, all_turns=self._all_turns)
        ]
        return _join_turns([AnsweredTurn(*turn) for turn in turns])

    def _cut_target(
        self, source: RenderedRow, ids: tuple[int, ...], *, text: str
    ) -> tuple[RenderedRow, tuple[int, ...]]:
        """A target of at most so many tokens as are wanted, with the end token, and its row.

        Raises:
            DataError: there are not so many positions.
        """
        end = self._end_token_ids
        target_ids = (*ids[: self._max_target_length], *end)
        if self._max_target_length is not None and len(ids) > self._max_target_length:
            source = replace(source, truncated=True)
        free = self._count_free_positions(source)
        if len(target_ids) > free:
            msg = (
                f"a target text has {len(target_ids)} tokens, but {free} positions are left "
                f"for it: {text[:60]!r}… {self._suggest_lengths(free - len(end))}"
            )
            raise DataError(msg)
        return source, target_ids

    @property
    def _end_token_ids(self) -> tuple[int, ...]:
        """The token that a target ends with: that of the chat template, or of the backbone."""
        return (*self._decoding.stop_token_ids, *self.backbone.eos_token_ids)[:1]

    def compute_loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> SummedLoss:
        """Cross-entropy on the targets' tokens, and on no others."""
        targets = [_list_scored_ids(e) for e in examples]
        states = self._compute_target_states(examples, prompts=prompts, rows=rows)
        tokens = torch.tensor([token for t in targets for token in t], device=states.device)
        vocabulary = self.backbone.geometry.vocab_size
        total = compute_chunked_cross_entropy(
            self._head, states, targets=tokens, vocabulary=vocabulary
        )
        return SummedLoss(total, len(tokens))

    def predict(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Prediction]:
        """Generate each row's text."""
        side: Side = "left" if self.backbone.geometry.architecture == "causal" else "right"
        inputs = pad_rows(self.backbone, [e.variants[0] for e in examples], side=side)
        texts = generate(
            self.backbone,
            inputs,
            prompts=prompts,
            rows=rows,
            decoding=self._decoding,
        )
        return [self.make_prediction(ids) for ids in texts]

    def evaluate(
        self, examples: Sequence[Example], prompt: Prompt | None
    ) -> tuple[SummedLoss, list[Prediction]]:
        """The loss of the targets' tokens, and the generated texts."""
        return self.compute_loss(examples, [prompt]), self.predict(examples, [prompt])

    def make_prediction(self, ids: Sequence[int], *, text: str | None = None) -> Prediction:
        """The prediction that generated tokens are.

        Args:
            ids: the tokens, without the end token.
            text: the part of their text that counts; None for all of it.
        """
        label = self._answers.decode(ids) if text is None else self._answers.read(text)
        return Prediction(label, {}, tuple(ids))

    def compute_logits(self, states: Float[Tensor, "S H"]) -> Float[Tensor, "S V"]:
        """The scores of the next token after each state.

        Args:
            states: as `compute_states_at` returns them.
        """
        logits: Tensor = self._head(states)
        return logits

    def spell(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, with the space around it."""
        return self._answers.spell(ids)

    def compare(self, prediction: Prediction, target: str) -> str:
        """The target if the prediction has its tokens; otherwise the prediction's text."""
        is_equal = prediction.token_ids == self._answers.encode(target)
        return target if is_equal else prediction.label

    def list_training_rows(self, example: Example) -> tuple[RenderedRow, ...]:
        """The rows; on a causal backbone, the first is followed by its target."""
        if self.backbone.geometry.architecture != "causal":
            return example.variants
        first, *others = example.variants
        return (_append_target(first, get_target_ids(example)), *others)

    def _compute_target_states(
        self,
        examples: Sequence[Example],
        *,
        prompts: Sequence[Prompt | None],
        rows: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "S H"]:
        """The hidden states that predict the targets' tokens."""
        if self.backbone.geometry.architecture == "causal":
            whole = [row for e in examples for row in self.list_training_rows(e)]
            counts = torch.tensor([len(e.variants) for e in examples])
            return self.compute_states_at(
                whole,
                positions=[at for e in examples for at in _list_scored_positions(e)],
                prompts=prompts,
                prompt_index=None
                if rows is None
                else rows.repeat_interleave(counts.to(rows.device)),
            )
        sources, targets = [e.variants[0] for e in examples], [*map(get_target_ids, examples)]
        decoder = [[self.backbone.decoder_start_token_id, *t[:-1]] for t in targets]
        states = self.decode_states(sources, decoder=decoder, prompts=prompts, prompt_index=rows)
        return gather_positions(states, [range(len(t)) for t in targets])

    def _count_free_positions(self, source: RenderedRow) -> int:
        if self._positions is None:
            return 1 << 30
        return self._positions - (
            len(source.input_ids) if self.backbone.geometry.architecture == "causal" else 0
        )

    def _suggest_lengths(self, most: int) -> str:
        """What to do about a target of more than ``most`` tokens."""
        remedies = [f"set max_target_length to at most {most}"] if most > 0 else []
        if self.backbone.geometry.architecture == "causal":
            remedies.append("lower max_length, so that the text is shorter")
        remedies.append("leave the row out")
        return f"{', or '.join(remedies).capitalize()}."


def _check_choices(
    choices: Sequence[str], answers: Sequence[tuple[int, ...]], *, longest: int
) -> None:
    for choice, answer in zip(choices, answers, strict=True):
        if len(answer) > longest:
            msg = (
                f"the choice {choice!r} has {len(answer)} tokens, but max_new_tokens is {longest}, "
                "so it could never be the answer. Raise max_new_tokens to at least "
                f"{max(map(len, answers))}."
            )
            raise DataError(msg)


def _append_target(source: RenderedRow, target: Sequence[int]) -> RenderedRow:
    """The row followed by its target, without the last token, whose state is not needed."""
    ids = (*source.input_ids, *target[:-1])
    return RenderedRow(
        ids,
        (*source.token_type_ids, *[0] * (len(target) - 1)),
        source.mask_positions,
        source.truncated,
    )


def get_target_ids(example: Example) -> tuple[int, ...]:
    """The ids of a row's target text and the end token.

    Args:
        example: of text generation.

    Raises:
        DataError: it was rendered without its target.
    """
    if not isinstance(example.target, tuple):
        msg = "an example without its target has no loss. Render it with target=True."
        raise DataError(msg)
    return cast("tuple[int, ...]", example.target)


def _list_scored_positions(example: Example) -> list[tuple[int, ...]]:
    """Of each variant the positions whose states predict a scored token; targets come last."""
    first, *others = example.read_positions
    last = len(example.variants[0].input_ids) - 1
    return [(*first, *range(last, last + len(get_target_ids(example)))), *others]


def _list_scored_ids(example: Example) -> tuple[int, ...]:
    """The tokens that the states at `_list_scored_positions` predict."""
    pairs = zip(example.variants, example.read_positions, strict=True)
    (first, *others) = [tuple(row.input_ids[at + 1] for at in read) for row, read in pairs]
    return (*first, *get_target_ids(example), *(token for of_row in others for token in of_row))


def _join_turns(turns: Sequence[AnsweredTurn]) -> Example:
    """The turns of a conversation as few rows: one that another begins with is read in that one.

    The first variant is the row of the last turn, whose answer is the target. The states at its
    read positions predict earlier answers, since a causal backbone sees nothing of what follows.
    Each other variant has its answer, since nothing follows it.

    Args:
        turns: with answers that have their end token.
    """
    *earlier, last = turns
    rows: list[RenderedRow] = [last.row]
    positions: list[tuple[int, ...]] = [()]
    for turn in reversed(earlier):
        ids = (*turn.row.input_ids, *turn.answer)
        begin = len(turn.row.input_ids) - 1
        read = tuple(range(begin, begin + len(turn.answer)))
        at = next((n for n, row in enumerate(rows) if row.input_ids[: len(ids)] == ids), None)
        if at is not None:
            positions[at] = (*read, *positions[at])
        else:
            types = (*turn.row.token_type_ids, *[0] * len(turn.answer))
            rows.append(RenderedRow(ids, types, (), turn.row.truncated))
            positions.append(read)
    return Example(tuple(rows), tuple(positions), last.answer)
