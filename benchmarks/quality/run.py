"""The accuracy of prompts on reviews of other films, next to fine-tuning and no training.

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

# Inner modules: the prompt and a plain loop of full fine-tuning get the same rendered rows.
from softprompt.data import group_by_length
from softprompt.inference import compute_majority_accuracy, evaluate_rows, make_report
from softprompt.recipe import Recipe, read_recipe
from softprompt.tasks import Task
from softprompt.train import RunSetup, run_recipe, setup_run
from softprompt.train.datasets import RenderedRows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def train_prompt(recipe: Recipe, prepared: RunSetup) -> dict[str, Any]:
    """Train the recipe, and evaluate its best prompt on the test rows."""
    test = prepared.rows["test"]
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = perf_counter()
        model = run_recipe(recipe, run, prepared=prepared)
        seconds = perf_counter() - start
        facts = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics = model.evaluate_rendered(test.examples, test.truth).metrics
    return {
        "metrics": dict(metrics),
        "seconds": round(seconds),
        "trainable": facts["trainable_parameters"],
        "best_step": facts["best_step"],
    }


def finetune(prepared: RunSetup, *, epochs: int, learning_rate: float) -> dict[str, Any]:
    """Train all weights of the backbone and a new head; the best epoch by validation counts."""
    model, task = prepared.backbone.model, prepared.task
    train, validation, test = (prepared.rows[n] for n in ("train", "validation", "test"))
    model.requires_grad_(requires_grad=True)
    modules = torch.nn.ModuleList([model.base_model, task.head])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=learning_rate, weight_decay=0.01)
    lengths = [e.length for e in train.examples]
    steps = epochs * len(group_by_length(lengths, size=32, seed=0))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    start, best, metrics = perf_counter(), -1.0, {}
    for epoch in range(epochs):
        for batch in group_by_length(lengths, size=32, seed=epoch):
            loss = task.compute_loss([train.examples[i] for i in batch], [None])
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        accuracy = evaluate_backbone(task, validation)["accuracy"]
        if accuracy > best:
            best, metrics = accuracy, evaluate_backbone(task, test)
    return {
        "metrics": dict(metrics),
        "seconds": round(perf_counter() - start),
        "trainable": sum(p.numel() for p in modules.parameters()),
        "epochs": epochs,
        "learning_rate": learning_rate,
    }


def evaluate_backbone(task: Task, rows: RenderedRows) -> Mapping[str, float]:
    """The metrics of the backbone and the task's head, without a prompt."""
    result = evaluate_rows(task, rows.examples, truth=rows.truth, prompt=None)
    return make_report(task, [result]).metrics


def measure_minilm() -> dict[str, Any]:
    """P-tuning v2 with a trained head, and full fine-tuning, on all training reviews."""
    recipe = read_recipe(HERE / "minilm.toml")
    prepared = setup_run(recipe)
    train_truth, test_truth = (prepared.rows[name].truth for name in ("train", "test"))
    majority = compute_majority_accuracy(train_truth, test_truth)
    return {
        "arms": {
            "majority class": {"metrics": {"accuracy": majority}},
            "P-tuning v2, trained head": train_prompt(recipe, prepared),
            "full fine-tuning": finetune(setup_run(recipe), epochs=2, learning_rate=5e-5),
        },
        "rows": {split: len(rows.truth) for split, rows in prepared.rows.items()},
        "recipe": recipe.as_data(),
    }


def measure_demo() -> dict[str, Any]:
    """The demonstration, as scripts/demo runs it."""
    runpy.run_path(str(ROOT / "examples" / "demo.py"))["main"]()
    result: dict[str, Any] = json.loads((ROOT / "runs/demo/comparison.json").read_text("utf-8"))
    return result


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("minilm", "demo"))
    only = parser.parse_args().only
    for name, measure in (("minilm", measure_minilm), ("demo", measure_demo)):
        if only not in (None, name):
            continue
        result = measure() | {
            "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
            "versions": {n: version(n) for n in ("softprompt", "torch", "transformers")},
        }
        target = HERE / "results" / f"{name}.json"
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
