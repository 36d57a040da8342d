"""A server: the prompts, the engine and the routes, from the start to a drained stop."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from softprompt.artifact.ensembles import SavedEnsemble, load_saved
from softprompt.backbone.model import Backbone
from softprompt.errors import ArtifactError, DataError, SoftpromptError
from softprompt.inference.continuous import GenerationBatch
from softprompt.inference.recorded import load_recorded_backbone
from softprompt.serve.admission import EngineLimits
from softprompt.serve.batches import PASS_TOKENS
from softprompt.serve.engine import ServingEngine
from softprompt.serve.faults import STATUS, FaultKind, ServingError
from softprompt.serve.keys import ApiKey, KeyRing
from softprompt.serve.metrics import Metrics
from softprompt.serve.openai_routes import TextRoutes
from softprompt.serve.prompts import (
    FolderSource,
    PromptSource,
    PromptStore,
    RegistrySource,
)
from softprompt.serve.registry import Registry
from softprompt.serve.routes import Routes
from softprompt.serve.scoring import ScoreRoutes
from softprompt.serve.service import Service
from softprompt.serve.site import Gate, Site, SiteSettings, respond_error
from softprompt.serve.upstream import Upstream, UpstreamSettings, check_upstream

# How often a registry is looked at, in seconds.
POLL_SECONDS = 0.5
_DRAIN_POLL = 0.05
# After the drain: for connections to be closed.
_CLOSE_SECONDS = 2


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs.

    Args:
        host: the address to bind.
        port: the port; 0 for any that is free.
        certificate: the file of the TLS certificate; None for plain HTTP.
        certificate_key: the file of its key.
        drain_seconds: the most that accepted requests may take after SIGTERM.
        prompt_bytes: of the prompts in memory.
        site: the limits of requests.
        engine: the limits of the engine.
        upstream: a vLLM server that runs the rows; None to run them here.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    certificate_key: Path | None = None
    drain_seconds: float = 30.0
    prompt_bytes: int = 1 << 30
    site: SiteSettings = field(default_factory=SiteSettings)
    engine: EngineLimits = field(default_factory=EngineLimits)
    upstream: UpstreamSettings | None = None


def check_settings(settings: ServerSettings, keys: Sequence[ApiKey]) -> None:
    """Check that a server may run so.

    Args:
        settings: of the server.
        keys: of the server.

    Raises:
        DataError: it would be open to other machines without keys, or its TLS cannot work.
    """
    if not keys and not _is_loopback(settings.host):
        msg = (
            f"without keys only this machine may connect, but the host is {settings.host!r}. Give "
            "keys (--keys FILE, or the environment's SOFTPROMPT_API_KEY), or use 127.0.0.1."
        )
        raise DataError(msg)
    if (settings.certificate is None) != (settings.certificate_key is None):
        msg = "TLS needs both files: --tls-certificate FILE and --tls-key FILE."
        raise DataError(msg)
    if settings.certificate is not None:
        _check_certificate(settings)


def _check_certificate(settings: ServerSettings) -> None:
    certificate, key = settings.certificate, settings.certificate_key
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            str(certificate), str(key), password=""
        )
    except (OSError, ValueError) as error:  # of which ssl's own is one
        why = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        msg = (
            f"{certificate} and {key} are not a certificate and its key: {why}. Give two files in "
            "PEM form that belong together, the key without a password."
        )
        raise DataError(msg) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_source(folders: Sequence[Path], registry: Path | None) -> PromptSource:
    """The prompts to serve.

    Args:
        folders: of artifacts or runs.
        registry: the folder of a registry.

    Raises:
        ArtifactError: there are both or neither, or there are no prompts.
    """
    if bool(folders) == (registry is not None):
        msg = "give folders of prompts, or a registry (--registry DIR), and not both."
        raise ArtifactError(msg)
    if registry is None:
        return FolderSource(folders)
    if not registry.is_dir():
        msg = f"there is no registry {registry}. Publish a prompt: softprompt publish ARTIFACT NAME"
        raise ArtifactError(msg)
    return RegistrySource(Registry(registry))


def load_first_backbone(source: PromptSource, name: str | None) -> Backbone:
    """Load the backbone of the first prompt.

    Args:
        source: of the prompts.
        name: of the backbone, if it is in another place now.

    Raises:
        ArtifactError: there are no prompts.
        BackboneError: it cannot be loaded.
    """
    names = source.list_names()
    if not names:
        msg = "the registry has no prompts. Publish one: softprompt publish ARTIFACT NAME"
        raise ArtifactError(msg)
    saved = load_saved(source.find(names[0]).folder)
    if isinstance(saved, SavedEnsemble):
        saved = next(iter(saved.members.values()))
    return load_recorded_backbone(saved, name)


def check_prompts(store: PromptStore) -> dict[str, str]:
    """Load every prompt once.

    Args:
        store: of the prompts.

    Returns:
        What is wrong, by the names of those that cannot be served.
    """
    faults: dict[str, str] = {}
    for name in store.source.list_names():
        try:
            with store.borrow(name):
                pass
        except SoftpromptError as error:
            faults[name] = str(error)
    return faults


def make_site(
    backbone: Backbone, source: PromptSource, *, keys: Sequence[ApiKey], settings: ServerSettings
) -> Site:
    """Put the parts of a server together. The engine is started.

    Args:
        backbone: of all prompts.
        source: of the prompts.
        keys: who may ask; without any, everybody on this machine.
        settings: of the server.

    Raises:
        DataError: the upstream server cannot be reached.
    """
    limits, upstream = settings.engine, None

    def make_batch() -> GenerationBatch:
        return GenerationBatch(
            backbone, max_rows=limits.batch_rows, max_tokens=8 * limits.batch_tokens
        )

    if settings.upstream is not None:
        upstream = Upstream(backbone, settings.upstream)
    store = PromptStore(
        backbone,
        source,
        max_bytes=settings.prompt_bytes,
        check=None if upstream is None else check_upstream,
        bakes=upstream is None,
    )
    can_write = backbone.geometry.architecture != "encoder"
    if upstream is not None:
        engine = ServingEngine(
            upstream.make_batch,
            limits=limits,
            pass_tokens=limits.batch_tokens,  # vLLM makes its own batches of all rows
        )
    else:
        engine = ServingEngine(
            make_batch if can_write else None,
            limits=limits,
            maintain=store.bake_waiting,
            pass_tokens=PASS_TOKENS["cpu" if backbone.device.type == "cpu" else "cuda"],
        )
    engine.start()
    ring, metrics = KeyRing(keys), Metrics(store, engine)
    return Site(Service(store, engine), ring, metrics, settings.site, upstream=upstream)


def make_app(site: Site) -> ASGIApp:
    """The application, for any ASGI server.

    Args:
        site: of `make_site`.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> from starlette.testclient import TestClient
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> source = FolderSource([model.save("mood")])
        >>> site = make_site(backbone, source, keys=[], settings=ServerSettings())
        >>> with TestClient(make_app(site), base_url="http://localhost") as client:
        ...     answer = client.post("/v1/predict", json={"model": "mood", "rows": ["dull"]})
        >>> answer.json()["data"][0]["label"] == model.predict("dull")[0].label
        True
    """
    routes, texts, scores = Routes(site), TextRoutes(site), ScoreRoutes(site)
    table: list[Route] = [
        Route("/v1/predict", routes.predict, methods=["POST"]),
        Route("/classify", routes.classify, methods=["POST"]),
        Route("/v1/classify", routes.classify, methods=["POST"]),
        Route("/generative_scoring", scores.score_first, methods=["POST"]),
        Route("/v1/score", scores.score_all, methods=["POST"]),
        Route("/v1/completions", texts.complete, methods=["POST"]),
        Route("/v1/chat/completions", texts.complete_chat, methods=["POST"]),
        Route("/v1/models", routes.list_models, methods=["GET"]),
        Route("/v1/models/{name}", routes.show_model, methods=["GET"]),
        Route("/v1/prompts", routes.list_prompts, methods=["GET"]),
        Route("/v1/prompts/{name}", routes.show_model, methods=["GET"]),
        Route("/v1/prompts/{name}", routes.publish, methods=["PUT"]),
        Route("/v1/prompts/{name}", routes.unpublish, methods=["DELETE"]),
        Route("/v1/prompts/{name}/pin", routes.pin, methods=["PUT"]),
        Route("/livez", routes.show_live, methods=["GET"]),
        Route("/health", routes.show_ready, methods=["GET"]),
        Route("/readyz", routes.show_ready, methods=["GET"]),
        Route("/metrics", routes.show_metrics, methods=["GET"]),
        Route("/openapi.json", routes.show_openapi, methods=["GET"]),
    ]
    if site.settings.has_playground:
        table.append(Route("/", routes.show_playground, methods=["GET"]))

    @contextlib.asynccontextmanager
    async def live(_app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(site.service.store.source))
        yield
        watching.cancel()
        await asyncio.to_thread(site.close)

    handlers = {ServingError: _handle_fault, HTTPException: _handle_http}
    return Gate(Starlette(routes=table, exception_handlers=handlers, lifespan=live), site)


async def _handle_fault(_http: HttpRequest, error: Exception) -> Response:
    fault = error if isinstance(error, ServingError) else ServingError(str(error), kind="failed")
    return respond_error(fault)


async def _handle_http(http: HttpRequest, error: Exception) -> Response:
    """Errors of Starlette itself: an unknown path, a method that a path does not have."""
    status = error.status_code if isinstance(error, HTTPException) else 400
    kinds: dict[int, FaultKind] = {code: kind for kind, (code, _) in STATUS.items()}
    detail = error.detail if isinstance(error, HTTPException) else str(error)
    msg = f"{http.method} {http.url.path}: {detail}. See /openapi.json."
    response = respond_error(ServingError(msg, kind=kinds.get(status, "invalid")))
    response.status_code = status
    return response


async def _watch(source: PromptSource) -> None:
    """Look for changes of the registry until the server ends."""
    log = logging.getLogger(__name__)
    while True:
        try:
            await asyncio.to_thread(source.refresh)
        except OSError:
            log.exception("the registry cannot be read; what was read before is served")
        await asyncio.sleep(POLL_SECONDS)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on the first signal finishes what it accepted, and then ends.

    Args:
        config: of uvicorn.
        site: whose requests are finished.
        drain_seconds: the most that they may take.
        on_started: called with the port when it has started.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        site: Site,
        drain_seconds: float,
        on_started: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._site, self._drain_seconds, self._on_started = site, drain_seconds, on_started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_started is not None and self.servers:
            self._on_started(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second."""
        if self._site.is_draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._site.is_draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_seconds
        while self._site.open_requests and loop.time() < end:  # noqa: ASYNC110  # a plain number
            await asyncio.sleep(_DRAIN_POLL)
        if self._site.open_requests:  # a clean error for what is not finished
            await asyncio.to_thread(self._site.service.engine.stop, timeout=0.0)
            await asyncio.sleep(_DRAIN_POLL)
        self.should_exit = True


def run_server(
    site: Site,
    settings: ServerSettings,
    *,
    on_started: Callable[[int], None] | None = None,
) -> None:
    """Serve until a signal ends it.

    Args:
        site: of `make_site`.
        settings: of the server.
        on_started: called with the port when it has started.

    Raises:
        DataError: the address cannot be used.
    """
    listening = _listen(settings)
    config = uvicorn.Config(
        make_app(site),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    server = DrainingServer(
        config, site=site, drain_seconds=settings.drain_seconds, on_started=on_started
    )
    with contextlib.suppress(KeyboardInterrupt), _restore_signals(), _keep_frozen():
        server.run(sockets=[listening])


def _listen(settings: ServerSettings) -> socket.socket:
    """Bind the address."""
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=2048,
        )
    except OSError as error:
        msg = (
            f"port {settings.port} of {settings.host} cannot be used: {error.strerror}. Choose "
            "another: --port N."
        )
        raise DataError(msg) from error


def freeze_objects() -> None:
    """Leave what is in memory now out of the search for cycles, until `gc.unfreeze`.

    It is half a million objects, all of which stay, and each search of them stops all threads for a
    third of a second, every few thousand requests.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _keep_frozen() -> Iterator[None]:
    freeze_objects()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _restore_signals() -> Iterator[None]:
    """Ignore the signals that uvicorn caught, which it raises again at its end."""
    previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
