"""The faults of a recipe's initialization: keys that depend on its source."""

from collections.abc import Iterator

from softprompt.methods import METHODS
from softprompt.recipe.schema import InitConfig, Recipe

# What an initialization needs besides its source, by that source.
_INIT_KEYS = {"text": "text", "artifact": "path", "artifacts": "paths"}
_FEWEST_PATHS = 2


def find_init_faults(recipe: Recipe) -> Iterator[str]:
    """Find the faults of ``method.init``.

    Args:
        recipe: to check.

    Yields:
        Each fault with its key.
    """
    if recipe.method.init is not None:
        yield from _find_key_faults(recipe.method.init)
        yield from _find_demonstration_faults(recipe, recipe.method.init)


def _find_key_faults(init: InitConfig) -> Iterator[str]:
    if init.paths is not None and len({*init.paths}) < max(_FEWEST_PATHS, len(init.paths)):
        yield "method.init.paths: must be at least two different artifacts, to choose from."
    for key, value in (("text", init.text), ("path", init.path), ("paths", init.paths)):
        is_needed = _INIT_KEYS.get(init.source) == key
        if is_needed and value is None:
            yield f"method.init.{key}: is missing with from = {init.source!r}. Add it."
        if value is not None and not is_needed:
            yield f"method.init.{key}: means nothing with from = {init.source!r}. Take it out."
    for key, is_given, owner in (
        ("words", init.words is not None, "labels"),
        ("rows", init.rows is not None, "demonstrations"),
    ):
        if is_given and init.source != owner:
            yield f"method.init.{key}: means nothing with from = {init.source!r}. Take it out."


def _find_demonstration_faults(recipe: Recipe, init: InitConfig) -> Iterator[str]:
    if init.source != "demonstrations":
        return
    settings = recipe.method.collect_settings()
    if METHODS[recipe.method.name].prompt_kind != "kv":
        yield (
            "method.init.from: demonstrations are keys and values, but "
            f"{recipe.method.name} trains vectors. Use p-tuning-v2 or prefix-tuning, or another "
            'initialization, such as "labels".'
        )
    elif "length" in settings:
        yield (
            'method.length: means nothing with from = "demonstrations", whose rows decide it. Take '
            "it out, or set method.init.rows."
        )
    if settings.get("shift_positions") is False:
        yield (
            "method.shift_positions: with demonstrations a row's positions continue after theirs, "
            "so it cannot be false. Take it out."
        )
