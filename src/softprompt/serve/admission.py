"""Which requests the engine takes: bounds on what waits, in all and for each prompt."""

from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from softprompt.serve.faults import ServingError
from softprompt.tasks import Prediction

RowOutcome = Prediction | ServingError
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


class QueueLoad:
    """The rows and tokens that wait or run, in all and by prompt.

    Args:
        limits: of the queue.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.rows = self.tokens = 0
        self._rate = 0.0
        self._by_prompt: dict[str, tuple[int, int]] = {}

    def admit(self, ticket: Ticket) -> None:
        """Check that a ticket fits into the queue, and count it.

        Args:
            ticket: to be queued.

        Raises:
            ServingError: the queue is full, or the prompt has its share of it.
        """
        limits = self.limits
        if ticket.rows > limits.queued_rows or ticket.tokens > limits.queued_tokens:
            msg = (
                f"the request has {ticket.rows:,} rows and {ticket.tokens:,} tokens, but at most "
                f"{limits.queued_rows:,} rows and {limits.queued_tokens:,} tokens can wait. Divide "
                "it into several."
            )
            raise ServingError(msg, kind="too_large")
        self.check_room(rows=ticket.rows, tokens=ticket.tokens)
        rows, tokens = self._by_prompt.get(ticket.prompt, (0, 0))
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
        self._add(ticket, 1)

    def check_room(self, *, rows: int = 1, tokens: int = 1) -> None:
        """Check that so much fits into the queue.

        Args:
            rows: to be queued.
            tokens: of these rows.

        Raises:
            ServingError: the queue is full.
        """
        limits = self.limits
        if self.rows + rows > limits.queued_rows or self.tokens + tokens > limits.queued_tokens:
            msg = (
                f"the server is full: {self.rows:,} of {limits.queued_rows:,} rows and "
                f"{self.tokens:,} of {limits.queued_tokens:,} tokens wait. Try again later."
            )
            raise ServingError(msg, kind="full", retry_after=self.estimate_wait())

    def remove(self, ticket: Ticket) -> None:
        """Count a ticket no longer.

        Args:
            ticket: that is answered.
        """
        self._add(ticket, -1)

    def measure(self, tokens: int, seconds: float) -> None:
        """Note how fast tokens are run.

        Args:
            tokens: of some batches.
            seconds: that they took.
        """
        if tokens and seconds > 0:
            rate = tokens / seconds
            self._rate += (rate - self._rate) * (_SMOOTHING if self._rate else 1.0)

    def estimate_wait(self) -> float:
        """The seconds that what waits now will take, from 1 to 60."""
        seconds = self.tokens / self._rate if self._rate else 1.0
        return min(60.0, max(1.0, seconds))

    def _add(self, ticket: Ticket, sign: int) -> None:
        self.rows += sign * ticket.rows
        self.tokens += sign * ticket.tokens
        rows, tokens = self._by_prompt.get(ticket.prompt, (0, 0))
        rows, tokens = rows + sign * ticket.rows, tokens + sign * ticket.tokens
        self._by_prompt[ticket.prompt] = rows, tokens
        if not rows:
            del self._by_prompt[ticket.prompt]
