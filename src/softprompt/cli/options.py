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
