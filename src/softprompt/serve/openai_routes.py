"""OpenAI's routes: completions and chat, whole or as a stream of server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from softprompt.inference.generated_row import GenerationEvent
from softprompt.serve.admission import RowOutcome
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import (
    ChatRequest,
    CompletionRequest,
    TextRequest,
    encode,
    make_error_body,
)
from softprompt.serve.orders import Kind, TextOrder, make_order
from softprompt.serve.routes import count_usage
from softprompt.serve.site import Site, read_body, record_facts, respond, wait_for
from softprompt.serve.targets import (
    AnyTicket,
    OnEvent,
    ServedRow,
    Target,
    call_when_done,
)
from softprompt.tasks import Prediction

StreamPiece = tuple[int, GenerationEvent | RowOutcome]


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

        def render(target: Target) -> list[ServedRow]:
            return [self.site.service.render(target, row) for row in rows]

        return await self._answer(http, request, "completion", render)

    async def complete_chat(self, http: HttpRequest) -> Response:
        """Continue a conversation."""
        request = await read_body(http, ChatRequest)

        def render(target: Target) -> list[ServedRow]:
            return [self.site.service.render_chat(target, request.messages)]

        return await self._answer(http, request, "chat", render)

    async def _answer(
        self,
        http: HttpRequest,
        request: TextRequest,
        kind: Kind,
        render: Callable[[Target], list[ServedRow]],
    ) -> Response:
        service, is_streamed = self.site.service, False
        target = await self.site.open(request.model)
        try:
            rows = await self.site.run_rendering(http, lambda: render(target))
            deadline = self.site.get_deadline(request)
            order = make_order(
                request,
                kind,
                target=target,
                rows=rows,
                deadline=deadline,
                max_choices=self.site.settings.max_rows,
            )
            record_facts(http, prompt=target.name, version=target.version, rows=len(order.choices))
            if not request.stream:
                return await self._answer_whole(http, order)
            queue, tickets = self._start_stream(order)
            is_streamed = True
        finally:
            if not is_streamed:
                service.close(target)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        pieces = self._stream(order, queue, tickets)
        return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)

    async def _answer_whole(self, http: HttpRequest, order: TextOrder) -> Response:
        tickets = self._submit(order, [choice.add for choice in order.choices])
        answers = await wait_for(tickets, receive=http.receive, deadline=order.deadline)
        outcomes = [outcome for of_ticket in answers for outcome in of_ticket]
        for choice, outcome in zip(order.choices, outcomes, strict=True):
            choice.finish(_get_prediction(outcome))
        content = {
            **order.header,
            "choices": [order.make_choice(*pair) for pair in enumerate(order.select())],
            "usage": _count(order),
        }
        return respond(content)

    def _submit(self, order: TextOrder, on_events: Sequence[OnEvent]) -> list[AnyTicket]:
        """Hand the rows in; a classifier's answer is its label."""
        return self.site.service.submit(
            order.target, order.make_row_orders(on_events), deadline=order.deadline
        )

    def _start_stream(
        self, order: TextOrder
    ) -> "tuple[asyncio.Queue[StreamPiece], list[AnyTicket]]":
        """Hand the rows in; their pieces come into a queue from the engine's thread."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[StreamPiece] = asyncio.Queue()

        def send(index: int, content: GenerationEvent | RowOutcome) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (index, content))

        def make_sender(index: int) -> OnEvent:
            return lambda event: send(index, event)

        tickets = self._submit(order, [make_sender(i) for i in range(len(order.choices))])

        def finish(ticket: AnyTicket, first: int) -> None:
            for index, outcome in enumerate(ticket.future.result(), start=first):
                send(index, outcome)

        first = 0
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _, t=ticket, f=first: finish(t, f))  # type: ignore[misc]
            first += ticket.rows
        # Even if no one has read the stream.
        call_when_done(tickets, lambda: self.site.service.close(order.target))
        return queue, tickets

    async def _stream(
        self, order: TextOrder, queue: "asyncio.Queue[StreamPiece]", tickets: Sequence[AnyTicket]
    ) -> AsyncIterator[bytes]:
        """Server-sent events until all rows have ended."""
        try:
            for first in order.make_first_pieces():
                yield _pack({**order.header, "choices": [first]})
            left = len(order.choices)
            while left:
                index, content = await queue.get()
                if isinstance(content, ServingError):
                    yield _pack(make_error_body(content))
                    return
                left -= not isinstance(content, GenerationEvent)
                piece = _advance(order, index, content)
                if piece is not None:
                    yield _pack({**order.header, "choices": [piece]})
            options = order.request.stream_options
            if options is not None and options.include_usage:
                yield _pack({**order.header, "choices": [], "usage": _count(order)})
            yield b"data: [DONE]\n\n"
        finally:
            for ticket in tickets:
                ticket.cancel()


def _advance(
    order: TextOrder, index: int, content: GenerationEvent | RowOutcome
) -> dict[str, Any] | None:
    """The next piece of a stream; None if there is nothing to show yet."""
    choice = order.choices[index]
    if isinstance(content, GenerationEvent):
        choice.add(content)
        return order.make_piece(index, reason=None) if choice.has_more else None
    choice.finish(_get_prediction(content))
    return order.make_piece(index, reason=choice.finish_reason)


def _count(order: TextOrder) -> object:
    written = sum(choice.tokens for choice in order.choices)
    return count_usage(order.target, order.rows, completion=written)


def _get_prediction(outcome: RowOutcome) -> Prediction:
    if isinstance(outcome, ServingError):
        raise outcome
    return outcome


def _pack(content: object) -> bytes:
    return b"data: " + encode(content) + b"\n\n"
