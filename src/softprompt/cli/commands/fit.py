"""``softprompt fit``: from a file of labelled text to a judged prompt, with no recipe to write."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.commands.init import describe_columns
from softprompt.cli.commands.train import run_training
from softprompt.cli.console import print_progress, print_status
from softprompt.cli.options import (
    AsJson,
    CellSeparator,
    FitSeeds,
    HasHeader,
    Overrides,
    Quiet,
    TextEncoding,
)


def fit(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or data set to learn from.")],
    changes: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The run's folder (default runs/NAME)."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder, .gguf file or builtin: name (default builtin:minilm; to write "
            "text or choose options, builtin:smollm2-135m-instruct)."
        ),
    ] = None,
    seeds: FitSeeds = 1,
    separator: CellSeparator = None,
    encoding: TextEncoding = None,
    header: HasHeader = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a prompt for a file of labelled text, and judge it."""
    if not quiet:
        print_progress("reading the data …")
    from softprompt.data import TextFormat
    from softprompt.train.automatic import choose_run_folder, draft_run

    text_format = TextFormat(separator, encoding, header)
    draft, recipe = draft_run(
        data, changes or (), backbone=backbone, text_format=text_format, seeds=seeds
    )
    folder = output or choose_run_folder(data)
    if not quiet:
        print_status(f"{draft.columns.rows:,} rows: {describe_columns(draft.columns)}")
        for note in draft.notes:
            print_status(note)
    run_training(recipe, folder, resume=False, as_json=as_json, quiet=quiet)
