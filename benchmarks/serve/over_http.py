"""The server over HTTP: its capacity, its latency under load, and what it does under too much."""

import base64
import io
import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from http_client import ROOT, Reply, Server, ask_closed, ask_open, make_request, run_server
from settings import LENGTH, SETTINGS, Setting, load, make_name, make_registry, read_texts
from world import find_percentile

from softprompt import Backbone
from softprompt.inference import PromptModel

PROMPTS, AT_ONCE = 100, 64
LOAD, OVERLOAD = 0.7, 10
_ROWS = {"classify": (128, 384), "minilm": (768, 3072)}
_SECONDS = {True: 10.0, False: 30.0}


@dataclass(frozen=True)
class Served:
    """A server with the prompts of a setting.

    Args:
        setting: that is served.
        backbone: the same, in this process.
        registry: the folder of its prompts.
        server: that runs.
        texts: real ones.
    """

    setting: Setting
    backbone: Backbone
    registry: Path
    server: Server
    texts: list[str]

    def make(self, count: int, *, prompts: int, seed: int) -> list[bytes]:
        """Requests of one row each."""
        generator = random.Random(seed)  # noqa: S311  # a measurement
        return [
            make_request(
                "/v1/classify",
                {"model": make_name(generator.randrange(prompts)), "input": text},
            )
            for text in generator.choices(self.texts, k=count)
        ]

    def measure_capacity(self, count: int, *, seed: int) -> float:
        """Requests per second, with 64 open at any time."""
        requests = self.make(count, prompts=PROMPTS, seed=seed)
        start = perf_counter()
        replies = ask_closed(self.server.port, requests, at_once=AT_ONCE)
        seconds = perf_counter() - start
        _check_all_good(replies)
        return count / seconds


def _check_all_good(replies: list[Reply]) -> None:
    bad = [reply for reply in replies if reply.status != 200]  # noqa: PLR2004  # of HTTP
    if bad:
        msg = f"{len(bad)} of {len(replies)} requests failed: {bad[0].status} {bad[0].body[:300]!r}"
        raise RuntimeError(msg)


@contextmanager
def serve(name: str, *options: str) -> Iterator[Served]:
    """Serve a setting over HTTP, with its prompts in memory."""
    setting = SETTINGS[name]
    backbone = load(setting)
    logs = ROOT / "runs" / "serve"
    logs.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as parent:
        registry = Path(parent) / "registry"
        make_registry(setting, backbone, count=PROMPTS, folder=registry)
        with run_server(registry, *options, log=logs / f"{name}.log") as server:
            served = Served(setting, backbone, registry, server, read_texts())
            for _ in range(2):  # the second use bakes
                warm = [
                    make_request("/v1/classify", {"model": make_name(n), "input": "A fine film."})
                    for n in range(PROMPTS)
                ]
                _check_all_good(ask_closed(server.port, warm, at_once=AT_ONCE))
            yield served


def measure_over_offline(*, quick: bool) -> dict[str, Any]:
    """Rows per second through HTTP ÷ `predict` on the same rows in this process, one prompt.

    Over HTTP each request has one row, and 64 are open at any time. Requests of 32 rows are
    measured too.
    """
    rounds, result, ratios = 3 if quick else 5, dict[str, Any](), dict[str, float]()
    for name in ("classify", "minilm"):
        rows = _ROWS[name][not quick]
        with serve(name) as served:
            path = served.registry / f"{make_name(0)}@1"
            model = PromptModel.from_pretrained(path, backbone=served.backbone)
            model.predict(served.texts[:32])
            rates: dict[str, list[float]] = {"offline": [], "one row": [], "32 rows": []}
            for number in range(rounds):
                texts = served.texts[number * rows : (number + 1) * rows]
                start = perf_counter()
                model.predict(texts)
                rates["offline"].append(rows / (perf_counter() - start))
                for arm, size in (("one row", 1), ("32 rows", 32)):
                    requests = [
                        make_request(
                            "/v1/classify",
                            {"model": make_name(0), "input": texts[at : at + size]},
                        )
                        for at in range(0, rows, size)
                    ]
                    start = perf_counter()
                    replies = ask_closed(
                        served.server.port, requests, at_once=min(AT_ONCE, len(requests))
                    )
                    rates[arm].append(rows / (perf_counter() - start))
                    _check_all_good(replies)
        result[name] = {arm: [round(rate, 2) for rate in of] for arm, of in rates.items()}
        pairs = zip(rates["one row"], rates["offline"], strict=True)
        ratios[name] = round(statistics.median(a / b for a, b in pairs), 3)
    return {
        "rates": result,
        "by_setting": {"server_over_offline": ratios},
        "ratios": {"server_over_offline": min(ratios.values())},
        "setting": {"rows": _ROWS, "rounds": rounds, "open": AT_ONCE},
    }


def measure_latency(*, quick: bool) -> dict[str, Any]:
    """p99 ÷ p50 of requests that come at random times, at 70 % of the capacity."""
    result, ratios = dict[str, Any](), dict[str, float]()
    for name in ("classify", "minilm"):
        with serve(name) as served:
            count = _ROWS[name][not quick]
            capacity = statistics.median(
                served.measure_capacity(count, seed=seed) for seed in range(3)
            )
            rate = LOAD * capacity
            number = max(300, int(rate * 2 * _SECONDS[quick]))
            requests = [
                *zip(
                    make_arrivals(number, rate=rate, seed=7),
                    served.make(number, prompts=PROMPTS, seed=8),
                    strict=True,
                )
            ]
            replies = ask_open(served.server.port, requests)
            _check_all_good(replies)
        seconds = [reply.done - reply.due for reply in replies]
        p50, p95, p99 = (find_percentile(seconds, share) for share in (0.5, 0.95, 0.99))
        result[name] = {
            "capacity": round(capacity, 2),
            "requests": number,
            **{f"p{n}_ms": round(1000 * p, 1) for n, p in ((50, p50), (95, p95), (99, p99))},
        }
        ratios[name] = round(p99 / p50, 2)
    return {
        "latency": result,
        "by_setting": {"p99_over_p50": ratios},
        "ratios": {"p99_over_p50": max(ratios.values())},
        "setting": {"load": LOAD, "prompts": PROMPTS},
    }


def make_arrivals(count: int, *, rate: float, seed: int) -> list[float]:
    """Times of requests that come independently of each other (a Poisson process)."""
    generator, now, times = random.Random(seed), 0.0, []  # noqa: S311  # a measurement
    for _ in range(count):
        now += generator.expovariate(rate)
        times.append(now)
    return times


def measure_overload(*, quick: bool) -> dict[str, Any]:
    """Answers per second at ten times the capacity ÷ at capacity, and the time of a rejection."""
    seconds = _SECONDS[quick]
    with serve("classify", "--queue-rows", "256") as served:
        before = served.measure_capacity(_ROWS["classify"][not quick], seed=0)
        rate = OVERLOAD * before
        number = int(rate * seconds)
        requests = [
            *zip(
                make_arrivals(number, rate=rate, seed=7),
                served.make(number, prompts=PROMPTS, seed=8),
                strict=True,
            )
        ]
        replies = ask_open(served.server.port, requests, ready=2 * AT_ONCE)
        after = served.measure_capacity(_ROWS["classify"][not quick], seed=1)
    peak = (before + after) / 2
    good = [reply for reply in replies if reply.status == 200]  # noqa: PLR2004  # of HTTP
    refused = [reply for reply in replies if reply.status in (429, 503)]
    if len(good) + len(refused) != len(replies) or not all(r.retry_after for r in refused):
        msg = "an answer is neither good nor a rejection that says when to come back"
        raise RuntimeError(msg)
    # Without the time in which the queue fills, and that in which it empties.
    begin, end = 0.2 * seconds, requests[-1][0]
    inside = sum(begin < reply.done <= end for reply in good)
    goodput = inside / (end - begin)
    waits = [1000 * (reply.done - reply.sent) for reply in refused]
    return {
        "goodput": round(goodput, 2),
        "capacity": {"before": round(before, 2), "after": round(after, 2)},
        "requests": {"sent": len(replies), "answered": len(good), "rejected": len(refused)},
        "rejection_p50_ms": round(statistics.median(waits), 2),
        "lag_p99_ms": round(1000 * find_percentile([r.sent - r.due for r in replies], 0.99), 2),
        "ratios": {
            "goodput_over_peak": round(goodput / peak, 3),
            "rejection_ms": round(find_percentile(waits, 0.99), 2),
        },
        "setting": {"overload": OVERLOAD, "seconds": seconds, "queue_rows": 256},
    }


def measure_bytes(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """The bytes of a request that names its prompt, and of vLLM's with ``prompt_embeds``.

    vLLM's has the embeddings of all tokens of the row in the backbone's precision, written by
    torch.save in base64, as its documentation says.
    """
    setting = SETTINGS["classify"]
    backbone = load(setting)
    text = sorted(read_texts(), key=len)[len(read_texts()) // 2]
    ours = make_request("/v1/completions", {"model": make_name(0), "prompt": text})
    tokens = len(backbone.tokenizer(f"Review: {text}\nSentiment:")["input_ids"])
    embeds = torch.zeros(tokens + LENGTH, backbone.geometry.hidden_size, dtype=torch.bfloat16)
    buffer = io.BytesIO()
    torch.save(embeds, buffer)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    theirs = make_request(
        "/v1/completions", {"model": "base", "prompt": "", "prompt_embeds": encoded}
    )
    sizes = {"ours": len(ours), "vllm": len(theirs), "tokens": tokens + LENGTH}
    return {"bytes": sizes, "ratios": {"request_bytes_ratio": round(len(theirs) / len(ours), 1)}}
