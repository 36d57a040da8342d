"""Servers on a port of this machine, each in a thread."""

import threading
from dataclasses import dataclass
from queue import Queue

import uvicorn

from softprompt.serve.server import DrainingServer, make_app
from softprompt.serve.site import Site


@dataclass
class LiveServer:
    """A server on a port of this machine.

    Args:
        site: its state.
        server: of uvicorn.
        url: of its root.
    """

    site: Site
    server: DrainingServer
    url: str


def run_in_thread(
    site: Site, *, drain_seconds: float = 30.0
) -> tuple[LiveServer, threading.Thread]:
    ports: Queue[int] = Queue()
    config = uvicorn.Config(
        make_app(site), port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = DrainingServer(config, site=site, drain_seconds=drain_seconds, on_started=ports.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    return LiveServer(site, server, f"http://127.0.0.1:{ports.get(timeout=30)}"), thread
