"""A vLLM server on a free port of this machine, stopped whatever happens."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

NAME = "backbone"
READY, STOP = 600, 30
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Args:
        port: of this machine.
    """

    port: int

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that ``POST /v1/completions`` is answered with, errors included."""
        request = Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urlopen(request, timeout=READY) as response:  # noqa: S310
                found: dict[str, Any] = json.load(response)
        except HTTPError as error:
            found = json.load(error)
        return found


@contextmanager
def serving(python: Path, model: str, *, dtype: str, log: Path) -> Iterator[Server]:
    """Serve a model while the block runs.

    Args:
        python: of an environment with vLLM.
        model: the folder of its checkpoint.
        dtype: what it computes in.
        log: where it writes what it says.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-prompt-embeds", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--dtype", dtype]
    # SIGTERM must end the block too.
    before = signal.signal(signal.SIGTERM, _leave)
    with log.open("wb") as said:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | _CPU,
            start_new_session=True,  # with the processes that it starts, to stop them together
        )
        try:
            _wait(process, port, log)
            yield Server(port)
        finally:
            _stop(process)
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    msg = f"the server was not ready in {READY} s, or ended. It said, in {log}:\n{last}"
    raise RuntimeError(msg)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server and what it started: asked first, then ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
