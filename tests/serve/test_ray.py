"""Ray Serve: the door repeats what a lost replica took; two local replicas of the whole server."""

import asyncio
import gc
import hashlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from softprompt.errors import DataError
from softprompt.serve.door import Door
from softprompt.serve.keys import ApiKey, make_key
from softprompt.serve.ray_app import (
    PromptReplica,
    RaySettings,
    ReplicaPlan,
    read_ray_settings,
)
from softprompt.serve.registry import Registry
from support.cli_runner import run_command, start_command
from support.models import ROWS, make_model_factory
from support.tiny_models import save_checkpoint

TEXTS = [row["text"] for row in ROWS]
HAS_RAY = all(importlib.util.find_spec(name) for name in ("ray", "fastapi", "aiohttp"))


class LostError(Exception):
    """A replica was lost."""


def make_door(answers, *, max_body_bytes: int = 1000) -> tuple[httpx.AsyncClient, list[bytes]]:
    """A client of a door whose replicas give these answers in turn; an error is raised there."""
    asked: list[bytes] = []
    left = iter(answers)

    async def ask(scope, body):
        asked.append(body)
        for part in next(left):
            if isinstance(part, Exception):
                raise part
            yield part

    door = Door(
        ask, is_lost=lambda error: isinstance(error, LostError), max_body_bytes=max_body_bytes
    )
    transport = httpx.ASGITransport(door)
    return httpx.AsyncClient(transport=transport, base_url="http://door"), asked


JSON = (200, [(b"content-type", b"application/json")])
EVENTS = (200, [(b"content-type", b"text/event-stream")])


def test_a_request_of_a_lost_replica_goes_to_another(monkeypatch) -> None:
    monkeypatch.setattr("softprompt.serve.door._WAIT", 0.0)
    lost = LostError()

    async def run() -> None:
        # Lost before it answered, in the middle, and just before the end.
        client, asked = make_door([[lost], [JSON, lost], [JSON, b"ha", lost], [JSON, b"all"]])
        answer = await client.post("/v1/predict", content=b"x")
        assert (answer.status_code, answer.content) == (200, b"all")
        assert asked == [b"x"] * 4
        client, asked = make_door([[EVENTS, lost], [EVENTS, b"data: 1\n\n", b"data: 2\n\n"]])
        assert (await client.post("/v1/completions")).content == b"data: 1\n\ndata: 2\n\n"
        client, asked = make_door([[EVENTS, b"data: 1\n\n", lost], [EVENTS, b"data: 1\n\n"]])
        broken = await client.post("/v1/completions")
        assert broken.content.startswith(b"data: 1\n\ndata: {")
        assert b"lost while it answered" in broken.content
        assert len(asked) == 1
        client, asked = make_door([[lost]] * 10)
        gone = await client.post("/v1/predict")
        assert (gone.status_code, gone.headers["retry-after"]) == (503, "5")

    asyncio.run(run())


def test_what_changes_something_is_not_repeated() -> None:
    async def run() -> None:
        for method in ("PUT", "DELETE"):
            client, asked = make_door([[LostError()], [JSON, b"{}"]])
            answer = await client.request(method, "/v1/prompts/a")
            assert answer.status_code == 503
            assert len(asked) == 1
        client, asked = make_door([[ValueError("bug")]])
        with pytest.raises(ValueError, match="bug"):
            await client.get("/")
        client, asked = make_door([], max_body_bytes=10)
        large = await client.post("/v1/predict", content=b"x" * 11)
        assert (large.status_code, asked) == (413, [])

    asyncio.run(run())


@pytest.fixture
def registry(tmp_path: Path, backbone, maker) -> Registry:
    from softprompt.injection import load_backbone

    save_checkpoint(tmp_path / "backbone", "llama")
    own = load_backbone(tmp_path / "backbone", dtype="float32", device="cpu")
    model = make_model_factory(backbone, maker)(("llama", "words", "input"), own=own)
    registry = Registry(tmp_path / "registry")
    registry.publish(model.save(tmp_path / "mood"), "mood")
    return registry


def test_a_replica_answers_as_the_server_does(registry, tmp_path: Path) -> None:
    from softprompt.inference import load_model

    async def run() -> None:
        replica = PromptReplica(ReplicaPlan(registry=registry.folder), 1)
        # What was loaded is left out of the search for cycles, as `softprompt serve` does.
        assert gc.get_freeze_count() > 1000
        gc.unfreeze()

        async def ask(scope, body):
            async for part in replica.answer(scope, body):
                yield part

        door = Door(ask, is_lost=lambda _: False, max_body_bytes=1 << 20)
        transport = httpx.ASGITransport(door)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"model": "mood", "rows": TEXTS}
            answer = (await client.post("/v1/predict", json=body)).json()
            labels = [one["label"] for one in answer["data"]]
            assert labels == [one.label for one in load_model(tmp_path / "mood").predict(TEXTS)]
            assert (await client.get("/readyz")).status_code == 200
            replica.check_health()
            # It follows the registry.
            registry.publish(tmp_path / "mood", "later")
            for _ in range(100):
                later = await client.post("/v1/predict", json={**body, "model": "later"})
                if later.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert later.status_code == 200
        replica._site.close()
        with pytest.raises(Exception, match="does not run"):
            replica.check_health()
        replica._living.cancel()

    asyncio.run(run())


def test_mistakes_are_named(registry) -> None:
    for wrong in ({"min_replicas": 0}, {"max_replicas": 0}, {"num_cpus": 0}, {"num_gpus": 1.5}):
        with pytest.raises(DataError, match="Change it"):
            RaySettings(**wrong)
    where = ("serve", "--registry", registry.folder)
    assert run_command(*where, "--ray", "num_replicas=2").is_mistake("Add --engine ray")
    on_ray = (*where, "--engine", "ray", "--ray")
    assert run_command(*on_ray, "num_replicas=a").is_mistake("not a number")
    assert run_command(*on_ray, "num_cpu=2").is_mistake("Did you mean 'num_cpus'?")
    two = read_ray_settings(["num_replicas=2"])
    assert (two.min_replicas, two.max_replicas) == (2, 2)
    assert read_ray_settings(["min_replicas=2"]).max_replicas == 2
    assert run_command(*where, "--engine", "spark").status == 2
    if not HAS_RAY:
        assert run_command(*where, "--engine", "ray").is_mistake("softprompt[ray-serve]")


def find_replicas() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "ServeReplica:softprompt:replica" in " ".join(process.info["cmdline"] or ())
    ]


@pytest.fixture
def on_ray(registry, tmp_path: Path):
    """A server with two replicas on a cluster of its own, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start_command(
        "serve", "--registry", registry.folder, "--engine", "ray", "--ray", "num_replicas=2",
        "--port", port, "--drain", "10",
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if re.match(r"API +http://\S+/v1", line):
            break
    else:
        raise AssertionError("".join(said))
    yield f"http://127.0.0.1:{port}", process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray Serve is not installed")
def test_a_replica_that_is_killed_loses_no_request(on_ray, registry, tmp_path: Path) -> None:
    url, process = on_ray
    body = {"model": "mood", "rows": TEXTS}
    expected = httpx.post(f"{url}/v1/predict", json=body, timeout=60).json()["data"]
    statuses: list[int] = []
    ending = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ending.is_set():
                answer = client.post("/v1/predict", json=body)
                statuses.append(answer.status_code)
                if answer.status_code == 200:
                    for one, known in zip(answer.json()["data"], expected, strict=True):
                        assert one["label"] == known["label"]
                        own = known["probabilities"]
                        assert one["probabilities"] == pytest.approx(own, abs=2e-6)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        time.sleep(2)
        first, *_ = replicas = find_replicas()
        assert len(replicas) == 2
        before = len(statuses)
        os.kill(first.pid, signal.SIGKILL)
        time.sleep(4)
        assert len(statuses) > before
    finally:
        ending.set()
        for thread in asking:
            thread.join(90)
    assert {*statuses} == {200}
    # The lost one is replaced, and each replica follows the registry.
    end = time.monotonic() + 60
    while len(find_replicas()) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    registry.publish(tmp_path / "mood", "mood")
    time.sleep(3)
    versions = {
        httpx.post(f"{url}/v1/predict", json=body, timeout=60).json()["version"] for _ in range(12)
    }
    assert versions == {"mood@2"}
    with httpx.stream(
        "POST", f"{url}/v1/completions", timeout=60,
        json={"model": "mood", "prompt": TEXTS[0], "stream": True},
    ) as answer:  # fmt: skip
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    unknown = httpx.post(f"{url}/v1/predict", json={**body, "model": "nobody"}, timeout=60)
    assert unknown.status_code == 404
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == "stopped"


def test_the_door_reads_no_body_without_a_key() -> None:
    secret, _ = make_key("team")
    key = ApiKey("team", hashlib.sha256(secret.encode()).hexdigest(), frozenset({"predict"}))
    read: list[int] = []

    async def ask(scope, body):
        read.append(len(body))
        yield JSON
        yield b"{}"

    async def run() -> None:
        door = Door(ask, is_lost=lambda _: False, max_body_bytes=100, keys=[key])
        client = httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://door")
        assert (await client.post("/v1/predict", content=b"x")).status_code == 401
        assert (await client.get("/livez")).status_code == 200
        headers = {"authorization": f"Bearer {secret}"}
        long = await client.post("/v1/predict", content=b"x" * 101, headers=headers)
        assert long.status_code == 413
        assert (await client.put("/v1/prompts/a", headers=headers)).status_code == 403
        assert (await client.post("/v1/predict", content=b"x", headers=headers)).status_code == 200

    asyncio.run(run())
    assert read == [0, 1]
