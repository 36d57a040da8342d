"""A vLLM server on a free port of this machine, which is always stopped at the end."""

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

MODEL_NAME = "backbone"
# Seconds to wait for an answer or for the start, and for the end.
READY, STOP = 600, 30
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        port: on this machine.
    """

    port: int

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send ``POST /v1/completions``; the JSON of the response, also of an error."""
        request = Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urlopen(request, timeout=READY) as response:  # noqa: S310
                result: dict[str, Any] = json.load(response)
        except HTTPError as error:
            result = json.load(error)
        return result


@contextmanager
def run_server(python: Path, model: str, *, dtype: str, log: Path) -> Iterator[Server]:
    """Serve a model while the block runs.

    Args:
        python: the interpreter of an environment with vLLM.
        model: the folder of its checkpoint.
        dtype: of its computations.
        log: the file for the output of the server.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-prompt-embeds", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--dtype", dtype]
    # Without a handler, SIGTERM would end this process and leave the server running.
    previous = signal.signal(signal.SIGTERM, _exit)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | _CPU,
            start_new_session=True,  # one group with its own processes, to stop them together
        )
        try:
            _wait_until_ready(process, port, log)
            yield Server(port)
        finally:
            _stop(process)
            signal.signal(signal.SIGTERM, previous)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    msg = f"the server ended, or was not ready within {READY} s. The end of {log}:\n{last}"
    raise RuntimeError(msg)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server and its processes: terminate them, then kill them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
