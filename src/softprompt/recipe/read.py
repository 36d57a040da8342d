"""A recipe file, with files named relative to it, and single values changed on the way."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.errors import RecipeError
from softprompt.recipe.make import make_recipe
from softprompt.recipe.sections import Recipe

_FILES = (("backbone", "name"), ("data", "train"), ("data", "validation"), ("data", "test"))


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Raises:
        RecipeError: with all faults that were found.
    """
    return make_recipe(read_data(path, changes))


def read_data(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe file says, changed as asked and with its files located, but not yet checked.

    Raises:
        RecipeError: it is not there or not TOML, or a change cannot be.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"no recipe {str(path)!r}. Write one with: softprompt init DATA"
        raise RecipeError([msg]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not TOML in UTF-8: {error}. Correct that place."
        raise RecipeError([msg]) from error
    except OSError as error:
        msg = (
            f"{path} cannot be read: {error.strerror}. Give a recipe file that this user may read."
        )
        raise RecipeError([msg]) from error
    changed(data, changes)
    _locate(data, path.resolve().parent)
    return data


def changed(data: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Set single values of plain data, in place.

    Raises:
        RecipeError: a change cannot be; all of them at once.
    """
    faults = [fault for change in changes if (fault := _apply(data, change))]
    if faults:
        raise RecipeError(faults)
    return data


def _apply(data: dict[str, Any], change: str) -> str | None:
    """Change one value of a recipe, as ``--set a.b=c`` asks; or say why that cannot be."""
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return f"--set {change!r}: write section.key=value, such as train.epochs=3."
    table = data
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return f"--set {change!r}: {key!r} is a value, not a table. Set {key!r} itself."
    table[keys[-1]] = _value(text)
    return None


def _value(text: str) -> object:
    """A value in TOML, or text as it is; dates are text, since no recipe has any."""
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | bool | int | float | list | dict) else text


def _locate(data: dict[str, Any], folder: Path) -> None:
    """Name files that are given relative to the recipe by their whole path."""
    for section, key in _FILES:
        table = data.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and (folder / value).exists():
            table[key] = str(folder / value)
    method = data.get("method")
    start = method.get("initialise") if isinstance(method, Mapping) else None
    if isinstance(start, dict) and isinstance(start.get("path"), str):
        start["path"] = str(folder / Path(start["path"]).expanduser())
