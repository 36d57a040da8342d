"""``softprompt compare``: methods side by side under one protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import AsJson, Changes, Recipe
from softprompt.cli.say import FAILED, aligned, fail, note, print_json

if TYPE_CHECKING:
    from softprompt.compare import Summary
    from softprompt.recipe import Recipe as Loaded


def compare(
    recipe: Recipe,
    changes: Changes = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas between them; all if left out.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 5,
    rates: Annotated[
        str, typer.Option(help="Multiples of the learning rate to choose from; 1 for no search.")
    ] = "0.3,1,3",
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the steps, for each rate of the search.")
    ] = 0.1,
    output: Annotated[
        Path | None, typer.Option("--output", help="The comparison's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train methods on the same rows, beside what they must beat."""
    from softprompt.cli.comparing import compared
    from softprompt.recipe import read_recipe

    base = read_recipe(recipe, changes or ())
    folder = output or Path("runs") / f"{recipe.stem}-compared"
    _remember(base, folder)
    named = [name.strip() for name in methods.split(",") if name]
    search = (_factors(rates), share)
    try:
        found = compared(base, folder, methods=named, seeds=seeds, search=search)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on where it was", status=FAILED)
    report = folder / "report.md"
    if as_json:
        print_json({"report": str(report), "arms": [_plain(summary) for summary in found]})
    else:
        from softprompt.compare.report import HEAD, rows_of

        print(aligned([list(HEAD), *rows_of(found)]))
        note(f"\n{report}")


def _remember(recipe: "Loaded", folder: Path) -> None:
    """A comparison goes on with the recipe that it was begun with."""
    from softprompt.errors import RecipeError
    from softprompt.train import RunFolder

    kept = RunFolder(folder)
    if not (folder / "recipe.toml").exists():
        kept.begin(recipe)
    elif kept.recipe() != recipe:
        fault = (
            f"the comparison in {folder} was begun with another recipe. Put that back, or name "
            "another folder with --output."
        )
        raise RecipeError([fault])


def _factors(text: str) -> tuple[float, ...]:
    from softprompt.errors import RecipeError

    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0 or len({*found}) < len(found):
        fault = f"--rates {text!r} are no distinct positive numbers. Write such as 0.3,1,3."
        raise RecipeError([fault])
    return found


def _plain(summary: "Summary") -> dict[str, object]:
    from dataclasses import asdict

    found = asdict(summary)
    outcomes: Sequence[dict[str, object]] = found["outcomes"]
    for outcome in outcomes:
        outcome.pop("right")
    return found
