"""What a request's model means, its rendered rows, and tickets of several prompts together."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from softprompt.data.inputs import Row
from softprompt.inference.generated_row import GenerationEvent, ScoreOptions
from softprompt.inference.mixed import BakedPrompt
from softprompt.inference.votes import Vote, combine
from softprompt.prompt import KVPrefix, Prompt
from softprompt.serve.admission import RowOutcome, Ticket
from softprompt.serve.faults import ServingError
from softprompt.serve.resident import ResidentPrompt
from softprompt.tasks import Example, Objective, Prediction, Task

OnEvent = Callable[[GenerationEvent], None]


@dataclass(frozen=True, eq=False)
class Member:
    """One prompt of a target: its only one, or one of an ensemble.

    Args:
        task: to run.
        prompt: None for the bare backbone.
        baked: its keys and values, if all rows begin with its soft tokens.
    """

    task: Task
    prompt: Prompt | None
    baked: BakedPrompt | None = None

    def shorten(self, example: Example) -> tuple[Example, Prompt | None]:
        """The row without the tokens that are baked, and the prompt for it.

        Args:
            example: rendered by the task.
        """
        short = None if self.baked is None else self.baked.cut(example)
        if self.baked is None or short is None:
            return example, self.prompt
        return short, self.baked.prefix

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """The tokens of a row, with its soft tokens, and the number of these.

        Args:
            example: rendered by the task.
        """
        ids, vocabulary = example.variants[0].input_ids, self.task.backbone.geometry.vocab_size
        prefix = self.prompt.length if isinstance(self.prompt, KVPrefix) else 0
        return len(ids) + prefix, sum(token >= vocabulary for token in ids) + prefix


@dataclass(frozen=True, eq=False)
class Target:
    """What a request's ``model`` means, for as long as the request is answered.

    Args:
        name: whose share the request counts to.
        version: the full reference of the version.
        members: its prompt, or those of an ensemble.
        vote: of the ensemble; None if it has a single prompt.
        resident: to be released; None for the bare backbone.
    """

    name: str
    version: str
    members: tuple[Member, ...]
    vote: Vote | None
    resident: ResidentPrompt | None

    @property
    def task(self) -> Task:
        """Of the first member; those of the others have the same labels."""
        return self.members[0].task

    @property
    def is_bare(self) -> bool:
        """Whether it is the bare backbone."""
        return self.resident is None

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of all templates."""
        return tuple(dict.fromkeys(name for one in self.members for name in one.task.columns))

    def render(self, rows: Sequence[Row]) -> list["ServedRow"]:
        """Render rows, as each member does.

        Args:
            rows: the fields of all templates.

        Raises:
            SoftpromptError: one does not fit a template.
        """
        views = [member.task.make_examples(rows, target=False) for member in self.members]
        return [ServedRow(of_row) for of_row in zip(*views, strict=True)]

    def count_tokens(self, row: "ServedRow") -> tuple[int, int]:
        """The tokens of a row for all members, and the number of soft tokens among them.

        Args:
            row: of this target.
        """
        pairs = [m.count_tokens(e) for m, e in zip(self.members, row.views, strict=True)]
        return sum(all_ for all_, _ in pairs), sum(own for _, own in pairs)


@dataclass(frozen=True, eq=False)
class ServedRow:
    """A rendered row.

    Args:
        views: as each member of the target renders it.
    """

    views: tuple[Example, ...]

    @property
    def is_truncated(self) -> bool:
        """Whether a field was shortened to fit."""
        return any(view.truncated for view in self.views)


@dataclass(frozen=True)
class TextOptions:
    """How text is generated; None for the prompt's own setting.

    Args:
        max_tokens: the most tokens.
        temperature: 0 for the likeliest token at each step.
        top_p: sample from the smallest set of tokens with this probability.
        top_k: sample from the k likeliest tokens.
        min_p: sample only tokens with at least this share of the likeliest one's probability.
        seed: of sampling.
        stop: strings that end the text.
        stop_token_ids: tokens that end the text.
        scores: which log-probabilities are returned.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    scores: ScoreOptions | None = None


def ignore_event(_event: GenerationEvent) -> None:
    """No one reads the pieces."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """A row to be answered.

    Args:
        row: rendered.
        options: how text is generated.
        on_event: called in the engine's thread with each piece of text; not for a classifier, nor
            for an ensemble, whose text is known at the end.
    """

    row: ServedRow
    options: TextOptions = TextOptions()
    on_event: OnEvent = ignore_event


class JointTicket:
    """The tickets of an ensemble's members: one outcome for each row, that of their vote.

    Args:
        tickets: whose outcomes are, row by row, those of all members.
        vote: of the ensemble.
        objective: of the first member's task.
        members: their number.

    Attributes:
        rows: the number of outcomes.
        future: the outcome of each row, in their order.
    """

    def __init__(
        self, tickets: Sequence[Ticket], *, vote: Vote, objective: Objective, members: int
    ) -> None:
        self.rows = sum(ticket.rows for ticket in tickets) // members
        self.future: Future[list[RowOutcome]] = Future()
        self._tickets, self._members = tuple(tickets), members
        self._vote, self._objective = vote, objective
        call_when_done(self._tickets, self._settle)

    def cancel(self) -> None:
        """Tell the engine that no one waits for the answer."""
        for ticket in self._tickets:
            ticket.cancel()

    def _settle(self) -> None:
        outcomes = [one for ticket in self._tickets for one in ticket.future.result()]
        starts = range(0, len(outcomes), self._members)
        # The one who waited may have gone.
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(
                [self._combine(outcomes[at : at + self._members]) for at in starts]
            )

    def _combine(self, outcomes: Sequence[RowOutcome]) -> RowOutcome:
        """The outcome of a row; a member's error is that of the row."""
        for outcome in outcomes:
            if isinstance(outcome, ServingError):
                return outcome
        found = [one for one in outcomes if isinstance(one, Prediction)]
        return combine(found, self._vote, objective=self._objective)


AnyTicket = Ticket | JointTicket


def call_when_done(tickets: Sequence[AnyTicket], function: Callable[[], None]) -> None:
    """Call a function once, when the last of some tickets is answered, in whatever thread that is.

    Args:
        tickets: at least one.
        function: to call.
    """
    left, lock = len(tickets), threading.Lock()

    def count(_done: "Future[list[RowOutcome]]") -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = not left
        if is_last:
            function()

    for ticket in tickets:
        ticket.future.add_done_callback(count)
