"""What a server counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from softprompt.serve.engine import ServingEngine
from softprompt.serve.prompts import PromptStore

# Further prompts are counted together, so that names cannot fill the memory.
MAX_NAMES = 200
OTHERS = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of its own.

    Args:
        store: of the prompts.
        engine: that runs rows.
    """

    def __init__(self, store: PromptStore, engine: ServingEngine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "softprompt_requests", "Requests.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "softprompt_request_seconds",
            "Time until an answer was sent.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = Counter("softprompt_rows", "Rows asked.", ["prompt"], registry=self.registry)
        self._prompt_seconds = Histogram(
            "softprompt_prompt_seconds",
            "Time until a request for a prompt was answered.",
            ["prompt"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._names: set[str] = set()
        self.registry.register(_State(store, engine))

    def count_request(self, route: str, status: int, *, seconds: float) -> None:
        """Count a request.

        Args:
            route: the path as it is declared.
            status: of the answer.
            seconds: that it took.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_rows(self, prompt: str, rows: int, *, seconds: float) -> None:
        """Count the rows of a request.

        Args:
            prompt: that was asked, without its version.
            rows: their number.
            seconds: that the request took.
        """
        if prompt not in self._names and len(self._names) >= MAX_NAMES:
            prompt = OTHERS
        self._names.add(prompt)
        self._rows.labels(prompt).inc(rows)
        self._prompt_seconds.labels(prompt).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _State(Collector):
    """What engine and store hold now."""

    def __init__(self, store: PromptStore, engine: ServingEngine) -> None:
        self._store, self._engine = store, engine

    def collect(self) -> Iterator[Metric]:
        engine, store, counts = self._engine, self._store, self._engine.counts
        gauges = {
            "softprompt_queued_rows": ("Rows that wait or run.", engine.queued_rows),
            "softprompt_queued_tokens": ("Tokens that wait or run.", engine.queued_tokens),
            "softprompt_resident_prompts": ("Prompts in memory.", store.num_resident),
            "softprompt_baked_prompts": (
                "Prompts whose keys and values are in memory.",
                store.num_baked,
            ),
            "softprompt_resident_bytes": ("Bytes of prompts in memory.", store.bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value)
        totals = {
            "softprompt_batches": ("Batches of classification.", counts.batches),
            "softprompt_batch_rows": ("Rows in them.", counts.rows),
            "softprompt_batch_tokens": ("Tokens in them.", counts.tokens),
            "softprompt_generation_steps": ("Steps of generation.", counts.steps),
            "softprompt_failed_rows": ("Rows that raised an error.", counts.failed),
            "softprompt_expired_rows": ("Requests that were too late.", counts.expired),
            "softprompt_cancelled_rows": ("Requests that were cancelled.", counts.cancelled),
        }
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(name, text, value)
