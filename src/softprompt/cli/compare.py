"""``softprompt compare``: prompts and controls side by side under one protocol."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import AsJson, Changes, factors
from softprompt.cli.say import FAILED, aligned, fail, note, print_json

if TYPE_CHECKING:
    from softprompt.compare import Summary


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe, or a comparison's file.")],
    changes: Changes = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, with commas between them; all if left out.")
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(help="Controls, with commas between them, or none; all if left out."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How often each arm is trained; 5.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="Of training steps for each run, in place of the recipe's."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Multiples of the learning rate to choose from, 1 for none; 0.3,1,3."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Of the steps, for each rate of the search; 0.1."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The comparison's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train arms on the same rows, beside what they must beat."""
    from softprompt.cli.comparing import compared
    from softprompt.compare.plan import read_plan

    plan = read_plan(
        file,
        changes or (),
        methods=_listed(methods),
        controls=[] if controls == "none" else _listed(controls),
        seeds=seeds,
        seconds=seconds,
        rates=None if rates is None else [*factors(rates)],
        share=share,
    )
    folder = output or Path("runs") / f"{file.stem}-compared"
    try:
        found = compared(plan, folder)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on where it was", status=FAILED)
    if as_json:
        arms = [_plain(summary) for summary in found.summaries]
        failed = [asdict(f) for f in found.failed]
        paths = {"report": str(found.written.table), "page": str(found.written.page)}
        said = {**paths, "measure": found.measure}
        print_json({**said, "arms": arms, "failed": failed})
    else:
        from softprompt.compare.report import head, rows_of

        print(aligned([list(head(found.measure)), *rows_of(found.summaries)]))
        note(f"\n{found.written.page} (the table alone: {found.written.table})")
    if found.failed:
        raise typer.Exit(FAILED)


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _plain(summary: "Summary") -> dict[str, object]:
    found = asdict(summary)
    outcomes: Sequence[dict[str, object]] = found["outcomes"]
    for outcome in outcomes:
        outcome.pop("scores")
    return found
