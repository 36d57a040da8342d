"""All methods and all controls on reviews of films never seen, by `softprompt compare`.

scripts/bench comparison [--only minilm|smollm2] [--seeds N]
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

from softprompt.recipe import read_recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = {"minilm": 5, "smollm2": 3}


def compared(name: str, seeds: int) -> dict[str, Any]:
    """The comparison of one backbone; what an earlier call left undone is gone on with."""
    recipe, folder = HERE / f"{name}.toml", ROOT / "runs" / f"comparison-{name}"
    command = [sys.executable, "-m", "softprompt", "compare", recipe, "--output", folder]
    done = subprocess.run(
        [*command, "--seeds", str(seeds), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    shutil.copy(folder / "report.html", HERE / "results" / f"{name}.html")
    found: dict[str, Any] = json.loads(done.stdout)
    data = read_recipe(recipe).data
    return {
        "table": (folder / "report.md").read_text(encoding="utf-8").strip(),
        "measure": found["measure"],
        "arms": found["arms"],
        "rows": dict(data.limit),
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*SEEDS])
    parser.add_argument("--seeds", type=int)
    given = parser.parse_args()
    for name, seeds in SEEDS.items():
        if given.only not in (None, name):
            continue
        found = compared(name, given.seeds or seeds)
        target = HERE / "results" / f"{name}.json"
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, HERE.parent / "tables.py"], check=True)


if __name__ == "__main__":
    main()
