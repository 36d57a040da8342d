"""What is to be compared: a recipe alone, or a file that names one and says what differs."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from softprompt.compare.arms import TUNED, Arm, folder_of, method_arms, tuned_arms, with_method
from softprompt.errors import RecipeError, unknown
from softprompt.methods import METHODS
from softprompt.recipe import Recipe, Section, faults_of, make_recipe, read_recipe

CONTROLS = ("majority", "hard-prompt", "linear-probe", *TUNED)

# All arms get the same rows on the same backbone, the same question and the same budget.
_COMMON = {"seed", "backbone", "data", "cache"}
_SAME = {
    *(f"task.{key}" for key in ("kind", "label_column", "target_column", "choices", "labels")),
    *(f"train.{key}" for key in ("steps", "epochs", "batch_size", "token_budget", "select")),
    *(f"train.{key}" for key in ("evaluate_every", "evaluate_rows", "patience")),
}


class ArmSection(Section):
    """An arm of its own: the recipe, with another method or other settings."""

    name: str
    method: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class PlanSection(Section):
    """A comparison's file."""

    recipe: str = Field(description="the file that all arms begin with, relative to this one")
    methods: list[str] | None = None
    arms: list[ArmSection] = Field(default_factory=list)
    controls: list[str] = Field(default_factory=lambda: [*CONTROLS])
    seeds: PositiveInt = 5
    rates: list[PositiveFloat] = Field(default_factory=lambda: [0.3, 1.0, 3.0])
    share: float = Field(0.1, gt=0, le=1)
    seconds: PositiveFloat | None = None


@dataclass(frozen=True)
class Plan:
    """A comparison before it is run.

    Args:
        base: the recipe that all arms begin with.
        arms: what is trained, controls last.
        controls: those that are not trained, by name.
        seeds: how often each arm is trained.
        factors: of the rates in the search.
        share: of the budget, for each rate of the search.
        seconds: of training steps for each run; None for the recipe's steps.
    """

    base: Recipe
    arms: tuple[Arm, ...]
    controls: tuple[str, ...]
    seeds: int
    factors: tuple[float, ...]
    share: float
    seconds: float | None


def read_plan(path: Path, changes: Sequence[str] = (), **given: Any) -> Plan:  # noqa: ANN401  # checked as the file is
    """Read a recipe, or a comparison's file, which is told by its key ``recipe``.

    Args:
        changes: of the recipe, as for :func:`softprompt.recipe.read_recipe`.
        given: keys of a comparison's file that take the place of its own; None for its own.

    Raises:
        RecipeError: with all faults that were found.
    """
    own = {name: value for name, value in given.items() if value is not None}
    table, recipe = _table(path), path
    if "recipe" in table and isinstance(table["recipe"], str):
        recipe = path.parent / table["recipe"]
    else:
        table = {"recipe": path.name}
    try:
        section = PlanSection.model_validate({**table, **own})
    except ValidationError as error:
        raise RecipeError(faults_of(error, owner=PlanSection)) from error
    base = read_recipe(recipe, changes)
    faults = _faults(section)
    if faults:
        raise RecipeError(faults)
    return _plan(base, section)


def _plan(base: Recipe, section: PlanSection) -> Plan:
    methods = section.methods
    if methods is None:
        methods = [] if section.arms else [*METHODS]
    tuned = [kind for kind in TUNED if kind in section.controls]
    arms = [*method_arms(base, methods), *_own_arms(base, section.arms), *tuned_arms(base, tuned)]
    return Plan(
        base=base,
        arms=tuple(arms),
        controls=tuple(name for name in section.controls if name not in TUNED),
        seeds=section.seeds,
        factors=tuple(section.rates),
        share=section.share,
        seconds=section.seconds,
    )


def _own_arms(base: Recipe, sections: Sequence[ArmSection]) -> list[Arm]:
    arms, faults = [], []
    for section in sections:
        try:
            arms.append(_own_arm(base, section))
        except RecipeError as error:
            faults += [f"arm {section.name!r}: {fault}" for fault in error.faults]
    if faults:
        raise RecipeError(faults)
    return arms


def _own_arm(base: Recipe, section: ArmSection) -> Arm:
    method = section.method
    if method is not None and method not in METHODS:
        raise RecipeError([unknown("method", method, options=METHODS)])
    data = (base if method is None else with_method(base, method)).as_data()
    for path, value in section.set.items():
        *parents, key = path.split(".")
        table = data
        for at, parent in enumerate(parents, start=1):
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                where = ".".join(parents[:at])
                raise RecipeError([f"{where!r} is a value, not a table. Set {where!r} itself."])
        table[key] = value
    return Arm(section.name, make_recipe(data))


def _faults(section: PlanSection) -> list[str]:
    named = [(name, "control", CONTROLS) for name in section.controls]
    named += [(name, "method", tuple(METHODS)) for name in section.methods or ()]
    faults = [
        unknown(what, name, options=known) for name, what, known in named if name not in known
    ]
    names = [*(section.methods or ()), *(arm.name for arm in section.arms), *section.controls]
    faults += [
        f"{name!r} is named twice. Give each arm and control a name of its own, once."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    places = [folder_of(name) for name in {*names}]
    faults += [
        f"two of the names are alike but for signs that no folder has: {place!r}. Change one."
        for place in sorted({place for place in places if places.count(place) > 1})
    ]
    faults += [
        f"rates: {section.rates} are not distinct. Name each once."
        for _ in range(len({*section.rates}) < len(section.rates))
    ]
    for arm in section.arms:
        common = [key for key in arm.set if key.split(".")[0] in _COMMON or key in _SAME]
        faults += [
            f"arm {arm.name!r} sets {key}, but all arms get the same rows, backbone, question and "
            "budget. Set it in the recipe, or make another comparison."
            for key in sorted(common)
        ]
        faults += [
            f"arm {arm.name!r} sets all of {key!r}. Set single keys, such as "
            f'"{key}.name" = …, so that the others stay as they are.'
            for key, value in sorted(arm.set.items())
            if isinstance(value, dict) and key in Recipe.model_fields
        ]
    return faults


def _table(path: Path) -> Mapping[str, Any]:
    """What a file says; whatever is wrong with it is told when it is read as a recipe."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
