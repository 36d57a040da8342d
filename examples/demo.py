"""The demonstration: from labelled reviews to a soft prompt that works.

Trains on reviews of some films and answers reviews of others, beside what it must beat: the
majority class, and the same words as a hard prompt, untrained.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from softprompt.evaluate import Report, judge, majority, report
from softprompt.recipe import read_recipe
from softprompt.tasks import bind
from softprompt.train import Evaluation, Event, Prepared, Step, Trainer, Warned, prepare, train
from softprompt.train.rows import read_splits, render

Metrics = Mapping[str, Any]

HERE = Path(__file__).parent
FOLDER = HERE.parent / "runs" / "demo"
WORDS = "Review: {text}\nSentiment: Overall, the sentiment is"
REVIEWS = (
    "A tender, funny and quietly devastating film, and the best of the year.",
    "Two hours of noise in search of a story; even the popcorn was bored.",
)


def main() -> None:
    """Run it all."""
    # Installed for the tests, it speaks up whenever it is imported.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    console = Console()
    began = perf_counter()
    recipe = read_recipe(HERE / "demo.toml", sys.argv[1:])
    console.print("reading the reviews, loading the backbone …")
    prepared = prepare(recipe)
    test = prepared.rows["test"]
    commonest = majority(prepared.rows["train"].truth, test.truth)
    console.print("answering the test films with the hard prompt …")
    hard = _hard_prompt(prepared)
    shutil.rmtree(FOLDER, ignore_errors=True)
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=None)

        def watch(event: Event, trainer: Trainer) -> None:
            progress.update(bar, total=trainer.total)
            match event:
                case Step():
                    text = f"training, loss {event.loss:.3f}"
                    progress.update(bar, completed=event.step, description=text)
                case Evaluation():
                    console.print(
                        f"epoch {event.epoch:.2f}: validation loss {event.metrics['loss']:.3f}, "
                        f"accuracy {event.metrics['accuracy']:.1%}"
                    )
                case Warned():
                    console.print(event.message, style="yellow")
                case _:
                    pass

        model = train(recipe, FOLDER, watch=watch, prepared=prepared)
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    trained = metrics["test"]
    _table(console, commonest, hard.metrics, trained)
    _keep(commonest, hard.metrics, trained, seconds=perf_counter() - began)
    for review, answer in zip(REVIEWS, model.predict(REVIEWS), strict=True):
        console.print(f"{answer.label} {answer.probabilities[answer.label]:.0%}  {review}")
    size = sum(file.stat().st_size for file in (FOLDER / "artifact").iterdir())
    console.print(
        f"\n{perf_counter() - began:.0f} seconds. The run lies in {FOLDER}: the curve is "
        f"curve.png, the prompt is artifact/ ({size / 1000:.0f} kB).\n"
        f"Go on with: .venv/bin/softprompt predict {FOLDER} 'your own review'"
    )


def _hard_prompt(prepared: Prepared) -> Report:
    """The words that training starts from, as words, with nothing trained."""
    task = bind(
        replace(prepared.recipe.task_settings, template=WORDS),
        prepared.backbone,
        template=WORDS,
        labels=prepared.task.labels,
    )
    tables = read_splits(prepared.recipe.data, seed=prepared.recipe.seed)
    test = render(task, tables["test"], where="the test data")
    return report(task, [judge(task, test.examples, truth=test.truth, prompt=None)])


def _table(console: Console, commonest: float, hard: Metrics, trained: Metrics) -> None:
    table = Table(title=f"{trained['rows']:,} reviews of films never seen")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("macro F1", justify="right")
    table.add_row("majority class", f"{commonest:.1%}", "")
    for name, row in (("hard prompt, untrained", hard), ("soft prompt, trained", trained)):
        table.add_row(name, f"{row['accuracy']:.1%}", f"{row['macro_f1']:.1%}")
    console.print(table)


def _keep(commonest: float, hard: Metrics, trained: Metrics, *, seconds: float) -> None:
    """The comparison as data, beside the run."""
    found = {
        "rows": trained["rows"],
        "majority": {"accuracy": commonest},
        "hard prompt, untrained": dict(hard),
        "soft prompt, trained": dict(trained),
        "seconds": round(seconds),
    }
    text = json.dumps(found, indent=2) + "\n"
    (FOLDER / "comparison.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
