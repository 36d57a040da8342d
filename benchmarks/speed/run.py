"""Speed and memory beside PEFT in its best setting and the bare backbone, all in one run.

The arms take turns on the same batches; a figure is the median over rounds of the ratio within a
round. Results are kept as data; the last line printed is one JSON object of all ratios.

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
from attention import attention
from growth import growth
from reach import reach
from startup import startup
from tried import tried

HERE = Path(__file__).parent
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": parts.train,
    "long": parts.long,
    "late": parts.late,
    "predict": parts.predict,
    "memory": parts.memory,
    "attention": attention,
    "growth": growth,
    "startup": startup,
    "reach": reach,
    "tried": tried,
}


def main() -> None:
    """Measure, write the results, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="training alone, and fewer rounds")
    parser.add_argument("--only", action="append", choices=PARTS, help="parts to measure")
    given = parser.parse_args()
    chosen = given.only or (["train"] if given.quick else [*PARTS])
    ratios: dict[str, float] = {}
    for name in chosen:
        found = PARTS[name](quick=given.quick)
        ratios |= found.get("ratios", {})
        device = "cuda" if CUDA else "cpu"
        target = HERE / "results" / f"{name}-{device}{'-quick' if given.quick else ''}.json"
        target.write_text(json.dumps(found | _about(), indent=2) + "\n", encoding="utf-8")
    print(json.dumps(ratios))


def _about() -> dict[str, Any]:
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
