"""The engine: one thread that runs the rows of all requests on one backbone, batch by batch."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softprompt.errors import SoftpromptError
from softprompt.inference.generated_row import GenerationEvent, GenerationRequest, TextBatch
from softprompt.inference.loops import check_numbers
from softprompt.inference.mixed import PromptedRow, predict_mixed
from softprompt.serve.admission import (
    EngineCounts,
    EngineLimits,
    QueueLoad,
    RowOutcome,
    Ticket,
)
from softprompt.serve.batches import PASS_TOKENS, RemoteBatch, divide_by_length
from softprompt.serve.fair_queue import FairQueue
from softprompt.serve.faults import ServingError, describe_failure

Predict = Callable[[Sequence[PromptedRow]], Sequence[RowOutcome]]
# How long a step may take before the server is no longer ready, in seconds.
STALL_SECONDS = 60.0
# A batch is chosen among so many times the rows that it may have.
_LOOKAHEAD = 2
# How often rows that no one waits for any more are looked for in the whole queue, in seconds.
_SWEEP_SECONDS = 0.05
_log = logging.getLogger(__name__)


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


class ServingEngine:
    """Runs rows of any prompts together, in a thread of its own.

    Args:
        generator: makes the running batch of generation; None if the backbone cannot write. A
            `RemoteBatch` runs the other rows too, in place of ``predict``.
        limits: of the queue and of a batch.
        maintain: called in the thread of the engine after `wake`, when a batch has ended or none
            waits.
        pass_tokens: the tokens that take as long as what every pass takes in any case. Rows of
            different lengths are run together only where a pass takes longer than their padding.
        predict: predicts a batch.
        clock: the time in seconds.
    """

    def __init__(
        self,
        generator: Callable[[], TextBatch] | None = None,
        *,
        limits: EngineLimits | None = None,
        maintain: Callable[[], None] | None = None,
        pass_tokens: int = PASS_TOKENS["cpu"],
        predict: Predict = predict_mixed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or EngineLimits()
        self.counts = EngineCounts()
        self._make_generator, self._predict, self._clock = generator, predict, clock
        self._generator = None if generator is None else generator()
        self._maintain, self._pass_tokens = maintain, pass_tokens
        self._is_woken = False
        self._running: dict[Ticket, _TextJob] = {}
        self._sent: set[_Job] = set()
        self._changed = threading.Condition()
        self._rows: FairQueue[_Job] = FairQueue()
        # The next rows, in turn by prompt, among which batches are chosen. Of the thread alone.
        self._next_rows: list[_Job] = []
        self._texts: FairQueue[_TextJob] = FairQueue()
        self._load = QueueLoad(self.limits)
        self._is_stopping = False
        self._step_started: float | None = None
        self._swept = self._began = self._clock()
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

    @property
    def _remote(self) -> RemoteBatch | None:
        """The other server that runs all rows; None if they run here."""
        return self._generator if isinstance(self._generator, RemoteBatch) else None

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
            waiting = (*self._rows, *self._next_rows, *self._texts, *self._sent)
            left = {job.ticket for job in waiting} | {*self._running}
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
            self._check_open()
            self._load.admit(ticket)
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
            self._check_open()
            self._load.admit(ticket)
            self._texts.add(prompt, _TextJob(ticket, request, on_event), cost=tokens)
            self._changed.notify()
        return ticket

    def check_room(self) -> None:
        """Check that a row would be taken.

        Raises:
            ServingError: the queue is full, or the engine stops.
        """
        self._check_open()
        self._load.check_room()

    def wake(self) -> None:
        """Let the thread call ``maintain`` soon."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def estimate_wait(self) -> float:
        """The seconds that what waits now will take, from 1 to 60."""
        return self._load.estimate_wait()

    def _check_open(self) -> None:
        if self._is_stopping:
            msg = "the server is stopping. Send the request to another replica, or again later."
            raise ServingError(msg, kind="stopping", retry_after=5)

    @property
    def _has_work(self) -> bool:
        waiting = self._rows or self._next_rows or self._texts
        return bool(waiting or self._running or self._sent)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._has_work or self._is_woken):
                    self._step_started = None
                    if self._is_stopping:
                        return
                    self._changed.wait()
                self._step_started = self._clock()
                self._drop_unwanted()
                self._take_rows()
                texts = self._take_texts()
                is_woken, self._is_woken = self._is_woken, False
            self._step(texts)
            if is_woken and self._maintain is not None:
                self._run_maintenance(self._maintain)

    def _step(self, texts: Sequence[_TextJob]) -> None:
        """Run one batch of rows, and one step of the texts."""
        if not self._sent:
            self._began = self._clock()
        before = self.counts.tokens
        jobs = self._keep_wanted(self._choose_batch())
        remote = self._remote
        if remote is None:
            self._run(jobs)
        else:
            self._send(jobs, remote)
        self._run_texts(texts)
        if done := self.counts.tokens - before:
            self._load.measure(done, self._clock() - self._began)
            self._began = self._clock()

    def _run_maintenance(self, maintain: Callable[[], None]) -> None:
        try:
            maintain()
        except Exception:  # noqa: BLE001  # the rows that run are not touched
            _log.exception("what was to be prepared between batches failed")

    def _keep_wanted(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Those that somebody still waits for when their batch begins."""
        unwanted = [job for job in jobs if self._is_unwanted(job)]
        for job in unwanted:
            self._settle(job, self._explain(job.ticket))
        return [job for job in jobs if job not in unwanted] if unwanted else list(jobs)

    def _drop_unwanted(self) -> None:
        """Take out what no one waits for, and what is too late."""
        self._next_rows = self._keep_wanted(self._next_rows)
        if self._clock() - self._swept >= _SWEEP_SECONDS:
            self._swept = self._clock()
            for job in self._rows.remove(self._is_unwanted):
                self._settle(job, self._explain(job.ticket))
            for text in self._texts.remove(self._is_unwanted):
                self._settle_text(text, self._explain(text.ticket))
        for job in [*filter(self._is_unwanted, self._sent)]:
            self._sent.remove(job)
            if self._generator is not None:
                self._generator.remove(job)
            self._settle(job, self._explain(job.ticket))
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

    def _take_rows(self) -> None:
        """Take rows from the queue, in turn by prompt, as many as batches are chosen among."""
        most_rows = _LOOKAHEAD * self.limits.batch_rows
        most_tokens = _LOOKAHEAD * self.limits.batch_tokens
        tokens = sum(job.row.cost for job in self._next_rows)
        while self._rows and len(self._next_rows) < most_rows and tokens < most_tokens:
            self._next_rows.append(self._rows.take())
            tokens += self._next_rows[-1].row.cost

    def _choose_batch(self) -> list[_Job]:
        """The row that has waited longest, with the rows of similar length that it is run with.

        All rows that were taken are divided into batches, so that no row is run with another that
        would be cheaper elsewhere. The other batches are divided anew with the rows that come
        while this one runs.
        """
        jobs = self._next_rows
        if not jobs or len(self._sent) >= self.limits.batch_rows:
            return []
        batches = divide_by_length(
            [job.row.width for job in jobs],
            counts=[len(job.row.example.variants) for job in jobs],
            max_rows=self.limits.batch_rows,
            max_tokens=self.limits.batch_tokens,
            pass_tokens=self._pass_tokens,
        )
        chosen = set(next(batch for batch in batches if 0 in batch))
        self._next_rows = [job for index, job in enumerate(jobs) if index not in chosen]
        return [job for index, job in enumerate(jobs) if index in chosen]

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Run a batch; one that fails is divided, until the rows that fail are alone."""
        if not jobs:
            return
        try:
            predictions = self._predict([job.row for job in jobs])
        except Exception as error:  # noqa: BLE001  # its mates are answered all the same
            if len(jobs) == 1:
                self.counts.failed += 1
                self._settle(jobs[0], describe_failure(error))
                return
            middle = len(jobs) // 2
            self._run(jobs[:middle])
            self._run(jobs[middle:])
            return
        self.counts.batches += 1
        for job, prediction in zip(jobs, predictions, strict=True):
            self._answer(job, prediction)

    def _answer(self, job: _Job, prediction: RowOutcome) -> None:
        self.counts.rows += 1
        self.counts.tokens += job.row.cost
        self._settle(job, _check(prediction))

    def _send(self, jobs: Sequence[_Job], remote: RemoteBatch) -> None:
        """Let another server run rows; texts go on meanwhile."""
        self.counts.batches += bool(jobs)
        for job in jobs:
            self._sent.add(job)
            remote.add_row(job, job.row)

    def _take_texts(self) -> list[_TextJob]:
        """The rows that join the running batch, in turn by prompt."""
        joining: list[_TextJob] = []
        while self._texts and len(self._running) < self.limits.batch_rows:
            text = self._texts.take()
            if self._is_unwanted(text):
                self._settle_text(text, self._explain(text.ticket))
                continue
            self._running[text.ticket] = text
            joining.append(text)
        return joining

    def _run_texts(self, joining: Sequence[_TextJob]) -> None:
        if self._generator is None or not (self._running or self._sent):
            return
        for text in joining:
            try:
                self._generator.add(text.ticket, text.request)
            except Exception as error:  # noqa: BLE001  # the rows that run are not touched
                self.counts.failed += 1
                self._settle_text(text, describe_failure(error))
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
            self._settle_text(text, describe_failure(error))
        if self._make_generator is not None:
            self._generator = self._make_generator()

    def _pass_on(self, event: GenerationEvent) -> None:
        if isinstance(event.key, _Job):
            self._finish_sent(event.key, event)
            return
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
            self._settle_text(text, describe_failure(event.error))
        elif event.prediction is not None:
            self._settle_text(text, event.prediction)

    def _finish_sent(self, job: _Job, event: GenerationEvent) -> None:
        if job not in self._sent:  # nobody waited for it any more
            return
        self._sent.remove(job)
        if event.prediction is not None:
            self._answer(job, event.prediction)
        elif event.error is not None:
            self.counts.failed += 1
            self._settle(job, describe_failure(event.error))

    def _settle(self, job: _Job, outcome: RowOutcome) -> None:
        if job.ticket.settle(job.index, outcome):
            with self._changed:
                self._load.remove(job.ticket)

    def _settle_text(self, text: _TextJob, outcome: RowOutcome) -> None:
        self._running.pop(text.ticket, None)
        if text.ticket.settle(0, outcome):
            with self._changed:
                self._load.remove(text.ticket)

    def _refuse(self, ticket: Ticket, error: ServingError) -> None:
        for index in range(ticket.rows):
            ticket.settle(index, error)


def _check(prediction: RowOutcome) -> RowOutcome:
    """The prediction, unless its scores are not numbers."""
    if isinstance(prediction, ServingError):
        return prediction
    try:
        check_numbers([prediction])
    except SoftpromptError as error:
        return ServingError(str(error), kind="failed")
    return prediction
