"""What the prompt of a run starts from, and the default settings that go with it."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from softprompt.artifact import Artifact, load_artifact
from softprompt.backbone.model import Geometry
from softprompt.errors import FaultCollector, PromptError
from softprompt.methods import MethodSettings, MultitaskPromptTuning, PromptTuning
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

# A list of artifacts is one to choose from.
InitLike: TypeAlias = Initializer | Artifact | Sequence[Artifact]


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
    train_shared = not isinstance(settings, MultitaskPromptTuning) or settings.train_shared
    return choose_defaults(
        settings.name,
        geometry,
        reparametrization=kind,
        from_demonstrations=from_demonstrations,
        train_shared=train_shared,
    )


def is_from_demonstrations(recipe: Recipe, init: InitLike | None) -> bool:
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
        case "artifact" | "artifacts":  # of several, one is chosen later; all have one form
            paths = section.paths or [section.path or ""]
            return FromPrompt(load_artifact(Path(paths[0])).prompt)


def read_candidates(
    recipe: Recipe, init: InitLike | None, *, collector: FaultCollector
) -> dict[str, Artifact]:
    """Read the artifacts of which one is chosen as the initialization.

    Args:
        recipe: of the run.
        init: the initialization, instead of the recipe's.
        collector: of faults.

    Returns:
        The artifacts by their paths, or by their numbers; empty if there is nothing to choose.
    """
    section = recipe.method.init
    candidates: dict[str, Artifact] = {}
    if isinstance(init, Sequence):
        candidates = {f"artifact {n}": each for n, each in enumerate(init, start=1)}
    elif init is None and section is not None and section.source == "artifacts":
        for path in section.paths or ():
            artifact = collector.attempt(load_artifact, Path(path))
            if artifact is not None:
                candidates[path] = artifact
    collector.check(_check_one_form, candidates)
    return candidates


def _check_one_form(candidates: Mapping[str, Artifact]) -> None:
    forms = {name: _describe_form(artifact) for name, artifact in candidates.items()}
    first = next(iter(forms), None)
    for name, form in forms.items():
        if first is not None and form != forms[first]:
            msg = (
                f"the prompts to choose from differ in form: {first} has {forms[first]}, {name} "
                f"has {form}. Name prompts of one kind, length and backbone."
            )
            raise PromptError(msg)


def _describe_form(artifact: Artifact) -> str:
    tensors = artifact.prompt.to_tensors().items()
    shapes = ", ".join(f"{name} {[*tensor.shape]}" for name, tensor in tensors)
    layers = artifact.manifest.layers
    return shapes if layers is None else f"{shapes} on layers {layers}"
