"""What the prompts are worth on reviews of films never seen, beside full fine-tuning and no training.

    scripts/bench quality [--only minilm|smollm2]
"""

import argparse
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from softprompt.data import like_length
from softprompt.evaluate import judge, majority, report
from softprompt.recipe import Recipe, read_recipe
from softprompt.train import Prepared, prepare, train

HERE = Path(__file__).parent


def prompt_arm(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Train the recipe and judge its best prompt on the test rows."""
    test = prepared.rows["test"]
    with TemporaryDirectory() as folder:
        began = perf_counter()
        model = train(recipe, Path(folder) / "run", prepared=prepared)
        seconds = perf_counter() - began
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    found = model.judge(test.examples, test.truth).metrics
    return {
        "metrics": dict(found),
        "seconds": round(seconds),
        "trainable": metrics["trainable_parameters"],
        "best_step": metrics["best_step"],
    }


def full_arm(prepared: Prepared, *, epochs: int, rate: float) -> dict[str, Any]:
    """Train every weight of the same model and a new head; the best epoch by validation."""
    model, task = prepared.backbone.model, prepared.task
    rows, validation, test = (prepared.rows[n] for n in ("train", "validation", "test"))
    model.requires_grad_(requires_grad=True)
    modules = torch.nn.ModuleList([model.base_model, task.head])
    optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, weight_decay=0.01)
    lengths = [e.length for e in rows.examples]
    steps = epochs * len(like_length(lengths, size=32, seed=0))
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: 1 - s / steps)
    began, best, found = perf_counter(), -1.0, {}
    for epoch in range(epochs):
        for batch in like_length(lengths, size=32, seed=epoch):
            loss = task.loss([rows.examples[i] for i in batch], [None])
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


def _judged(task: Any, rows: Any) -> Mapping[str, float]:
    return report(task, [judge(task, rows.examples, truth=rows.truth, prompt=None)]).metrics


def main() -> None:
    """Run the arms and write the result of each backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("minilm", "smollm2"))
    only = parser.parse_args().only
    for name in ("minilm", "smollm2"):
        if only not in (None, name):
            continue
        recipe = read_recipe(HERE / f"{name}.toml")
        prepared = prepare(recipe)
        truth = prepared.rows["test"].truth
        arms = {"majority": {"metrics": {"accuracy": majority(prepared.rows["train"].truth, truth)}}}
        arms["prompt"] = prompt_arm(recipe, prepared)
        if name == "minilm":
            arms["full fine-tuning"] = full_arm(prepare(recipe), epochs=3, rate=5e-5)
        found = {
            "arms": arms,
            "rows": {split: len(rows.truth) for split, rows in prepared.rows.items()},
            "recipe": recipe.as_data(),
            "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
            "versions": {n: version(n) for n in ("softprompt", "torch", "transformers")},
        }
        target = HERE / "results" / f"{name}.json"
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(json.dumps({arm: value["metrics"]["accuracy"] for arm, value in arms.items()}))


if __name__ == "__main__":
    main()
