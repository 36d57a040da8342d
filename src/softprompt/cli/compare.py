"""``softprompt compare``: methods side by side under one protocol."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import AsJson, Changes, Rates, Recipe, Share, factors
from softprompt.cli.say import FAILED, aligned, fail, note, print_json

if TYPE_CHECKING:
    from softprompt.compare import Summary


def compare(
    recipe: Recipe,
    changes: Changes = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas between them; all if left out.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 5,
    rates: Rates = "0.3,1,3",
    share: Share = 0.1,
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
    named = [name.strip() for name in methods.split(",") if name]
    trial = (factors(rates), share)
    try:
        found, failed = compared(base, folder, methods=named, seeds=seeds, trial=trial)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on where it was", status=FAILED)
    report = folder / "report.md"
    if as_json:
        arms = [_plain(summary) for summary in found]
        print_json({"report": str(report), "arms": arms, "failed": [asdict(f) for f in failed]})
    else:
        from softprompt.compare.report import HEAD, rows_of

        print(aligned([list(HEAD), *rows_of(found)]))
        note(f"\n{report}")
    if failed:
        raise typer.Exit(FAILED)


def _plain(summary: "Summary") -> dict[str, object]:
    found = asdict(summary)
    outcomes: Sequence[dict[str, object]] = found["outcomes"]
    for outcome in outcomes:
        outcome.pop("right")
    return found
