"""``softprompt check``: all faults of a recipe, or the plan of its run."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from softprompt.cli.console import MISTAKE, format_columns, format_fields, print_json, print_status
from softprompt.cli.options import AsJson, Overrides, RecipePath

if TYPE_CHECKING:
    from softprompt.train.summary import RunSummary


def check(recipe: RecipePath, changes: Overrides = None, as_json: AsJson = False) -> None:
    """Report all faults of a recipe, or what training would do."""
    from softprompt.errors import RecipeError
    from softprompt.recipe import read_toml
    from softprompt.train.validation import check_recipe

    found = check_recipe(read_toml(recipe, changes or []))
    if as_json:
        plan = None if found.plan is None else asdict(found.plan)
        print_json({"faults": found.faults, "notes": found.notes, "plan": plan})
    if not as_json or found.faults:
        for text in found.notes:
            print_status(text)
    if found.faults:
        print_status(str(RecipeError(found.faults)))
        raise typer.Exit(MISTAKE)
    if not as_json:
        print(f"{recipe} has no faults" + (_format_plan(found.plan) if found.plan else ""))


def _format_plan(plan: "RunSummary") -> str:
    from softprompt.train.summary import compute_trainable_share

    _, _, share = compute_trainable_share(plan.trainable, plan.parameters).partition(" ")
    facts = {
        "backbone": f"{plan.backbone}, {plan.parameters:,} parameters, frozen",
        "method": plan.method,
        "soft tokens": f"{plan.soft_tokens}, {plan.where}",
        "trainable": share,
        "shapes": plan.shapes,
        "template": repr(plan.template),
        "steps": f"{plan.steps:,}",
    }
    if plan.savings:
        facts["saved"] = "\n".join(plan.savings)
    head = ["", "rows", "mean tokens", "max tokens", "truncated"]
    splits = [
        [name, f"{s.rows:,}", f"{s.mean_tokens:.1f}", str(s.max_tokens), f"{s.truncated:,}"]
        for name, s in plan.splits.items()
    ]
    labels = {
        name: ", ".join(f"{label} {n:,}" for label, n in s.labels.items())
        for name, s in plan.splits.items()
        if s.labels
    }
    settings = {n: f"{s.value!s:<12} ({s.source})" for n, s in plan.settings.items()}
    parts = [
        format_fields(facts),
        format_columns([head, *splits]),
        *([format_fields(labels)] if labels else []),
    ]
    return "\n\n" + "\n\n".join([*parts, format_fields(settings)])
