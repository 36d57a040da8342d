"""The check of an artifact: the same one for saving, loading, importing, pulling and serving."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from softprompt._io import ErrorContext
from softprompt.artifact.artifact import Artifact
from softprompt.artifact.manifest import (
    HEAD,
    Manifest,
    check_manifest,
    check_tensors,
    explain_fault,
)
from softprompt.data.template import parse_template
from softprompt.errors import DataError, RecipeError, TemplateError, format_unknown
from softprompt.tasks.classifier_head import HeadKind, list_head_shapes
from softprompt.tasks.config import (
    TASKS,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TaskSettings,
    has_trained_head,
    make_decoding,
)
from softprompt.tasks.extraction import SPAN_OUTPUTS
from softprompt.tasks.strict_settings import build_settings
from softprompt.tasks.tag_decoding import make_transitions

_REMEDY = "Train or import the prompt again."
_NEWER = "A newer softprompt may know it: pip install -U softprompt."
# The readout of artifacts that name none.
_EARLIER_POOLING = "cls"
_UNKNOWN = {"extra_forbidden": f" {_NEWER}"}


def check_artifact(artifact: Artifact, *, source: ErrorContext | None = None) -> None:
    """Check that an artifact is complete, does not contradict itself, and could be in a recipe.

    Args:
        artifact: from any source.
        source: the artifact, for messages.

    Raises:
        ArtifactError: with all faults at once.
    """
    faults = find_faults(artifact.manifest, artifact.to_tensors())
    if faults:
        raise (source or ErrorContext("the artifact", _REMEDY)).join_faults(faults)


def find_faults(manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[str]:
    """Find the faults of an artifact: of its manifest, its tensors, its template and its task.

    Args:
        manifest: of the artifact.
        tensors: by their names in the file.

    Returns:
        The faults.
    """
    faults = check_manifest(manifest) or check_tensors(manifest, tensors)
    return faults or [
        *_find_template_faults(manifest),
        *_find_task_faults(manifest),
        *_find_recipe_faults(manifest),
    ]


def read_task_settings(manifest: Manifest) -> TaskSettings:
    """The task that an artifact was trained for.

    Args:
        manifest: of the artifact.

    Raises:
        ArtifactError: this version of softprompt has no such task or setting.
    """
    try:
        return _build_settings(manifest)
    except ValueError as error:
        faults = _explain_settings(error)
        raise ErrorContext("the artifact", _REMEDY).join_faults(faults) from error


def _build_settings(manifest: Manifest) -> TaskSettings:
    """The task's settings, as strict as those of a recipe.

    Raises:
        ValueError: there is no such task, or a setting is not one of its.
    """
    values: dict[str, Any] = dict(manifest.task)
    kind = values.pop("kind", None)
    if kind == Classify.kind:  # the only kind then
        values = {"pooling": _EARLIER_POOLING} | values
    if not isinstance(kind, str) or kind not in TASKS:
        raise ValueError(format_unknown("task", str(kind), options=TASKS))
    settings: TaskSettings = build_settings(TASKS[kind], values)
    return settings


def _explain_settings(error: ValueError) -> list[str]:
    if isinstance(error, ValidationError):
        faults = [
            f"{explain_fault(item, table='task')}{_UNKNOWN.get(item['type'], '')}"
            for item in error.errors()
        ]
        return list(dict.fromkeys(faults))
    return [f"task.kind in manifest.json is an {error} {_NEWER}"]


def _find_template_faults(manifest: Manifest) -> Iterator[str]:
    try:
        template = parse_template(manifest.template)
    except TemplateError as error:
        yield str(error)
        return
    length = manifest.length if manifest.kind == "input" else 0
    if template.soft_length != length:
        what = "the prompt has" if manifest.kind == "input" else "a prefix needs"
        yield (
            f"the template {manifest.template!r} has {template.soft_length} soft tokens, but "
            f"{what} {length}."
        )
    if manifest.task.get("template", manifest.template) not in (
        None,
        manifest.template,
    ):  # of any type
        yield f"task.template is {manifest.task['template']!r}, but template is another one."


def _find_task_faults(manifest: Manifest) -> Iterator[str]:
    try:
        settings = _build_settings(manifest)
    except ValueError as error:
        yield from _explain_settings(error)
        return
    labels = manifest.labels
    if len({*labels}) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        yield f"labels has {', '.join(map(repr, twice))} more than once."
    shapes = {n: shape for n, shape in manifest.shapes.items() if n.startswith(HEAD)}
    yield from _find_setting_faults(settings, labels)
    if has_trained_head(settings):
        yield from _find_trained_head_faults(settings, labels, shapes)
    elif shapes:
        yield f"its task has no trained head, but shapes has {', '.join(shapes)}."


def _find_setting_faults(settings: TaskSettings, labels: list[str]) -> Iterator[str]:
    """Faults of the settings, whatever reads the answers."""
    match settings:
        case Classify():
            yield from _find_score_faults(settings, labels)
            if settings.verbalizer is not None:
                yield from _find_verbalizer_faults(settings, labels)
        case Generate():
            yield from _find_generation_faults(settings, labels)
        case Regress():
            yield from _find_regression_faults(settings, labels)
        case Tag(class_weights=weights):
            yield from _find_tag_faults(settings, labels)
            yield from _find_label_number_faults({"class_weights": weights}, labels)
        case Extract():
            yield from _find_extraction_faults(settings, labels)
        case Choose():
            yield from _find_choice_faults(settings, labels)


def _find_trained_head_faults(
    settings: TaskSettings, labels: list[str], shapes: Mapping[str, list[int]]
) -> Iterator[str]:
    match settings:
        case Classify():
            yield from _find_head_faults(settings, labels, shapes)
        case Regress():
            classes = len(settings.mean or ())
            yield from _find_shape_faults(settings, classes, shapes, what="numbers")
        case Tag():
            yield from _find_shape_faults(settings, len(labels), shapes, what="tags")
        case Extract():
            what = "the start and the end of an answer"
            yield from _find_tensor_faults(settings.head, SPAN_OUTPUTS, shapes, what=what)
        case Choose(head=head) if head is not None:
            if settings.pooling == "auto":
                yield "task.pooling is 'auto', but an artifact names the readout that its head has."
            yield from _find_tensor_faults(head, 1, shapes, what="the score of an option")
        case Choose() | Generate():
            pass


def _find_score_faults(settings: Classify, labels: list[str]) -> Iterator[str]:
    """Faults of the settings that have a number, or one for each label."""
    if settings.temperature == "auto":
        yield "task.temperature is 'auto', but an artifact has a number."
    thresholds = settings.thresholds if settings.multi_label else None
    yield from _find_label_number_faults(
        {"class_weights": settings.class_weights, "thresholds": thresholds}, labels
    )


def _find_label_number_faults(settings: Mapping[str, object], labels: list[str]) -> Iterator[str]:
    """Faults of settings that have a number for each label."""
    for key, numbers in settings.items():
        if isinstance(numbers, str):
            yield f"task.{key} is {numbers!r}, but an artifact has a number for each label."
        elif isinstance(numbers, Mapping) and {*numbers} != {*labels}:
            yield f"task.{key} has {', '.join(numbers)}, but labels is {labels}."


def _find_regression_faults(settings: Regress, labels: list[str]) -> Iterator[str]:
    if labels:
        yield f"labels is {labels}, but numbers have none, so it must be empty."
    mean, scale = settings.mean, settings.scale
    if not mean or not scale or len(mean) != len(scale):
        yield f"task.mean is {mean} and task.scale {scale}, but both need as many numbers."


def _find_tag_faults(settings: Tag, labels: list[str]) -> Iterator[str]:
    if settings.scheme == "auto":
        yield "task.scheme is 'auto', but an artifact names the scheme of its rows."
        return
    scheme = settings.output_scheme or settings.scheme
    if (scheme == "none") != (settings.scheme == "none"):
        yield f"task.scheme is {settings.scheme!r}, whose tags cannot be written as {scheme!r}."
    if not labels:
        yield "labels is empty, but tags are chosen from it."
    if settings.labels is not None and [*settings.labels] != labels:
        yield f"labels is {labels}, but task.labels is {[*settings.labels]}."
    try:
        make_transitions(labels, scheme=scheme)
    except DataError as error:
        yield f"labels: {error}"


def _find_head_faults(
    settings: Classify, labels: list[str], shapes: Mapping[str, list[int]]
) -> Iterator[str]:
    if len(labels) < 2:  # noqa: PLR2004  # a choice
        yield f"labels has {len(labels)}, but a trained head needs at least 2 to choose from."
        return
    if settings.labels is not None and [*settings.labels] != labels:
        yield f"labels is {labels}, but task.labels is {[*settings.labels]}."
    yield from _find_shape_faults(settings, len(labels), shapes, what="labels")


def _find_shape_faults(
    settings: Classify | Regress | Tag, classes: int, shapes: Mapping[str, list[int]], *, what: str
) -> Iterator[str]:
    if not isinstance(settings, Tag) and settings.pooling == "auto":
        yield "task.pooling is 'auto', but an artifact names the readout that its head has."
    yield from _find_tensor_faults(settings.head, classes, shapes, what=f"{classes} {what}")


def _find_extraction_faults(settings: Extract, labels: list[str]) -> Iterator[str]:
    if labels:
        yield f"labels is {labels}, but parts of a text have none, so it must be empty."
    if settings.null_threshold == "auto":
        yield "task.null_threshold is 'auto', but an artifact has a number or 'never'."


def _find_choice_faults(settings: Choose, labels: list[str]) -> Iterator[str]:
    if labels:
        yield f"labels is {labels}, but each row has its own options, so it must be empty."
    if settings.target_form == "auto":
        yield "task.target_form is 'auto', but an artifact names the form of its rows' targets."
    tokens = settings.length_normalization != "none" or settings.likelihood_weight > 0
    if settings.head is not None and tokens:
        yield "task has a head, which scores no tokens, and settings of these."


def _find_tensor_faults(
    kind: HeadKind, classes: int, shapes: Mapping[str, list[int]], *, what: str
) -> Iterator[str]:
    widths = shapes.get(f"{HEAD}output.weight", [])[1:]
    width = widths[0] if widths else 1
    expected = {
        f"{HEAD}{name}": shape
        for name, shape in list_head_shapes(kind, width=width, classes=classes).items()
    }
    if shapes != expected:
        found, needed = (
            ", ".join(f"{name} {shape}" for name, shape in sorted(each.items())) or "none"
            for each in (shapes, expected)
        )
        yield (
            f"a head of the kind {kind!r} for {what} has the tensors "
            f"{needed}, but shapes has {found}."
        )


def _find_verbalizer_faults(settings: Classify, labels: list[str]) -> Iterator[str]:
    words = settings.list_words()
    if labels != [*words]:
        yield f"labels is {labels}, but the labels of task.verbalizer are {[*words]}."
    if len(words) < 2:  # noqa: PLR2004  # a choice
        yield f"task.verbalizer has {len(words)} labels, but needs at least 2 to choose from."
    if settings.labels is not None:
        yield "task.labels has no effect with task.verbalizer, so it must be null."
    for label, of_label in words.items():
        if not of_label or not all(of_label):
            yield f"task.verbalizer has no word, or an empty one, for the label {label!r}."


def _find_generation_faults(settings: Generate, labels: list[str]) -> Iterator[str]:
    match settings.choices:
        case None if labels:
            yield f"labels is {labels}, but task.choices is null, so it must be empty."
        case "from-data" if not labels:
            yield "labels is empty, but task.choices is 'from-data', so it must list the choices."
        case None | "from-data":
            pass
        case choices if [*choices] != labels:
            yield f"labels is {labels}, but task.choices is {[*choices]}."
    try:
        make_decoding(settings)
    except RecipeError as error:
        yield from (f"task: {fault}" for fault in error.faults)


def _find_recipe_faults(manifest: Manifest) -> Iterator[str]:
    """Faults of those parts of the recipe that the backbone is loaded by."""
    section = manifest.recipe.get("backbone")
    if not isinstance(section, dict):
        return
    quantization = section.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        yield f"recipe.backbone.quantization_config is {quantization!r}, but must be a table."
