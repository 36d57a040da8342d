"""The server as an application of Ray Serve: replicas on one machine or many, behind one door.

Each replica is the whole server, with the backbone, its own queue and its own look at the registry.
The door takes the requests and hands each to a replica; if that is lost before its answer was
passed on, another one gets the request, since a prediction changes nothing.
"""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message

from softprompt.errors import DataError, MissingPackageError, format_unknown
from softprompt.serve.door import Door, StartedMessage
from softprompt.serve.faults import ServingError
from softprompt.serve.keys import ApiKey
from softprompt.serve.server import (
    ServerSettings,
    freeze_objects,
    load_first_backbone,
    make_app,
    make_site,
    open_source,
)
from softprompt.serve.site import show_access_log

APPLICATION = "softprompt"
_READERS: dict[str, Callable[[str], object]] = {
    "num_replicas": int,
    "min_replicas": int,
    "max_replicas": int,
    "target_ongoing_requests": int,
    "num_cpus": int,
    "num_gpus": float,
    "address": str,
}


@dataclass(frozen=True)
class RaySettings:
    """The replicas of an application of Ray Serve.

    Args:
        min_replicas: that always run.
        max_replicas: the most; more than the fewest when requests wait.
        target_ongoing_requests: open requests for each replica, above which there are more
            replicas; None for as many rows as a batch has.
        num_cpus: for each replica; torch uses as many threads.
        num_gpus: for each replica; may be a fraction below 1, or 0.
        address: ``HOST:PORT`` of the cluster's head; None for ``RAY_ADDRESS``, a cluster that runs
            on this machine, or a new one.

    Raises:
        DataError: a number is not possible.

    Examples:
        >>> RaySettings(min_replicas=1, max_replicas=4).max_replicas
        4
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: int | None = None
    num_cpus: int = 1
    num_gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        low, high, target = self.min_replicas, self.max_replicas, self.target_ongoing_requests
        faults = {
            f"min_replicas = {low}: at least 1": low >= 1,
            f"max_replicas = {high}: at least min_replicas = {low}": high >= low,
            f"num_cpus = {self.num_cpus}: a replica needs at least 1": self.num_cpus >= 1,
            f"num_gpus = {self.num_gpus:g}: whole GPUs, or a fraction of one": self.num_gpus >= 0
            and (self.num_gpus <= 1 or not self.num_gpus % 1),
            f"target_ongoing_requests = {target}: at least 1": target is None or target >= 1,
        }
        wrong = [fault for fault, is_fine in faults.items() if not is_fine]
        if wrong:
            msg = f"{'; '.join(wrong)}. Change it (--ray NAME=VALUE)."
            raise DataError(msg)


def read_ray_settings(pairs: Sequence[str]) -> RaySettings:
    """Read the settings of a command line.

    Args:
        pairs: such as ``num_cpus=4``; ``num_replicas`` sets the fewest and the most.

    Raises:
        DataError: a name is unknown, or a value is not a number.

    Examples:
        >>> read_ray_settings(["num_replicas=2", "num_gpus=0.5"]).num_gpus
        0.5
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in _READERS:
            raise DataError(format_unknown("setting of --ray", name, options=_READERS))
        try:
            values[name] = _READERS[name](text)
        except ValueError as error:
            msg = f"--ray {pair}: not a number. Write {name}=2, for example."
            raise DataError(msg) from error
    if "num_replicas" in values:
        fixed = values.pop("num_replicas")
        values = {"min_replicas": fixed, "max_replicas": fixed, **values}
    low = values.get("min_replicas", 1)
    return RaySettings(**{"max_replicas": max(low, 1), **values})


@dataclass(frozen=True)
class ReplicaPlan:
    """What a replica is made of; all of it is plain data.

    Args:
        folders: of prompts.
        registry: the folder of a registry; as each machine sees it.
        backbone: its name, if it is in another place now.
        keys: who may ask.
        settings: of the server.
    """

    folders: tuple[Path, ...] = ()
    registry: Path | None = None
    backbone: str | None = None
    keys: tuple[ApiKey, ...] = ()
    settings: ServerSettings = field(default_factory=ServerSettings)


class PromptReplica:
    """One whole server in a worker of Ray.

    Args:
        plan: what it is made of.
        threads: of torch.
    """

    def __init__(self, plan: ReplicaPlan, threads: int) -> None:
        torch.set_num_threads(threads)
        source = open_source(plan.folders, plan.registry)
        backbone = load_first_backbone(source, plan.backbone)
        self._site = make_site(backbone, source, keys=plan.keys, settings=plan.settings)
        show_access_log()
        self._app = make_app(self._site)
        self._living: asyncio.Task[None] | None = None
        freeze_objects()

    async def answer(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[StartedMessage | bytes, None]:
        """Answer a request.

        Args:
            scope: of ASGI, plain data alone.
            body: of the request.

        Yields:
            The status with the headers, and then the parts of the answer.
        """
        if self._living is None:
            self._living = asyncio.create_task(keep_alive(self._app))
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app({**scope, "state": {}, "extensions": {}}, receive, messages.put)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield message["status"], list(message["headers"])
                elif message.get("body"):
                    yield message["body"]
        finally:
            gone.set()
            if not running.done():
                running.cancel()

    def check_health(self) -> None:
        """Ray starts a new replica if this raises an error.

        Raises:
            ServingError: the engine does not run, or its step takes too long.
        """
        if not self._site.is_ready:
            msg = "the engine of this replica does not run."
            raise ServingError(msg, kind="failed")


async def keep_alive(app: ASGIApp) -> None:
    """Keep an application alive, as ASGI's lifespan does, until it is cancelled.

    Args:
        app: whose background tasks run meanwhile.
    """
    messages: list[Message] = [{"type": "lifespan.startup"}]
    ending = asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await ending.wait()
        return {"type": "lifespan.shutdown"}

    async def ignore(_message: Message) -> None:
        """Whether it started is seen by its requests."""

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, ignore)


def _import_serve() -> Any:  # noqa: ANN401  # Ray's own
    if find_spec("ray") is None or find_spec("fastapi") is None or find_spec("aiohttp") is None:
        msg = "--engine ray needs Ray Serve. Install it: pip install 'softprompt[ray-serve]'"
        raise MissingPackageError(msg)
    from ray import serve

    return serve


def make_ray_app(plan: ReplicaPlan, replicas: RaySettings) -> Any:  # noqa: ANN401  # Ray's own
    """The application, for ``ray.serve.run``.

    Args:
        plan: of each replica.
        replicas: how many, and what each may use.

    Raises:
        MissingPackageError: Ray Serve is not installed.
    """
    serve, settings = _import_serve(), plan.settings
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        # The replica's own queue says when it is full, with the reason.
        "max_ongoing_requests": settings.engine.queued_rows,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "health_check_period_s": 2.0,
    }
    if replicas.min_replicas == replicas.max_replicas:
        options["num_replicas"] = replicas.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests
            or settings.engine.batch_rows,
        }
    replica = serve.deployment(name="replica", **options)(PromptReplica)
    most = settings.site.max_body_bytes

    def build() -> ASGIApp:
        return Starlette(routes=[Mount("/", app=make_ray_door(most, keys=plan.keys))])

    door = serve.deployment(
        serve.ingress(build)(),
        name="door",
        max_ongoing_requests=4 * settings.engine.queued_rows,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return door.bind(replica.bind(plan, replicas.num_cpus))


def make_ray_door(max_body_bytes: int, *, keys: Sequence[ApiKey]) -> Door:
    """The door to the replicas of the application that runs.

    Args:
        max_body_bytes: of a request.
        keys: who may ask.
    """
    from ray.exceptions import RayActorError, WorkerCrashedError

    handle = _import_serve().get_deployment_handle("replica", app_name=APPLICATION)
    stream = handle.options(stream=True, method_name="answer")

    async def ask(
        scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[StartedMessage | bytes, None]:
        answer = stream.remote(scope, body)
        try:
            async for part in answer:
                yield part
        finally:
            with contextlib.suppress(Exception):
                answer.cancel()

    def is_lost(error: BaseException) -> bool:
        return isinstance(error, RayActorError | WorkerCrashedError)

    return Door(ask, is_lost=is_lost, max_body_bytes=max_body_bytes, keys=keys)


def run_on_ray(
    plan: ReplicaPlan,
    replicas: RaySettings,
    *,
    on_started: Callable[[int], None] | None = None,
) -> None:
    """Serve on a cluster of Ray until a signal ends it.

    Args:
        plan: of each replica.
        replicas: how many, and what each may use.
        on_started: called with the port when all replicas run.

    Raises:
        DataError: the cluster cannot be reached.
        MissingPackageError: Ray Serve is not installed.
    """
    app, ended = make_ray_app(plan, replicas), threading.Event()
    serve, settings = _import_serve(), plan.settings
    with _connect(replicas):
        serve.start(http_options=_describe_http(settings))
        serve.run(app, name=APPLICATION, route_prefix="/")
        with _catch_signals(ended):  # before, a signal ends the start
            if on_started is not None:
                on_started(settings.port)
            ended.wait()
            serve.delete(APPLICATION)  # replicas finish what they accepted
            serve.shutdown()


def _describe_http(settings: ServerSettings) -> dict[str, Any]:
    files = {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.certificate_key}
    tls = {name: str(file) for name, file in files.items() if file is not None}
    return {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": settings.site.timeout + settings.drain_seconds,
        **tls,
    }


@contextlib.contextmanager
def _connect(replicas: RaySettings) -> Iterator[None]:
    """A connection to the cluster, or a cluster of this machine alone."""
    import ray

    try:
        ray.init(address=replicas.address, logging_level=logging.WARNING, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        msg = (
            f"the Ray cluster {replicas.address or 'of this machine'} cannot be reached: {error}. "
            "Start one (ray start --head), or check --ray address=HOST:PORT."
        )
        raise DataError(msg) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _catch_signals(ended: threading.Event) -> Iterator[None]:
    """Set the event at the first signal."""

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    previous = {n: signal.signal(n, end) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
