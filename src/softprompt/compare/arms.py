"""What is compared: recipes that differ in what is trained, and in nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from softprompt.data import parse
from softprompt.errors import RecipeError, unknown
from softprompt.methods import METHODS
from softprompt.recipe import Recipe, make_recipe

# What an arm trains: a prompt, all weights, or low-rank changes of them.
Kind = Literal["prompt", "fine-tuning", "lora"]
Tuned = Literal["fine-tuning", "lora"]
TUNED: tuple[Tuned, ...] = ("fine-tuning", "lora")

# Soft tokens where neither template nor method says how many.
_USUAL = 20
# Settings that are right for one method and wrong for the next.
_OWN = {
    "learning_rate",
    "optimizer",
    "optimizer_options",
    "weight_decay",
    "schedule",
    "warmup",
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: in the report.
        recipe: of its first seed.
        kind: what it trains; a prompt's method is in the recipe.
    """

    name: str
    recipe: Recipe
    kind: Kind = "prompt"

    @property
    def folder(self) -> str:
        """What the folders of its runs begin with."""
        return folder_of(self.name)

    @property
    def mark(self) -> str:
        """What tells its settings from any others."""
        facts = f"{self.kind} {self.recipe.model_dump_json()}"
        return blake2b(facts.encode(), digest_size=8).hexdigest()


def folder_of(name: str) -> str:
    """A name as folders may have it."""
    return re.sub(r"[^\w.-]+", "-", name)


def method_arms(recipe: Recipe, methods: Sequence[str]) -> list[Arm]:
    """A recipe with each of several methods in turn.

    The recipe's own method keeps its settings. Another one gets as many soft tokens: those of the
    template become its ``length``, or its ``length`` soft tokens in front. Optimiser, rate and
    schedule are those of its defaults.

    Raises:
        RecipeError: there is no such method, or one is named twice.
    """
    faults = [unknown("method", name, options=METHODS) for name in methods if name not in METHODS]
    twice = sorted({name for name in methods if methods.count(name) > 1})
    faults += [f"method {name!r} is named twice. Name it once." for name in twice]
    if faults:
        raise RecipeError(faults)
    return [Arm(name, with_method(recipe, name)) for name in methods]


def tuned_arms(recipe: Recipe, kinds: Sequence[Tuned]) -> list[Arm]:
    """Arms that change the backbone itself, on the rows as the hard prompt words them."""
    if not kinds:
        return []
    data = recipe.as_data()
    if recipe.task_settings.template is not None:
        data["task"]["template"] = hard_template(recipe, recipe.task_settings.template)
    data["train"] = _common(data)
    made = make_recipe(data)
    return [Arm(kind, made, kind) for kind in kinds]


def hard_template(recipe: Recipe, template: str) -> str:
    """A template with the words that its soft tokens start from in their place."""
    start = recipe.method.initialise
    words = start.text if start is not None and start.source == "text" else None
    return parse(template).with_words(words or "")


def with_method(recipe: Recipe, name: str) -> Recipe:
    """A recipe with another method, and as many soft tokens."""
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
    return make_recipe(data | {"method": own, "train": _common(data)})


def _common(data: Mapping[str, Any]) -> dict[str, Any]:
    """What all arms have of ``[train]``."""
    return {key: value for key, value in data.get("train", {}).items() if key not in _OWN}
