"""A request for text: its options, its choices as they come, and how an answer shows them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

from softprompt.inference.generated_row import GenerationEvent, ScoreOptions
from softprompt.inference.token_scores import TokenScores
from softprompt.serve.faults import ServingError
from softprompt.serve.logprobs import LogprobWriter, TokenNames, write_chat, write_completion
from softprompt.serve.messages import ChatRequest, CompletionRequest, TextRequest, make_header
from softprompt.serve.targets import OnEvent, RowOrder, ServedRow, Target, TextOptions
from softprompt.tasks import Prediction
from softprompt.tasks.generation import TextGenerator

Kind = Literal["completion", "chat"]
# OpenAI's limit of chat.
_MOST_STOPS, _LONGEST_STOP = 64, 1000
_MAX_TOP = 20


@dataclass(frozen=True)
class ChoiceOptions:
    """Which choices a request asks for.

    Args:
        count: that are returned for each row.
        drafts: that are generated for each row.
        top: how many of the likeliest tokens are returned; None without log-probabilities.
        has_row: whether the text of the row comes first.
        has_text: whether anything is generated.
    """

    count: int = 1
    drafts: int = 1
    top: int | None = None
    has_row: bool = False
    has_text: bool = True


class Choice:
    """One text of an answer, as it comes.

    Args:
        options: of the request.
        writer: of its log-probabilities; None without.
        task: that spells its tokens; None for a classifier, whose answer is a label.
        row: the text of the row, if it comes first.

    Attributes:
        text: of the answer.
        tokens: that were generated.
        finish_reason: why it ended.
    """

    def __init__(
        self,
        options: ChoiceOptions,
        writer: LogprobWriter | None,
        *,
        task: TextGenerator | None,
        row: tuple[int, ...] = (),
    ) -> None:
        self._options, self._writer, self._task, self._row = options, writer, task, row
        self.text = self._begin()
        self.tokens = 0
        self.finish_reason = "stop"
        self._shown, self._total, self._scored, self._has_begun = 0, 0.0, 0, False
        self._ids: list[int] = []
        self._waiting: list[TokenScores] = []

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens, with the end token."""
        return self._total / max(1, self._scored)

    @property
    def has_more(self) -> bool:
        """Whether there is text that was not taken."""
        return len(self.text) > self._shown

    def add(self, event: GenerationEvent) -> None:
        """Append a piece.

        Args:
            event: of the engine.
        """
        self._waiting += event.row_scores
        if not self._options.has_text:
            self.finish_reason = "length"
            return
        self._ids += event.token_ids
        self._waiting += event.scores[: len(event.token_ids)]
        # With the end token: a text that ends at once is as likely as that token.
        self._total += sum(one.logprob or 0.0 for one in event.scores)
        self._scored += len(event.scores)
        self.tokens += len(event.token_ids)
        if event.text and not self._has_begun:
            self.text += self._find_space()
            self._has_begun = True
        self.text += event.text
        self.finish_reason = event.finish_reason or self.finish_reason

    def finish(self, prediction: Prediction) -> None:
        """Take the outcome: a label, or the text that the pieces were of.

        Args:
            prediction: of the row.
        """
        if not self._options.has_text:
            return
        if prediction.token_ids is None or not self.tokens:
            self.text = self._begin() + prediction.label
            self.tokens = len(prediction.token_ids or ())

    def take_text(self) -> str:
        """The text that was not taken yet."""
        text, self._shown = self.text[self._shown :], len(self.text)
        return text

    def take_logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities that were not taken yet; None without."""
        waiting, self._waiting = self._waiting, []
        return None if self._writer is None else self._writer.add(waiting)

    def _begin(self) -> str:
        if self._task is None or not self._options.has_row:
            return ""
        return self._task.spell(self._row)

    def _find_space(self) -> str:
        """The space between the row and the text, which begins without any."""
        if self._task is None or not self._options.has_row:
            return ""
        new = self._task.spell([*self._row, *self._ids])[len(self.text) :]
        return new[: len(new) - len(new.lstrip())]


@dataclass(frozen=True, eq=False)
class TextOrder:
    """A request whose rows are rendered.

    Args:
        request: as it was read.
        kind: of the request.
        target: that answers.
        rows: of the request.
        deadline: by the engine's clock.
        options: of the choices.
        choices: all drafts of all rows, in the rows' order.
        header: the first fields of the answer.
    """

    request: TextRequest
    kind: Kind
    target: Target
    rows: Sequence[ServedRow]
    deadline: float
    options: ChoiceOptions
    choices: Sequence[Choice]
    header: dict[str, object]

    def make_row_orders(self, on_events: Sequence[OnEvent]) -> list[RowOrder]:
        """What is handed to the engine: each row once for each of its drafts.

        Args:
            on_events: of each choice.
        """
        drafts, options = self.options.drafts, _make_text_options(self.request, self.options)
        return [
            RowOrder(self.rows[index // drafts], _seed(options, index % drafts), on_event)
            for index, on_event in enumerate(on_events)
        ]

    def select(self) -> list[Choice]:
        """The choices that are returned: of each row the likeliest drafts."""
        drafts, count = self.options.drafts, self.options.count
        if drafts == count:
            return list(self.choices)
        chosen: list[Choice] = []
        for first in range(0, len(self.choices), drafts):
            of_row = self.choices[first : first + drafts]
            chosen += sorted(of_row, key=lambda choice: -choice.mean_logprob)[:count]
        return chosen

    def make_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice as a whole answer has it.

        Args:
            index: of the choice.
            choice: that has ended.
        """
        ends = {"logprobs": choice.take_logprobs(), "finish_reason": choice.finish_reason}
        if self.kind == "completion":
            return {"index": index, "text": choice.text, **ends, "stop_reason": None}
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": index, "message": message, **ends}

    def make_first_pieces(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with: in a chat the role."""
        if self.kind == "chat":
            for index in range(len(self.choices)):
                delta = {"role": "assistant", "content": ""}
                yield {"index": index, "delta": delta, "finish_reason": None}

    def make_piece(self, index: int, *, reason: str | None) -> dict[str, Any]:
        """The next piece of a stream.

        Args:
            index: of the choice.
            reason: why it ended; None while it runs.
        """
        choice = self.choices[index]
        text = choice.take_text()
        ends = {"logprobs": choice.take_logprobs(), "finish_reason": reason}
        if self.kind == "completion":
            return {"index": index, "text": text, **ends}
        return {"index": index, "delta": {"content": text}, **ends}


def make_order(
    request: TextRequest,
    kind: Kind,
    *,
    target: Target,
    rows: Sequence[ServedRow],
    deadline: float,
    max_choices: int,
) -> TextOrder:
    """Check the options of a request for text, and make its choices.

    Args:
        request: that was read.
        kind: of the request.
        target: that answers.
        rows: of the request.
        deadline: by the engine's clock.
        max_choices: the most texts of a request, of all its rows together.

    Raises:
        ServingError: options are not possible, or not together.
    """
    options = _read_options(request)
    _check_target(request, options, target)
    wanted = len(rows) * options.drafts
    if wanted > max_choices:
        msg = (
            f"n and best_of ask for {wanted:,} texts, but a request may have {max_choices:,}. "
            "Divide it."
        )
        raise ServingError(msg, kind="invalid", param="n")
    choices = [
        _make_choice(request, options, target=target, row=row)
        for row in rows
        for _ in range(options.drafts)
    ]
    header = _make_header(request, kind)
    return TextOrder(request, kind, target, rows, deadline, options, choices, header)


def _make_choice(
    request: TextRequest, options: ChoiceOptions, *, target: Target, row: ServedRow
) -> Choice:
    task = target.task
    if not isinstance(task, TextGenerator):
        return Choice(options, None, task=None)
    writer = None
    if options.top is not None:
        names = TokenNames(task, by_id=request.return_tokens_as_token_ids)
        write = write_chat if isinstance(request, ChatRequest) else write_completion
        writer = LogprobWriter(names, top=options.top, write=write)
    vocabulary = task.backbone.geometry.vocab_size
    ids = tuple(i for i in row.views[0].variants[0].input_ids if i < vocabulary)
    return Choice(options, writer, task=task, row=ids)


def _read_options(request: TextRequest) -> ChoiceOptions:
    """Which choices a request asks for."""
    count = 1 if request.n is None else request.n
    _check_range("n", count, low=1)
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            msg = "top_logprobs needs logprobs = true. Set it, or leave top_logprobs out."
            raise ServingError(msg, kind="invalid", param="top_logprobs")
        _check_range("top_logprobs", request.top_logprobs or 0, high=_MAX_TOP)
        return ChoiceOptions(count, count, request.top_logprobs or 0 if request.logprobs else None)
    assert isinstance(request, CompletionRequest)  # noqa: S101  # for the types alone
    _check_range("logprobs", request.logprobs or 0, high=_MAX_TOP)
    drafts = count if request.best_of is None else request.best_of
    if drafts < count:
        msg = f"best_of = {drafts} texts are generated, but n = {count} are wanted. Raise best_of."
        raise ServingError(msg, kind="invalid", param="best_of")
    if drafts > count and request.stream:
        msg = f"best_of = {drafts} is known at the end, so it cannot be streamed. Leave one out."
        raise ServingError(msg, kind="invalid", param="best_of")
    has_text = request.max_tokens != 0
    if not has_text and not request.echo:
        msg = "max_tokens = 0 generates nothing. Ask for at least 1, or for the row with echo."
        raise ServingError(msg, kind="invalid", param="max_tokens")
    return ChoiceOptions(count, drafts, request.logprobs, request.echo, has_text)


def _read_stops(request: TextRequest) -> tuple[str, ...]:
    """The stop strings, each of which is looked for at every token."""
    stops = request.stops
    longest = max(map(len, stops), default=1)
    msg = ""
    if len(stops) > _MOST_STOPS:
        msg = f"stop has {len(stops):,} strings, but at most {_MOST_STOPS} are looked for."
    elif longest > _LONGEST_STOP:
        msg = f"a stop string has {longest:,} characters, but may have {_LONGEST_STOP:,}."
    elif "" in stops:
        msg = "a stop string is empty, so that the text would end at once. Leave it out."
    if msg:
        raise ServingError(msg, kind="invalid", param="stop")
    return stops


def _check_range(name: str, value: int, *, low: int = 0, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        most = "" if high is None else f" and at most {high}"
        msg = f"{name} = {value}: at least {low}{most}."
        raise ServingError(msg, kind="invalid", param=name)


def _check_target(request: TextRequest, options: ChoiceOptions, target: Target) -> None:
    """Check that a target can do what its request asks for."""
    asked = {
        "n": options.count > 1,
        "best_of": options.drafts > options.count,
        "logprobs": options.top is not None,
        "echo": options.has_row,
        "stop_token_ids": bool(request.stop_token_ids),
    }
    if not isinstance(target.task, TextGenerator):
        reason, allowed = "classifies: its answer is a label (probabilities: /v1/classify)", set()
    elif target.vote is not None:
        reason, allowed = "is an ensemble, whose texts are voted on", {"stop_token_ids"}
    else:
        return
    for name, is_asked in asked.items():
        if is_asked and name not in allowed:
            msg = f"{target.name} {reason}, so there is no {name}. Leave {name} out."
            raise ServingError(msg, kind="invalid", param=name)


def _make_text_options(request: TextRequest, choices: ChoiceOptions) -> TextOptions:
    """How text is generated."""
    most = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        most = request.max_completion_tokens
    scores = None
    if choices.top is not None:
        scores = ScoreOptions(choices.top, has_row=choices.has_row)
    elif choices.drafts > choices.count:
        scores = ScoreOptions()
    return TextOptions(
        max_tokens=most if choices.has_text else 1,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        stop=_read_stops(request),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        scores=scores,
    )


def _seed(options: TextOptions, draft: int) -> TextOptions:
    """The options of a draft: the first has the seed of the request, the others their own."""
    if not draft:
        return options
    return replace(options, seed=crc32(repr((options.seed or 0, draft)).encode()))


def _make_header(request: TextRequest, kind: Kind) -> dict[str, object]:
    if kind == "completion":
        return make_header("text_completion", request.model, prefix="cmpl")
    name = "chat.completion.chunk" if request.stream else "chat.completion"
    return make_header(name, request.model, prefix="chatcmpl")
