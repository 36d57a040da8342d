"""``softprompt check``: every fault of a recipe at once, and the plan if there is none."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softprompt.cli.options import AsJson, Changes, Recipe
from softprompt.cli.say import MISTAKE, aligned, listed, note, print_json

if TYPE_CHECKING:
    from softprompt.train.check import Checked
    from softprompt.train.plan import Plan


def check(recipe: Recipe, changes: Changes = None, as_json: AsJson = False) -> None:
    """Tell every fault of a recipe, or what training would do."""
    from softprompt.errors import RecipeError

    found = _checked(recipe, changes or [])
    if as_json:
        plan = None if found.plan is None else asdict(found.plan)
        print_json({"faults": found.faults, "notes": found.notes, "plan": plan})
    if not as_json or found.faults:
        for text in found.notes:
            note(text)
    if found.faults:
        note(str(RecipeError(found.faults)))
        raise typer.Exit(MISTAKE)
    if not as_json:
        print(f"{recipe} has no faults" + (_said(found.plan) if found.plan else ""))


def _checked(path: Path, changes: list[str]) -> "Checked":
    """The recipe's own faults together with those of what it names."""
    from dataclasses import replace

    from softprompt.errors import RecipeError
    from softprompt.recipe import make_recipe, read_data
    from softprompt.train.check import Checked, faults, salvaged

    data = read_data(path, changes)
    try:
        return faults(make_recipe(data))
    except RecipeError as error:
        rest = salvaged(data, error.faults)
        found = Checked() if rest is None else faults(rest)
        return replace(found, faults=(*error.faults, *found.faults), plan=None)


def _said(plan: "Plan") -> str:
    """The plan for people."""
    from softprompt.train.plan import trained_share

    _, _, share = trained_share(plan.trainable, plan.parameters).partition(" ")
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
    head = ["", "rows", "mean tokens", "most", "cut"]
    splits = [
        [name, f"{s.rows:,}", f"{s.mean_tokens:.1f}", str(s.max_tokens), f"{s.cut:,}"]
        for name, s in plan.splits.items()
    ]
    labels = {
        name: ", ".join(f"{label} {n:,}" for label, n in s.labels.items())
        for name, s in plan.splits.items()
        if s.labels
    }
    settings = {n: f"{s.value!s:<12} ({s.source})" for n, s in plan.settings.items()}
    parts = [listed(facts), aligned([head, *splits]), *([listed(labels)] if labels else [])]
    return "\n\n" + "\n\n".join([*parts, listed(settings)])
