"""``softprompt check``: all faults of a recipe, or the plan of its run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from softprompt.cli.console import MISTAKE, format_columns, format_fields, print_json, print_status
from softprompt.cli.options import AsJson, ComparisonFile, Overrides

if TYPE_CHECKING:
    from softprompt.train.summary import RunSummary

# The most labels that are listed with their rows.
_MAX_LABELS = 20


def check(recipe: ComparisonFile, changes: Overrides = None, as_json: AsJson = False) -> None:
    """Report all faults of a recipe or a comparison, or its plan."""
    from softprompt.errors import RecipeError
    from softprompt.recipe import read_toml
    from softprompt.recipe.multitask import is_multitask, make_multitask_recipe
    from softprompt.train.validation import check_recipe

    table = read_toml(recipe)
    if "base" in table:  # a comparison file, whose changes are those of its recipe
        from softprompt.compare.checks import check_comparison

        result = check_comparison(recipe, changes or [])
    elif is_multitask(table):
        from softprompt.train.multitask import check_multitask

        result = check_multitask(make_multitask_recipe(read_toml(recipe, changes or [])))
    else:
        result = check_recipe(read_toml(recipe, changes or []))
    if as_json:
        plan = None if result.plan is None else asdict(result.plan)
        print_json({"faults": result.faults, "notes": result.notes, "plan": plan})
    if not as_json or result.faults:
        for note in result.notes:
            print_status(note)
    if result.faults:
        print_status(str(RecipeError(result.faults)))
        raise typer.Exit(MISTAKE)
    if not as_json:
        print(f"{recipe} has no faults" + (_format_plan(result.plan) if result.plan else ""))
        for warning in result.plan.warnings if result.plan else ():
            print_status(f"warning: {warning}")


def _format_plan(plan: "RunSummary") -> str:
    from softprompt.train.summary import compute_trainable_share

    _, _, share = compute_trainable_share(plan.trainable, plan.parameters).partition(" ")
    fields = {
        "backbone": f"{plan.backbone}, {plan.parameters:,} parameters, frozen",
        "method": plan.method,
        "soft tokens": f"{plan.soft_tokens}, {plan.where}",
        "trainable": share,
        "shapes": plan.shapes,
        "template": repr(plan.template),
        "steps": f"{plan.steps:,}",
    }
    if plan.notes:
        fields["start"] = "\n".join(plan.notes)
    if plan.savings:
        fields["saved"] = "\n".join(plan.savings)
    head = ["", "rows", "mean tokens", "max tokens", "truncated"]
    splits = [
        [name, f"{s.rows:,}", f"{s.mean_tokens:.1f}", str(s.max_tokens), f"{s.truncated:,}"]
        for name, s in plan.splits.items()
    ]
    labels = {name: _format_labels(s.labels) for name, s in plan.splits.items() if s.labels}
    settings = {n: f"{s.value!s:<12} ({s.source})" for n, s in plan.settings.items()}
    parts = [
        format_fields(fields),
        format_columns([head, *splits]),
        *([format_fields(labels)] if labels else []),
        format_fields(settings),
    ]
    return "".join(f"\n\n{part}" for part in parts)


def _format_labels(counts: Mapping[str, int]) -> str:
    """The number of rows of each label; of many only the commonest."""
    if len(counts) <= _MAX_LABELS:
        return ", ".join(f"{label} {n:,}" for label, n in counts.items())
    shown = sorted(counts.items(), key=lambda item: -item[1])[:_MAX_LABELS]
    listed = ", ".join(f"{label} {n:,}" for label, n in shown)
    return f"{len(counts):,} labels, the commonest: {listed}"
