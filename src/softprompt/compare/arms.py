"""What is compared: recipes that differ in their method and in nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.data import parse
from softprompt.errors import RecipeError, unknown
from softprompt.methods import METHODS
from softprompt.recipe import Recipe, make_recipe

# Soft tokens where neither template nor method says how many.
_USUAL = 20


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: in the report.
        recipe: of its first seed.
    """

    name: str
    recipe: Recipe


def method_arms(recipe: Recipe, methods: Sequence[str]) -> list[Arm]:
    """A recipe with each of several methods in turn.

    The recipe's own method keeps its settings. Another one gets as many soft tokens: those of the
    template become its ``length``, or its ``length`` soft tokens in front. It takes the learning
    rate of its defaults, since a rate that is right for one method is wrong for the next.

    Raises:
        RecipeError: there is no such method, or one is named twice.
    """
    faults = [unknown("method", name, options=METHODS) for name in methods if name not in METHODS]
    twice = sorted({name for name in methods if methods.count(name) > 1})
    faults += [f"method {name!r} is named twice. Name it once." for name in twice]
    if faults:
        raise RecipeError(faults)
    return [Arm(name, _with_method(recipe, name)) for name in methods]


def _with_method(recipe: Recipe, name: str) -> Recipe:
    if name == recipe.method.name:
        return recipe
    data = recipe.as_data()
    own: dict[str, Any] = {"name": name}
    if recipe.method.initialise is not None:
        own["initialise"] = data["method"]["initialise"]
    template = recipe.task_settings.template
    parsed = None if template is None else parse(template)
    given = recipe.method.settings().get("length", _USUAL)
    length = parsed.soft_length if parsed is not None and parsed.soft_length else given
    if METHODS[name].shape == "kv":
        own["length"] = length
        if parsed is not None:
            data["task"]["template"] = parsed.with_words("")
    elif parsed is not None and not parsed.soft_length:
        data["task"]["template"] = f"{{soft:{length}}}{template}"
    training = {k: v for k, v in data.get("train", {}).items() if k != "learning_rate"}
    return make_recipe(data | {"method": own, "train": training})
