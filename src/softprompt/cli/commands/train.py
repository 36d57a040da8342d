"""``softprompt train`` and ``softprompt resume``: run a recipe into a run directory."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import (
    FAILED,
    describe_os_error,
    exit_with,
    format_fields,
    format_scores,
    print_json,
    print_progress,
    print_status,
)
from softprompt.cli.options import AsJson, Overrides, Quiet, RecipePath
from softprompt.cli.signals import GracefulStop

if TYPE_CHECKING:
    from softprompt.recipe import Recipe
    from softprompt.train import RunDir
    from softprompt.train.events import Event


def run_training(
    recipe: "Recipe", folder: Path, *, resume: bool, as_json: bool, quiet: bool
) -> None:
    """Train, showing progress, and print the result.

    Args:
        recipe: of the run.
        folder: of the run.
        resume: whether to resume the run in the folder.
        as_json: print the result as JSON.
        quiet: show no progress.
    """
    from softprompt.train import RunDir, run_recipe
    from softprompt.train.display import ProgressDisplay, is_main_process

    is_main = is_main_process()
    display = ProgressDisplay(quiet=quiet or not is_main, silent=not is_main)
    with GracefulStop() as stop, display as progress:

        def check_stop(_event: "Event") -> None:
            stop.check()

        try:
            run_recipe(recipe, folder, callbacks=[progress.show, check_stop], resume=resume)
        except KeyboardInterrupt:
            if not (folder / "recipe.toml").exists():
                raise
            progress.close()
            command = f"softprompt resume {shlex.quote(str(folder))}"
            exit_with(f"{progress.stopped}; resume with: {command}", status=FAILED)
        except OSError as error:
            if not (folder / "recipe.toml").exists():
                raise
            progress.close()
            command = f"softprompt resume {shlex.quote(str(folder))}"
            message = f"{describe_os_error(error)} Then resume with: {command}"
            exit_with(message, status=FAILED)
    if is_main:
        _print_result(RunDir(folder), as_json=as_json, quiet=quiet)


def _print_result(run: "RunDir", *, as_json: bool, quiet: bool) -> None:
    """Print the result of a finished run, and the next commands."""
    from softprompt.inference.loops import compute_intervals

    metrics = run.read_metrics() or {}
    paths = {"artifact": str(run.artifact), "picture": str(run.picture)}
    if as_json:
        print_json({"run": str(run.path), **paths, **metrics})
        return
    if metrics.get("best_step") == 0 and metrics.get("warnings"):
        print(f"{metrics['warnings'][-1]}\n")
    if scores := metrics.get("cross_validation"):
        means = {**scores["mean"], "rows": scores["rows"], "intervals": scores["intervals"]}
        print(f"mean of {scores['folds']} folds\n{format_scores(means)}\n")
    for name in ("validation", "test"):
        if metrics.get(name):
            title, scores = f"{name} rows", dict(metrics[name])
            if name == "validation":
                title = f"{title}, best prompt"
                rows = metrics["rows"][name]
                scores |= {"rows": rows, "intervals": compute_intervals(scores, rows)}
            print(f"{title}\n{format_scores(scores)}\n")
    if metrics.get("verdict"):
        print(f"{metrics['verdict']}\n")
    print(format_fields(paths))
    if not quiet:
        path = shlex.quote(str(run.path))
        print_status(
            f"\nNext:\n  softprompt predict {path} TEXT\n  softprompt evaluate {path} FILE\n"
            f"  softprompt show {path}"
        )


def train(
    recipe: RecipePath,
    changes: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The run's folder (default runs/NAME)."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a prompt by a recipe, and save the best one."""
    if not quiet:
        print_progress("starting …")
    from softprompt.recipe import read_recipe
    from softprompt.train import find_free_dir

    settings = read_recipe(recipe, changes or ())
    folder = output or find_free_dir(recipe.stem, root=Path("runs"))
    run_training(settings, folder, resume=False, as_json=as_json, quiet=quiet)


def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of the interrupted run.")
    ],
    changes: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Resume an interrupted run, to the same results."""
    if not quiet:
        print_progress("starting …")
    from softprompt.train import RunDir
    from softprompt.train.results import draw_picture

    run = RunDir(folder)
    recipe = run.read_recipe(changes or ())
    if run.is_finished():
        if not run.picture.is_file():
            draw_picture(run, recipe)
        print_status(f"the run in {folder} is finished already")
        if changes:
            print_status(f"not changed: {', '.join(changes)}. Train again with them.")
        _print_result(run, as_json=as_json, quiet=quiet)
        return
    run.check_unedited(changes or ())
    run_training(recipe, folder, resume=True, as_json=as_json, quiet=quiet)
