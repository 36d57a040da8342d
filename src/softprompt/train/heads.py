"""The trained head of a run: which states it may read, and the artifact that it starts from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from softprompt.artifact import Artifact
from softprompt.artifact.checks import read_task_settings
from softprompt.backbone.model import Backbone
from softprompt.backbone.references import is_same_model
from softprompt.data import Template
from softprompt.errors import TemplateError
from softprompt.tasks import Classify, Task, TaskSettings
from softprompt.tasks.heads import HeadClassifier
from softprompt.tasks.pooling import Pooling, find_pooling_fault, resolve_pooling
from softprompt.train.readout import ReadoutChoice


def check_pooling(settings: Classify, *, backbone: Backbone, template: Template) -> None:
    """Check that a head with a readout can be trained.

    Args:
        settings: of the task, which trains a head.
        backbone: of the run.
        template: of a row.

    Raises:
        TemplateError: the readout does not see the row, or not the prompt.
    """
    kind = backbone.geometry.architecture
    fault = find_pooling_fault(settings.pooling, architecture=kind, template=template)
    if fault is not None:
        raise TemplateError(fault)


@dataclass(frozen=True, eq=False)
class HeadStart:
    """What a task's head starts from.

    Args:
        task: whose head has the artifact's tensors and readout, if it was taken.
        readout: of the head that was taken; None without one.
        warnings: about the artifact.
        notes: on what was taken.
    """

    task: Task
    readout: ReadoutChoice | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_head(task: Task, artifact: Artifact, *, settings: TaskSettings) -> HeadStart:
    """Start a task's head with that of the artifact that its prompt starts from, if it fits.

    Args:
        task: whose head is loaded in place.
        artifact: that the prompt starts from.
        settings: of the task, as the recipe has them.
    """
    backbone, warnings = task.backbone, [*find_foreign_starts([artifact], task.backbone)]
    if not isinstance(task, HeadClassifier):
        note = "the prompt starts as that of the artifact"
        return HeadStart(task, None, (*warnings,), (note,))
    difference = _find_head_difference(task, artifact, settings)
    if difference is not None:
        note = f"the prompt starts as that of the artifact, the head at random: {difference}"
        return HeadStart(task, None, (*warnings,), (note,))
    task.head.load_state_dict(dict(artifact.head))
    pooling = _read_pooling(artifact, backbone)
    note = "the prompt and the head start as those of the artifact"
    readout = ReadoutChoice(pooling, {}, "that of the artifact", is_chosen=False)
    return HeadStart(task.with_pooling(pooling), readout, (*warnings,), (note,))


def find_foreign_starts(artifacts: Iterable[Artifact], backbone: Backbone) -> Iterator[str]:
    """Find the prompts to start from that were trained on another backbone.

    Args:
        artifacts: to start from.
        backbone: of the run.

    Yields:
        A warning for each.
    """
    for artifact in artifacts:
        reference = artifact.manifest.backbone
        if not is_same_model(reference["fingerprint"], backbone.fingerprint):
            yield (
                f"the prompt starts from one that was trained on another backbone "
                f"({reference['name']}, fingerprint {reference['fingerprint']}, not "
                f"{backbone.fingerprint}), on which it may mean nothing. Start from a prompt of "
                "this backbone, or from label words or a text."
            )


def _read_pooling(artifact: Artifact, backbone: Backbone) -> Pooling:
    """The readout of an artifact's head."""
    settings = read_task_settings(artifact.manifest)
    named = settings.pooling if isinstance(settings, Classify) else "auto"
    return resolve_pooling(named, backbone.geometry.architecture)


def _find_head_difference(
    task: HeadClassifier, artifact: Artifact, wanted: TaskSettings
) -> str | None:
    """Why the artifact's head cannot be taken; None if it can."""
    head = task.head
    settings, labels = read_task_settings(artifact.manifest), artifact.manifest.labels
    if not artifact.head or not isinstance(settings, Classify):
        return "the artifact has none"
    if tuple(labels) != task.labels:
        return f"its labels are {', '.join(labels)}, not {', '.join(task.labels)}"
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if settings.head != head.kind:
        return f"its head is {settings.head!r}, not {head.kind!r}"
    pooling = _read_pooling(artifact, task.backbone)
    if isinstance(wanted, Classify) and wanted.pooling != "auto" and pooling != task.pooling:
        return f"its head reads {pooling!r}, not {task.pooling!r}"
    is_same = shapes == {name: tensor.shape for name, tensor in artifact.head.items()}
    return None if is_same else "its head has other shapes"
