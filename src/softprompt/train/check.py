"""Every fault of a recipe at once, the backbone and the rows included; or what it would do."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from softprompt.backbone.builtin import PREFIX
from softprompt.errors import RecipeError, SoftpromptError, unknown
from softprompt.evaluate.predict import METRICS
from softprompt.recipe import BackboneSection, Recipe, make_recipe
from softprompt.tasks import Classify
from softprompt.train.gather import Findings, gather
from softprompt.train.plan import Plan, plan
from softprompt.train.prepare import Prepared, open_section, prepare
from softprompt.train.run import make_trainer

_PAIR = 2


@dataclass(frozen=True, eq=False)
class Checked:
    """What came of checking a recipe.

    Args:
        faults: what must be corrected before it can be trained.
        notes: what could not be checked here.
        plan: what training would do; None if there are faults, or if it could not be made.
    """

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plan: Plan | None = None


def faults(recipe: Recipe) -> Checked:
    """Check all of a recipe, and train nothing.

    A backbone that is on the Hub and not on this machine is not fetched; a note says so, as of a
    data set where the Hub cannot be reached.
    """
    found = Findings()
    far = _is_far(recipe.backbone)
    backbone = None if far else found.attempt(open_section, recipe.backbone)
    if backbone is None:
        gather(recipe, None, found=found)
        if far:
            found.note(
                f"not checked: the backbone {recipe.backbone.name!r} and what depends on it. It is "
                "no folder here and not in the local cache; training would fetch it from the Hub."
            )
        return Checked(tuple(found.faults), tuple(found.notes))
    try:
        prepared = prepare(recipe, backbone=backbone)
    except SoftpromptError as error:
        gather(recipe, backbone, found=found)
        if not found.faults and not found.notes:  # a fault that no stage looks for
            found.add(error)
        return Checked(tuple(found.faults), tuple(found.notes))
    made = found.attempt(_planned, prepared)
    return Checked(tuple(found.faults), plan=made)


def salvaged(data: Mapping[str, Any], said: Sequence[str]) -> Recipe | None:
    """The recipe without the keys that have faults, so that the rest can be checked too.

    Args:
        data: the recipe as plain data.
        said: its faults, each of which begins with the key's path.

    Returns:
        None if a key that has a fault cannot be left out.
    """
    left = deepcopy(dict(data))
    for fault in said:
        *path, last = fault.partition(": ")[0].split(".")
        table: Any = left
        for key in path:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.pop(last, None)
    try:
        return make_recipe(left)
    except RecipeError:
        return None


def _is_far(section: BackboneSection) -> bool:
    """Whether a backbone would have to be fetched from the Hub."""
    name = section.name
    if name.startswith((PREFIX, ".", "/", "~")) or name.endswith(".gguf") or Path(name).exists():
        return False
    try:
        found = try_to_load_from_cache(name, "config.json", revision=section.revision)
    except HFValidationError:
        return False
    return not isinstance(found, str)


def _planned(prepared: Prepared) -> Plan:
    """The plan, if the loop over it can be made."""
    _check_select(prepared)
    accelerator = Accelerator(cpu=prepared.backbone.device.type == "cpu")
    return plan(prepared, steps=make_trainer(prepared, accelerator).total)


def _check_select(prepared: Prepared) -> None:
    labels, names = len(prepared.task.labels), {"loss"}
    if labels:
        names |= {*METRICS["classify"]} - ({"f1"} if labels != _PAIR else set())
    if not isinstance(prepared.recipe.task_settings, Classify):
        names |= {*METRICS["generate"]}
    select = prepared.training.select
    if select not in names:
        raise RecipeError([f"train.select: {unknown('metric', select, options=names)}"])
