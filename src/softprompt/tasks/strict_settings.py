"""Settings from plain data, checked as strictly as a recipe."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

from pydantic import create_model

from softprompt.tasks.config import StrictModel

Settings = TypeVar("Settings")


def build_settings(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass from plain data, checked as strictly as a table of the recipe.

    Args:
        settings: the class.
        values: of its fields.

    Raises:
        pydantic.ValidationError: a key is unknown, missing or of the wrong type.
    """
    model = _make_model(settings)  # type: ignore[arg-type]  # a class is hashable
    return settings(**dict(model.model_validate(dict(values))))


@cache
def _make_model(settings: type[Any]) -> type[StrictModel]:
    """The strict model of a settings dataclass; making one takes milliseconds."""
    keys: Any = {
        f.name: (f.type, ... if f.default is MISSING else f.default) for f in fields(settings)
    }
    return create_model(settings.__name__, __base__=StrictModel, **keys)
