"""Recipes: one strict TOML file that decides a run, checked with all faults at once."""

from softprompt.recipe.describe import describe_recipe, make_recipe_schema
from softprompt.recipe.loading import (
    RecipeSource,
    explain_validation_error,
    load_recipe,
    make_recipe,
    read_overrides,
    read_recipe,
    read_toml,
)
from softprompt.recipe.schema import (
    BackboneConfig,
    InitConfig,
    MethodConfig,
    Recipe,
    TaskConfig,
    TrainConfig,
)
from softprompt.tasks.config import StrictModel

__all__ = [
    "BackboneConfig",
    "InitConfig",
    "MethodConfig",
    "Recipe",
    "RecipeSource",
    "StrictModel",
    "TaskConfig",
    "TrainConfig",
    "describe_recipe",
    "explain_validation_error",
    "load_recipe",
    "make_recipe",
    "make_recipe_schema",
    "read_overrides",
    "read_recipe",
    "read_toml",
]
