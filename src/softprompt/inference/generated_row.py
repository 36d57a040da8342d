"""One row of generation: what is asked, and what was generated for it so far."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from softprompt.decoding import Decoding
from softprompt.inference.text_stream import TextStream
from softprompt.inference.token_scores import TokenScores, read_scores
from softprompt.injection.generation import derive_seed, make_logits_processors
from softprompt.injection.running_rows import NewRow
from softprompt.prompt import KVPrefix, Prompt
from softprompt.tasks import Example, Prediction
from softprompt.tasks.generation import TextGenerator

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class ScoreOptions:
    """Which log-probabilities a request gets.

    Args:
        top: how many of the likeliest tokens of each step.
        tokens: further tokens of each step.
        has_row: whether also for the tokens of the row.
    """

    top: int = 0
    tokens: tuple[int, ...] = ()
    has_row: bool = False


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A row to generate text for.

    Args:
        task: on the backbone of the batch; it made the example.
        example: the rendered row.
        prompt: its prompt; None for the bare backbone.
        decoding: the settings of generation; those of ``cache`` have no effect.
        seed: of sampling; None for that of ``decoding``.
        stop: strings before the first of which the text ends.
        stop_token_ids: tokens that end the text as the end token does.
        scores: which log-probabilities are returned; None for none.
        whole_ids: of a row whose first tokens are baked, all its tokens, from which its sample is
            drawn; None if none are.
    """

    task: TextGenerator
    example: Example
    prompt: Prompt | None
    decoding: Decoding
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    scores: ScoreOptions | None = None
    whole_ids: tuple[int, ...] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the row."""
        return self.example.variants[0].input_ids

    @property
    def seeded_decoding(self) -> Decoding:
        """The settings of generation, with the seed."""
        return self.decoding if self.seed is None else replace(self.decoding, seed=self.seed)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the text."""
        own = self.decoding.stop_token_ids
        return (*self.task.backbone.eos_token_ids, *own, *self.stop_token_ids)


@dataclass(frozen=True, eq=False)
class GenerationEvent:
    """What a step has generated for one row.

    Args:
        key: of the request.
        text: the new text: whole characters, and no part of a stop string. With choices all of it
            comes at the end.
        token_ids: the new tokens, without the end token.
        finish_reason: ``stop`` after an end token or a stop string, ``length`` after the most
            tokens, ``error`` if the row failed; None while it runs.
        prediction: with the last event, what `predict` would have returned; with a stop string,
            the text before it, and the tokens up to its end.
        error: why the row failed.
        scores: of the new tokens and of an end token, if they were asked for.
        row_scores: with the first event, those of the row's tokens.
    """

    key: Hashable
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    prediction: Prediction | None = None
    error: Exception | None = None
    scores: tuple[TokenScores, ...] = ()
    row_scores: tuple[TokenScores, ...] = ()


class TextBatch(Protocol):
    """A running batch of texts, such as `GenerationBatch`."""

    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Let a row wait for its turn."""

    def remove(self, key: Hashable) -> None:
        """Remove a row at once."""

    def step(self) -> list[GenerationEvent]:
        """Go on by one step."""


class GeneratedRow:
    """A request, and what was generated for it.

    Args:
        key: the name of the row in its events.
        request: the row.
        is_separate: whether it is run whole within a step.
    """

    def __init__(self, key: Hashable, request: GenerationRequest, *, is_separate: bool) -> None:
        self.key, self.request, self.is_separate = key, request, is_separate
        self.stream = TextStream(request.task.spell, stop=request.stop)
        decoding, backbone = request.seeded_decoding, request.task.backbone
        is_plain = decoding.allowed_answers is None and not decoding.do_sample
        # What is baked may not decide which sample is drawn.
        seeds = [derive_seed(request.whole_ids or request.ids, decoding.seed)]
        self._processors = make_logits_processors(backbone, decoding, seeds=seeds, begin=0)
        self.is_greedy = is_plain
        causal = backbone.geometry.architecture == "causal"
        prefix = request.prompt.length if isinstance(request.prompt, KVPrefix) else 0
        # The last token is not run, but the first of an encoder-decoder's is its start token.
        self.width = len(request.ids) + prefix + decoding.max_new_tokens - causal
        self.count = decoding.num_beams

    @property
    def new_row(self) -> NewRow:
        """The row as it joins the running ones."""
        return NewRow(self.request.ids, self.request.prompt)

    def choose(self, scores: Tensor) -> int:
        """The next token.

        Args:
            scores: the logits ``[V]``.
        """
        ids = torch.tensor([self.stream.token_ids], dtype=torch.long, device=scores.device)
        chain: Any = self._processors  # whose annotations ask for other types of tensors
        return int(chain(ids, scores[None]).argmax())

    def measure(self, token: int, scores: Tensor) -> tuple[TokenScores, ...]:
        """The log-probabilities of a step; empty if they were not asked for.

        Args:
            token: that is taken.
            scores: the logits ``[V]``.
        """
        options = self.request.scores
        if options is None:
            return ()
        return read_scores(scores[None], [token], top=options.top, also=options.tokens)

    def accept(self, token: int, *, scores: tuple[TokenScores, ...] = ()) -> GenerationEvent:
        """Append a token.

        Args:
            token: the next one.
            scores: of the step.
        """
        if token in self.request.end_token_ids:
            return self.finish("stop", scores=scores)
        text = self.stream.add(token)
        if self.stream.is_stopped:
            return self._finish("stop", text, (token,), scores)
        if len(self.stream.token_ids) == self.request.decoding.max_new_tokens:
            return self._finish("length", text, (token,), scores)
        return GenerationEvent(self.key, "" if self._is_held else text, (token,), scores=scores)

    def accept_all(self, tokens: Sequence[int]) -> GenerationEvent:
        """Append all tokens of the row, without the end token.

        Args:
            tokens: of the whole text.
        """
        ends = self.request.stop_token_ids
        end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        text = ""
        for token in tokens[:end]:
            text += self.stream.add(token)
            if self.stream.is_stopped:
                break
        is_full = end == self.request.decoding.max_new_tokens
        reason: FinishReason = "length" if is_full and not self.stream.is_stopped else "stop"
        return self._finish(reason, text, tuple(self.stream.token_ids))

    def finish(
        self, reason: FinishReason, *, scores: tuple[TokenScores, ...] = ()
    ) -> GenerationEvent:
        """End the row without a further token.

        Args:
            reason: why.
            scores: of an end token.
        """
        return self._finish(reason, "", (), scores)

    def fail(self, error: Exception) -> GenerationEvent:
        """End the row because of an error.

        Args:
            error: that it made.
        """
        return GenerationEvent(self.key, "", (), "error", error=error)

    @property
    def _is_held(self) -> bool:
        """Whether the text is one of several choices, which is known at the end."""
        return bool(self.request.task.labels)

    def _finish(
        self,
        reason: FinishReason,
        text: str,
        token_ids: tuple[int, ...],
        scores: tuple[TokenScores, ...] = (),
    ) -> GenerationEvent:
        text += self.stream.finish()
        if self.stream.is_stopped:
            reason = "stop"
        known = self.stream.text if self.stream.is_stopped else None
        prediction = self.request.task.make_prediction(self.stream.token_ids, text=known)
        text = prediction.label if self._is_held else text
        return GenerationEvent(self.key, text, token_ids, reason, prediction, scores=scores)
