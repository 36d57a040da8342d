"""A run as the terminal sees it: its progress, a polite stop, and what came of it."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli.progress import Progress
from softprompt.cli.say import FAILED, fail, listed, note, print_json
from softprompt.cli.scores import scores
from softprompt.cli.stop import Stop
from softprompt.recipe import Recipe
from softprompt.train import RunFolder
from softprompt.train import train as train_recipe
from softprompt.train.events import Event

if TYPE_CHECKING:
    from softprompt.train import Trainer


def run(recipe: Recipe, folder: Path, *, resume: bool, as_json: bool, quiet: bool) -> None:
    """Train, and say how it goes and what came of it.

    Args:
        folder: of the run.
        resume: whether the run in the folder was stopped and goes on.
        as_json: print the result for programs.
        quiet: show no progress.
    """
    # Under `accelerate launch` one process speaks for all.
    speaks = os.environ.get("RANK", "0") == "0"
    with Stop() as stop, Progress(quiet=quiet or not speaks, silent=not speaks) as progress:

        def watch(event: Event, trainer: "Trainer") -> None:
            progress.show(event, trainer)
            stop.heed()

        try:
            train_recipe(recipe, folder, watch=watch, resume=resume)
        except KeyboardInterrupt:
            if not (folder / "recipe.toml").exists():
                raise
            progress.close()
            fail(f"{progress.stopped}; go on with: {_resume(folder)}", status=FAILED)
    if speaks:
        conclude(RunFolder(folder), as_json=as_json, quiet=quiet)


def conclude(folder: RunFolder, *, as_json: bool, quiet: bool) -> None:
    """Print what came of a finished run, and what to do next."""
    metrics = folder.metrics() or {}
    places = {"artifact": str(folder.artifact), "picture": str(folder.picture)}
    if as_json:
        print_json({"run": str(folder.path), **places, **metrics})
        return
    for name in ("validation", "test"):
        if metrics.get(name):
            title = f"{name} rows" + (", best prompt" if name == "validation" else "")
            print(f"{title}\n{scores(metrics[name])}\n")
    print(listed(places))
    if not quiet:
        path = shlex.quote(str(folder.path))
        note(
            f"\nNext:\n  softprompt predict {path} TEXT\n  softprompt evaluate {path} FILE\n"
            f"  softprompt show {path}"
        )


def _resume(folder: Path) -> str:
    return f"softprompt resume {shlex.quote(str(folder))}"
