"""``softprompt train`` and ``softprompt resume``: run a recipe into a run directory."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from collections.abc import Iterator, Mapping

    from softprompt.recipe import Recipe
    from softprompt.recipe.multitask import MultitaskRecipe
    from softprompt.train import RunDir
    from softprompt.train.events import Event


def run_training(
    recipe: "Recipe | MultitaskRecipe", folder: Path, *, resume: bool, as_json: bool, quiet: bool
) -> None:
    """Train, showing progress, and print the result.

    Args:
        recipe: of the run, of one task or of several.
        folder: of the run.
        resume: whether to resume the run in the folder.
        as_json: print the result as JSON.
        quiet: show no progress.
    """
    from softprompt.recipe import Recipe
    from softprompt.train import RunDir, run_recipe
    from softprompt.train.display import ProgressDisplay, is_main_process
    from softprompt.train.multitask import run_multitask

    is_main = is_main_process()
    display = ProgressDisplay(quiet=quiet or not is_main, silent=not is_main)
    with GracefulStop() as stop, display as progress:

        def check_stop(_event: "Event") -> None:
            stop.check()

        callbacks = [progress.show, check_stop]
        try:
            if isinstance(recipe, Recipe):
                run_recipe(recipe, folder, callbacks=callbacks, resume=resume)
            else:
                run_multitask(recipe, folder, callbacks=callbacks, resume=resume)
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
    metrics = run.read_metrics() or {}
    tasks = metrics.get("tasks")
    paths = {"artifact": str(run.artifact), "picture": str(run.picture)}
    if tasks:
        paths = {name: str(run.path / "tasks" / name) for name in tasks}
        paths["shared prompt"] = str(run.path / "shared")
    if as_json:
        own = {"shared": metrics["shared"] | {"path": paths["shared prompt"]}} if tasks else paths
        print_json({"run": str(run.path), **metrics, **own})
        return
    results = [*_list_results(metrics)]
    for name, of_task in (tasks or {}).items():
        results += [f"task {name}", *_list_results(of_task)]
    print("\n\n".join([*results, format_fields(paths)]))
    if not quiet:
        path = shlex.quote(paths[next(iter(tasks))] if tasks else str(run.path))
        print_status(
            f"\nNext:\n  softprompt predict {path} TEXT\n  softprompt evaluate {path} FILE\n"
            f"  softprompt show {path}"
        )


def _list_results(metrics: "Mapping[str, Any]") -> "Iterator[str]":
    """What a finished run has to say: a warning, its scores, and the verdict."""
    from softprompt.inference.loops import compute_intervals
    from softprompt.train.seeds import describe_seeds

    has_prompt = metrics.get("kept") != "plain head"
    if has_prompt and metrics.get("best_step") == 0 and metrics.get("warnings"):
        yield metrics["warnings"][-1]
    is_ensemble = has_prompt and "best_step" not in metrics
    if scores := metrics.get("cross_validation"):
        means = {**scores["mean"], "rows": scores["rows"], "intervals": scores["intervals"]}
        of = " of the first seed" if is_ensemble else ""
        yield f"mean of {scores['folds']} folds{of}\n{format_scores(means)}"
    if metrics.get("validation"):
        rows = metrics["rows"]["validation"]
        intervals = compute_intervals(metrics["validation"], rows)
        scores = {**metrics["validation"], "rows": rows, "intervals": intervals}
        name = "ensemble" if is_ensemble else "best prompt"
        yield f"validation rows, {name}\n{format_scores(scores)}"
    if metrics.get("test"):
        yield f"test rows\n{format_scores(metrics['test'])}"
    if metrics.get("verdict"):
        yield metrics["verdict"]
    elif metrics.get("seeds"):
        yield describe_seeds(metrics["seeds"])


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
    """Train a prompt, or those of several tasks, by a recipe."""
    if not quiet:
        print_progress("starting …")
    from softprompt.recipe import make_recipe, read_toml
    from softprompt.recipe.multitask import is_multitask, make_multitask_recipe
    from softprompt.train import find_free_dir

    table = read_toml(recipe, changes or ())
    settings = make_multitask_recipe(table) if is_multitask(table) else make_recipe(table)
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
    tasks = run.read_multitask_recipe(changes or ())
    if tasks is not None:
        _resume_tasks(run, tasks, as_json=as_json, quiet=quiet)
        return
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


def _resume_tasks(run: "RunDir", recipe: "MultitaskRecipe", *, as_json: bool, quiet: bool) -> None:
    """Resume a run of several tasks, unless it is finished."""
    if run.read_metrics() is None:
        run_training(recipe, run.path, resume=True, as_json=as_json, quiet=quiet)
        return
    print_status(f"the run in {run.path} is finished already")
    _print_result(run, as_json=as_json, quiet=quiet)
