"""The door to replicas: it hands each request to one, and to another if that was lost."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from softprompt.serve.faults import ServingError
from softprompt.serve.keys import ApiKey, KeyRing, read_secret
from softprompt.serve.messages import encode, make_error_body
from softprompt.serve.site import HEALTH, choose_scope, respond_error

_ATTEMPTS = 6
_WAIT = 0.25  # before the second attempt, in seconds; then twice as long each time
_IDEMPOTENT = ("GET", "HEAD", "POST")
# The parts of an ASGI scope that are plain data, and all that the server reads.
_PLAIN = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
    "headers", "client", "server",
)  # fmt: skip
_log = logging.getLogger(__name__)
StartedMessage = tuple[int, list[tuple[bytes, bytes]]]
Ask = Callable[[dict[str, Any], bytes], AsyncIterator[StartedMessage | bytes]]


class Door:
    """An ASGI application that hands requests to replicas, and repeats them where one was lost.

    Args:
        ask: hands a request to a replica, and yields what `PromptReplica.answer` does.
        is_lost: whether an error means that the replica was lost.
        max_body_bytes: of a request.
        keys: who may ask; without any, everybody.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        is_lost: Callable[[BaseException], bool],
        max_body_bytes: int,
        keys: Sequence[ApiKey] = (),
    ) -> None:
        self._ask, self._is_lost, self._most = ask, is_lost, max_body_bytes
        self._ring = KeyRing(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        plain = {name: scope[name] for name in _PLAIN if name in scope}
        plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        try:
            # A body takes memory, so nobody without a key may send one.
            headers = {name.lower(): value.decode("latin-1") for name, value in plain["headers"]}
            if scope["path"] not in HEALTH:
                secret = read_secret(headers.get(b"authorization", ""))
                self._ring.authenticate(secret, scope=choose_scope(scope["path"]))
            body = await self._read(receive, length=headers.get(b"content-length", ""))
        except ServingError as error:
            await respond_error(error)(scope, receive, send)
            return
        if body is None:
            return
        most = _ATTEMPTS if scope["method"] in _IDEMPOTENT else 1
        for attempt in range(most):
            answer = _Answer(send)
            try:
                async for part in self._ask(plain, body):
                    await answer.add(part)
                await answer.finish()
            except Exception as error:
                if not self._is_lost(error):
                    raise
                if answer.is_shown:
                    await answer.break_off()
                    return
                _log.warning("a replica was lost (%s); attempt %d", type(error).__name__, attempt)
                await asyncio.sleep(_WAIT * 2**attempt)
            else:
                return
        msg = "every replica that took this request was lost. Try again later."
        fault = ServingError(msg, kind="unreachable", retry_after=5)
        await respond_error(fault)(scope, receive, send)

    async def _read(self, receive: Receive, *, length: str) -> bytes | None:
        """The body; None if the client has left."""
        msg = f"the body has more than {self._most:,} bytes. Divide the request."
        if length.isdecimal() and int(length) > self._most:
            raise ServingError(msg, kind="too_large")
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if sum(map(len, parts)) > self._most:
                raise ServingError(msg, kind="too_large")
            if not message.get("more_body", False):
                return b"".join(parts)


class _Answer:
    """An answer on its way: a whole one is passed on at its end, a stream as it comes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: StartedMessage | None = None
        self._parts: list[bytes] = []
        self.is_shown = False

    async def add(self, part: StartedMessage | bytes) -> None:
        if isinstance(part, bytes):
            self._parts.append(part)
        else:
            self._start = part
        if self._is_stream and self._parts:
            await self._pass_on(is_last=False)

    async def finish(self) -> None:
        if self._start is None:
            msg = "a replica ended without an answer; it is in its log."
            raise ServingError(msg, kind="failed")
        await self._pass_on(is_last=True)

    async def break_off(self) -> None:
        """End a stream whose beginning was passed on."""
        msg = "the replica was lost while it answered. Send the request again."
        error = ServingError(msg, kind="unreachable", retry_after=1)
        self._parts = [b"data: " + encode(make_error_body(error)) + b"\n\n"]
        await self._pass_on(is_last=True)

    @property
    def _is_stream(self) -> bool:
        headers = [] if self._start is None else self._start[1]
        return any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )

    async def _pass_on(self, *, is_last: bool) -> None:
        if not self.is_shown and self._start is not None:
            status, headers = self._start
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            self.is_shown = True
        body, self._parts = b"".join(self._parts), []
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
