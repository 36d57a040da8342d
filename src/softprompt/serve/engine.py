"""The engine: one thread that runs the rows of all requests on one backbone, batch by batch."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import torch

from softprompt.data.collate import group_by_length
from softprompt.errors import SoftpromptError, summarize_error
from softprompt.inference.continuous import (
    GenerationBatch,
    GenerationEvent,
    GenerationRequest,
)
from softprompt.inference.loops import check_numbers
from softprompt.inference.mixed import PromptedRow, predict_mixed
from softprompt.serve.fair_queue import FairQueue
from softprompt.serve.faults import ServingError
from softprompt.tasks import Prediction

RowOutcome = Prediction | ServingError
Predict = Callable[[Sequence[PromptedRow]], list[Prediction]]
# How long a step may take before the server is no longer ready, in seconds.
STALL_SECONDS = 60.0
# Of the smoothed rate of tokens, from which Retry-After is computed.
_SMOOTHING = 0.2


@dataclass(frozen=True)
class EngineLimits:
    """What the engine takes.

    Args:
        batch_rows: the most rows of a batch.
        batch_tokens: the most positions of a batch, with padding.
        queued_rows: the most rows that wait or run.
        queued_tokens: the most tokens of these.
        prompt_share: the largest share of both that one prompt may have.
    """

    batch_rows: int = 64
    batch_tokens: int = 8192
    queued_rows: int = 2048
    queued_tokens: int = 1 << 20
    prompt_share: float = 0.5


class Ticket:
    """A request that was handed in.

    Args:
        prompt: the name whose share it counts to.
        deadline: when it expires, by the engine's clock; None if it never does.
        rows: the number of its rows.
        tokens: of its rows.

    Attributes:
        future: the outcome of each row, in their order.
        is_cancelled: whether no one waits for the answer.
    """

    def __init__(self, prompt: str, *, deadline: float | None, rows: int, tokens: int) -> None:
        self.prompt, self.deadline, self.rows, self.tokens = prompt, deadline, rows, tokens
        self.future: Future[list[RowOutcome]] = Future()
        self.is_cancelled = False
        self._outcomes: list[RowOutcome | None] = [None] * rows
        self._left = rows

    def cancel(self) -> None:
        """Tell the engine that no one waits for the answer; it stops at the next step."""
        self.is_cancelled = True

    def settle(self, index: int, outcome: RowOutcome) -> bool:
        """Record the outcome of a row.

        Args:
            index: of the row.
            outcome: a prediction, or why there is none.

        Returns:
            Whether it was the last.
        """
        if self._outcomes[index] is None:
            self._outcomes[index] = outcome
            self._left -= 1
        if self._left:
            return False
        try:
            self.future.set_result([one for one in self._outcomes if one is not None])
        except InvalidStateError:  # the one who waited has gone
            return True
        return True


@dataclass(frozen=True, eq=False)
class _Job:
    """One row of a ticket."""

    ticket: Ticket
    index: int
    row: PromptedRow


@dataclass(frozen=True, eq=False)
class _TextJob:
    """A row to generate text for."""

    ticket: Ticket
    request: GenerationRequest
    on_event: Callable[[GenerationEvent], None]


@dataclass
class EngineCounts:
    """What the engine has done, for metrics.

    Args:
        batches: of classification.
        rows: in them.
        tokens: in them, without padding.
        steps: of generation.
        failed: rows that raised an error.
        expired: rows whose deadline passed.
        cancelled: rows that nobody waited for.
    """

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    steps: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0


@dataclass
class _Load:
    """The rows and tokens that wait or run, in all and by prompt."""

    rows: int = 0
    tokens: int = 0
    by_prompt: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, ticket: Ticket, sign: int = 1) -> None:
        self.rows += sign * ticket.rows
        self.tokens += sign * ticket.tokens
        rows, tokens = self.by_prompt.get(ticket.prompt, (0, 0))
        rows, tokens = rows + sign * ticket.rows, tokens + sign * ticket.tokens
        self.by_prompt[ticket.prompt] = rows, tokens
        if not rows:
            del self.by_prompt[ticket.prompt]


class ServingEngine:
    """Runs rows of any prompts together, in a thread of its own.

    Args:
        generator: makes the running batch of generation; None if the backbone cannot write.
        limits: of the queue and of a batch.
        predict: predicts a batch.
        clock: the time in seconds.
    """

    def __init__(
        self,
        generator: Callable[[], GenerationBatch] | None = None,
        *,
        limits: EngineLimits | None = None,
        predict: Predict = predict_mixed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or EngineLimits()
        self.counts = EngineCounts()
        self._make_generator, self._predict, self._clock = generator, predict, clock
        self._generator = None if generator is None else generator()
        self._running: dict[Ticket, _TextJob] = {}
        self._changed = threading.Condition()
        self._rows: FairQueue[_Job] = FairQueue()
        self._texts: FairQueue[_TextJob] = FairQueue()
        self._load = _Load()
        self._rate = 0.0
        self._is_stopping = False
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._loop, name="softprompt-engine", daemon=True)

    @property
    def queued_rows(self) -> int:
        """Rows that wait or run."""
        return self._load.rows

    @property
    def queued_tokens(self) -> int:
        """Tokens of the rows that wait or run."""
        return self._load.tokens

    @property
    def is_running(self) -> bool:
        """Whether the thread runs, and its current step has not taken too long."""
        started = self._step_started
        is_stalled = started is not None and self._clock() - started > STALL_SECONDS
        return self._thread.is_alive() and not is_stalled

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, timeout: float | None = None) -> None:
        """Finish what was accepted, and end the thread.

        Args:
            timeout: in seconds; what is not finished then is refused.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            left = {job.ticket for job in (*self._rows, *self._texts)} | {*self._running}
        for ticket in left:
            self._refuse(
                ticket, ServingError("the server stopped.", kind="stopping", retry_after=5)
            )

    def submit(
        self, prompt: str, rows: Sequence[PromptedRow], *, deadline: float | None = None
    ) -> Ticket:
        """Hand rows in.

        Args:
            prompt: the name whose share they count to.
            rows: rendered, of any task of classification.
            deadline: when they expire, by the engine's clock.

        Returns:
            The ticket, whose future gets the outcomes.

        Raises:
            ServingError: the queue is full, or the prompt has its share of it.
        """
        tokens = sum(row.cost for row in rows)
        ticket = Ticket(prompt, deadline=deadline, rows=len(rows), tokens=tokens)
        with self._changed:
            self._admit(ticket)
            for index, row in enumerate(rows):
                self._rows.add(prompt, _Job(ticket, index, row), cost=row.cost)
            self._changed.notify()
        return ticket

    def submit_text(
        self,
        prompt: str,
        request: GenerationRequest,
        *,
        on_event: Callable[[GenerationEvent], None],
        deadline: float | None = None,
    ) -> Ticket:
        """Hand a row in to generate text for.

        Args:
            prompt: the name whose share it counts to.
            request: the row.
            on_event: called in the engine's thread with each piece of text.
            deadline: when it expires, by the engine's clock.

        Returns:
            The ticket, whose future gets the outcome.

        Raises:
            ServingError: the queue is full, or the prompt has its share of it.
        """
        tokens = request.example.length + request.decoding.max_new_tokens
        ticket = Ticket(prompt, deadline=deadline, rows=1, tokens=tokens)
        with self._changed:
            self._admit(ticket)
            self._texts.add(prompt, _TextJob(ticket, request, on_event), cost=tokens)
            self._changed.notify()
        return ticket

    def estimate_wait(self) -> float:
        """The seconds that what waits now will take, from 1 to 60."""
        seconds = self._load.tokens / self._rate if self._rate else 1.0
        return min(60.0, max(1.0, seconds))

    def _admit(self, ticket: Ticket) -> None:
        """Check that a ticket fits into the queue, and count it."""
        limits, load = self.limits, self._load
        if self._is_stopping:
            msg = "the server is stopping. Send the request to another replica, or again later."
            raise ServingError(msg, kind="stopping", retry_after=5)
        if ticket.rows > limits.queued_rows or ticket.tokens > limits.queued_tokens:
            msg = (
                f"the request has {ticket.rows:,} rows and {ticket.tokens:,} tokens, but at most "
                f"{limits.queued_rows:,} rows and {limits.queued_tokens:,} tokens can wait. Divide "
                "it into several."
            )
            raise ServingError(msg, kind="too_large")
        if (
            load.rows + ticket.rows > limits.queued_rows
            or load.tokens + ticket.tokens > limits.queued_tokens
        ):
            msg = (
                f"the server is full: {load.rows:,} of {limits.queued_rows:,} rows and "
                f"{load.tokens:,} of {limits.queued_tokens:,} tokens wait. Try again later."
            )
            raise ServingError(msg, kind="full", retry_after=self.estimate_wait())
        rows, tokens = load.by_prompt.get(ticket.prompt, (0, 0))
        share = limits.prompt_share
        if rows and (
            rows + ticket.rows > share * limits.queued_rows
            or tokens + ticket.tokens > share * limits.queued_tokens
        ):
            msg = (
                f"{rows:,} rows of {ticket.prompt!r} wait, and one prompt may take {share:.0%} of "
                f"the queue of {limits.queued_rows:,} rows and {limits.queued_tokens:,} tokens. "
                "Try again later."
            )
            raise ServingError(msg, kind="limited", retry_after=self.estimate_wait())
        load.add(ticket)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._rows or self._texts or self._running):
                    self._step_started = None
                    if self._is_stopping:
                        return
                    self._changed.wait()
                self._step_started = self._clock()
                self._drop_unwanted()
                jobs = self._take_rows()
                texts = self._take_texts()
            started = self._clock()
            for batch in self._cut_batches(jobs):
                self._run(batch)
                self._step_started = self._clock()
            self._run_texts(texts)
            self._measure(sum(job.row.cost for job in jobs), self._clock() - started)

    def _drop_unwanted(self) -> None:
        """Take out what no one waits for, and what is too late."""
        for job in self._rows.remove(self._is_unwanted):
            self._settle(job, self._explain(job.ticket))
        for text in self._texts.remove(self._is_unwanted):
            self._settle_text(text, self._explain(text.ticket))
        for ticket, text in list(self._running.items()):
            if self._is_unwanted(text) and self._generator is not None:
                self._generator.remove(ticket)
                self._settle_text(text, self._explain(ticket))

    def _is_unwanted(self, job: _Job | _TextJob) -> bool:
        deadline = job.ticket.deadline
        return job.ticket.is_cancelled or (deadline is not None and self._clock() > deadline)

    def _explain(self, ticket: Ticket) -> ServingError:
        if ticket.is_cancelled:
            self.counts.cancelled += 1
            return ServingError("the request was cancelled by its sender.", kind="stopping")
        self.counts.expired += 1
        msg = "the deadline passed before the request was answered. Allow more time (timeout)."
        return ServingError(msg, kind="expired")

    def _take_rows(self) -> list[_Job]:
        """The next rows, in turn by prompt, as many as one batch takes."""
        jobs: list[_Job] = []
        tokens = 0
        while (
            self._rows and len(jobs) < self.limits.batch_rows and tokens < self.limits.batch_tokens
        ):
            jobs.append(self._rows.take())
            tokens += jobs[-1].row.cost
        return jobs

    def _cut_batches(self, jobs: Sequence[_Job]) -> Iterable[list[_Job]]:
        """Batches of rows of similar length, within the budget with their padding."""
        most = max((len(job.row.example.variants) for job in jobs), default=1)
        budget = max(1, self.limits.batch_tokens // most)
        lengths = [job.row.width for job in jobs]
        size = self.limits.batch_rows
        for batch in group_by_length(lengths, size=size, seed=None, max_tokens=budget):
            yield [jobs[index] for index in batch]

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Run a batch; one that fails is divided, until the rows that fail are alone."""
        try:
            predictions = self._predict([job.row for job in jobs])
        except Exception as error:  # noqa: BLE001  # its mates are answered all the same
            if len(jobs) == 1:
                self.counts.failed += 1
                self._settle(jobs[0], _describe_failure(error))
                return
            middle = len(jobs) // 2
            self._run(jobs[:middle])
            self._run(jobs[middle:])
            return
        self.counts.batches += 1
        self.counts.rows += len(jobs)
        self.counts.tokens += sum(job.row.cost for job in jobs)
        for job, prediction in zip(jobs, predictions, strict=True):
            self._settle(job, _check(prediction))

    def _take_texts(self) -> list[_TextJob]:
        """The rows that join the running batch, in turn by prompt."""
        free = self.limits.batch_rows - len(self._running)
        joining = [self._texts.take() for _ in range(min(free, len(self._texts)))]
        self._running |= {text.ticket: text for text in joining}
        return joining

    def _run_texts(self, joining: Sequence[_TextJob]) -> None:
        if self._generator is None or not self._running:
            return
        for text in joining:
            try:
                self._generator.add(text.ticket, text.request)
            except Exception as error:  # noqa: BLE001  # the rows that run are not touched
                self.counts.failed += 1
                self._settle_text(text, _describe_failure(error))
        try:
            events = self._generator.step()
        except Exception as error:  # noqa: BLE001  # the batch cannot be used any more
            self._restart_generator(error)
            return
        self.counts.steps += 1
        for event in events:
            self._pass_on(event)

    def _restart_generator(self, error: Exception) -> None:
        """A step that failed as a whole ends its rows, and the next ones get a new batch."""
        self.counts.failed += len(self._running)
        for text in list(self._running.values()):
            self._settle_text(text, _describe_failure(error))
        if self._make_generator is not None:
            self._generator = self._make_generator()

    def _pass_on(self, event: GenerationEvent) -> None:
        ticket = event.key
        text = self._running.get(ticket) if isinstance(ticket, Ticket) else None
        if text is None:
            return
        try:
            text.on_event(event)
        except Exception:  # noqa: BLE001  # the one who waited has gone
            text.ticket.cancel()
        if event.error is not None:
            self.counts.failed += 1
            self._settle_text(text, _describe_failure(event.error))
        elif event.prediction is not None:
            self._settle_text(text, event.prediction)

    def _settle(self, job: _Job, outcome: RowOutcome) -> None:
        if job.ticket.settle(job.index, outcome):
            with self._changed:
                self._load.add(job.ticket, sign=-1)

    def _settle_text(self, text: _TextJob, outcome: RowOutcome) -> None:
        self._running.pop(text.ticket, None)
        if text.ticket.settle(0, outcome):
            with self._changed:
                self._load.add(text.ticket, sign=-1)

    def _refuse(self, ticket: Ticket, error: ServingError) -> None:
        for index in range(ticket.rows):
            ticket.settle(index, error)

    def _measure(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            rate = tokens / seconds
            self._rate += (rate - self._rate) * (_SMOOTHING if self._rate else 1.0)


def _check(prediction: Prediction) -> RowOutcome:
    """The prediction, unless its scores are not numbers."""
    try:
        check_numbers([prediction])
    except SoftpromptError as error:
        return ServingError(str(error), kind="failed")
    return prediction


def _describe_failure(error: Exception) -> ServingError:
    """The message of an error, for the sender."""
    if isinstance(error, torch.OutOfMemoryError):
        msg = "there is not enough memory for this row alone. Shorten it."
        return ServingError(msg, kind="failed")
    if isinstance(error, ServingError):
        return error
    if isinstance(error, SoftpromptError):
        return ServingError(str(error), kind="invalid")
    return ServingError(f"the row could not be run: {summarize_error(error)}.", kind="failed")
