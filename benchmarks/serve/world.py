"""A server's parts in this process: the prompts, the engine, and rows that go through them."""

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from settings import CUDA, Setting, load, make_name, make_registry, read_texts

# Inner modules: the parts of the server are measured without HTTP.
from softprompt import Backbone
from softprompt.serve import EngineLimits, Registry, RegistrySource, ServerSettings, make_site
from softprompt.serve.service import Service
from softprompt.serve.targets import RowOrder
from softprompt.tasks import Prediction

MEMORY = 1 << 35
# A request of the benchmark: the number of a prompt, and a text.
Request = tuple[int, str]


@dataclass(frozen=True)
class World:
    """A setting that is served in this process.

    Args:
        setting: that is served.
        backbone: of the setting.
        registry: the folder of its prompts.
        service: that answers.
        texts: real ones.
    """

    setting: Setting
    backbone: Backbone
    registry: Path
    service: Service
    texts: Sequence[str]

    def run(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests of one row each, which are handed in as fast as the queue takes them."""
        service, answers = self.service, list[Future[Prediction]]()
        room = threading.Semaphore(2 * service.engine.limits.batch_rows)
        for number, text in requests:
            room.acquire()
            target = service.open(make_name(number))
            order = RowOrder(service.render(target, text))
            [ticket] = service.submit(target, [order], deadline=None)
            service.close(target)
            ticket.future.add_done_callback(lambda _: room.release())
            answers.append(ticket.future)
        outcomes = [answer.result()[0] for answer in answers]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def count(self, outcomes: Sequence[Prediction]) -> int:
        """What the setting's throughput counts: rows, or tokens."""
        if self.setting.unit == "rows":
            return len(outcomes)
        return sum(len(outcome.token_ids or ()) for outcome in outcomes)

    def warm_up(self, numbers: Sequence[int]) -> None:
        """Use prompts twice, and let the engine bake those that can be baked."""
        store = self.service.store
        for _ in range(2):
            for number in dict.fromkeys(numbers):
                self.service.close(self.service.open(make_name(number)))
        while store.has_unbaked:
            store.bake_waiting()


@contextmanager
def open_world(
    setting: Setting, *, prompts: int, limits: EngineLimits | None = None
) -> Iterator[World]:
    """Serve a setting in this process.

    Args:
        setting: to serve.
        prompts: in the registry.
        limits: of the engine.
    """
    backbone = load(setting)
    with TemporaryDirectory() as parent:
        folder = make_registry(setting, backbone, count=prompts, folder=Path(parent) / "registry")
        settings = ServerSettings(
            prompt_bytes=MEMORY, engine=limits or EngineLimits(prompt_share=1)
        )
        site = make_site(backbone, RegistrySource(Registry(folder)), keys=[], settings=settings)
        try:
            yield World(setting, backbone, folder, site.service, read_texts())
        finally:
            site.service.engine.stop(timeout=30)


def measure_rates(
    arms: Mapping[str, Callable[[int], int]], *, rounds: int
) -> dict[str, list[float]]:
    """What each variant gets done per second in each round; variants alternate, in turning order.

    Args:
        arms: the variants, called with the number of the round; each returns how much it got done.
        rounds: the first of which is not counted.
    """
    rates: dict[str, list[float]] = {name: [] for name in arms}
    names = [*arms]
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            start = perf_counter()
            done = arms[name](number)
            if CUDA:
                torch.cuda.synchronize()
            if number:
                rates[name].append(round(done / (perf_counter() - start), 3))
    return rates


def compute_ratio(rates: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """The median over rounds of one variant's rate divided by the other's in the same round."""
    pairs = zip(rates[one], rates[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def find_percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
