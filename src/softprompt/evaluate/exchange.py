"""Bring prompts in from other libraries' files, and write them out for these."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from softprompt.artifact import Artifact, assemble, name_of
from softprompt.artifact.formats import Asked, Foreign, Outgoing, base_of, reader, writer
from softprompt.artifact.formats.folder import put
from softprompt.backbone.load import Loading
from softprompt.backbone.model import Backbone
from softprompt.data.template import parse
from softprompt.data.wrap import wrapping
from softprompt.errors import ArtifactError
from softprompt.evaluate.incoming import (
    check_head,
    check_soft,
    labels_of,
    settings_of,
)
from softprompt.evaluate.model import Model, bring
from softprompt.injection.check import check
from softprompt.injection.load import load_backbone
from softprompt.tasks import Task, TaskSettings
from softprompt.tasks.generate import Writer
from softprompt.tasks.verbalize import CausalWords


def import_prompts(
    form: str,
    source: str | Path,
    *,
    backbone: Backbone | None = None,
    task: TaskSettings | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Model]:
    """Every prompt of another library's file or folder, checked and ready to answer.

    Args:
        form: one of ``softprompt.artifact.formats.FORMATS``: ``peft``, ``npy`` …
        source: the file or folder.
        backbone: what the prompt was trained on; the one that the file names if left out. That it
            is the same is not in the file: only shapes can be compared.
        task: what is asked, with its template; by default what the file says, and the template
            that its own library had. A trained head's kind is always the file's.
        labels: of a trained head, in the order of its scores; ``LABEL_0`` … by default, as in
            transformers.

    Returns:
        By name: ``""`` where there is one; ``task-0``, ``task-1`` … of PEFT's multitask prompts.
        A model's ``save`` keeps it as an artifact.

    Raises:
        ArtifactError: the file is not whole, not what it says, or does not fit the backbone.
        TemplateError: the task's template has another number of soft tokens.
    """
    read = reader(form)
    own = backbone or _named(form, Path(source))
    found = read(Path(source), own)
    return {name: _model(foreign, own, task=task, labels=labels) for name, foreign in found.items()}


def export_prompt(form: str, model: Model, *, output: str | Path) -> Path:
    """Write a prompt as another library has it.

    Args:
        form: one of ``softprompt.artifact.formats.FORMATS``.
        model: the prompt with its backbone.
        output: the folder to write; new or empty.

    Returns:
        The folder.

    Raises:
        ArtifactError: the format cannot express the prompt (the message says what to train
            instead), or the folder cannot be written.
    """
    write = writer(form)
    return put(write(outgoing(model)), Path(output))


def outgoing(model: Model) -> Outgoing:
    """An artifact on its way out, with what only its task and its template know."""
    template = parse(model.artifact.manifest.template)
    first, *_ = wrapping(model.backbone.tokenizer, pair=template.pair).ids
    return Outgoing(
        model.artifact,
        model.backbone,
        front=template.before if first else template.soft_head,
        text=template.spoken,
        asked=_asked(model.task),
    )


def _asked(task: Task) -> Asked | None:
    match task:
        case CausalWords(words=words):
            of_label = dict(zip(words.labels, words.tokens, strict=True))
            return Asked(task.renderer.max_length, of_label, None)
        case Writer():
            return Asked(task.renderer.max_length, {}, task.decoding)
        case _:
            return None


def _named(form: str, source: Path) -> Backbone:
    said = base_of(form, source)
    if said.name is None:
        msg = f"{source} does not name the backbone of its prompt. Load it, and give it too."
        raise ArtifactError(msg)
    return load_backbone(said.name, Loading(revision=said.revision))


def _model(
    foreign: Foreign, backbone: Backbone, *, task: TaskSettings | None, labels: Sequence[str]
) -> Model:
    check(backbone.geometry, foreign.prompt)
    settings = settings_of(foreign, task)
    template = settings.template or foreign.template
    check_soft(foreign, template)
    answers = labels_of(foreign, settings, labels=labels)
    check_head(foreign, settings, backbone=backbone)
    artifact = assemble(
        foreign.prompt,
        foreign.head,
        template=template,
        max_length=None,
        task={"kind": settings.kind, **asdict(settings), "template": template},
        labels=answers,
        backbone=name_of(backbone),
        data={},
        recipe={"imported": dict(foreign.note)},
        metrics={},
    )
    bound = bring(artifact, backbone)
    return replace(bound, artifact=_labelled(artifact, bound))


def _labelled(artifact: Artifact, bound: Model) -> Artifact:
    """A verbalizer's labels are known once it is bound."""
    return replace(artifact, manifest=replace(artifact.manifest, labels=[*bound.labels]))
