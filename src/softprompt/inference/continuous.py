"""Continuous batching: rows join and leave one running batch at every step of generation."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.backbone import Backbone
from softprompt.data.collate import Side
from softprompt.errors import DataError
from softprompt.inference.generated_row import GeneratedRow, GenerationEvent, GenerationRequest
from softprompt.inference.token_scores import TokenScores, score_row
from softprompt.injection.forward import assign_prompts
from softprompt.injection.generation import check_start_layers, generate
from softprompt.injection.running_rows import (
    RunningRows,
    can_store_prefixes,
    explain_no_joining,
    list_prompts,
)
from softprompt.tasks.base import pad_rows

# New rows are run together with longer ones up to this share of padding.
_MAX_PADDING = 0.25


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
        self._running: list[GeneratedRow] = []
        self._waiting: deque[GeneratedRow] = deque()

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
        if is_separate and request.scores is not None:
            raise DataError(self._explain_no_scores())
        row = GeneratedRow(key, request, is_separate=is_separate)
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

    def _explain_no_scores(self) -> str:
        why = "with beam search a text is"
        if self.separate_reason is not None:
            why = f"this backbone {self.separate_reason}, so its texts are"
        return (
            f"{why} generated whole, without log-probabilities of each token. Leave them out, or "
            "use another backbone or num_beams = 1."
        )

    def _list_rows(self) -> Iterator[GeneratedRow]:
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

    def _join(self, rows: Sequence[GeneratedRow]) -> list[GenerationEvent]:
        """Run new rows together; if that fails, each of them alone."""
        try:
            known = {row.key: _score(row.request) for row in rows}
            scores = self._cache.join([row.new_row for row in rows])
        except Exception as error:  # noqa: BLE001  # as above
            if len(rows) == 1:
                return [rows[0].fail(error)]
            return [event for row in rows for event in self._join([row])]
        self._running += rows
        events = self._accept(rows, scores)
        return [
            replace(one, row_scores=known[one.key]) if known[one.key] else one for one in events
        ]

    def _accept(self, rows: Sequence[GeneratedRow], scores: Tensor) -> list[GenerationEvent]:
        """Take each row's next token, and drop the rows that have ended."""
        best, wrong = scores.argmax(dim=-1).tolist(), scores.isnan().any(dim=-1).tolist()
        events = list[GenerationEvent]()
        for row, of_row, token, is_wrong in zip(rows, scores, best, wrong, strict=True):
            try:
                is_best = row.is_greedy and not is_wrong
                chosen = token if is_best else row.choose(of_row)
                events.append(row.accept(chosen, scores=row.measure(chosen, of_row)))
            except Exception as error:  # noqa: BLE001  # as above
                events.append(row.fail(error))
        ended = {event.key for event in events if event.finish_reason is not None}
        for index in range(len(self._running) - 1, -1, -1):
            if self._running[index].key in ended:
                self._drop(index)
        return events

    def _run_separate(self, rows: Sequence[GeneratedRow]) -> list[GenerationEvent]:
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

    def _take(self) -> tuple[list[GeneratedRow], list[GeneratedRow]]:
        """The waiting rows that can run now: those that join, and those that are run separately."""
        joining, separate = list[GeneratedRow](), list[GeneratedRow]()
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

    def _has_room(self, rows: Sequence[GeneratedRow]) -> bool:
        count = sum(row.count for row in rows)
        width = max(row.width for row in rows)
        return count <= self._max_rows and count * width <= self._max_tokens

    def _check_size(self, row: GeneratedRow) -> None:
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


def _score(request: GenerationRequest) -> tuple[TokenScores, ...]:
    """The log-probabilities of the row's own tokens, if they were asked for."""
    options = request.scores
    if options is None or not options.has_row:
        return ()
    return score_row(request.task, request.example, prompt=request.prompt, top=options.top)


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
    _check_scores(backbone, request)
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


def _check_scores(backbone: Backbone, request: GenerationRequest) -> None:
    """Check that the log-probabilities that are asked for exist."""
    options, vocabulary = request.scores, backbone.geometry.vocab_size
    if options is not None and options.has_row and backbone.geometry.architecture != "causal":
        msg = (
            f"{backbone.geometry.model_type} is an encoder-decoder, which gives the tokens of a "
            "row no log-probabilities. Ask for those of the generated tokens alone."
        )
        raise DataError(msg)
    named = (*request.stop_token_ids, *(options.tokens if options is not None else ()))
    wrong = [token for token in named if not 0 <= token < vocabulary]
    if wrong:
        msg = (
            f"{wrong[0]} is not the id of a token. {backbone.geometry.model_type} has the tokens "
            f"0 to {vocabulary - 1}."
        )
        raise DataError(msg)


def _generate_whole(backbone: Backbone, rows: Sequence[GeneratedRow]) -> list[list[int]]:
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


def _group_by_length(rows: Sequence[GeneratedRow]) -> list[list[GeneratedRow]]:
    """Groups of rows of similar length, which are padded little."""
    groups = list[list[GeneratedRow]]()
    for row in sorted(rows, key=lambda row: len(row.request.ids), reverse=True):
        longest = len(groups[-1][0].request.ids) if groups else 0
        if len(row.request.ids) < (1 - _MAX_PADDING) * longest or not groups:
            groups.append([])
        groups[-1].append(row)
    return groups
