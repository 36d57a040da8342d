"""Several labels, numbers, answers, options: prefixes, probe, fine-tuning and LoRA on derived rows.

scripts/bench tasks [--only topics|mood|questions|headlines] [--seeds N]
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from derive import write_headlines, write_mood, write_questions, write_topics

from softprompt import compare_methods

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "runs" / "tasks"
TASKS = {
    "topics": write_topics,
    "mood": write_mood,
    "questions": write_questions,
    "headlines": write_headlines,
}
SEEDS = 3


def run_comparison(name: str, seeds: int) -> dict[str, Any]:
    """Compare on one task; an interrupted comparison resumes."""
    TASKS[name](FOLDER)
    recipe = shutil.copy(HERE / f"{name}.toml", FOLDER / f"{name}.toml")
    comparison = compare_methods(
        Path(recipe),
        FOLDER / f"comparison-{name}",
        methods=["p-tuning-v2"],
        num_seeds=seeds,
        callbacks=[print_event],
    )
    if comparison.failed:
        sys.exit(f"{len(comparison.failed)} failed: {comparison.failed[0].error}")
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "table": comparison.report.read_text(encoding="utf-8").strip(),
        "measure": comparison.measure,
        "variants": comparison.to_dict()["variants"],
        "rows": {
            split: len((FOLDER / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
            for split in ("train", "validation", "test")
        },
        "seeds": seeds,
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }


def print_event(event: object) -> None:
    """Print an event as a sentence."""
    print(event, file=sys.stderr, flush=True)


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*TASKS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    for name in TASKS:
        if args.only in (None, name):
            result = run_comparison(name, args.seeds)
            target = HERE / "results" / f"{name}.json"
            target.parent.mkdir(exist_ok=True)
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
