"""The demonstration: from labeled reviews to a soft prompt that works.

Trains on reviews of some films and predicts reviews of others, next to two baselines: the majority
class, and the same words as a hard prompt, untrained.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

import softprompt
from softprompt.inference import compute_majority_accuracy

Metrics = Mapping[str, Any]

HERE = Path(__file__).parent
FOLDER = HERE.parent / "runs" / "demo"
REVIEWS = (
    "A tender, funny and quietly devastating film, and the best of the year.",
    "Two hours of noise in search of a story; even the popcorn was bored.",
)


def main(changes: Sequence[str] = ()) -> None:
    """Run it all; ``changes`` to the recipe are such as ``train.epochs=2``."""
    # bitsandbytes is installed for the tests, and logs an error whenever it is imported.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    console = Console(soft_wrap=True)
    began = perf_counter()
    recipe = softprompt.read_recipe(HERE / "demo.toml", changes)
    shutil.rmtree(FOLDER, ignore_errors=True)
    console.print("loading the backbone and the reviews, training the prompt …")
    model = softprompt.train_recipe(recipe, FOLDER, callbacks=[report_evaluation])
    trained = softprompt.RunDir(FOLDER).read_metrics()["test"]
    console.print("predicting the test reviews with the hard prompt …")
    hard = softprompt.evaluate_hard_prompt(recipe, backbone=model.backbone)
    train_labels, test_labels = (read_labels(model, split) for split in ("train", "test"))
    majority = compute_majority_accuracy(train_labels, test_labels)
    console.print(make_table(majority, hard.metrics, trained))
    seconds = perf_counter() - began
    save_comparison(majority, hard.metrics, trained, seconds=seconds)
    for review, prediction in zip(REVIEWS, model.predict(REVIEWS), strict=True):
        probability = prediction.probabilities[prediction.label]
        console.print(f"{prediction.label} {probability:.0%}  {review}")
    size = sum(file.stat().st_size for file in (FOLDER / "artifact").iterdir())
    console.print(
        f"\n{seconds:.0f} seconds. The run directory is {FOLDER}: the losses are in curve.png, the "
        f"prompt is artifact/ ({size / 1000:.0f} kB).\n"
        f"Try it: .venv/bin/softprompt predict {FOLDER} 'your own review'"
    )


def report_evaluation(event: softprompt.Event) -> None:
    """Print how good the prompt is whenever it is evaluated in training."""
    if isinstance(event, softprompt.Evaluation):
        loss, accuracy = event.metrics["loss"], event.metrics["accuracy"]
        print(f"epoch {event.epoch:.2f}: validation loss {loss:.3f}, accuracy {accuracy:.1%}")


def read_labels(model: softprompt.PromptModel, split: str) -> list[str]:
    """The labels of a split of the recipe's data."""
    return [str(row["label"]) for row in model.read_split(split)]


def make_table(majority: float, hard: Metrics, trained: Metrics) -> Table:
    """The prompt next to its baselines, on the test reviews."""
    table = Table(title=f"{trained['rows']:,} reviews of other films")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("macro F1", justify="right")
    table.add_row("majority class", f"{majority:.1%}", "")
    for name, row in (("hard prompt, untrained", hard), ("soft prompt, trained", trained)):
        table.add_row(name, f"{row['accuracy']:.1%}", f"{row['macro_f1']:.1%}")
    return table


def save_comparison(majority: float, hard: Metrics, trained: Metrics, *, seconds: float) -> None:
    """Write the same as data to the run directory."""
    found = {
        "rows": trained["rows"],
        "majority": {"accuracy": majority},
        "hard prompt, untrained": dict(hard),
        "soft prompt, trained": dict(trained),
        "seconds": round(seconds),
    }
    text = json.dumps(found, indent=2) + "\n"
    (FOLDER / "comparison.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
