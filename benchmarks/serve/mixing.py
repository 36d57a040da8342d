"""Punica's four workloads over one to ten thousand prompts, and what a prompt costs in memory."""

import random
from collections.abc import Callable
from time import perf_counter
from typing import Any

from settings import SETTINGS, make_name
from world import (
    Request,
    World,
    compute_ratio,
    find_percentile,
    measure_rates,
    open_world,
)

COUNTS = (1, 10, 100, 1_000, 10_000)
WORKLOADS = ("identical", "uniform", "skewed", "distinct")
# The exponent of Zipf's law in the skewed workload.
_SKEW = 1.5
_PEEKS = 200


def draw_numbers(workload: str, prompts: int, *, rows: int, seed: int) -> list[int]:
    """The prompt of each row.

    Args:
        workload: ``identical``: one prompt; ``uniform``: any; ``skewed``: the k-th with a weight of
            k to the power of -1.5; ``distinct``: each row another, as far as there are enough.
        prompts: to choose from.
        rows: their number.
        seed: of the choice.
    """
    generator = random.Random(seed)  # noqa: S311  # a measurement
    match workload:
        case "identical":
            return [0] * rows
        case "uniform":
            return generator.choices(range(prompts), k=rows)
        case "skewed":
            weights = [(rank + 1) ** -_SKEW for rank in range(prompts)]
            return generator.choices(range(prompts), weights=weights, k=rows)
        case _:
            order = generator.sample(range(prompts), prompts)
            return [order[row % prompts] for row in range(rows)]


def measure_setting(name: str, *, quick: bool) -> dict[str, Any]:
    """The throughput of a setting in each workload, and the cost of its prompts."""
    rows = {"classify": 96, "generate": 48, "minilm": 384}[name] * (1 if quick else 2)
    rounds = 5
    cells = [
        (workload, count)
        for count in COUNTS
        for workload in WORKLOADS
        if not quick or (workload, count) in _QUICK_CELLS
    ]
    with open_world(SETTINGS[name], prompts=COUNTS[-1]) as world:
        loading = measure_loading(world)
        arms = {}
        for workload, count in cells:
            batches = [
                list(
                    zip(
                        draw_numbers(workload, count, rows=rows, seed=seed),
                        _take_texts(world, rows, seed),
                        strict=True,
                    )
                )
                for seed in range(rounds + 1)
            ]
            world.warm_up([number for batch in batches for number, _ in batch])
            arms[f"{workload} {count}"] = _make_arm(world, batches)
        rates = measure_rates(arms, rounds=rounds)
        peak = world.service.store.bytes
    return {
        "rates": rates,
        "unit": world.setting.unit,
        "ratios": {
            "distinct_over_identical": compute_ratio(rates, "distinct 1000", "identical 1000"),
            "ten_thousand_over_one": compute_ratio(rates, "uniform 10000", "uniform 1"),
        },
        "loading": loading,
        "store_bytes": peak,
        "setting": {"rows": rows, "rounds": rounds, "prompts": COUNTS[-1]},
    }


_QUICK_CELLS = {
    ("identical", 1_000),
    ("distinct", 1_000),
    ("uniform", 1),
    ("uniform", 10_000),
}


def _take_texts(world: World, rows: int, seed: int) -> list[str]:
    """The same texts for all workloads of a round."""
    begin = seed * rows % (len(world.texts) - rows)
    return [*world.texts[begin : begin + rows]]


def _make_arm(world: World, batches: list[list[Request]]) -> Callable[[int], int]:
    return lambda number: world.count(world.run(batches[number]))


def measure_loading(world: World) -> dict[str, float]:
    """Load all prompts: the time of each, the bytes of their tensors, and those of baked ones.

    What the process takes does not tell: it gives memory of other parts back meanwhile.
    """
    store, seconds = world.service.store, list[float]()
    world.service.close(world.service.open(make_name(0)))
    held = store.bytes
    for number in range(1, COUNTS[-1]):
        start = perf_counter()
        resident = store.acquire(make_name(number))
        seconds.append(perf_counter() - start)
        store.release(resident)
    facts = {
        "bytes_per_prompt": round((store.bytes - held) / len(seconds)),
        "cold_load_p50_ms": round(1000 * find_percentile(seconds, 0.5), 2),
        "cold_load_p99_ms": round(1000 * find_percentile(seconds, 0.99), 2),
    }
    held = store.bytes
    world.warm_up(range(_PEEKS))
    if store.num_baked:
        facts["baked_bytes_per_prompt"] = round((store.bytes - held) / store.num_baked)
    return facts
