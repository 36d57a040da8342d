"""Measure speed and memory, compared with PEFT in its best setting and with the bare backbone.

Variants alternate on the same batches; a number is the median over rounds of the ratio within a
round. Results are written as JSON; the last line of the output is one JSON object of all ratios.

    scripts/bench speed [--quick] [--only PART]...
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import parts
import torch
from arms import CUDA
from attention import measure_attention
from growth import measure_growth
from many_rows import measure_many_rows
from reach import measure_time_to_accuracy
from startup import measure_startup
from tried import measure_left_out

HERE = Path(__file__).parent
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": parts.measure_training,
    "long": parts.measure_long_texts,
    "late": parts.measure_late_prefix,
    "predict": parts.measure_prediction,
    "memory": parts.measure_memory,
    "attention": measure_attention,
    "growth": measure_growth,
    "startup": measure_startup,
    "many-rows": measure_many_rows,
    "reach": measure_time_to_accuracy,
    "tried": measure_left_out,
}


def main() -> None:
    """Measure, write the results, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="training only, on fewer batches")
    parser.add_argument("--only", action="append", choices=PARTS, help="parts to measure")
    args = parser.parse_args()
    names = args.only or (["train"] if args.quick else [*PARTS])
    device = "cuda" if CUDA else "cpu"
    suffix = "-quick" if args.quick else ""
    ratios: dict[str, float] = {}
    for name in names:
        result = PARTS[name](quick=args.quick)
        ratios |= result.get("ratios", {})
        target = HERE / "results" / f"{name}-{device}{suffix}.json"
        target.write_text(
            json.dumps(result | describe_machine(), indent=2) + "\n", encoding="utf-8"
        )
    print(json.dumps(ratios))


def describe_machine() -> dict[str, Any]:
    """The machine and the versions, as the result files have them."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if CUDA else "cpu",
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }


if __name__ == "__main__":
    main()
