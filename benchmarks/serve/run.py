"""Measure the server: mixed prompts, peers, HTTP under load, memory.

Variants alternate in one run; a number is the median over rounds of the ratio within a round. Each
part writes its result when it is done, so an interrupted run keeps those before; `--only` repeats
one. The last line of the output is one JSON object with the figures of the parts that were run.

    scripts/bench serve [--quick] [--only PART]...
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import mixing
import over_http
import peers
import torch
import vllm_peer
from settings import CUDA, SETTINGS

HERE = Path(__file__).parent
# A part without what it needs returns None.
PARTS: dict[str, Callable[..., dict[str, Any] | None]] = {
    **{f"mixing-{name}": partial(mixing.measure_setting, name) for name in SETTINGS},
    "bare": peers.measure_over_bare,
    "peft": peers.measure_over_peft,
    "static": peers.measure_over_static,
    "vllm": vllm_peer.measure_over_vllm,
    "offline": over_http.measure_over_offline,
    "latency": over_http.measure_latency,
    "overload": over_http.measure_overload,
    "bytes": over_http.measure_bytes,
}


def main() -> int:
    """Measure, write the results, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds and cells")
    parser.add_argument("--only", action="append", choices=PARTS, help="parts to measure")
    args = parser.parse_args()
    device, suffix = "cuda" if CUDA else "cpu", "-quick" if args.quick else ""
    results: dict[str, dict[str, Any]] = {}
    try:
        for name in args.only or PARTS:
            start = perf_counter()
            result = PARTS[name](quick=args.quick)
            if result is None:
                print(f"{name}: left out; scripts/bench vllm makes what it needs", file=sys.stderr)
                continue
            results[name] = result
            facts = {"seconds": round(perf_counter() - start, 1), **describe_machine()}
            target = HERE / "results" / f"{name}-{device}{suffix}.json"
            target.write_text(json.dumps(result | facts, indent=2) + "\n", encoding="utf-8")
            print(f"{name}: {facts['seconds']} s {result['ratios']}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the parts that were done are kept", file=sys.stderr)
        return 130
    finally:
        print(json.dumps(list_figures(results)), flush=True)
    return 0


def list_figures(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures by name, from the results of the parts that were run."""
    figures: dict[str, Any] = {}
    mixed = {name: results[part] for name in SETTINGS if (part := f"mixing-{name}") in results}
    if mixed:
        ratios = {name: one["ratios"] for name, one in mixed.items()}
        loading = {name: one["loading"] for name, one in mixed.items()}
        figures = {
            "distinct_over_identical": {
                name: one["distinct_over_identical"] for name, one in ratios.items()
            },
            "ten_thousand_over_one": min(one["ten_thousand_over_one"] for one in ratios.values()),
            "bytes_per_prompt": {name: one["bytes_per_prompt"] for name, one in loading.items()},
            "cold_load_p99_ms": max(one["cold_load_p99_ms"] for one in loading.values()),
        }
    for part, result in results.items():
        if not part.startswith("mixing"):
            figures |= result["ratios"]
    return figures


def describe_machine() -> dict[str, Any]:
    """The machine, the versions and the commit, as the result files have them."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if CUDA else "cpu",
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
        "commit": _read_commit(),
    }


def _read_commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
