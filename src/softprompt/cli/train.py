"""``softprompt train``: run a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import AsJson, Changes, Quiet, Recipe


def train(
    recipe: Recipe,
    changes: Changes = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The run's folder; runs/NAME of the recipe if left out."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a prompt by a recipe and keep the best one."""
    from softprompt.cli.running import run
    from softprompt.recipe import read_recipe
    from softprompt.train import free_folder

    found = read_recipe(recipe, changes or ())
    folder = output or free_folder(recipe.stem, root=Path("runs"))
    run(found, folder, resume=False, as_json=as_json, quiet=quiet)
