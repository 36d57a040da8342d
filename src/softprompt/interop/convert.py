"""Import prompts from the files of other libraries, and export prompts to them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

from torch import Tensor

from softprompt._io import write_dir
from softprompt.artifact import describe_backbone, make_artifact
from softprompt.backbone.model import Backbone
from softprompt.data.tag_schemes import TAG_SCHEMES
from softprompt.data.template import parse_template
from softprompt.data.tokenizer import measure_wrapping
from softprompt.errors import ArtifactError, DataError, TemplateError, format_unknown
from softprompt.inference.model import PromptModel, attach
from softprompt.injection.compatibility import check_prompt_fits
from softprompt.injection.verify import load_backbone
from softprompt.interop.base import ExportRequest, ForeignPrompt, Readout
from softprompt.interop.registry import get_reader, get_writer, read_base_model
from softprompt.prompt import InputPrompt
from softprompt.tasks import (
    TASKS,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    Task,
    TaskSettings,
)
from softprompt.tasks.classification import CausalVerbalizer
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.config import describe_settings
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.tag_decoding import make_transitions


def resolve_task_settings(foreign: ForeignPrompt, task: TaskSettings | None) -> TaskSettings:
    """The task of an imported prompt.

    Args:
        foreign: what the file has.
        task: the task that the caller wants.

    Raises:
        ArtifactError: neither names a task, or the two contradict each other.
    """
    stored: Mapping[str, Any] = foreign.task or {}
    if isinstance(task, Tag) or stored.get("kind") == Tag.kind:
        return _resolve_tag_settings(foreign, task)
    if foreign.head:
        head = {key: value for key, value in stored.items() if key != "kind"}
        if stored.get("kind") == Extract.kind:
            return _resolve_extraction(task, head)
        if task is None:
            return Classify(**head)
        if not isinstance(task, Classify) or task.verbalizer is not None:
            msg = (
                "the file has a trained head, which a task of another kind would not use. Leave "
                "the task and the verbalizer out."
            )
            raise ArtifactError(msg)
        return replace(task, **head)
    if task is None and not stored:
        msg = (
            "the file does not say which task the prompt is for. Give the task: kind 'generate', "
            "or kind 'classify' with a verbalizer, such as --set task.kind=classify --set "
            '\'task.verbalizer={bad=" bad", good=" good"}\' '
            "(task=Classify(verbalizer=…) in Python)."
        )
        raise ArtifactError(msg)
    settings = task or _build_task_settings(stored)
    if isinstance(settings, Choose):
        _check_choice(settings)
    if isinstance(settings, Classify) and settings.verbalizer is None:
        msg = (
            "the file has no trained head, so labels need words that the language-model head can "
            "score. Give the task a verbalizer."
        )
        raise ArtifactError(msg)
    return settings


def _check_choice(settings: Choose) -> None:
    """Make sure that options can be scored and targets be read without a head and without rows."""
    fault = None
    if settings.head is not None:
        fault = (
            "the file has no head that scores options. Leave task.head out, so that the "
            "language-model head scores their tokens."
        )
    elif settings.target_form == "auto":
        fault = (
            "a prompt is imported without data, so it is not known how targets name an option. Set "
            "task.target_form to 'text', 'index' or 'label'."
        )
    if fault is not None:
        raise ArtifactError(fault)


def _resolve_tag_settings(foreign: ForeignPrompt, task: TaskSettings | None) -> Tag:
    """The task of a prompt whose file has a linear head of tags."""
    if not foreign.tag_head:
        msg = (
            "the file has no linear classifier, which tags of words are read with. Give a "
            "checkpoint that has one, or another task."
        )
        raise ArtifactError(msg)
    if task is not None and not isinstance(task, Tag):
        msg = (
            "the file has a head of tags, which a task of another kind would not use. Leave the "
            "task out, or give kind 'tag'."
        )
        raise ArtifactError(msg)
    return replace(task or Tag(), head="linear")


def _resolve_scheme(settings: Tag, labels: Sequence[str]) -> Tag:
    """The settings with a scheme that has all labels; ``none`` if they are plain tags."""
    if settings.scheme != "auto":
        return settings
    for scheme in TAG_SCHEMES:
        with suppress(DataError):
            make_transitions(labels, scheme=scheme)
            return replace(settings, scheme=scheme)
    return settings


def _resolve_extraction(task: TaskSettings | None, head: Mapping[str, Any]) -> Extract:
    """The settings of a head on the tokens of a context."""
    if task is None:
        return Extract(**head)
    if not isinstance(task, Extract):
        msg = (
            "the file has a head on the tokens of a context, which only a task of kind 'extract' "
            "uses. Leave the task out, or give one of that kind."
        )
        raise ArtifactError(msg)
    known = {} if task.null_threshold == "auto" else {"null_threshold": task.null_threshold}
    return replace(task, **{**head, **known})


def _build_task_settings(stored: Mapping[str, object]) -> TaskSettings:
    values: dict[str, Any] = dict(stored)
    return TASKS[values.pop("kind")](**values)


def resolve_labels(
    foreign: ForeignPrompt, settings: TaskSettings, *, labels: Sequence[str]
) -> list[str]:
    """The labels in the order of a head's scores, or the choices of text generation.

    Args:
        foreign: what the file has.
        settings: of the task.
        labels: as the caller names them.

    Raises:
        ArtifactError: there are not as many as the head has classes, or they depend on data.
    """
    names = list(labels) or _list_labels(settings)
    if not foreign.head or isinstance(settings, Extract):
        return names
    if foreign.classes < 2:  # noqa: PLR2004  # a choice
        msg = (
            f"the head gives {foreign.classes} scores, but a choice is among 2 or more. It may be "
            "that of a regression, which softprompt has no task for."
        )
        raise ArtifactError(msg)
    names = names or [f"LABEL_{i}" for i in range(foreign.classes)]
    if len(names) != foreign.classes or len({*names}) != len(names):
        msg = (
            f"the head scores {foreign.classes} classes, but the labels are {', '.join(names)}. "
            f"Name {foreign.classes} different ones, in the order of its scores."
        )
        raise ArtifactError(msg)
    return names


def _list_labels(settings: TaskSettings) -> list[str]:
    """The labels or choices that a task's settings name."""
    match settings:
        case Classify(labels=labels, verbalizer=verbalizer):
            return list(labels or verbalizer or ())
        case Generate(choices="from-data"):
            msg = (
                "task.choices is 'from-data', but a prompt is imported without data. List the "
                "choices, or leave task.choices out for any text."
            )
            raise ArtifactError(msg)
        case Generate(choices=choices):
            return list(choices or ())
        case Regress() | Extract() | Choose():
            return []
        case Tag(labels=labels):
            return list(labels or ())
        case unreachable:
            assert_never(unreachable)


def check_foreign_head(
    foreign: ForeignPrompt, settings: TaskSettings, *, backbone: Backbone
) -> None:
    """Make sure that the head fits the backbone.

    Raises:
        ArtifactError: its tensors are not those of the head's kind, or have another width.
    """
    if not foreign.head or not isinstance(settings, Classify | Extract | Tag):
        return
    width = backbone.geometry.hidden_size
    expected = ClassifierHead(width, foreign.classes, kind=settings.head, seed=0).state_dict()
    stored, needed = (_describe_shapes(head) for head in (foreign.head, expected))
    if stored != needed:
        msg = (
            f"the file's head has {stored}, but {backbone.name!r} takes {needed}. The prompt "
            "belongs to another backbone, or the file is incomplete. Name its own with --backbone "
            "(backbone=… in Python)."
        )
        raise ArtifactError(msg)


def _describe_shapes(head: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {[*tensor.shape]}" for name, tensor in sorted(head.items()))


def check_foreign_template(foreign: ForeignPrompt, template: str) -> None:
    """Make sure that the template has as many soft tokens as the prompt.

    Raises:
        TemplateError: the numbers differ.
    """
    length = foreign.prompt.length if isinstance(foreign.prompt, InputPrompt) else 0
    soft = parse_template(template).soft_length
    if soft != length:
        msg = (
            f"the template {template!r} has {soft} soft tokens, but the prompt has {length}. "
            f"Write one such as {foreign.template!r}."
        )
        raise TemplateError(msg)


def import_prompts(
    form: str,
    source: str | Path,
    *,
    backbone: Backbone | None = None,
    task: TaskSettings | None = None,
    labels: Sequence[str] = (),
) -> dict[str, PromptModel]:
    """Import all prompts of another library's file or folder.

    Args:
        form: one of ``softprompt.interop.registry.PROMPT_FORMATS``: ``peft``, ``npy`` …
        source: the file or folder.
        backbone: that the prompt was trained on; by default the one that the file names. Only
            shapes can be checked, since files do not identify the weights.
        task: with its template; by default the task of the file, with the template that
            corresponds to the other library. The kind of a trained head is always the file's.
        labels: of a trained head, in the order of its scores; ``LABEL_0`` … by default, as in
            transformers.

    Returns:
        The models by name: ``""`` if there is only one; ``task-0``, ``task-1`` … for PEFT's
        multitask prompts. A model's ``save`` writes it as an artifact.

    Raises:
        ArtifactError: the file is incomplete, inconsistent, or does not fit the backbone or the
            task; or it does not name its backbone, and none was given.
        BackboneError: the backbone that the file names cannot be loaded, or lacks weights that a
            trained head needs.
        PromptError: the backbone does not accept this kind of prompt.
        TemplateError: the task's template has another number of soft tokens.

    Examples:
        >>> import numpy as np
        >>> np.save("prompt.npy", np.ones((5, backbone.geometry.embedding_size), "float32"))
        >>> models = import_prompts("npy", "prompt.npy", backbone=backbone)
        >>> models[""].prompt.length
        5
    """
    read = get_reader(form)
    backbone = backbone or _load_named_backbone(form, Path(source))
    prompts = read(Path(source), backbone)
    return {
        name: _make_model(foreign, backbone, task=task, labels=labels)
        for name, foreign in prompts.items()
    }


def import_prompt(
    form: str,
    source: str | Path,
    *,
    backbone: Backbone | None = None,
    task: TaskSettings | None = None,
    labels: Sequence[str] = (),
    pick: str | None = None,
) -> PromptModel:
    """Import the prompt of another library's file or folder.

    Args:
        form: as in `import_prompts`.
        source: the file or folder.
        backbone: as in `import_prompts`.
        task: as in `import_prompts`.
        labels: as in `import_prompts`.
        pick: the name of one of several prompts, such as ``task-1``.

    Returns:
        The model; its ``save`` writes it as an artifact.

    Raises:
        ArtifactError: there are several prompts and none was picked, there is none of that name,
            or as in `import_prompts`.
        BackboneError: as in `import_prompts`.
        PromptError: as in `import_prompts`.
        TemplateError: as in `import_prompts`.

    Examples:
        >>> import numpy as np
        >>> np.save("prompt.npy", np.ones((5, backbone.geometry.embedding_size), "float32"))
        >>> model = import_prompt("npy", "prompt.npy", backbone=backbone)
        >>> model.artifact.manifest.template
        '{soft:5}{text}'
    """
    models = import_prompts(form, source, backbone=backbone, task=task, labels=labels)
    if pick is not None:
        return pick_prompt(models, pick)
    if len(models) > 1:
        msg = (
            f"{source} has {len(models)} prompts: {', '.join(models)}. Pick one of them, or use "
            "import_prompts for all."
        )
        raise ArtifactError(msg)
    (model,) = models.values()
    return model


def pick_prompt(models: Mapping[str, PromptModel], name: str) -> PromptModel:
    """One of the prompts that `import_prompts` returned.

    Args:
        models: by name.
        name: of the prompt.

    Returns:
        The prompt.

    Raises:
        ArtifactError: there is none of that name.
    """
    if name in models:
        return models[name]
    if "" in models:
        msg = f"there is a single prompt, so there is no {name!r}. Leave the name out."
        raise ArtifactError(msg)
    raise ArtifactError(format_unknown("prompt", name, options=models))


def export_prompt(form: str, model: PromptModel, *, output: str | Path) -> Path:
    """Export a prompt to another library's format.

    Args:
        form: one of ``softprompt.interop.registry.PROMPT_FORMATS``.
        model: the prompt with its backbone.
        output: the folder to write; new or empty.

    Returns:
        The folder.

    Raises:
        ArtifactError: the format has nothing that corresponds to the prompt (the message says what
            to train instead), or the folder cannot be written.

    Examples:
        >>> import numpy as np
        >>> np.save("prompt.npy", np.ones((5, backbone.geometry.embedding_size), "float32"))
        >>> model = import_prompt("npy", "prompt.npy", backbone=backbone)
        >>> folder = export_prompt("safetensors", model, output="exported")
        >>> print(*(path.name for path in folder.iterdir()))
        prompt.safetensors
    """
    write = get_writer(form)
    return write_dir(write(make_export_request(model)), Path(output))


def make_export_request(model: PromptModel) -> ExportRequest:
    """Make what a writer needs: the artifact of a model, and facts of its template and task."""
    if not model.prompt.length:
        msg = (
            "the artifact is a trained head without a prompt, which no format of prompts can hold. "
            "Train without train.keep_plain_head, or use the artifact's own files."
        )
        raise ArtifactError(msg)
    template = parse_template(model.artifact.manifest.template)
    first, *_ = measure_wrapping(model.backbone.tokenizer, pair=template.pair).ids
    leading = template.soft_before_bos if first else template.leading_soft_tokens
    is_chat = model.artifact.manifest.task.get("messages_column") is not None
    return ExportRequest(
        model.artifact,
        model.backbone,
        # The text of a chat template is before all soft tokens, or may be.
        leading_soft=0 if is_chat else leading,
        hard_template=template.hard_text,
        readout=_get_readout(model.task),
    )


def _get_readout(task: Task) -> Readout | None:
    match task:
        case CausalVerbalizer(words=words):
            label_tokens = dict(zip(words.labels, words.tokens, strict=True))
            return Readout(task.renderer.max_length, label_tokens, None)
        case TextGenerator():
            return Readout(task.renderer.max_length, {}, task.decoding)
        case _:
            return None


def _load_named_backbone(form: str, source: Path) -> Backbone:
    base = read_base_model(form, source)
    if base.name is None:
        msg = f"{source} does not name the backbone of its prompt. Load it, and give it too."
        raise ArtifactError(msg)
    return load_backbone(base.name, revision=base.revision)


def _make_model(
    foreign: ForeignPrompt, backbone: Backbone, *, task: TaskSettings | None, labels: Sequence[str]
) -> PromptModel:
    check_prompt_fits(backbone.geometry, foreign.prompt)
    if foreign.fault is not None and not isinstance(task, Tag):
        raise foreign.fault
    settings = resolve_task_settings(foreign, task)
    template = settings.template or foreign.template
    if isinstance(settings, Tag):
        foreign = replace(
            foreign, head=foreign.tag_head, classes=len(foreign.tag_head["output.weight"])
        )
        own = foreign.template.replace("{text}", f"{{{settings.words_column}}}")
        template = settings.template or own
    check_foreign_template(foreign, template)
    names = resolve_labels(foreign, settings, labels=labels)
    settings = _resolve_scheme(settings, names) if isinstance(settings, Tag) else settings
    check_foreign_head(foreign, settings, backbone=backbone)
    artifact = make_artifact(
        foreign.prompt,
        foreign.head,
        template=template,
        max_length=None,
        task=describe_settings(settings, template=template),
        labels=names,
        backbone=describe_backbone(backbone),
        data={},
        recipe={"imported": dict(foreign.note)},
        metrics={},
    )
    return attach(artifact, backbone)
