"""Continuous batching: rows join and leave one running batch at every step of generation."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.backbone import Backbone
from softprompt.data.collate import Side
from softprompt.decoding import Decoding
from softprompt.errors import DataError
from softprompt.inference.text_stream import TextStream
from softprompt.injection.forward import assign_prompts
from softprompt.injection.generation import (
    check_start_layers,
    derive_seed,
    generate,
    make_logits_processors,
)
from softprompt.injection.running_rows import (
    NewRow,
    RunningRows,
    can_store_prefixes,
    explain_no_joining,
    list_prompts,
)
from softprompt.prompt import KVPrefix, Prompt
from softprompt.tasks import Example, Prediction
from softprompt.tasks.base import pad_rows
from softprompt.tasks.generation import TextGenerator

FinishReason = Literal["stop", "length", "error"]
# New rows are run together with longer ones up to this share of padding.
_MAX_PADDING = 0.25


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
    """

    task: TextGenerator
    example: Example
    prompt: Prompt | None
    decoding: Decoding
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the row."""
        return self.example.variants[0].input_ids

    @property
    def seeded_decoding(self) -> Decoding:
        """The settings of generation, with the seed."""
        return self.decoding if self.seed is None else replace(self.decoding, seed=self.seed)


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
    """

    key: Hashable
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    prediction: Prediction | None = None
    error: Exception | None = None


class _Row:
    """A request, and what was generated for it."""

    def __init__(self, key: Hashable, request: GenerationRequest, *, is_separate: bool) -> None:
        self.key, self.request, self.is_separate = key, request, is_separate
        self.stream = TextStream(request.task.spell, stop=request.stop)
        decoding, backbone = request.seeded_decoding, request.task.backbone
        is_plain = decoding.allowed_answers is None and not decoding.do_sample
        seeds = [derive_seed(request.ids, decoding.seed)]
        self._processors = make_logits_processors(backbone, decoding, seeds=seeds, begin=0)
        self.is_greedy = is_plain
        causal = backbone.geometry.architecture == "causal"
        prefix = request.prompt.length if isinstance(request.prompt, KVPrefix) else 0
        # The last token is not run, but the first of an encoder-decoder's is its start token.
        self.width = len(request.ids) + prefix + decoding.max_new_tokens - causal
        self.count = decoding.num_beams

    @property
    def new_row(self) -> NewRow:
        return NewRow(self.request.ids, self.request.prompt)

    def choose(self, scores: Tensor) -> int:
        """The next token."""
        ids = torch.tensor([self.stream.token_ids], dtype=torch.long, device=scores.device)
        chain: Any = self._processors  # whose annotations ask for other types of tensors
        return int(chain(ids, scores[None]).argmax())

    def accept(self, token: int) -> GenerationEvent:
        """Append a token."""
        if token in self.request.task.backbone.eos_token_ids:
            return self._finish("stop", "", ())
        text = self.stream.add(token)
        if self.stream.is_stopped:
            return self._finish("stop", text, (token,))
        if len(self.stream.token_ids) == self.request.decoding.max_new_tokens:
            return self._finish("length", text, (token,))
        return GenerationEvent(self.key, "" if self._is_held else text, (token,))

    def accept_all(self, tokens: Sequence[int]) -> GenerationEvent:
        """Append all tokens of the row, without the end token."""
        text = ""
        for token in tokens:
            text += self.stream.add(token)
            if self.stream.is_stopped:
                break
        is_full = len(tokens) == self.request.decoding.max_new_tokens
        reason: FinishReason = "length" if is_full and not self.stream.is_stopped else "stop"
        return self._finish(reason, text, tuple(self.stream.token_ids))

    def fail(self, error: Exception) -> GenerationEvent:
        """End the row because of an error."""
        return GenerationEvent(self.key, "", (), "error", error=error)

    @property
    def _is_held(self) -> bool:
        """Whether the text is one of several choices, which is known at the end."""
        return bool(self.request.task.labels)

    def _finish(
        self, reason: FinishReason, text: str, token_ids: tuple[int, ...]
    ) -> GenerationEvent:
        text += self.stream.finish()
        if self.stream.is_stopped:
            reason = "stop"
        known = self.stream.text if self.stream.is_stopped else None
        prediction = self.request.task.make_prediction(self.stream.token_ids, text=known)
        text = prediction.label if self._is_held else text
        return GenerationEvent(self.key, text, token_ids, reason, prediction)


class GenerationBatch:
    """Continuous batching over one frozen backbone.

    A step is one forward pass of one token for each running row. When rows have left, those that
    wait join in the order in which they were added, with one pass over each group of rows of
    similar length. Every row has its own prompt, settings and seed, and gets the answer
    that `predict` gives it alone. Beam searches, and all rows of a backbone whose cache rows cannot
    join, are run whole within a step instead, those with equal settings together.

    Args:
        backbone: that all requests are for. It is tried out on a few tokens.
        max_rows: the most rows at once; each beam counts as one.
        max_tokens: the most tokens in memory: the number of rows times the length that the longest
            of them can reach.

    Attributes:
        separate_reason: why rows of this backbone are run whole within a step, as a verb phrase;
            None if they join and leave.

    Raises:
        DataError: a limit is not positive.

    Examples:
        >>> from softprompt.tasks import Generate, build_task
        >>> settings = Generate(template="{text} is", max_new_tokens=2)
        >>> task = build_task(settings, backbone, template=settings.template, labels=())
        >>> example = task.make_example({"text": "a fine film"}, target=False)
        >>> batch = GenerationBatch(backbone, max_rows=8, max_tokens=512)
        >>> batch.add("first", GenerationRequest(task, example, None, task.decoding))
        >>> events = [*batch.step(), *batch.step()]
        >>> events[-1].prediction == task.predict([example], [None])[0]
        True
        >>> len(batch)
        0
    """

    def __init__(self, backbone: Backbone, *, max_rows: int, max_tokens: int) -> None:
        for name, number in (("max_rows", max_rows), ("max_tokens", max_tokens)):
            if number < 1:
                msg = f"a batch with {name} = {number} is not possible. Give at least 1."
                raise DataError(msg)
        self._backbone, self._max_rows, self._max_tokens = backbone, max_rows, max_tokens
        self.separate_reason = explain_no_joining(backbone)
        stores = self.separate_reason is None and can_store_prefixes(backbone)
        self._cache = RunningRows(backbone, store_prefixes=stores)
        self._running: list[_Row] = []
        self._waiting: deque[_Row] = deque()

    def __len__(self) -> int:
        """The number of rows that run or wait."""
        return len(self._running) + len(self._waiting)

    @property
    def num_running(self) -> int:
        """The number of rows that run."""
        return len(self._running)

    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Let a row wait for its turn.

        Args:
            key: the name of the row in its events.
            request: the row.

        Raises:
            DataError: the row can never fit, there is one of this key, or it is for another
                backbone.
            PromptError: the prompt does not fit the backbone or the row.
        """
        if any(row.key == key for row in self._list_rows()):
            msg = f"there is a row with the key {key!r} already. Give each row a key of its own."
            raise DataError(msg)
        _check_request(self._backbone, request)
        is_separate = self.separate_reason is not None or request.decoding.num_beams > 1
        row = _Row(key, request, is_separate=is_separate)
        self._check_size(row)
        self._waiting.append(row)

    def remove(self, key: Hashable) -> None:
        """Remove a row at once; there are no more events for it. The other rows do not change.

        Args:
            key: of the row; one that has ended already is ignored.
        """
        for index, row in enumerate(self._running):
            if row.key == key:
                self._drop(index)
                return
        self._waiting = deque(row for row in self._waiting if row.key != key)

    def step(self) -> list[GenerationEvent]:
        """Generate one token for every running row, and let waiting rows join.

        Returns:
            One event for each row that ran.
        """
        events = self._advance()
        joining, separate = self._take()
        for group in _group_by_length(joining):
            events += self._join(group)
        return events + self._run_separate(separate)

    def _list_rows(self) -> Iterator[_Row]:
        yield from self._running
        yield from self._waiting

    def _drop(self, index: int) -> None:
        """Remove a running row, whose place the last row takes."""
        self._cache.drop(index)
        self._running[index] = self._running[-1]
        self._running.pop()

    def _advance(self) -> list[GenerationEvent]:
        """One pass over the running rows; rows that make it fail end."""
        events = list[GenerationEvent]()
        while self._running:
            tokens = [row.stream.token_ids[-1] for row in self._running]
            try:
                scores = self._cache.advance(tokens)
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends the rows that cause it
                failed = self._find_failing(tokens, error)
                events += [self._running[index].fail(why) for index, why in failed.items()]
                for index in sorted(failed, reverse=True):
                    self._drop(index)
            else:
                return events + self._accept(self._running, scores)
        return events

    def _find_failing(self, tokens: Sequence[int], error: Exception) -> dict[int, Exception]:
        """The rows that fail alone, and why.

        If none does, it is too many rows for the memory, and the last one has to go.
        """
        failed = dict[int, Exception]()
        for index, token in enumerate(tokens):
            try:
                self._cache.copy_row(index).advance([token])
            except Exception as own:  # noqa: BLE001  # as above
                failed[index] = own
        return failed or {len(tokens) - 1: error}

    def _join(self, rows: Sequence[_Row]) -> list[GenerationEvent]:
        """Run new rows together; if that fails, each of them alone."""
        try:
            scores = self._cache.join([row.new_row for row in rows])
        except Exception as error:  # noqa: BLE001  # as above
            if len(rows) == 1:
                return [rows[0].fail(error)]
            return [event for row in rows for event in self._join([row])]
        self._running += rows
        return self._accept(rows, scores)

    def _accept(self, rows: Sequence[_Row], scores: Tensor) -> list[GenerationEvent]:
        """Take each row's next token, and drop the rows that have ended."""
        best, wrong = scores.argmax(dim=-1).tolist(), scores.isnan().any(dim=-1).tolist()
        events = list[GenerationEvent]()
        for row, of_row, token, is_wrong in zip(rows, scores, best, wrong, strict=True):
            try:
                is_best = row.is_greedy and not is_wrong
                events.append(row.accept(token if is_best else row.choose(of_row)))
            except Exception as error:  # noqa: BLE001  # as above
                events.append(row.fail(error))
        ended = {event.key for event in events if event.finish_reason is not None}
        for index in range(len(self._running) - 1, -1, -1):
            if self._running[index].key in ended:
                self._drop(index)
        return events

    def _run_separate(self, rows: Sequence[_Row]) -> list[GenerationEvent]:
        """Generate whole texts; if that fails, for each row alone."""
        if not rows:
            return []
        try:
            texts = _generate_whole(self._backbone, rows)
        except Exception as error:  # noqa: BLE001  # as above
            if len(rows) == 1:
                return [rows[0].fail(error)]
            return [event for row in rows for event in self._run_separate([row])]
        return [row.accept_all(ids) for row, ids in zip(rows, texts, strict=True)]

    def _take(self) -> tuple[list[_Row], list[_Row]]:
        """The waiting rows that can run now: those that join, and those that are run separately."""
        joining, separate = list[_Row](), list[_Row]()
        while self._waiting:
            row = self._waiting[0]
            together = [*self._running, *joining, *separate, row]
            is_other = row.is_separate and any(
                r.request.seeded_decoding != row.request.seeded_decoding for r in separate
            )
            if is_other or not self._has_room(together):
                break
            (separate if row.is_separate else joining).append(self._waiting.popleft())
        return joining, separate

    def _has_room(self, rows: Sequence[_Row]) -> bool:
        count = sum(row.count for row in rows)
        width = max(row.width for row in rows)
        return count <= self._max_rows and count * width <= self._max_tokens

    def _check_size(self, row: _Row) -> None:
        """Check that a row fits when no other runs."""
        if row.count > self._max_rows:
            msg = (
                f"num_beams = {row.count} needs {row.count} rows, but a batch has "
                f"{self._max_rows} (max_rows). Use fewer beams, or raise max_rows."
            )
            raise DataError(msg)
        if row.count * row.width > self._max_tokens:
            beams = f" times {row.count} beams" if row.count > 1 else ""
            msg = (
                f"a row of {len(row.request.ids)} tokens with its prompt and max_new_tokens = "
                f"{row.request.decoding.max_new_tokens} can take {row.width} tokens{beams}, but a "
                f"batch has room for {self._max_tokens} (max_tokens). Shorten the text, lower "
                "max_new_tokens, or raise max_tokens."
            )
            raise DataError(msg)


def _check_request(backbone: Backbone, request: GenerationRequest) -> None:
    """Check what would fail later, perhaps together with other rows."""
    if request.task.backbone is not backbone:
        msg = (
            f"the request's task is on another copy of a backbone ({request.task.backbone.name!r}) "
            f"than the batch ({backbone.name!r}). Build the task on the batch's backbone."
        )
        raise DataError(msg)
    if isinstance(request.stop, str):
        msg = f"stop = {request.stop!r} is one string. Give a tuple: stop=({request.stop!r},)."
        raise DataError(msg)
    if not all(request.stop):
        msg = "a stop string is empty, so no text could come before it. Leave it out."
        raise DataError(msg)
    check_start_layers(backbone, [request.prompt])
    inputs = backbone.make_single_row(torch.tensor(request.ids))
    assign_prompts(backbone, inputs, prompts=[request.prompt])
    limit = backbone.geometry.max_positions
    if limit is None:
        return
    prompt = 0 if request.prompt is None else request.prompt.num_positions
    causal = backbone.geometry.architecture == "causal"
    new, own = request.decoding.max_new_tokens, len(request.ids)
    needed = prompt + new + (own - 1 if causal else 0)
    if needed > limit or own > limit:
        msg = (
            f"a row of {own} tokens, {prompt} positions of its prompt and max_new_tokens = {new} "
            f"need {max(needed, own)} positions, but {backbone.geometry.model_type} has {limit}. "
            "Shorten the text or lower max_new_tokens."
        )
        raise DataError(msg)


def _generate_whole(backbone: Backbone, rows: Sequence[_Row]) -> list[list[int]]:
    """Generate for rows with equal settings, as `predict` does."""
    variants = [row.request.example.variants[0] for row in rows]
    side: Side = "left" if backbone.geometry.architecture == "causal" else "right"
    prompts, index = list_prompts([row.request.prompt for row in rows], backbone.device)
    return generate(
        backbone,
        pad_rows(backbone, variants, side=side),
        prompts=prompts,
        rows=index,
        decoding=rows[0].request.seeded_decoding,
    )


def _group_by_length(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Groups of rows of similar length, which are padded little."""
    groups = list[list[_Row]]()
    for row in sorted(rows, key=lambda row: len(row.request.ids), reverse=True):
        longest = len(groups[-1][0].request.ids) if groups else 0
        if len(row.request.ids) < (1 - _MAX_PADDING) * longest or not groups:
            groups.append([])
        groups[-1].append(row)
    return groups
