"""OpenAI's routes: completions and chat, whole or as a stream of server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from softprompt.inference.continuous import GenerationEvent
from softprompt.serve.engine import RowOutcome, Ticket
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import (
    ChatRequest,
    CompletionRequest,
    TextRequest,
    encode,
    make_error_body,
    make_header,
)
from softprompt.serve.routes import count_usage
from softprompt.serve.service import OnEvent, Target, TextOptions
from softprompt.serve.site import Site, read_body, record_facts, respond, wait_for
from softprompt.tasks import Example

Kind = Literal["completion", "chat"]


@dataclass
class _Text:
    """The text of one row, as it comes."""

    index: int
    text: str = ""
    tokens: int = 0
    finish_reason: str = "stop"

    def add(self, event: GenerationEvent) -> None:
        self.text += event.text
        self.tokens += len(event.token_ids)
        self.finish_reason = event.finish_reason or self.finish_reason


@dataclass(frozen=True, eq=False)
class _Order:
    """A request whose rows are rendered."""

    http: HttpRequest
    request: TextRequest
    kind: Kind
    target: Target
    examples: Sequence[Example]
    deadline: float
    header: dict[str, object]
    texts: list[_Text] = field(default_factory=list)

    @property
    def options(self) -> TextOptions:
        request = self.request
        most = request.max_tokens
        if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
            most = request.max_completion_tokens
        return TextOptions(
            max_tokens=most,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop=request.stops,
        )

    def make_choice(self, text: _Text) -> dict[str, Any]:
        ends = {"logprobs": None, "finish_reason": text.finish_reason}
        if self.kind == "completion":
            return {"index": text.index, "text": text.text, **ends, "stop_reason": None}
        message = {"role": "assistant", "content": text.text, "refusal": None}
        return {"index": text.index, "message": message, **ends}

    def make_piece(self, index: int, text: str, *, reason: str | None) -> dict[str, Any]:
        ends = {"logprobs": None, "finish_reason": reason}
        if self.kind == "completion":
            return {"index": index, "text": text, **ends}
        return {"index": index, "delta": {"content": text}, **ends}


class TextRoutes:
    """OpenAI's routes of a site.

    Args:
        site: the shared state.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    async def complete(self, http: HttpRequest) -> Response:
        """Continue texts."""
        request = await read_body(http, CompletionRequest)
        rows = request.prompt if isinstance(request.prompt, list) else [request.prompt]
        self.site.check_count(rows, "prompt")

        def render(target: Target) -> list[Example]:
            return [self.site.service.render(target, row) for row in rows]

        return await self._answer(http, request, "completion", render)

    async def complete_chat(self, http: HttpRequest) -> Response:
        """Continue a conversation."""
        request = await read_body(http, ChatRequest)

        def render(target: Target) -> list[Example]:
            return [self.site.service.render_chat(target, request.messages)]

        return await self._answer(http, request, "chat", render)

    async def _answer(
        self,
        http: HttpRequest,
        request: TextRequest,
        kind: Kind,
        render: Callable[[Target], list[Example]],
    ) -> Response:
        service, is_streamed = self.site.service, False
        target = await asyncio.to_thread(service.open, request.model)
        try:
            examples = await asyncio.to_thread(render, target)
            record_facts(http, prompt=target.name, version=target.version, rows=len(examples))
            deadline = self.site.get_deadline(request)
            header = _make_header(request, kind)
            order = _Order(http, request, kind, target, examples, deadline, header)
            order.texts.extend(_Text(index) for index in range(len(examples)))
            if not request.stream:
                return await self._answer_whole(order)
            queue, tickets = self._start_stream(order)
            is_streamed = True
        finally:
            if not is_streamed:
                service.close(target)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        pieces = self._stream(order, queue, tickets)
        return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)

    async def _answer_whole(self, order: _Order) -> Response:
        pieces: list[OnEvent] = [text.add for text in order.texts]
        tickets = self._submit(order, pieces)
        answers = await wait_for(tickets, receive=order.http.receive, deadline=order.deadline)
        outcomes = [outcome for of_ticket in answers for outcome in of_ticket]
        for text, outcome in zip(order.texts, outcomes, strict=True):
            _finish(text, outcome)
        content = {
            **order.header,
            "choices": [order.make_choice(text) for text in order.texts],
            "usage": self._count(order),
        }
        return respond(content)

    def _count(self, order: _Order) -> object:
        written = sum(text.tokens for text in order.texts)
        return count_usage(self.site, order.target, examples=order.examples, completion=written)

    def _submit(self, order: _Order, pieces: Sequence[OnEvent]) -> list[Ticket]:
        """Hand the rows in; a classifier's answer is its label."""
        return self.site.service.submit(
            order.target,
            order.examples,
            on_events=pieces,
            options=order.options,
            deadline=order.deadline,
        )

    def _start_stream(
        self, order: _Order
    ) -> tuple["asyncio.Queue[tuple[int, GenerationEvent | RowOutcome]]", list[Ticket]]:
        """Hand the rows in; their pieces come into a queue from the engine's thread."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, GenerationEvent | RowOutcome]] = asyncio.Queue()

        def send(index: int, content: GenerationEvent | RowOutcome) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (index, content))

        def make_sender(index: int) -> OnEvent:
            return lambda event: send(index, event)

        tickets = self._submit(order, [make_sender(i) for i in range(len(order.examples))])
        unfinished, first = {*tickets}, 0

        def finish(ticket: Ticket, first: int) -> None:
            for index, outcome in enumerate(ticket.future.result(), start=first):
                send(index, outcome)
            unfinished.remove(ticket)
            if not unfinished:  # even if no one has read the stream
                self.site.service.close(order.target)

        for ticket in tickets:
            ticket.future.add_done_callback(lambda _, t=ticket, f=first: finish(t, f))  # type: ignore[misc]
            first += ticket.rows
        return queue, tickets

    async def _stream(
        self,
        order: _Order,
        queue: "asyncio.Queue[tuple[int, GenerationEvent | RowOutcome]]",
        tickets: Sequence[Ticket],
    ) -> AsyncIterator[bytes]:
        """Server-sent events until all rows have ended."""
        try:
            if order.kind == "chat":
                first = {"index": 0, "delta": {"role": "assistant", "content": ""}}
                yield _pack({**order.header, "choices": [{**first, "finish_reason": None}]})
            left = len(order.texts)
            while left:
                index, content = await queue.get()
                text = order.texts[index]
                if isinstance(content, GenerationEvent):
                    text.add(content)
                    if content.text:
                        piece = order.make_piece(index, content.text, reason=None)
                        yield _pack({**order.header, "choices": [piece]})
                    continue
                left -= 1
                if isinstance(content, ServingError):
                    yield _pack(make_error_body(content))
                    return
                shown = text.text
                _finish(text, content)
                rest = text.text[len(shown) :]
                piece = order.make_piece(index, rest, reason=text.finish_reason)
                yield _pack({**order.header, "choices": [piece]})
            options = order.request.stream_options
            if options is not None and options.include_usage:
                yield _pack({**order.header, "choices": [], "usage": self._count(order)})
            yield b"data: [DONE]\n\n"
        finally:
            for ticket in tickets:
                ticket.cancel()


def _make_header(request: TextRequest, kind: Kind) -> dict[str, object]:
    if kind == "completion":
        return make_header("text_completion", request.model, prefix="cmpl")
    name = "chat.completion.chunk" if request.stream else "chat.completion"
    return make_header(name, request.model, prefix="chatcmpl")


def _finish(text: _Text, outcome: RowOutcome) -> None:
    """Put the outcome in the place of the pieces: a label, or the same text."""
    if isinstance(outcome, ServingError):
        raise outcome
    if outcome.token_ids is None:
        text.text, text.tokens, text.finish_reason = outcome.label, 0, "stop"


def _pack(content: object) -> bytes:
    return b"data: " + encode(content) + b"\n\n"
