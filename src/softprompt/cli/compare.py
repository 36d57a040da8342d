"""``softprompt compare``: prompts and controls side by side under one protocol."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softprompt.cli.options import (
    Address,
    AsJson,
    Changes,
    Comparison,
    ComparisonFolder,
    Controls,
    Cpus,
    EngineName,
    Gpus,
    MaybeRates,
    MaybeShare,
    Methods,
    Seconds,
    Seeds,
    factors,
)
from softprompt.cli.say import FAILED, aligned, fail, note, print_json

if TYPE_CHECKING:
    from softprompt.cli.comparing import Compared
    from softprompt.compare import Summary


def compare(
    file: Comparison,
    changes: Changes = None,
    methods: Methods = None,
    controls: Controls = None,
    seeds: Seeds = None,
    seconds: Seconds = None,
    rates: MaybeRates = None,
    share: MaybeShare = None,
    output: ComparisonFolder = None,
    engine: EngineName = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Train arms on the same rows, beside what they must beat."""
    from softprompt.cli.comparing import compared
    from softprompt.cli.engine import engine_of
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
        with engine_of(engine, cpus=cpus, gpus=gpus, address=address) as make:
            found = compared(plan, folder, make=make)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on where it was", status=FAILED)
    _print(found, as_json=as_json)
    if found.failed:
        raise typer.Exit(FAILED)


def _print(found: "Compared", *, as_json: bool) -> None:
    from softprompt.compare.report import head, rows_of

    if as_json:
        arms = [_plain(summary) for summary in found.summaries]
        failed = [asdict(f) for f in found.failed]
        paths = {"report": str(found.written.table), "page": str(found.written.page)}
        said = {**paths, "measure": found.measure}
        print_json({**said, "arms": arms, "failed": failed})
    else:
        print(aligned([list(head(found.measure)), *rows_of(found.summaries)]))
        note(f"\n{found.written.page} (the table alone: {found.written.table})")


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _plain(summary: "Summary") -> dict[str, object]:
    found = asdict(summary)
    outcomes: Sequence[dict[str, object]] = found["outcomes"]
    for outcome in outcomes:
        outcome.pop("scores")
    return found
