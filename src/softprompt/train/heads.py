"""The trained head of a run: which states it may read, and what it starts from.

A linear head starts as a logistic regression on the states that the start of the prompt gives: a
head that is random at first lets the gradient destroy what the states already tell (Kumar et al.
2022, https://arxiv.org/abs/2202.10054, of fine-tuning).
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from softprompt.artifact import Artifact
from softprompt.artifact.checks import read_task_settings
from softprompt.backbone.model import Backbone
from softprompt.backbone.references import is_same_model
from softprompt.data import Template, group_by_length
from softprompt.errors import RecipeError, TemplateError
from softprompt.prompt import Prompt
from softprompt.tasks import (
    Choose,
    Classify,
    Example,
    Extract,
    Generate,
    Tag,
    Task,
    TaskSettings,
)
from softprompt.tasks.chooser import HeadChooser
from softprompt.tasks.classifier_head import ClassifierHead, HeadKind
from softprompt.tasks.config import has_trained_head
from softprompt.tasks.heads import HeadClassifier
from softprompt.tasks.objectives import SingleLabel
from softprompt.tasks.pooling import Pooling, find_pooling_fault, resolve_pooling
from softprompt.tasks.regression import Numbers
from softprompt.tasks.tagger import Tagger, list_tag_indices
from softprompt.train.datasets import RenderedRows, sample_rows
from softprompt.train.linear_models import (
    can_fit,
    divide_rows,
    fit_linear_model,
    list_fold_parts,
)
from softprompt.train.option_models import fit_option_head
from softprompt.train.readout import MAX_PROBED_ROWS, ReadoutChoice
from softprompt.train.regression import normalize_features

# The share of the regression's weights that a head starts with. It gives the same labels as the
# whole regression, which is so sure of the rows that it was fitted on that they leave the prompt no
# gradient: with it, deep prefixes on 960 reviews were worse than with random heads.
_SHARE_OF_WEIGHTS = 0.2
# The heads that a linear model can be folded into.
_LINEAR_HEADS: tuple[HeadKind, ...] = ("linear", "linear-normalized")
_BATCH_SIZE = 32
_FOLDS = 4


def check_pooling(settings: Choose | Classify, *, backbone: Backbone, template: Template) -> None:
    """Check that a head with a readout can be trained.

    Args:
        settings: of the task; without a head nothing is checked.
        backbone: of the run.
        template: of a row.

    Raises:
        TemplateError: the readout does not see the row, or not the prompt.
    """
    if not has_trained_head(settings):
        return
    kind = backbone.geometry.architecture
    fault = find_pooling_fault(settings.pooling, architecture=kind, template=template)
    if fault is not None:
        raise TemplateError(fault)


def check_plain_head_fits(settings: TaskSettings, backbone: Backbone) -> None:
    """Check that a head without a prompt can do a task.

    Args:
        settings: of the task.
        backbone: of the run.

    Raises:
        RecipeError: it cannot.
    """
    no_head = "the task has no labels that a head could choose from"
    reasons = [no_head] if isinstance(settings, Extract | Generate) else []
    if isinstance(settings, Choose):
        reasons.append("each row has its own options, which it has no labels for")
    if isinstance(settings, Tag):
        reasons.append("it is not compared with a prompt for tags of words")
    if backbone.geometry.architecture == "encoder-decoder":
        reasons.append("the states of an encoder-decoder are read by its decoder")
    if reasons:
        raise RecipeError([f"train.keep_plain_head: {' and '.join(reasons)}. Leave the key out."])


@dataclass(frozen=True, eq=False)
class HeadStart:
    """What a task's head starts from.

    Args:
        task: whose head has the artifact's tensors and readout, if it was taken.
        readout: of the head that was taken; None without one, and of tags.
        takes_head: whether the head was taken.
        warnings: about the artifact.
        notes: on what was taken.
    """

    task: Task
    readout: ReadoutChoice | None = None
    takes_head: bool = False
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
    if isinstance(task, Tagger) and _has_same_tags(task, artifact):
        task.head.load_state_dict(dict(artifact.head))
        note = "the prompt and the head start as those of the artifact"
        return HeadStart(task, takes_head=True, warnings=(*warnings,), notes=(note,))
    if not isinstance(task, HeadClassifier):
        note = "the prompt starts as that of the artifact"
        return HeadStart(task, warnings=(*warnings,), notes=(note,))
    difference = _find_head_difference(task, artifact, settings)
    if difference is not None:
        note = f"the prompt starts as that of the artifact, the head at random: {difference}"
        return HeadStart(task, warnings=(*warnings,), notes=(note,))
    task.head.load_state_dict(dict(artifact.head))
    pooling = _read_pooling(artifact, backbone)
    note = "the prompt and the head start as those of the artifact"
    readout = ReadoutChoice(pooling, {}, "that of the artifact", is_chosen=False)
    return HeadStart(
        task.with_pooling(pooling), readout, takes_head=True, warnings=(*warnings,), notes=(note,)
    )


def _has_same_tags(task: Tagger, artifact: Artifact) -> bool:
    """Whether an artifact has a head of the same kind for the same tags."""
    settings = read_task_settings(artifact.manifest)
    is_same = isinstance(settings, Tag) and settings.head == task.head.kind
    return is_same and tuple(artifact.manifest.labels) == task.labels


def can_fit_head(task: Task) -> bool:
    """Whether a task has a head that a linear model can be folded into.

    Args:
        task: bound to its backbone.
    """
    if isinstance(task, Tagger | HeadChooser):
        return task.head.kind in _LINEAR_HEADS
    is_linear = isinstance(task, HeadClassifier) and task.head.kind in _LINEAR_HEADS
    return is_linear and can_fit(task.objective)


def fit_any_head(task: Task, rows: RenderedRows, *, prompt: Prompt | None) -> ClassifierHead | None:
    """Fit the head of a task for which `can_fit_head` is true.

    Args:
        task: as for `fit_head` and `fit_tag_head`.
        rows: to fit on.
        prompt: to run them with.
    """
    match task:
        case Tagger():
            return fit_tag_head(task, rows, prompt=prompt)
        case HeadChooser():
            return fit_option_head(task, rows, prompt=prompt, share=_SHARE_OF_WEIGHTS)
        case HeadClassifier():
            return fit_head(task, rows, prompt=prompt)
        case _:
            return None


def fit_tag_head(
    task: Tagger,
    rows: RenderedRows,
    *,
    prompt: Prompt | None,
    most_words: int = MAX_PROBED_ROWS,
) -> ClassifierHead | None:
    """Fit a head of tags as a logistic regression, on the states of words in rows with a prompt.

    The regularization is chosen by folds of the rows. The head gets all of the weights: it is
    fitted to a few of the words, so the others still have a gradient. (With a fifth, deep prefixes
    on 700 sentences of the Brown corpus found fewer names.)

    Args:
        task: with a linear head; it stays as it is.
        rows: to fit on: as many of them, always the same ones, as have so many words.
        prompt: to run them with, on the backbone's device; None for the bare backbone.
        most_words: the most words.

    Returns:
        The head. None if the rows are too few to fit one, or have states that are not finite.
    """
    chosen = _sample_words(rows, most_words)
    known = [[index for index in list_tag_indices(e) if index >= 0] for e in chosen]
    labels = [task.labels[index] for of_row in known for index in of_row]
    number = np.repeat(np.arange(len(known)), [len(of_row) for of_row in known])
    folds = [np.flatnonzero(number % _FOLDS == fold) for fold in range(_FOLDS)]
    objective = SingleLabel(task.labels, weights=task.objective.weights)
    parts = list_fold_parts(labels, [f for f in folds if len(f)], objective=objective)
    features = _compute_word_states(task, chosen, prompt)
    if not parts or not np.isfinite(features).all():
        return None
    is_normalized = task.head.kind == "linear-normalized"
    found = fit_linear_model(
        normalize_features(features) if is_normalized else features,
        labels,
        objective=objective,
        parts=parts,
        is_normalized=is_normalized,
    )
    head = deepcopy(task.head)
    head.load_state_dict({"output.weight": found.weight, "output.bias": found.bias})
    return head


def _sample_words(rows: RenderedRows, most: int) -> list[Example]:
    """Rows in a random order, always the same one, that have so many words, and at least one."""
    examples = sample_rows(rows, MAX_PROBED_ROWS).examples
    counts = np.cumsum([len(list_tag_indices(e)) for e in examples])
    return [*examples[: max(1, int(np.searchsorted(counts, most, side="right")))]]


@torch.no_grad()
def _compute_word_states(
    task: Tagger, examples: Sequence[Example], prompt: Prompt | None
) -> np.ndarray:
    """The states ``[words, H]`` of words whose tag is known, in fp32, row after row."""
    found = [np.empty(0)] * len(examples)
    for batch in group_by_length([e.length for e in examples], size=_BATCH_SIZE, seed=None):
        states = task.compute_word_states([examples[index] for index in batch], [prompt])
        for index, of_row in zip(batch, states, strict=True):
            known = [at >= 0 for at in list_tag_indices(examples[index])]
            found[index] = of_row.float().cpu().numpy()[known]
    return np.concatenate(found)


def fit_head(
    task: HeadClassifier, rows: RenderedRows, *, prompt: Prompt | None
) -> ClassifierHead | None:
    """Fit a task's head as a linear model, on the states that rows have with a prompt.

    The regularization is chosen by folds of the rows. The head gets a fifth of the weights, which
    gives the same labels with less confidence, so that the rows still have a gradient. A head of
    numbers gets all of them.

    Args:
        task: with a head for which `can_fit_head` is true; it stays as it is.
        rows: to fit on; of these at most 2,000 are used.
        prompt: to run them with, on the backbone's device; None for the bare backbone.

    Returns:
        The head. None if the rows are too few to fit one, or have states that are not finite.
    """
    sample, objective = sample_rows(rows, MAX_PROBED_ROWS), task.objective
    folds = divide_rows(sample.truth, objective, seed=0)
    parts = list_fold_parts(sample.truth, folds, objective=objective)
    if not parts:
        return None
    features = _compute_states(task, sample, prompt)
    if not np.isfinite(features).all():  # the first step of the training says so
        return None
    is_normalized = task.head.kind == "linear-normalized"
    if is_normalized:
        features = normalize_features(features)
    found = fit_linear_model(
        features, sample.truth, objective=objective, parts=parts, is_normalized=is_normalized
    )
    head = deepcopy(task.head)
    share = 1.0 if isinstance(objective, Numbers) else _SHARE_OF_WEIGHTS
    head.load_state_dict({"output.weight": share * found.weight, "output.bias": share * found.bias})
    return head


@torch.no_grad()
def _compute_states(task: HeadClassifier, rows: RenderedRows, prompt: Prompt | None) -> np.ndarray:
    """The states ``[rows, H]`` that the head reads, in fp32."""
    examples = rows.examples
    found = [np.empty(0)] * len(examples)
    for batch in group_by_length([e.length for e in examples], size=_BATCH_SIZE, seed=None):
        states = task.compute_states([examples[index] for index in batch], [prompt])
        for index, state in zip(batch, states[:, 0].float().cpu().numpy(), strict=True):
            found[index] = state
    return np.stack(found)


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
