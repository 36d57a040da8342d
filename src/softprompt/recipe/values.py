"""Checks of a recipe's values that no type excludes: what a run can use, and write down again."""

from collections.abc import Iterator, Mapping

from softprompt._parsing import check_depth
from softprompt.errors import DataError, RecipeError
from softprompt.recipe.schema import SEED_LIMIT, Recipe

# Whole numbers that TOML promises to keep, and numbers that fp32 can compute with.
_LARGEST, _LARGEST_FLOAT = 2**63 - 1, 1e30
_MOST_LEVELS = 20


def check_extent(data: object) -> None:
    """Check that the values of plain data can be shown in messages.

    Args:
        data: of a recipe.

    Raises:
        RecipeError: it is nested too deeply, or has whole numbers beyond 64 bits.
    """
    try:
        check_depth(data, _MOST_LEVELS)
    except ValueError as error:
        fault = (
            f"a value is nested more than {_MOST_LEVELS} levels deep. Write tables and lists of "
            "single values."
        )
        raise RecipeError([fault]) from error
    faults = [
        f"{where}: a whole number of {value.bit_length()} bits is more than 64 bits can hold. "
        "Write a smaller one."
        for where, value in _iterate_values(data)
        if isinstance(value, int) and abs(value) > _LARGEST
    ]
    if faults:
        raise RecipeError(faults)


def find_value_faults(data: object) -> Iterator[str]:
    """The faults of values that a run could not record, or would fail on only at its end.

    Args:
        data: of a recipe, not nested too deeply.

    Yields:
        Faults: numbers that are not finite or beyond fp32, and text that is not Unicode.
    """
    for where, value in _iterate_values(data):
        if isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT:
            yield (
                f"{where}: input should be a number from {-_LARGEST_FLOAT:g} to "
                f"{_LARGEST_FLOAT:g}, not {value}. Write one, or leave the key out."
            )
        if isinstance(value, str) and (at := _find_half_character(value)) is not None:
            yield (
                f"{where}: {value!r} is not valid Unicode at index {at}, so it cannot be written "
                "down. Correct it; if it is the name of a file, rename the file."
            )


def check_names_writable(text: str) -> None:
    """Check that the names of files in the text of a recipe can be written down.

    Args:
        text: the whole recipe.

    Raises:
        DataError: a name is not valid Unicode.
    """
    at = _find_half_character(text)
    if at is not None:
        line = text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0].partition("  #")[0].strip()
        msg = (
            f"a recipe cannot name the file in {line!r}: its name is not valid Unicode. Rename the "
            "file."
        )
        raise DataError(msg)


def _iterate_values(data: object, where: str = "") -> Iterator[tuple[str, object]]:
    """The single values of plain data, each with the path of its key; keys are values too."""
    match data:
        case Mapping():
            for key, value in data.items():
                path = f"{where}.{key}" if where else str(key)
                yield path, key
                yield from _iterate_values(value, path)
        case list() | tuple():
            for value in data:
                yield from _iterate_values(value, where)
        case _:
            yield where, data


def _find_half_character(text: str) -> int | None:
    """The index of the first lone surrogate; Python reads bytes that are not UTF-8 as these."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def find_seed_faults(recipe: Recipe) -> Iterator[str]:
    """The faults of the seeds of a recipe.

    Args:
        recipe: whose types are right.
    """
    count = recipe.train.seeds
    if count == 1 and recipe.train.combine_seeds != "best":
        yield (
            f'train.combine_seeds: "{recipe.train.combine_seeds}" is made of several seeds, but '
            "train.seeds is 1. Set train.seeds to 2 or more, or take train.combine_seeds out."
        )
    if recipe.seed + count > SEED_LIMIT:
        yield (
            f"train.seeds: {count} seeds from {recipe.seed} on go beyond {SEED_LIMIT - 1}, the "
            "highest. Choose a lower seed."
        )
