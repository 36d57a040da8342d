"""What a foreign prompt is to be used for: what its file says and what the user says, agreed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

from torch import Tensor

from softprompt.artifact.formats import Foreign
from softprompt.backbone.model import Backbone
from softprompt.data.template import parse
from softprompt.errors import ArtifactError, TemplateError
from softprompt.prompt import InputPrompt
from softprompt.tasks import TASKS, Classify, Generate, TaskSettings
from softprompt.tasks.pool import ClassifierHead


def settings_of(foreign: Foreign, task: TaskSettings | None) -> TaskSettings:
    """What is asked of the backbone.

    Raises:
        ArtifactError: the file leaves it open and nobody says it, or the two do not agree.
    """
    told: Mapping[str, Any] = foreign.task or {}
    if foreign.head:
        head = {key: value for key, value in told.items() if key != "kind"}
        if task is None:
            return Classify(**head)
        if not isinstance(task, Classify) or task.verbalizer is not None:
            msg = (
                "the file has a trained head, which a task of another kind would not use. Leave "
                "the task and the verbalizer out."
            )
            raise ArtifactError(msg)
        return replace(task, **head)
    if task is None and not told:
        msg = (
            "the file does not say what is asked of the backbone. Say it: kind 'generate', or "
            "kind 'classify' with a verbalizer, such as --set task.kind=classify --set "
            '\'task.verbalizer={bad=" bad", good=" good"}\'.'
        )
        raise ArtifactError(msg)
    settings = task or _told(told)
    if isinstance(settings, Classify) and settings.verbalizer is None:
        msg = (
            "the file has no trained head, so labels need words that the language-model head can "
            "score. Give the task a verbalizer."
        )
        raise ArtifactError(msg)
    return settings


def _told(told: Mapping[str, object]) -> TaskSettings:
    values: dict[str, Any] = dict(told)
    return TASKS[values.pop("kind")](**values)


def labels_of(foreign: Foreign, settings: TaskSettings, *, labels: Sequence[str]) -> list[str]:
    """The labels, in the order of a head's scores; the choices of a writer.

    Args:
        labels: as the caller names them.

    Raises:
        ArtifactError: they are not as many as the head scores, or not known without data.
    """
    given = list(labels) or _named_labels(settings)
    if not foreign.head:
        return given
    if foreign.classes < 2:  # noqa: PLR2004  # a choice
        msg = (
            f"the head gives {foreign.classes} scores, but a choice is among 2 or more. It may be "
            "that of a regression, which softprompt has no task for."
        )
        raise ArtifactError(msg)
    names = given or [f"LABEL_{at}" for at in range(foreign.classes)]
    if len(names) != foreign.classes or len({*names}) != len(names):
        msg = (
            f"the head scores {foreign.classes} classes, but the labels are {', '.join(names)}. "
            f"Name {foreign.classes} different ones, in the order of its scores."
        )
        raise ArtifactError(msg)
    return names


def _named_labels(settings: TaskSettings) -> list[str]:
    match settings:
        case Classify(labels=names):
            return list(names or ())
        case Generate(choices="data"):
            msg = (
                "task.choices is 'data', but a prompt is imported without any. List the choices, "
                "or take 'any'."
            )
            raise ArtifactError(msg)
        case Generate(choices="any"):
            return []
        case Generate(choices=choices):
            return list(choices)
        case unreachable:
            assert_never(unreachable)


def check_head(foreign: Foreign, settings: TaskSettings, *, backbone: Backbone) -> None:
    """Make sure that the head fits the backbone.

    Raises:
        ArtifactError: its tensors are others than those of the head's kind, or of another width.
    """
    if not foreign.head or not isinstance(settings, Classify):
        return
    width = backbone.geometry.hidden_size
    own = ClassifierHead(width, foreign.classes, kind=settings.head, seed=0).state_dict()
    given, wanted = (_shapes(head) for head in (foreign.head, own))
    if given != wanted:
        msg = (
            f"the file's head has {given}, but {backbone.name!r} takes {wanted}. The prompt "
            "belongs to another backbone, or the file is not whole. Name its own with --backbone."
        )
        raise ArtifactError(msg)


def _shapes(head: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {[*tensor.shape]}" for name, tensor in sorted(head.items()))


def check_soft(foreign: Foreign, template: str) -> None:
    """Make sure that the template has as many soft tokens as the prompt.

    Raises:
        TemplateError: it has not.
    """
    length = foreign.prompt.length if isinstance(foreign.prompt, InputPrompt) else 0
    soft = parse(template).soft_length
    if soft != length:
        msg = (
            f"the template {template!r} has {soft} soft tokens, but the prompt has {length} to "
            f"stand in it. Write one such as {foreign.template!r}."
        )
        raise TemplateError(msg)
