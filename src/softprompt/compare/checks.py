"""Check a comparison without running it: its own keys, its recipe and its variants."""

from collections.abc import Sequence
from dataclasses import replace

from softprompt.compare.api import check_splits
from softprompt.compare.config import Variant, read_plan
from softprompt.errors import DataError, RecipeError
from softprompt.recipe import RecipeSource
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.validation import CheckResult, check_recipe


def check_comparison(source: RecipeSource, changes: Sequence[str] = ()) -> CheckResult:
    """Check a comparison with its data and its backbone, without training.

    Args:
        source: the comparison file, or the same as a mapping.
        changes: of its recipe, each as ``section.key=value``.

    Returns:
        All faults, each once, those of a variant with its name; or the plan of the recipe that all
        variants share.

    Examples:
        ```python
        result = check_comparison("comparison.toml")
        print(result.faults)
        ```
    """
    try:
        plan = read_plan(source, changes)
    except RecipeError as error:
        return CheckResult(error.faults)
    result = check_recipe(plan.base)
    if result.plan is None:
        return result
    faults = []
    try:
        check_splits(result.plan.splits, needed=("validation", "test"), folds=plan.base.data.folds)
    except DataError as error:
        faults.append(str(error))
    backbone = load_recipe_backbone(plan.base.backbone)
    others = [v for v in plan.variants if v.kind == "prompt" and v.recipe != plan.base]
    for variant in others:
        faults += _name_faults(variant, check_recipe(variant.recipe, backbone=backbone))
    return replace(result, faults=tuple(faults), plan=None if faults else result.plan)


def _name_faults(variant: Variant, result: CheckResult) -> list[str]:
    return [f"variant {variant.name!r}: {fault}" for fault in result.faults]
