"""A server in a process of its own, and a client that costs little: it shares the machine."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

ROOT = Path(__file__).parents[2]
_START_SECONDS = 180


@dataclass(frozen=True)
class Reply:
    """What came back for a request.

    Args:
        status: of HTTP.
        due: when it was to be sent, in seconds from the start.
        sent: when it was sent.
        done: when the whole answer had arrived.
        retry_after: the header of a rejection; None without one.
        body: of the answer.
    """

    status: int
    due: float
    sent: float
    done: float
    retry_after: str | None
    body: bytes


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Args:
        port: of this machine.
        process: of the server.
    """

    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def run_server(registry: Path, *options: str, log: Path) -> Iterator[Server]:
    """Run ``softprompt serve`` in a process of its own.

    Args:
        registry: whose prompts are served.
        options: of the command.
        log: the file for what it writes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "softprompt", "serve", "--registry", str(registry)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options], stderr=written, stdout=written,
            env=environment,
        )  # fmt: skip
        try:
            _wait_until_ready(port, process, log)
            yield Server(port, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = perf_counter() + _START_SECONDS
    while perf_counter() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as one:
            one.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if b" 200 " in one.recv(100):
                return
        sleep(0.1)
    msg = f"the server did not start: {log.read_text('utf-8')[-2000:]}"
    raise RuntimeError(msg)


def make_request(path: str, content: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    body = json.dumps(content).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connections:
    """Connections to a server, which are used again.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._start = perf_counter()

    async def open(self, count: int) -> None:
        """Open connections before they are needed, and begin to count time."""
        streams = [asyncio.open_connection("127.0.0.1", self.port) for _ in range(count)]
        self._free += await asyncio.gather(*streams)
        self._start = perf_counter()

    @property
    def now(self) -> float:
        """Seconds from the start."""
        return perf_counter() - self._start

    async def ask(self, request: bytes, *, due: float | None = None) -> Reply:
        """Send a request, and wait for the whole answer."""
        sent = self.now
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                break
            writer.close()  # the server has closed it, because it was not used for long
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        status, retry_after = int(head[0].split(" ")[1]), headers.get("retry-after")
        return Reply(status, sent if due is None else due, sent, self.now, retry_after, body)

    def close(self) -> None:
        """Close all that are open."""
        for _, writer in self._free:
            writer.close()


async def _ask_closed(port: int, requests: Sequence[bytes], *, at_once: int) -> list[Reply]:
    connections = Connections(port)
    await connections.open(at_once)
    waiting, replies = iter(requests), list[Reply]()

    async def work() -> None:
        for request in waiting:
            replies.append(await connections.ask(request))

    await asyncio.gather(*(work() for _ in range(at_once)))
    connections.close()
    return replies


def ask_closed(port: int, requests: Sequence[bytes], *, at_once: int) -> list[Reply]:
    """Ask with so many requests open at any time: the rate is the server's capacity."""
    return asyncio.run(_ask_closed(port, requests, at_once=at_once))


async def _ask_open(
    port: int, requests: Sequence[tuple[float, bytes]], *, ready: int
) -> list[Reply]:
    connections = Connections(port)
    await connections.open(ready)
    tasks = list[asyncio.Task[Reply]]()
    for due, request in requests:
        if due > connections.now:
            await asyncio.sleep(due - connections.now)
        tasks.append(asyncio.ensure_future(connections.ask(request, due=due)))
    replies = await asyncio.gather(*tasks)
    connections.close()
    return replies


def ask_open(port: int, requests: Sequence[tuple[float, bytes]], *, ready: int = 64) -> list[Reply]:
    """Ask at given times, whether or not earlier requests are answered.

    Args:
        port: of the server.
        requests: in seconds from the start, in their order.
        ready: the connections that are open before.
    """
    return asyncio.run(_ask_open(port, requests, ready=ready))
