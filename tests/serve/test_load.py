"""A server under load: nothing that was accepted is lost, mixed up or leaked.

The long proofs are slow tests: ``scripts/test -m slow tests/serve/test_load.py``. The soak takes
``SOFTPROMPT_SOAK_MINUTES``, by default 10.
"""

import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from softprompt._memory import trim_memory
from softprompt.artifact import Artifact
from softprompt.inference import PromptModel
from softprompt.serve.admission import EngineLimits
from softprompt.serve.prompts import PromptStore, RegistrySource
from softprompt.serve.registry import Registry
from support.models import ROWS

TEXTS = [row["text"] for row in ROWS]
CLASSIFIERS = ("mood", "tone", "rating")


def is_same(answer: dict, expected) -> bool:
    """Whether the answer for a row is this prediction."""
    if not expected.probabilities:
        return answer.get("text") == expected.label
    found = answer.get("probabilities", {})
    return answer.get("label") == expected.label and dict(found) == pytest.approx(
        dict(expected.probabilities), abs=2e-6
    )


def ask_all(url: str, requests: Sequence[tuple[str, str]], *, at_once: int) -> list[httpx.Response]:
    """Ask for one row each, from so many threads."""
    with httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as http:

        def ask(request: tuple[str, str]) -> httpx.Response:
            name, text = request
            return http.post("/v1/predict", json={"model": name, "rows": [text]})

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(ask, requests))


def slow_down(engine, monkeypatch, *, seconds: float) -> None:
    """Let every batch take so long that the queue fills."""
    predict = engine._predict
    monkeypatch.setattr(engine, "_predict", lambda rows: time.sleep(seconds) or predict(rows))


def test_a_burst_loses_nothing_that_was_accepted(serve, models, monkeypatch) -> None:
    """Ten times as many requests as fit: each is answered rightly, or refused with a time."""
    live = serve(engine=EngineLimits(queued_rows=12, batch_rows=4, prompt_share=0.5))
    slow_down(live.site.service.engine, monkeypatch, seconds=0.02)
    requests = [(CLASSIFIERS[n % 3], TEXTS[n % len(TEXTS)]) for n in range(120)]
    expected = {
        (name, text): models[name].predict(text)[0] for name in CLASSIFIERS for text in TEXTS
    }
    replies = ask_all(live.url, requests, at_once=40)
    statuses = Counter(reply.status_code for reply in replies)
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] >= 12
    assert statuses[429] + statuses[503] > 0
    for request, reply in zip(requests, replies, strict=True):
        if reply.status_code == 200:
            assert is_same(reply.json()["data"][0], expected[request])
        else:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] in {"full", "limited"}
    engine = live.site.service.engine
    assert (engine.queued_rows, engine.counts.expired, engine.counts.failed) == (0, 0, 0)


def test_a_refusal_keeps_the_connection(serve, monkeypatch) -> None:
    """A full server has no time for new connections, nor to read what it cannot take."""
    live = serve(engine=EngineLimits(queued_rows=1, batch_rows=1))
    engine = live.site.service.engine
    opened, entered = threading.Event(), threading.Event()
    predict = engine._predict

    def wait(rows):
        entered.set()
        assert opened.wait(30)
        return predict(rows)

    monkeypatch.setattr(engine, "_predict", wait)
    content = {"model": "mood", "rows": ["dull"]}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=live.url, timeout=60) as client:
        first = pool.submit(httpx.post, f"{live.url}/v1/predict", json=content, timeout=60)
        assert entered.wait(30)
        refused = [client.post("/v1/predict", json=content) for _ in range(3)]
        streams = {reply.extensions["network_stream"] for reply in refused}
        assert {reply.status_code for reply in refused} == {503}
        assert len(streams) == 1
        assert client.post("/v1/predict", content=b"{").status_code == 503  # it is not read
        assert client.get("/v1/models").status_code == 200
        opened.set()
        assert first.result().status_code == 200


def test_a_signal_under_load_loses_nothing_that_was_accepted(serve, models, monkeypatch) -> None:
    live = serve(engine=EngineLimits(batch_rows=4))
    slow_down(live.site.service.engine, monkeypatch, seconds=0.02)
    expected = {text: models["mood"].predict(text)[0] for text in TEXTS}
    stopping, outcomes = threading.Event(), list[tuple[str, httpx.Response | Exception]]()

    def ask(number: int) -> None:
        with httpx.Client(base_url=live.url, timeout=60) as client:
            while not stopping.is_set():
                text = TEXTS[number % len(TEXTS)]
                try:
                    reply = client.post("/v1/predict", json={"model": "mood", "rows": [text]})
                except httpx.ConnectError:  # the port is closed: it was not accepted
                    return
                outcomes.append((text, reply))
                if reply.status_code != 200:
                    return

    askers = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for asker in askers:
        asker.start()
    time.sleep(0.5)
    live.server.handle_exit(signal.SIGTERM, None)
    for asker in askers:
        asker.join(60)
    stopping.set()
    statuses = Counter(reply.status_code for _, reply in outcomes)
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 12
    for text, reply in outcomes:
        if reply.status_code == 200:
            assert is_same(reply.json()["data"][0], expected[text])
        else:
            assert reply.headers["retry-after"] == "5"
    assert live.site.service.engine.queued_rows == 0


def test_many_swaps_under_load_never_mix_versions(
    serve, folders, model, models, tmp_path: Path
) -> None:
    """Every answer comes wholly from the version that it names, whatever is published meanwhile."""
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    prompts = [models["mood"].prompt.map_tensors(lambda t, s=s: t * s) for s in (1, -1, 2, 0.5)]
    made = [model(("llama", "words", "input"), prompt=prompt) for prompt in prompts]
    expected = {f"mood@{n}": one.predict(TEXTS) for n, one in enumerate(made, start=1)}
    live = serve(source=RegistrySource(registry), engine=EngineLimits(batch_rows=5))
    ended, seen, wrong = threading.Event(), Counter[str](), list[dict]()

    def ask() -> None:
        with httpx.Client(base_url=live.url, timeout=60) as client:
            while not ended.is_set():
                reply = client.post("/v1/predict", json={"model": "mood", "rows": TEXTS}).json()
                seen[reply["version"]] += 1
                pairs = zip(reply["data"], expected[reply["version"]], strict=True)
                wrong.extend(one for one, right in pairs if not is_same(one, right))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for number, one in enumerate(made[1:], start=2):
        registry.publish(one.save(tmp_path / str(number)), "mood")
        end = time.monotonic() + 20
        while not seen[f"mood@{number}"] and time.monotonic() < end:
            time.sleep(0.02)
    registry.pin("mood", 1)
    time.sleep(1.0)
    ended.set()
    for asker in askers:
        asker.join(30)
    assert not wrong
    assert set(seen) == set(expected)


@pytest.fixture
def publish_many(models, tmp_path: Path, maker) -> Callable[[int], Registry]:
    """Makes a registry of so many prompts, each with vectors of its own."""

    def publish(count: int) -> Registry:
        registry = Registry(tmp_path / "many")
        artifact = models["mood"].artifact
        for number in range(count):
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(artifact.prompt.vectors.shape, generator=generator)
            prompt = artifact.prompt.map_tensors(lambda t, by=noise: t + by)
            own = Artifact(artifact.manifest, prompt, artifact.head)
            folder = PromptModel(models["mood"].task, prompt, own).save(tmp_path / "one")
            if number == 0:
                registry.publish(folder, "p0")
            else:  # quicker than to publish, which checks it a second time
                folder.rename(registry.folder / f"p{number}@1")
        return registry

    return publish


def check_many(registry: Registry, count: int, serve, model) -> None:
    """Ask for all prompts at once, many of them several times, and compare a sample."""
    live = serve(source=RegistrySource(registry), engine=EngineLimits(prompt_share=1.0))
    names = [f"p{number}" for number in range(count)]
    generator = random.Random(0)  # noqa: S311  # a test
    requests = [(name, generator.choice(TEXTS)) for name in [*names, *names[: count // 4]]]
    generator.shuffle(requests)
    replies = ask_all(live.url, requests, at_once=16)
    assert {reply.status_code for reply in replies} == {200}
    store = live.site.service.store
    assert store.num_resident == count
    pairs = list(zip(requests, replies, strict=True))
    for (name, text), reply in generator.sample(pairs, min(len(pairs), 60)):
        offline = PromptModel.from_pretrained(
            registry.folder / f"{name}@1", backbone=live.site.service.backbone
        )
        assert is_same(reply.json()["data"][0], offline.predict(text)[0])


def test_a_hundred_prompts_at_once(publish_many, serve, model) -> None:
    check_many(publish_many(100), 100, serve, model)


@pytest.mark.slow
def test_ten_thousand_prompts_at_once(publish_many, serve, model) -> None:
    check_many(publish_many(10_000), 10_000, serve, model)


def test_a_resident_prompt_costs_little_more_than_its_tensors(publish_many, backbone) -> None:
    registry = publish_many(600)
    store = PromptStore(backbone("llama"), RegistrySource(registry))

    def load(numbers: range) -> int:
        for number in numbers:
            with store.borrow(f"p{number}"):
                pass
        gc.collect()
        trim_memory()
        return psutil.Process().memory_info().rss

    before, held = load(range(100)), store.bytes
    grown = load(range(100, 600)) - before
    assert grown - (store.bytes - held) < 500 * (16 << 10)


@pytest.fixture
def measure(serve) -> Iterator[Callable[[], dict[str, int]]]:
    """The memory, the descriptors and the threads of this process, and what the engine holds."""
    process = psutil.Process()

    def measure() -> dict[str, int]:
        gc.collect()
        trim_memory()
        return {
            "bytes": process.memory_info().rss,
            "descriptors": process.num_fds(),
            "threads": threading.active_count(),
        }

    return measure


def run_load(live, expected: dict, *, seconds: float, rate: float) -> Counter[int]:
    """Requests at random times: rows of all tasks, some left by their client, some not valid."""
    statuses, generator = Counter[int](), random.Random(1)  # noqa: S311  # a test
    limits = httpx.Limits(max_connections=64)
    end = time.monotonic() + seconds
    with (
        httpx.Client(base_url=live.url, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(32) as pool,
    ):

        def ask(name: str, text: str, kind: float) -> None:
            if kind < 0.03:
                statuses[client.post("/v1/predict", content=b"{").status_code] += 1
                return
            try:
                wait = 0.005 if kind < 0.06 else 60
                content = {"model": name, "rows": [text]}
                reply = client.post("/v1/predict", json=content, timeout=wait)
            except httpx.TimeoutException:  # the client has left
                statuses[499] += 1
                return
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                assert is_same(reply.json()["data"][0], expected[name, text])

        futures = set()
        while time.monotonic() < end:
            name, text = generator.choice([*expected])
            futures.add(pool.submit(ask, name, text, generator.random()))
            time.sleep(generator.expovariate(rate))
            for done in {future for future in futures if future.done()}:
                done.result()
                futures.discard(done)
        for future in futures:
            future.result()
    return statuses


def soak(live, models, measure, *, seconds: float) -> None:
    expected = {
        (name, text): models[name].predict(text)[0] for name in models for text in TEXTS[:3]
    }
    requests = [*expected] * 4
    start = time.monotonic()
    ask_all(live.url, requests, at_once=16)
    rate = 0.7 * len(requests) / (time.monotonic() - start)
    run_load(live, expected, seconds=seconds / 4, rate=rate)
    before = measure()
    statuses = run_load(live, expected, seconds=seconds, rate=rate)
    time.sleep(1.0)
    after = measure()
    assert set(statuses) <= {200, 400, 499}
    assert statuses[200] > 0.8 * statuses.total()
    assert after["bytes"] - before["bytes"] < 16 << 20, (before, after)
    assert after["descriptors"] <= before["descriptors"] + 4
    assert after["threads"] <= before["threads"] + 2
    service, site = live.site.service, live.site
    assert (service.engine.queued_rows, site.open_requests) == (0, 0)
    assert not service.store._shelf.uses


def test_a_short_soak_leaves_nothing_behind(serve, models, measure) -> None:
    soak(serve(), models, measure, seconds=4)


@pytest.mark.slow
def test_a_long_soak_leaves_nothing_behind(serve, models, measure) -> None:
    minutes = float(os.environ.get("SOFTPROMPT_SOAK_MINUTES", "10"))
    soak(serve(), models, measure, seconds=60 * minutes)
