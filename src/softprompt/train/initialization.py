"""What the prompt of a run starts from, and the default settings that go with it."""

from itertools import chain
from pathlib import Path

from softprompt.artifact import Artifact, load_artifact
from softprompt.backbone.model import Geometry
from softprompt.methods import MethodSettings, PromptTuning
from softprompt.methods.defaults import Defaults, choose_defaults
from softprompt.methods.initializers import (
    FromDemonstrations,
    FromLabels,
    FromPrompt,
    FromRandom,
    FromText,
    FromVocabulary,
    Initializer,
)
from softprompt.recipe import Recipe
from softprompt.tasks import Classify


def choose_run_defaults(
    settings: MethodSettings, geometry: Geometry, *, from_demonstrations: bool
) -> Defaults:
    """The default settings of a run.

    Args:
        settings: of the method.
        geometry: of the backbone.
        from_demonstrations: whether the prompt starts from the keys and values of training rows.
    """
    kind = settings.reparametrization if isinstance(settings, PromptTuning) else "none"
    return choose_defaults(
        settings.name, geometry, reparametrization=kind, from_demonstrations=from_demonstrations
    )


def is_from_demonstrations(recipe: Recipe, init: Initializer | Artifact | None) -> bool:
    """Whether the prompt of a run starts from demonstrations.

    Args:
        recipe: of the run.
        init: the initialization, instead of the recipe's.
    """
    if init is not None:
        return isinstance(init, FromDemonstrations)
    return recipe.method.init is not None and recipe.method.init.source == "demonstrations"


def resolve_initializer(
    recipe: Recipe, *, labels: tuple[str, ...], defaults: Defaults
) -> Initializer:
    """Choose the initialization: the recipe's, else label words, else the method's default.

    Args:
        recipe: of the run.
        labels: of the task; their words are the verbalizer's if there is one.
        defaults: of the method.

    Raises:
        ArtifactError: the recipe names an artifact that cannot be read.
    """
    words, settings = labels, recipe.task_settings
    if isinstance(settings, Classify) and settings.verbalizer is not None:
        words = tuple(chain.from_iterable(settings.list_words().values()))
    section = recipe.method.init
    if section is None:
        is_sampled = isinstance(defaults.init, FromVocabulary)
        return FromLabels(words) if is_sampled and words else defaults.init
    match section.source:
        case "vocabulary" | "random" as plain:
            return FromVocabulary() if plain == "vocabulary" else FromRandom()
        case "labels":
            return FromLabels(tuple(section.words or words))
        case "text":
            return FromText(section.text or "")
        case "demonstrations":
            return FromDemonstrations(section.rows)
        case "artifact":
            return FromPrompt(load_artifact(Path(section.path or "")).prompt)
