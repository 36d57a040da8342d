"""What every request passes through: keys, limits, errors, logs; and what the routes share."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.serve.admission import RowOutcome
from softprompt.serve.faults import ServingError
from softprompt.serve.keys import ApiKey, KeyRing, read_secret
from softprompt.serve.messages import Request, check_supported, decode, encode, make_error_body
from softprompt.serve.metrics import Metrics
from softprompt.serve.service import Service
from softprompt.serve.targets import AnyTicket, Target, call_when_done
from softprompt.serve.upstream import Upstream

ACCESS_LOG = logging.getLogger("softprompt.access")
_log = logging.getLogger(__name__)
HEALTH = ("/livez", "/readyz", "/health")
# After its deadline a request waits so long for the engine to say so, in seconds.
_GRACE = 5.0
_CLIENT_GONE = 499
# A body that is not wanted is read if it is this short, and arrives within this time.
_SHORT_BODY, _BODY_SECONDS = 1 << 16, 1.0
# The paths whose requests wait in the engine's queue.
_QUEUED = frozenset(
    (
        "/classify",
        "/generative_scoring",
        "/v1/chat/completions",
        "/v1/classify",
        "/v1/completions",
        "/v1/predict",
        "/v1/score",
    )
)
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# The rows of a body of so many bytes are rendered within a fraction of a millisecond.
_SHORT_REQUEST = 2000
_Decoded = TypeVar("_Decoded")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SiteSettings:
    """The limits of a site.

    Args:
        max_body_bytes: of a request.
        max_rows: of a request.
        timeout: the seconds until a request expires, and the most that a request may ask for.
        has_playground: whether there is a page to try prompts on.
        can_publish: whether prompts can be published and withdrawn.
    """

    max_body_bytes: int = 4 << 20
    max_rows: int = 1024
    timeout: float = 60.0
    has_playground: bool = True
    can_publish: bool = False


@dataclass(eq=False)
class Site:
    """The state that the routes share.

    Args:
        service: that answers.
        ring: of the keys.
        metrics: that are counted.
        settings: the limits.
        upstream: the vLLM server that runs the rows; None if they run here.
        is_draining: whether new requests are refused, because the server stops.
        open_requests: that are being answered.
    """

    service: Service
    ring: KeyRing
    metrics: Metrics
    settings: SiteSettings = field(default_factory=SiteSettings)
    upstream: Upstream | None = None
    is_draining: bool = False
    open_requests: int = 0

    def close(self) -> None:
        """End the engine, and the connection to an upstream server."""
        self.service.engine.stop(timeout=1.0)
        if self.upstream is not None:
            self.upstream.close()

    @property
    def is_ready(self) -> bool:
        """Whether to send requests here."""
        return not self.is_draining and self.service.engine.is_running

    def check_count(self, rows: Sequence[object], param: str) -> None:
        """Check the number of rows of a request.

        Args:
            rows: of the request.
            param: the field that has them.

        Raises:
            ServingError: there are none, or too many.
        """
        most = self.settings.max_rows
        if not 0 < len(rows) <= most:
            msg = f"{param} has {len(rows):,} entries; a request has 1 to {most:,}. Divide it."
            raise ServingError(msg, kind="invalid", param=param)

    async def open(self, model: str) -> Target:
        """Find what a request's ``model`` means; in another thread if files have to be read.

        Args:
            model: as the request names it.

        Returns:
            The target, to be closed.

        Raises:
            ServingError: there is no such prompt, or it cannot be loaded.
        """
        known = self.service.open_resident(model)
        return known if known is not None else await asyncio.to_thread(self.service.open, model)

    async def run_rendering(self, http: HttpRequest, render: Callable[[], _Result]) -> _Result:
        """Render rows: those of short requests here, which takes less than another thread would.

        Args:
            http: the request, whose body was read.
            render: renders its rows.

        Returns:
            What was rendered.
        """
        if len(await http.body()) <= _SHORT_REQUEST and self.service.can_render_now:
            return render()
        return await asyncio.to_thread(render)

    def get_deadline(self, request: Request) -> float:
        """When a request expires, by the engine's clock.

        Args:
            request: that was read.
        """
        most = self.settings.timeout
        return time.monotonic() + min(most, request.timeout or most)


class ClientGoneError(Exception):
    """The client has left, so no one waits for the answer."""


async def read_body(http: HttpRequest, kind: type[_Decoded]) -> _Decoded:
    """Read the body of a request.

    Args:
        http: the request.
        kind: what it holds.

    Raises:
        ServingError: it is not such a request, or not JSON by its content type.
    """
    declared = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json":
        msg = f"the content type is {declared or 'missing'!r}. Send application/json."
        raise ServingError(msg, kind="invalid")
    content = decode(await http.body(), kind)
    if isinstance(content, Request):
        check_supported(content)
    return content


def respond(content: object, *, status: int = 200) -> Response:
    """An answer in JSON.

    Args:
        content: plain data and structs.
        status: of the answer.
    """
    return Response(encode(content), status_code=status, media_type="application/json")


def show_access_log() -> logging.Handler:
    """Write one line of JSON for each request to standard error.

    Returns:
        The handler that writes them, to be removed at the end.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ACCESS_LOG.addHandler(handler)
    ACCESS_LOG.setLevel(logging.INFO)
    return handler


def respond_error(error: ServingError) -> Response:
    """An error in OpenAI's form.

    Args:
        error: to report.
    """
    response = respond(make_error_body(error), status=error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.kind == "unauthorized":
        response.headers["www-authenticate"] = 'Bearer realm="softprompt"'
    return response


async def wait_for(
    tickets: Sequence[AnyTicket], *, receive: Receive, deadline: float
) -> list[list[RowOutcome]]:
    """Wait for tickets, until the client leaves or the deadline passes.

    Args:
        tickets: that the engine works on.
        receive: tells that the client has left.
        deadline: by the engine's clock.

    Returns:
        The outcomes of each ticket's rows.

    Raises:
        ClientGoneError: the client has left; the tickets are cancelled.
        ServingError: the engine does not answer in time.
    """
    if not tickets:
        return []
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(_gone: "asyncio.Future[None] | None" = None) -> None:
        if not ended.done():
            ended.set_result(None)

    def tell() -> None:  # in the engine's thread
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(end)

    call_when_done(tickets, tell)
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    gone.add_done_callback(end)
    timer = loop.call_later(max(0.0, deadline - time.monotonic()) + _GRACE, end)
    try:
        await ended
        if all(ticket.future.done() for ticket in tickets):
            return [ticket.future.result() for ticket in tickets]
        if gone.done():
            raise ClientGoneError
        msg = "the deadline passed before the request was answered. Allow more time (timeout)."
        raise ServingError(msg, kind="expired")
    finally:
        for ticket in tickets:
            if not ticket.future.done():
                ticket.cancel()
        timer.cancel()
        gone.cancel()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Gate:
    """The outermost layer: who may ask what, how much is read, what is logged and counted.

    Args:
        app: behind the gate.
        site: the shared state.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Passage(self, scope, receive=receive, send=send).run()


class _Passage:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, *, receive: Receive, send: Send) -> None:
        self.site, self.app, self.scope = gate.site, gate.app, scope
        self._receive, self._send = receive, send
        self.headers = {k.lower(): v.decode("latin-1") for k, v in scope["headers"]}
        self.id = uuid4().hex
        self.status = 0
        self.started = time.monotonic()
        self.key: ApiKey | None = None
        self._left = self.site.settings.max_body_bytes
        self._is_read = False
        scope.setdefault("state", {})

    async def run(self) -> None:
        """Answer the request."""
        is_health = self.scope["path"] in HEALTH
        self.site.open_requests += not is_health
        try:
            await self._answer(is_health=is_health)
        except ClientGoneError:
            self.status = self.status or _CLIENT_GONE
        except Exception:  # noqa: BLE001  # the last resort: no connection without an answer
            _log.exception("request %s failed", self.id)
            if not self.status:
                msg = f"the server has a fault; it is logged as request {self.id}."
                await self._refuse(ServingError(msg, kind="failed"))
        finally:
            self.site.open_requests -= not is_health
            self._record()

    async def _answer(self, *, is_health: bool) -> None:
        try:
            self._check_host()
            if not is_health:
                self._check_open()
                self.key = self.site.ring.authenticate(
                    read_secret(self.headers.get(b"authorization", "")),
                    scope=choose_scope(self.scope["path"]),
                )
                self.site.ring.enter(self.key)
        except ServingError as error:
            self.key = None
            await self._refuse(error)
            return
        try:
            self._check_length()
            self._check_room()
            await self.app(self.scope, self._read, self._pass_on)
        except ServingError as error:
            if self.status:  # the answer has begun
                raise
            await self._refuse(error)
        finally:
            if not is_health:
                self.site.ring.leave(self.key)

    def _check_host(self) -> None:
        """Without keys a page on another host must not reach this one under a name of its own."""
        host = self.headers.get(b"host", "").rpartition(":")
        name = host[0] if host[2].isdigit() else "".join(host)
        if not self.site.ring.keys and name.lower() not in _LOCAL:
            msg = (
                f"without keys the server answers on this machine alone, not as {name!r}. Set keys "
                "(--keys)."
            )
            raise ServingError(msg, kind="forbidden")

    def _check_open(self) -> None:
        if self.site.is_draining:
            msg = "the server is stopping. Send the request to another replica, or again later."
            raise ServingError(msg, kind="stopping", retry_after=5)

    def _check_length(self) -> None:
        declared = self.headers.get(b"content-length", "0")
        if declared.isdigit() and int(declared) > self._left:
            raise self._explain_size()

    def _check_room(self) -> None:
        """Refuse what cannot be queued before anything is read, which costs a full server least."""
        if self.scope["path"] in _QUEUED:
            self.site.service.engine.check_room()

    def _explain_size(self) -> ServingError:
        most = self.site.settings.max_body_bytes
        remedy = "Divide the request (or --max-body-bytes)."
        if choose_scope(self.scope["path"]) == "admin":
            remedy = "Publish it where the registry is (softprompt publish), or --max-body-bytes."
        msg = f"the body has more than {most:,} bytes. {remedy}"
        return ServingError(msg, kind="too_large")

    async def _read(self) -> Message:
        message = await self._receive()
        self._is_read = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._explain_size()
        return message

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [*_HEADERS, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)

    async def _refuse(self, error: ServingError) -> None:
        response = respond_error(error)
        if error.kind == "unauthorized" and self.scope["path"] == "/":
            response.headers["www-authenticate"] = 'Basic realm="softprompt", charset="UTF-8"'
        if not await self._drop_body():
            response.headers["connection"] = "close"
        await response(self.scope, self._receive, self._pass_on)

    async def _drop_body(self) -> bool:
        """Read what is left of a short body, so that the connection can be used again.

        Returns:
            Whether nothing is left.
        """
        has_length = b"transfer-encoding" not in self.headers
        declared = self.headers.get(b"content-length", "0" if has_length else "")
        if not declared.isdigit() or int(declared) > min(_SHORT_BODY, self._left):
            return self._is_read
        with contextlib.suppress(TimeoutError, ServingError):
            async with asyncio.timeout(_BODY_SECONDS):
                while not self._is_read:
                    await self._read()
        return self._is_read

    def _record(self) -> None:
        seconds = time.monotonic() - self.started
        route = choose_route(self.scope["path"])
        self.site.metrics.count_request(route, self.status, seconds=seconds)
        facts: dict[str, Any] = {
            "id": self.id,
            "method": self.scope["method"],
            "route": route,
            "status": self.status,
            "ms": round(seconds * 1000, 1),
            "key": None if self.key is None else self.key.name,
            **self.scope["state"].get("facts", {}),
        }
        name, rows = facts.get("prompt"), facts.get("rows")
        if name is not None and rows is not None:
            self.site.metrics.count_rows(str(name), int(rows), seconds=seconds)
        if ACCESS_LOG.isEnabledFor(logging.INFO):
            ACCESS_LOG.info(json.dumps(facts, ensure_ascii=False))


def record_facts(http: HttpRequest, **facts: object) -> None:
    """Add facts to the line of a request in the log; never texts.

    Args:
        http: the request.
        facts: to add.
    """
    http.scope["state"].setdefault("facts", {}).update(facts)


_ROUTES = (
    "/", "/classify", "/generative_scoring", "/metrics", "/openapi.json", "/v1/chat/completions",
    "/v1/classify", "/v1/completions", "/v1/models", "/v1/predict", "/v1/prompts", "/v1/score",
    *HEALTH,
)  # fmt: skip


def choose_route(path: str) -> str:
    """The name of a path in metrics, of which there are few.

    Args:
        path: of a request.
    """
    if path in _ROUTES:
        return path
    for parent in ("/v1/models", "/v1/prompts"):
        if path.startswith(f"{parent}/"):
            return f"{parent}/{{name}}"
    return "unknown"


def choose_scope(path: str) -> str:
    """The scope that a key needs for a path.

    Args:
        path: of a request.
    """
    if path == "/v1/prompts" or path.startswith("/v1/prompts/"):
        return "admin"
    return "metrics" if path == "/metrics" else "predict"
