"""All methods and all baselines on reviews of other films, by `compare_methods`.

scripts/bench comparison [--only minilm|smollm2] [--seeds N]
"""

import argparse
import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from softprompt import compare_methods, read_recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = {"minilm": 5, "smollm2": 3}


def run_comparison(name: str, seeds: int) -> dict[str, Any]:
    """Compare on one backbone; an interrupted comparison resumes."""
    recipe, folder = HERE / f"{name}.toml", ROOT / "runs" / f"comparison-{name}"
    comparison = compare_methods(recipe, folder, num_seeds=seeds, callbacks=[print_event])
    if comparison.failed:
        sys.exit(f"{len(comparison.failed)} failed: {comparison.failed[0].error}")
    shutil.copy(comparison.report_html, HERE / "results" / f"{name}.html")
    return {
        "table": comparison.report.read_text(encoding="utf-8").strip(),
        "measure": comparison.measure,
        "variants": comparison.to_dict()["variants"],
        "rows": dict(read_recipe(recipe).data.max_rows),
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }


def print_event(event: object) -> None:
    """Print an event as a sentence."""
    print(event, file=sys.stderr, flush=True)


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*SEEDS])
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    for name, seeds in SEEDS.items():
        if args.only not in (None, name):
            continue
        result = run_comparison(name, args.seeds or seeds)
        target = HERE / "results" / f"{name}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
