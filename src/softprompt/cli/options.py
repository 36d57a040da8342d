"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as init writes.")]
Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or a run's.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows run at once.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no progress; warnings and results only.")
]
Rates = Annotated[
    str, typer.Option(help="Multiples of the learning rate to choose from; 1 for no search.")
]
Share = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Of the steps, for each rate of the search.")
]


def factors(rates: str) -> tuple[float, ...]:
    """The multiples that ``--rates`` names.

    Raises:
        RecipeError: they are no distinct positive numbers.
    """
    from softprompt.errors import RecipeError

    try:
        found = tuple(float(part) for part in rates.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < one < float("inf") for one in found) or len({*found}) < len(found):
        fault = f"--rates {rates!r} are no distinct positive numbers. Write such as 0.3,1,3."
        raise RecipeError([fault])
    return found
