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
Comparison = Annotated[
    Path, typer.Argument(metavar="FILE", help="A recipe, or a comparison's file.")
]
Methods = Annotated[
    str | None, typer.Option(help="Methods, with commas between them; all if left out.")
]
Controls = Annotated[
    str | None, typer.Option(help="Controls, with commas between them, or none; all if left out.")
]
Seeds = Annotated[int | None, typer.Option(min=1, help="How often each arm is trained; 5.")]
Seconds = Annotated[
    float | None,
    typer.Option(min=0.1, help="Of training steps for each run, in place of the recipe's steps."),
]
MaybeRates = Annotated[
    str | None,
    typer.Option(help="Multiples of the learning rate to choose from, 1 for none; 0.3,1,3."),
]
MaybeShare = Annotated[
    float | None,
    typer.Option(min=0.01, max=1.0, help="Of the steps, for each rate of the search; 0.1."),
]
ComparisonFolder = Annotated[
    Path | None, typer.Option("--output", help="The comparison's folder; runs/NAME-compared.")
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where runs take place: local, or ray for a cluster.")
]
Cpus = Annotated[int | None, typer.Option(min=1, help="Of a cluster, for each run; 1.")]
Gpus = Annotated[
    float | None, typer.Option(min=0, help="Likewise, such as 0.5 or 2; none if left out.")
]
Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a cluster's head; else RAY_ADDRESS, or this machine's."),
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
