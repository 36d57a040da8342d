"""``softprompt recipe-schema``: the JSON Schema of recipes, for editors."""

from softprompt.cli.console import print_json


def print_recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from softprompt.recipe import make_recipe_schema

    print_json(make_recipe_schema())
