"""Options that continue a row: the log-probabilities of their tokens, each after those before it.

The row is run with each option but its last token. What several options have in common is read
once, and options of one token need the row alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow, Renderer
from softprompt.data.tokenizer import TextEncoder
from softprompt.errors import DataError
from softprompt.prompt import Prompt
from softprompt.tasks.answers import Answers
from softprompt.tasks.base import Example, gather_positions
from softprompt.tasks.choices import Choices
from softprompt.tasks.chooser import Chooser, OptionStates
from softprompt.tasks.classification import ReadoutPlan, plan_continuations
from softprompt.tasks.config import Choose, list_row_columns
from softprompt.tasks.generation import LOGITS
from softprompt.tasks.option_cells import find_choice, read_options
from softprompt.tasks.verbalizer import LabelWords


class ContinuationChooser(Chooser):
    """Options that continue a row, scored by the language-model head.

    Args:
        backbone: the backbone to run.
        lm_head: its language-model head.
        objective: how options are chosen.
        renderer: of rows, without an option.
        settings: of the task.
        positions: the most tokens of an option that is decoded, by an encoder-decoder; None without
            a limit, or where options are part of the row.
    """

    def __init__(
        self,
        backbone: Backbone,
        lm_head: LMHead,
        *,
        objective: Choices,
        renderer: Renderer,
        settings: Choose,
        positions: int | None,
    ) -> None:
        self.backbone = backbone
        self.objective = objective
        self.settings = settings
        self.columns = list_row_columns(settings, renderer.template.fields)
        self.target_column = settings.target_column
        self._lm_head = lm_head
        self._renderer = renderer
        self._positions = positions
        self._is_decoder = backbone.geometry.architecture == "encoder-decoder"
        encoder = TextEncoder(renderer.safe_tokenizer, renderer.vocab_size)
        self._answers = Answers(encoder, continue_rows=not self._is_decoder)

    @property
    def renderers(self) -> tuple[Renderer, ...]:
        """The only renderer."""
        return (self._renderer,)

    @property
    def is_decoder(self) -> bool:
        """Whether options are decoded, and so not a part of the row."""
        return self._is_decoder

    def make_example(self, row: Row, *, target: bool = True) -> Example:
        """The row, once for each option but its last token."""
        return self.make_examples([row], target=target)[0]

    def make_examples(self, rows: Sequence[Row], *, target: bool = True) -> list[Example]:
        """The rows, each once for each of its options but their last tokens."""
        rendered = self._renderer.render_all(rows)
        pairs = zip(rows, rendered, strict=True)
        return [self._complete(row, source, target=target) for row, source in pairs]

    def _complete(self, row: Row, source: RenderedRow, *, target: bool) -> Example:
        options = read_options(row, self.settings)
        choice = find_choice(row, self.settings, options=options) if target else None
        ids = self._encode_options(options.texts)
        if self._is_decoder:
            return Example((source,), ((),), choice, options=options.texts, option_ids=ids)
        plan = make_option_plan(options.texts, ids)
        source = self._make_room(row, source, plan)
        last = len(source.input_ids) - 1
        return Example(
            tuple(_continue_row(source, tokens) for tokens in plan.continuations),
            tuple(tuple(last + n for n in offsets) for offsets in plan.offsets),
            choice,
            options=options.texts,
            option_ids=ids,
        )

    def _encode_options(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each option; those that are decoded have the end token, as in training.

        Raises:
            DataError: an option has no tokens, too many, or those of another one.
        """
        end = self.backbone.eos_token_ids[:1] if self._is_decoder else ()
        found: dict[tuple[int, ...], str] = {}
        for text in texts:
            ids = self._answers.encode(text)
            other = found.get((*ids, *end))
            fault = None if ids else f"the option {text!r} has no tokens with this tokenizer"
            if other is not None:
                fault = f"the options {other!r} and {text!r} have the same tokens"
            elif self._positions is not None and len(ids) + len(end) > self._positions:
                fault = (
                    f"the option {text[:60]!r} has {len(ids)} tokens, but {self._positions} "
                    "positions are left for it"
                )
            if fault is not None:
                msg = f"{fault}, so it has no score of its own. Change it, or leave the row out."
                raise DataError(msg)
            found[(*ids, *end)] = text
        return tuple(found)

    def _make_room(self, row: Row, source: RenderedRow, plan: ReadoutPlan) -> RenderedRow:
        """The row, shortened so that its longest option fits after it."""
        longest = max(map(len, plan.continuations))
        most = self._renderer.max_length - longest
        if len(source.input_ids) <= most:
            return source
        blank = [""] * len(self._renderer.template.field_places)
        fixed = self._renderer.count_tokens(self._renderer.encode(blank))
        if fixed > most:
            msg = (
                f"an option has {longest + 1} tokens, but after the fixed text and the prompt "
                f"({fixed} tokens) there is room for {self._renderer.max_length - fixed + 1}. "
                "Shorten the template, the prompt or the option; or raise max_length, if the "
                "backbone has more positions."
            )
            raise DataError(msg)
        return replace(self._renderer, max_length=most).render(row)

    def compute_option_states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> OptionStates:
        """The states that predict the options' tokens, those that several have in common once."""
        if not self._is_decoder:
            return self.compute_row_states(examples, prompts, rows=rows)
        plans = [make_option_plan(e.options, e.option_ids) for e in examples]
        # Each row is decoded as often as that with the most options; the rest is not read.
        most = max(len(plan.continuations) for plan in plans)
        start = self.backbone.decoder_start_token_id
        decoder = [
            [start, *tokens]
            for plan in plans
            for tokens in (*plan.continuations, *[()] * (most - len(plan.continuations)))
        ]
        sources = [example.variants[0] for example in examples]
        states = self.decode_states(sources, decoder=decoder, prompts=prompts, prompt_index=rows)
        offsets = [of for p in plans for of in (*p.offsets, *[()] * (most - len(p.offsets)))]
        read = gather_positions(states, offsets)
        return list(read.split([sum(map(len, plan.offsets)) for plan in plans]))

    def score_states(
        self, examples: Sequence[Example], states: OptionStates
    ) -> list[Float[Tensor, " _"]]:
        """The sum of the log-probabilities of each option's tokens."""
        places: list[int] = []
        tokens: list[int] = []
        lengths, begin = list[int](), 0
        for example, of_row in zip(examples, states, strict=True):
            readouts = make_option_plan(example.options, example.option_ids).readouts
            for ids in example.option_ids:
                places += [begin + at for at in readouts[ids]]
                tokens += ids
                lengths.append(len(ids))
            begin += len(of_row)
        logs = compute_token_logs(
            self._lm_head,
            torch.cat(states),
            places=places,
            tokens=tokens,
            vocabulary=self.backbone.geometry.vocab_size,
        )
        scores = torch.stack([of_option.sum() for of_option in logs.split(lengths)])
        return list(scores.split([len(example.options) for example in examples]))


def make_option_plan(texts: Sequence[str], ids: tuple[tuple[int, ...], ...]) -> ReadoutPlan:
    """Which states of a row predict which token of its options.

    Args:
        texts: of the options.
        ids: the tokens of each.
    """
    return plan_continuations(LabelWords(tuple(texts), tuple((tokens,) for tokens in ids)))


def _continue_row(row: RenderedRow, tokens: Sequence[int]) -> RenderedRow:
    return replace(
        row,
        input_ids=(*row.input_ids, *tokens),
        token_type_ids=(*row.token_type_ids, *[0] * len(tokens)),
    )


def compute_token_logs(
    head: LMHead,
    states: Float[Tensor, "S H"],
    *,
    places: Sequence[int],
    tokens: Sequence[int],
    vocabulary: int,
) -> Float[Tensor, " N"]:
    """The log-probabilities of tokens, each after one of some states, in fp32.

    The logits of only some states are in memory at once; with a gradient they are computed again
    in the backward pass.

    Args:
        head: the language-model head.
        states: hidden states.
        places: the index of each token's state, in any order.
        tokens: of the vocabulary.
        vocabulary: V, the number of logits of a state.
    """
    at = torch.tensor(places, device=states.device)
    ids = torch.tensor(tokens, device=states.device)
    size = max(1, LOGITS // vocabulary)
    is_recomputed = torch.is_grad_enabled() and len(states) > size
    logs, order = [], []
    for begin in range(0, len(states), size):
        chosen = ((at >= begin) & (at < begin + size)).nonzero().flatten()
        part = states[begin : begin + size], at[chosen] - begin, ids[chosen]
        logs.append(
            checkpoint(_score_tokens, head, *part, use_reentrant=False)
            if is_recomputed
            else _score_tokens(head, *part)
        )
        order.append(chosen)
    return torch.cat(logs)[torch.cat(order).argsort()]


def _score_tokens(
    head: LMHead, states: Float[Tensor, "s H"], at: Int[Tensor, " n"], ids: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The log-probabilities of tokens after the states at some places."""
    logits: Tensor = head(states).float()
    return logits[at, ids] - logits.logsumexp(dim=-1)[at]
