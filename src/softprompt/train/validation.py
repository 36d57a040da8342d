"""Check a recipe with its backbone and its rows: all faults at once, or the plan of the run."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator

from softprompt.backbone.model import Backbone
from softprompt.errors import FaultCollector, RecipeError, format_unknown
from softprompt.recipe import Recipe, make_recipe
from softprompt.train.api import make_trainer
from softprompt.train.setup import RunSetup, check_setup
from softprompt.train.summary import RunSummary, summarize_run


@dataclass(frozen=True, eq=False)
class CheckResult:
    """The result of checking a recipe.

    Args:
        faults: that must be corrected before training.
        notes: on parts that could not be checked, on labels that may be the same one, and on what
            is possible but rarely meant.
        plan: of the run; None with faults, or if it could not be made.

    Examples:
        >>> result = CheckResult(faults=("train.epoch: unknown key 'epoch'.",))
        >>> len(result.faults), result.plan
        (1, None)
    """

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plan: RunSummary | None = None


def check_recipe(
    recipe: Recipe | Mapping[str, Any], *, backbone: Backbone | None = None
) -> CheckResult:
    """Check a recipe with its data and its backbone, without training.

    A backbone that would have to be downloaded is not checked, nor is a data set if the Hub cannot
    be reached; a note reports it.

    Args:
        recipe: to check; or plain data, as read from TOML, whose own faults are reported too. A
            comparison file is checked by `softprompt.compare.check_comparison`.
        backbone: that of the recipe, if it is loaded already.

    Returns:
        All faults, each once; or the plan of the run.

    Examples:
        >>> result = check_recipe(
        ...     {
        ...         "backbone": {"name": "./nowhere"},
        ...         "data": {"train": "reviews.csv"},
        ...         "task": {"kind": "classify", "template": "{text}"},
        ...         "method": {"name": "prompt-tuning"},
        ...         "train": {"epoch": 3},
        ...     }
        ... )
        >>> for fault in result.faults:
        ...     print(fault)  # doctest: +ELLIPSIS
        train.epoch: unknown key 'epoch'. ... Did you mean 'epochs'?
        there is no file reviews.csv ...
        there is no file or folder './nowhere'. Give a Hub id, a folder or a .gguf file.
        the template has no soft tokens, but prompt-tuning trains them. Write {soft:10} ...
    """
    if isinstance(recipe, Recipe):
        return _check(recipe, backbone)
    if "base" in recipe:
        fault = (
            "base: this is a comparison, not a recipe. Check it with softprompt check FILE, or in "
            "Python with softprompt.compare.check_comparison."
        )
        return CheckResult((fault,))
    try:
        return _check(make_recipe(recipe), backbone)
    except RecipeError as error:
        rest = drop_invalid_keys(recipe, error.faults)
        result = CheckResult() if rest is None else _check(rest, backbone)
        return replace(result, faults=(*error.faults, *result.faults), plan=None)


def drop_invalid_keys(data: Mapping[str, Any], faults: Sequence[str]) -> Recipe | None:
    """The recipe without its faulty keys, so that the rest can be checked too.

    Args:
        data: the recipe as plain data.
        faults: of it, each of which begins with the key's path.

    Returns:
        None if a key that has a fault cannot be left out.
    """
    rest = deepcopy(dict(data))
    for fault in faults:
        *path, last = fault.partition(": ")[0].split(".")
        table: Any = rest
        for key in path:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.pop(last, None)
    try:
        return make_recipe(rest)
    except RecipeError:
        return None


def _check(recipe: Recipe, backbone: Backbone | None) -> CheckResult:
    collector = FaultCollector(keep_going=True)
    setup = check_setup(recipe, collector, backbone=backbone)
    plan = None if setup is None else collector.attempt(_make_plan, setup)
    notes = () if setup is None else setup.slips
    return CheckResult(tuple(collector.faults), (*collector.notes, *notes), plan)


def _make_plan(prepared: RunSetup) -> RunSummary:
    """The plan, if a trainer can be made."""
    check_best_metric(prepared)
    accelerator = Accelerator(cpu=prepared.backbone.device.type == "cpu")
    return summarize_run(prepared, steps=make_trainer(prepared, accelerator).total)


def check_best_metric(prepared: RunSetup) -> None:
    """Check that a run has the metric that selects its best prompt.

    Args:
        prepared: the parts of the run.

    Raises:
        RecipeError: it has no such metric.
    """
    names = {"loss", *prepared.task.objective.metric_names}
    metric = prepared.training.best_metric
    if metric not in names:
        raise RecipeError([f"train.best_metric: {format_unknown('metric', metric, options=names)}"])
