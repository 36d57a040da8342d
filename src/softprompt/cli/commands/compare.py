"""``softprompt compare`` and ``softprompt find-lr``: several runs, compared."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from softprompt.cli.console import FAILED, exit_with, format_columns, print_json, print_status
from softprompt.cli.options import (
    AsJson,
    BaselineNames,
    ComparisonFile,
    ComparisonFolder,
    CpusPerRun,
    EngineOption,
    GpusPerRun,
    LrMultipliers,
    MaybeLrMultipliers,
    MaybeSearchFraction,
    Methods,
    NumSeeds,
    Overrides,
    RayAddress,
    RecipePath,
    SearchFraction,
    TimeBudget,
    parse_multipliers,
)
from softprompt.cli.signals import GracefulStop

if TYPE_CHECKING:
    from softprompt.compare.comparison import Comparison
    from softprompt.compare.engines.ray import RayCluster


def compare(
    file: ComparisonFile,
    changes: Overrides = None,
    methods: Methods = None,
    baselines: BaselineNames = None,
    seeds: NumSeeds = None,
    time_budget: TimeBudget = None,
    lr_multipliers: MaybeLrMultipliers = None,
    search_fraction: MaybeSearchFraction = None,
    output: ComparisonFolder = None,
    engine: EngineOption = "local",
    cpus: CpusPerRun = None,
    gpus: GpusPerRun = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train methods on the same rows and compare them."""
    from softprompt.compare.api import compare_methods

    multipliers = None if lr_multipliers is None else parse_multipliers(lr_multipliers)
    with _handle_interrupts() as stop:
        comparison = compare_methods(
            file,
            output or Path("runs") / f"{file.stem}-compared",
            engine=_choose_engine(engine, cpus=cpus, gpus=gpus, ray_address=ray_address),
            callbacks=[lambda event: print_status(str(event))],
            should_stop=stop.is_requested,
            methods=_split_names(methods),
            baselines=[] if baselines == "none" else _split_names(baselines),
            num_seeds=seeds,
            time_budget_seconds=time_budget,
            lr_multipliers=multipliers,
            search_fraction=search_fraction,
            overrides=changes,
        )
    _print_comparison(comparison, as_json=as_json)
    if comparison.failed:
        raise typer.Exit(FAILED)


@contextmanager
def _handle_interrupts() -> Iterator[GracefulStop]:
    with GracefulStop() as stop:
        try:
            yield stop
        except KeyboardInterrupt:
            exit_with("interrupted; run the same command to resume", status=FAILED)


def _choose_engine(
    name: str, *, cpus: int | None, gpus: float | None, ray_address: str | None
) -> "Literal['local'] | RayCluster":
    """The engine that the options describe."""
    from softprompt.compare.engines.ray import RayCluster
    from softprompt.compare.engines.select import check_engine_name

    if check_engine_name(name) == "ray":
        return RayCluster(cpus or 1, gpus or 0.0, ray_address)
    given = {"--cpus": cpus, "--gpus": gpus, "--ray-address": ray_address}
    unused = [option for option, value in given.items() if value is not None]
    if unused:
        verb = "is" if len(unused) == 1 else "are"
        msg = (
            f"{' and '.join(unused)} {verb} for a Ray cluster, but the engine is local. Add "
            "--engine ray, or leave the option out."
        )
        raise typer.BadParameter(msg)
    return "local"


def _print_comparison(comparison: "Comparison", *, as_json: bool) -> None:
    if as_json:
        print_json(comparison.to_dict())
    else:
        rows = comparison.to_rows()
        print(format_columns([comparison.columns, *([*row.values()] for row in rows)]))
        print_status(f"\n{comparison.report_html} (the table alone: {comparison.report})")


def _split_names(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def find_lr(
    recipe: RecipePath,
    changes: Overrides = None,
    lr_multipliers: LrMultipliers = "0.03,0.1,0.3,1,3,10",
    search_fraction: SearchFraction = 0.1,
    output: Annotated[
        Path | None, typer.Option("--output", help="The output folder (default runs/NAME-rates).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates for a few steps each."""
    from softprompt.compare.api import find_learning_rate
    from softprompt.recipe import read_recipe

    with _handle_interrupts() as stop:
        search = find_learning_rate(
            read_recipe(recipe, changes or ()),
            output or Path("runs") / f"{recipe.stem}-rates",
            lr_multipliers=parse_multipliers(lr_multipliers),
            search_fraction=search_fraction,
            callbacks=[lambda event: print_status(str(event))],
            should_stop=stop.is_requested,
        )
    if as_json:
        print_json(search.to_dict())
        return
    rows = search.to_rows()
    print(format_columns([[*rows[0]], *([*row.values()] for row in rows)]))
    settings = [*(changes or ()), f"train.learning_rate={search.learning_rate:g}"]
    if search.head_learning_rate is not None:
        settings.append(f"train.head_learning_rate={search.head_learning_rate:g}")
    options = [part for setting in settings for part in ("--set", setting)]
    command = shlex.join(["softprompt", "train", str(recipe), *options])
    print_status(f"\n{search.picture}\nNext:\n  {command}")
