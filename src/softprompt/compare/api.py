"""The two entry points: compare methods, and find a learning rate.

Both write an output folder and reuse what it holds already: after an interruption the same call
resumes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from softprompt.compare.baselines import Baselines
from softprompt.compare.common_readout import settle_common_readout
from softprompt.compare.comparison import Comparison, LearningRateSearch, LearningRateTrial
from softprompt.compare.config import (
    ComparisonPlan,
    Variant,
    check_budget,
    find_multiplier_faults,
    read_plan,
)
from softprompt.compare.engines.ray import RayCluster
from softprompt.compare.engines.select import EngineFactory, EngineName, open_engine
from softprompt.compare.lr_search import TrainedRun, search_learning_rate, select_best
from softprompt.compare.protocol import Protocol, run_comparison
from softprompt.compare.report.figures import draw_learning_rates
from softprompt.compare.report.mistakes import describe_mistakes
from softprompt.compare.report.prompts import describe_prompts
from softprompt.compare.report.write import list_warnings, record_conditions, write_reports
from softprompt.compare.results import (
    ComparisonEvent,
    Failed,
    HeldOutTest,
    ResultEvent,
    RunResult,
    Status,
)
from softprompt.compare.runner import ComparisonRunner
from softprompt.compare.statistics import summarize_variants
from softprompt.data import MaxRows, Table, read_splits
from softprompt.errors import DataError, RecipeError, TrainingError
from softprompt.recipe import Recipe, RecipeSource, load_recipe
from softprompt.tasks.config import has_trained_head
from softprompt.tasks.targets import check_tables, find_labels, read_targets
from softprompt.train import RunDir
from softprompt.train.config import ResolvedTraining
from softprompt.train.datasets import get_task_columns
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.task_settings import build_objective

__all__ = [
    "Comparison",
    "ComparisonEvent",
    "ComparisonOptions",
    "LearningRateSearch",
    "LearningRateTrial",
    "RayCluster",
    "compare_methods",
    "find_learning_rate",
]

ComparisonCallback = Callable[[ComparisonEvent], None]


class ComparisonOptions(TypedDict, total=False):
    """The options of a comparison beyond its recipe; None, or leaving one out, means the default.

    Args:
        methods: to compare, by name; all if left out.
        baselines: to compare them with, by name: ``majority``, ``hard-prompt``, ``linear-probe``,
            ``fine-tuning`` and ``lora``; all if left out.
        num_seeds: how often each method is trained; 5 if left out.
        lr_multipliers: of the learning rate, to choose from by a short search; a single one means
            no search; 0.3, 1 and 3 if left out.
        search_fraction: of the steps, for each multiplier of the search; 0.1 if left out.
        time_budget_seconds: of training steps for each run, in place of the recipe's steps.
        overrides: changes of the recipe, each as ``section.key=value`` with the value in TOML.
    """

    methods: Sequence[str] | None
    baselines: Sequence[str] | None
    num_seeds: int | None
    lr_multipliers: Sequence[float] | None
    search_fraction: float | None
    time_budget_seconds: float | None
    overrides: Sequence[str] | None


def compare_methods(
    recipe: RecipeSource,
    output: str | Path,
    *,
    engine: EngineName | RayCluster = "local",
    callbacks: Sequence[ComparisonCallback] = (),
    should_stop: Callable[[], bool] | None = None,
    **options: Unpack[ComparisonOptions],
) -> Comparison:
    """Train methods on the same rows, with baselines, and compare them on the test rows.

    Results that are in the output folder are not computed again. After Ctrl-C the same call
    resumes.

    Args:
        recipe: a recipe, or a comparison, which names its recipe under the key ``base``: the
            path of its file, or the same as a mapping; a recipe also as a `Recipe`.
        output: the folder of the comparison.
        engine: ``local`` for one run after the other, ``ray`` for the Ray cluster of this
            machine, or a `RayCluster`.
        callbacks: each is called with every event, such as the result of a run. ``print`` shows
            them as sentences.
        should_stop: called after every step of a run on this machine. If it returns True, the
            run's state is saved and KeyboardInterrupt is raised.
        **options: methods, baselines, num_seeds, lr_multipliers, search_fraction,
            time_budget_seconds and overrides, as `ComparisonOptions` describes them. They
            override the keys of a comparison file.

    Returns:
        The summaries, and the paths of the reports.

    Raises:
        RecipeError: the recipe or an option has faults, or the folder holds a comparison that
            was started with another recipe.
        DataError: there are no validation or test rows, or the data has faults.
        BackboneError: the backbone cannot be loaded.
        TrainingError: another process uses the folder, or the engine cannot be used.
        KeyboardInterrupt: it was interrupted.

    Examples:
        ```python
        comparison = compare_methods(
            "recipe.toml",
            "runs/comparison",
            methods=["prompt-tuning", "p-tuning-v2"],
            baselines=["majority", "hard-prompt"],
            num_seeds=3,
            callbacks=[print],
        )
        for row in comparison.to_rows():
            print(row["name"], row["accuracy"], row["seeds"])
        ```

        >>> recipe = {
        ...     "backbone": {"name": "builtin:minilm"},
        ...     "data": {"train": "builtin:rotten-tomatoes"},
        ...     "task": {"kind": "classify"},
        ...     "method": {"name": "prompt-tuning"},
        ... }
        >>> compare_methods(recipe, "runs/films", methods=["p-tunin"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.RecipeError: 1 fault in the recipe:
          - unknown method 'p-tunin'. Options: ...
    """
    plan, notify = _read_options(recipe, options), _call_all(callbacks)
    with open_engine(engine, callback=notify) as make_engine:
        return _run_plan(
            plan, Path(output), make_engine=make_engine, notify=notify, should_stop=should_stop
        )


def find_learning_rate(
    recipe: RecipeSource,
    output: str | Path,
    *,
    lr_multipliers: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    search_fraction: float = 0.1,
    callbacks: Sequence[ComparisonCallback] = (),
    should_stop: Callable[[], bool] | None = None,
) -> LearningRateSearch:
    """Try several learning rates for a fraction of the steps, and select one by validation rows.

    After Ctrl-C the same call resumes.

    Args:
        recipe: the path of a recipe file, the same as a mapping, or a `Recipe`.
        output: the folder of the search.
        lr_multipliers: of the recipe's learning rate, or of its method's default.
        search_fraction: of the recipe's steps, for each multiplier; 0 to 1.
        callbacks: each is called with every status message.
        should_stop: called after every step. If it returns True, the run's state is saved and
            KeyboardInterrupt is raised.

    Returns:
        The trials, the best of them, and a picture.

    Raises:
        RecipeError: the recipe or an argument has faults, or the folder holds a search that was
            started with another recipe.
        DataError: there are no validation rows, or the data has faults.
        BackboneError: the backbone cannot be loaded.
        TrainingError: another process uses the folder.
        KeyboardInterrupt: it was interrupted.

    Examples:
        ```python
        search = find_learning_rate(
            "recipe.toml", "runs/rates", lr_multipliers=[0.3, 1, 3], search_fraction=0.05
        )
        print(search.learning_rate)
        ```

        >>> find_learning_rate("recipe.toml", "runs/rates", lr_multipliers=[0.3, 0.3])
        Traceback (most recent call last):
        softprompt.errors.RecipeError: 1 fault in the recipe:
          - lr_multipliers [0.3, 0.3] are not distinct positive numbers. Give such as [0.3, 1, 3].
    """
    _check_search(lr_multipliers, search_fraction)
    notify = _call_all(callbacks)
    base, folder = load_recipe(recipe), Path(output)
    check_budget(base)
    tables = _prepare_folder(base, folder, needed=("validation",))
    with _open_runner(base, folder, tables, notify=notify, should_stop=should_stop) as runner:
        first = Variant(base.method.name, _without_limits(base))
        _, (variant,) = _settle_readout(base, [first], runner, tables=tables, notify=notify)
        runs = search_learning_rate(
            variant,
            multipliers=[*map(float, lr_multipliers)],
            fraction=search_fraction,
            run=runner,
        )
    picture, metric = folder / "rates.png", base.train.best_metric
    best = select_best(runs)
    draw_learning_rates(runs, picture, select=metric, best=best, title=folder.resolve().name)
    return _make_search(base, runs, best=best, picture=picture)


def _call_all(callbacks: Sequence[ComparisonCallback]) -> ComparisonCallback:
    """One callback that calls all of them."""

    def notify(event: ComparisonEvent) -> None:
        for callback in callbacks:
            callback(event)

    return notify


def _read_options(recipe: RecipeSource, options: ComparisonOptions) -> ComparisonPlan:
    """The plan of a comparison; sequences become lists, as in a file, but a string stays one."""
    keys = {
        key: [*value] if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in options.items()
        if key != "overrides"
    }
    unknown = sorted({*options} - {*ComparisonOptions.__annotations__})
    if unknown:
        known = ", ".join(ComparisonOptions.__annotations__)
        msg = f"compare_methods has no argument {unknown[0]!r}. Its options are {known}."
        raise TypeError(msg)
    return read_plan(recipe, options.get("overrides") or (), **keys)


def _check_search(multipliers: Sequence[float], fraction: float) -> None:
    faults = find_multiplier_faults(multipliers)
    if not 0 < fraction <= 1:
        faults.append(
            f"search_fraction {fraction:g} is not above 0 and at most 1. Give such as 0.1."
        )
    if faults:
        raise RecipeError(faults)


def _run_plan(
    plan: ComparisonPlan,
    folder: Path,
    *,
    make_engine: EngineFactory,
    notify: ComparisonCallback,
    should_stop: Callable[[], bool] | None,
) -> Comparison:
    """Run the missing parts of a comparison, and write its report."""
    base = plan.base
    tables = _prepare_folder(base, folder, needed=("validation", "test"))
    _report_warnings(base, tables, notify)
    test_set, search = _make_test_set(base, tables), (plan.lr_multipliers, plan.search_fraction)
    protocol = Protocol(plan.num_seeds, *search, test_set, plan.time_budget_seconds)
    variants = [
        replace(variant, recipe=_without_limits(variant.recipe)) for variant in plan.variants
    ]
    events: list[ResultEvent] = []
    with _open_runner(base, folder, tables, notify=notify, should_stop=should_stop) as runner:
        base, variants = _settle_readout(base, variants, runner, tables=tables, notify=notify)
        baselines = Baselines(base, runner.backbone, tables)
        for skipped in baselines.find_skipped(plan.baselines):
            notify(skipped)
        selected, engine = baselines.select(plan.baselines), make_engine(protocol, runner)
        path = folder / "results.jsonl"
        results = run_comparison(variants, selected, protocol=protocol, engine=engine, path=path)
        for event in results:
            notify(event)
            events.append(event)
        failed = [event for event in events if isinstance(event, Failed)]
        summaries = summarize_variants(_select_complete(events, failed))
        backbone = runner.backbone
        extras = describe_mistakes(summaries, folder, backbone=backbone, test_set=test_set)
        extras += describe_prompts(summaries, folder, backbone=backbone, tables=tables)
    conditions = record_conditions(base, protocol, folder=folder, tables=tables)
    write_reports(summaries, events, folder=folder, conditions=conditions, extras=extras)
    return Comparison(test_set.measure, (*summaries,), (*failed,), folder)


def _settle_readout(
    base: Recipe,
    variants: Sequence[Variant],
    runner: ComparisonRunner,
    *,
    tables: Mapping[str, Table],
    notify: ComparisonCallback,
) -> tuple[Recipe, list[Variant]]:
    """The recipe and the variants with the readout that is chosen once for all of them."""
    base, settled, choice = settle_common_readout(
        base, variants, backbone=runner.backbone, tables=tables, folder=runner.folder
    )
    if choice is not None:
        notify(Status(str(choice)))
    return base, settled


def _report_warnings(base: Recipe, tables: Mapping[str, Table], notify: ComparisonCallback) -> None:
    for message in list_warnings(base, tables):
        notify(Status(f"warning: {message}"))


def _select_complete(events: Sequence[ResultEvent], failed: Sequence[Failed]) -> list[RunResult]:
    """The results of the variants of which no run failed; the others lack seeds."""
    failed_names = {event.variant for event in failed}
    return [e for e in events if isinstance(e, RunResult) and e.variant not in failed_names]


def _make_test_set(base: Recipe, tables: Mapping[str, Table]) -> HeldOutTest:
    settings, test = base.task_settings, tables["test"]
    truth = read_targets(test, settings, split="test")
    return HeldOutTest(test.to_list(), truth, build_objective(settings, tables["train"]))


def _without_limits(recipe: Recipe) -> Recipe:
    """The recipe without ``max_rows``: rows are sampled once, for all variants and seeds."""
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"max_rows": MaxRows()})}
    )


def _prepare_folder(base: Recipe, folder: Path, *, needed: Sequence[str]) -> dict[str, Table]:
    """Read and check the rows by split, and save the recipe or compare it with the saved one.

    Args:
        needed: the splits that there must be besides the training rows.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        msg = (
            "a comparison is run by one process, but this is one of several. Start it without "
            "accelerate launch; the engine ray runs many variants at once."
        )
        raise TrainingError(msg)
    settings = base.task_settings
    tables = read_splits(base.data, seed=base.seed, columns=get_task_columns(settings))
    check_splits(tables, needed=needed, folds=base.data.folds)
    check_tables(tables, settings, labels=find_labels(settings, tables["train"]))
    _save_recipe(base, folder)
    return tables


@contextmanager
def _open_runner(
    base: Recipe,
    folder: Path,
    tables: Mapping[str, Table],
    *,
    notify: ComparisonCallback,
    should_stop: Callable[[], bool] | None,
) -> Iterator[ComparisonRunner]:
    """A runner on one backbone, without the test rows; the folder is locked while it is open."""
    visible = {name: table for name, table in tables.items() if name != "test"}
    with RunDir(folder).lock():
        notify(Status("loading the backbone …"))
        backbone = load_recipe_backbone(base.backbone)
        yield ComparisonRunner(backbone, visible, folder=folder, should_stop=should_stop)


def _save_recipe(recipe: Recipe, folder: Path) -> None:
    """Save the recipe, or check that the folder was started with the same one."""
    run = RunDir(folder)
    if not (folder / "recipe.toml").exists():
        run.create(recipe)
    elif run.read_recipe() != recipe:
        fault = (
            f"{folder} was started with another recipe. Restore that recipe, or choose another "
            "output folder."
        )
        raise RecipeError([fault])


def check_splits(
    tables: Mapping[str, object], *, needed: Sequence[str], folds: int | None = None
) -> None:
    """Check that a comparison has the splits that it needs.

    Args:
        tables: by the name of the split.
        needed: the names of the splits.
        folds: the recipe's folds, which a comparison does not use.

    Raises:
        DataError: one is missing.
    """
    if folds is not None:
        msg = (
            "data.folds is set, but a comparison selects all variants by the same validation rows. "
            "Leave it out."
        )
        raise DataError(msg)
    missing = [name for name in needed if name not in tables]
    if missing:
        purpose = {
            "validation": "prompts are selected by validation rows",
            "test": "variants are compared by test rows",
        }
        msg = (
            f"there are no {' and '.join(missing)} rows, but "
            f"{' and '.join(purpose[name] for name in missing)}. Set "
            f"{' and '.join(f'data.{name}' for name in missing)}; or, to split them off the "
            "training rows, leave out data.validation and data.test and give "
            f"{' and '.join(needed)} a share in data.split_sizes."
        )
        raise DataError(msg)


def _make_search(
    base: Recipe, runs: Mapping[float, TrainedRun], *, best: float, picture: Path
) -> LearningRateSearch:
    """The result of a search.

    Args:
        runs: by their multipliers.
        best: the multiplier of the best run.
        picture: the file of the figure.
    """
    trials = {
        multiplier: LearningRateTrial(run.rate, multiplier, run.cost.steps, run.validation)
        for multiplier, run in sorted(runs.items())
    }
    settings = base.task_settings
    has_head = has_trained_head(settings)
    usual = base.train.head_learning_rate or ResolvedTraining.head_learning_rate
    return LearningRateSearch(
        trials=(*trials.values(),),
        best=trials[best],
        best_metric=base.train.best_metric,
        head_learning_rate=usual * best if has_head else None,
        picture=picture,
    )
