"""What prompts are worth on reviews of films never seen, beside fine-tuning and no training.

scripts/bench quality [--only minilm|demo]
"""

import argparse
import json
import platform
import runpy
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from softprompt.data import group_by_length
from softprompt.inference import compute_majority_accuracy, evaluate_rows, make_report
from softprompt.recipe import Recipe, read_recipe
from softprompt.tasks import Task
from softprompt.train import RunSetup, run_recipe, setup_run
from softprompt.train.datasets import RenderedRows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def prompt_arm(recipe: Recipe, prepared: RunSetup) -> dict[str, Any]:
    """Train the recipe and judge its best prompt on the test rows."""
    test = prepared.rows["test"]
    with TemporaryDirectory() as folder:
        began = perf_counter()
        model = run_recipe(recipe, Path(folder) / "run", prepared=prepared)
        seconds = perf_counter() - began
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    found = model.evaluate_rendered(test.examples, test.truth).metrics
    return {
        "metrics": dict(found),
        "seconds": round(seconds),
        "trainable": metrics["trainable_parameters"],
        "best_step": metrics["best_step"],
    }


def full_arm(prepared: RunSetup, *, epochs: int, rate: float) -> dict[str, Any]:
    """Train every weight of the same model and a new head; the best epoch by validation."""
    model, task = prepared.backbone.model, prepared.task
    rows, validation, test = (prepared.rows[n] for n in ("train", "validation", "test"))
    model.requires_grad_(requires_grad=True)
    modules = torch.nn.ModuleList([model.base_model, task.head])
    optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, weight_decay=0.01)
    lengths = [e.length for e in rows.examples]
    steps = epochs * len(group_by_length(lengths, size=32, seed=0))
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: 1 - s / steps)
    began, best, found = perf_counter(), -1.0, {}
    for epoch in range(epochs):
        for batch in group_by_length(lengths, size=32, seed=epoch):
            loss = task.compute_loss([rows.examples[i] for i in batch], [None])
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimiser.step()
            falling.step()
            optimiser.zero_grad()
        score = _judged(task, validation)["accuracy"]
        if score > best:
            best, found = score, _judged(task, test)
    return {
        "metrics": dict(found),
        "seconds": round(perf_counter() - began),
        "trainable": sum(p.numel() for p in modules.parameters()),
        "epochs": epochs,
        "learning_rate": rate,
    }


def _judged(task: Task, rows: RenderedRows) -> Mapping[str, float]:
    return make_report(
        task, [evaluate_rows(task, rows.examples, truth=rows.truth, prompt=None)]
    ).metrics


def minilm() -> dict[str, Any]:
    """P-tuning v2 with a trained head beside full fine-tuning, on all training reviews."""
    recipe = read_recipe(HERE / "minilm.toml")
    prepared = setup_run(recipe)
    train_truth, test_truth = (prepared.rows[name].truth for name in ("train", "test"))
    return {
        "arms": {
            "majority class": {
                "metrics": {"accuracy": compute_majority_accuracy(train_truth, test_truth)}
            },
            "P-tuning v2, trained head": prompt_arm(recipe, prepared),
            "full fine-tuning": full_arm(setup_run(recipe), epochs=2, rate=5e-5),
        },
        "rows": {split: len(rows.truth) for split, rows in prepared.rows.items()},
        "recipe": recipe.as_data(),
    }


def demo() -> dict[str, Any]:
    """The demonstration, as scripts/demo runs it."""
    runpy.run_path(str(ROOT / "examples" / "demo.py"))["main"]()
    found: dict[str, Any] = json.loads((ROOT / "runs/demo/comparison.json").read_text("utf-8"))
    return found


def main() -> None:
    """Run the arms and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("minilm", "demo"))
    only = parser.parse_args().only
    for name, measure in (("minilm", minilm), ("demo", demo)):
        if only not in (None, name):
            continue
        found = measure() | {
            "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
            "versions": {n: version(n) for n in ("softprompt", "torch", "transformers")},
        }
        target = HERE / "results" / f"{name}.json"
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
