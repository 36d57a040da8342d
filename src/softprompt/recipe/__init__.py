"""Everything that decides a run, as one strict TOML file, with all its faults at once."""

from softprompt.recipe.make import faults_of, make_recipe
from softprompt.recipe.parts import read_parts
from softprompt.recipe.read import read_data, read_recipe
from softprompt.recipe.sections import (
    BackboneSection,
    DataSection,
    InitialiseSection,
    Limit,
    MethodSection,
    Recipe,
    Section,
    Shares,
    TaskSection,
    TrainSection,
)

__all__ = [
    "BackboneSection",
    "DataSection",
    "InitialiseSection",
    "Limit",
    "MethodSection",
    "Recipe",
    "Section",
    "Shares",
    "TaskSection",
    "TrainSection",
    "faults_of",
    "make_recipe",
    "read_data",
    "read_parts",
    "read_recipe",
]
