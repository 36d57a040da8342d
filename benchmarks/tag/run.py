"""Deep prefixes, fine-tuning, LoRA and a linear probe on parts of speech and names.

scripts/bench tag [--only names|pos|japanese] [--seeds N]
"""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import corpus
import japanese
import torch

from softprompt import compare_methods

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Of each task the sentences of each split.
TASKS = {"names": corpus.SIZES, "pos": corpus.SIZES, "japanese": japanese.SIZES}


def run_comparison(name: str, seeds: int) -> dict[str, Any]:
    """Compare on one task; an interrupted comparison resumes."""
    comparison = compare_methods(
        HERE / f"{name}.toml",
        ROOT / "runs" / f"tag-{name}",
        methods=["p-tuning-v2"],
        num_seeds=seeds,
        callbacks=[print_event],
    )
    if comparison.failed:
        sys.exit(f"{len(comparison.failed)} failed: {comparison.failed[0].error}")
    return {
        "table": comparison.report.read_text(encoding="utf-8").strip(),
        "measure": comparison.measure,
        "variants": comparison.to_dict()["variants"],
        "rows": TASKS[name],
        "seeds": seeds,
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }


def print_event(event: object) -> None:
    """Print an event as a sentence."""
    print(event, file=sys.stderr, flush=True)


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    for name in TASKS:
        if args.only in (None, name):
            if name == "japanese":
                japanese.fetch(ROOT / "runs" / "hironsan")
            else:
                corpus.fetch(ROOT / "runs" / "brown")
            result = run_comparison(name, args.seeds)
            target = HERE / "results" / f"{name}.json"
            target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
