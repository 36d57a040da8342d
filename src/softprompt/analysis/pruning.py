"""Pruning: which soft tokens of a trained prompt matter, and how short the prompt can be."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.artifact import Artifact, make_artifact
from softprompt.artifact.checks import read_task_settings
from softprompt.data import parse_template
from softprompt.data.inputs import RowsLike
from softprompt.errors import DataError, PromptError, format_unknown
from softprompt.inference.model import PromptModel, attach
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks import Example
from softprompt.tasks.config import describe_settings
from softprompt.tasks.targets import read_task_targets

# Rows whose gradients are computed at once; each has a prompt of its own.
_ROWS_AT_ONCE = 8
# Up to so many soft tokens every length is evaluated; of more, about as many lengths.
_MOST_LENGTHS = 12


@dataclass(frozen=True)
class PrunedLength:
    """A prompt with some of its soft tokens, evaluated without training it again.

    Args:
        length: the number of soft tokens that are kept.
        kept: their numbers, from 0.
        metrics: on the rows.

    Examples:
        >>> PrunedLength(2, kept=(0, 3), metrics={"loss": 0.5}).kept
        (0, 3)
    """

    length: int
    kept: tuple[int, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class PruningResult:
    """How short a prompt can be.

    Args:
        importance: of each soft token, 0 or more.
        lengths: the prompt at each length, the whole one first.
        metric: that chose one of them.
        chosen: the chosen length.
        rows: the number of rows that everything was measured on.
        model: the shorter prompt, ready to predict, evaluate and save.

    Examples:
        ```python
        result = prune(PromptModel.from_pretrained("runs/recipe"))
        print([(each.length, each.metrics["loss"]) for each in result.lengths])
        ```

        >>> [field for field in PruningResult.__dataclass_fields__]
        ['importance', 'lengths', 'metric', 'chosen', 'rows', 'model']
    """

    importance: tuple[float, ...]
    lengths: tuple[PrunedLength, ...]
    metric: str
    chosen: PrunedLength
    rows: int
    model: PromptModel


def prune(
    model: PromptModel,
    rows: RowsLike | None = None,
    *,
    length: int | None = None,
    metric: str = "loss",
    batch_size: int = 32,
) -> PruningResult:
    """Find out how short a trained prompt can be, and shorten it, without training it again.

    The soft tokens are ranked by importance, and the prompt is evaluated at several lengths, each
    time with its most important soft tokens in their order.

    Source: Ma et al. 2022 (XPrompt): the mean, over rows, of the absolute gradient of
    the loss with respect to a factor of 1 before the soft token.

    Args:
        model: with the trained prompt.
        rows: labeled rows to measure on, other than test rows; by default the validation rows of
            the data that the prompt was trained with.
        length: to keep; by default the shortest that is at least as good as the whole prompt.
        metric: that chooses the length: ``loss`` is minimized, any other maximized.
        batch_size: the most rows that are run at once.

    Returns:
        The importances, the metrics at each length, and the shorter prompt.

    Raises:
        PromptError: the prompt has no such length.
        DataError: the rows do not fit the task, or there is no such metric.
        ArtifactError: the artifact does not say which data it was trained with.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:4}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> result = prune(model, rows, length=2)
        >>> result.model.prompt.length, result.model.artifact.manifest.template
        (2, '{text} is{soft:2}')
        >>> [each.length for each in result.lengths]
        [4, 3, 2, 1]
    """
    total = model.prompt.length
    if length is not None and not 1 <= length <= total:
        msg = f"the prompt has {total} soft tokens, so {length} cannot be kept. Keep 1 to {total}."
        raise PromptError(msg)
    split = "validation" if rows is None else None
    table, _ = model.read_labeled_rows(rows, split=split, columns=model.columns)
    labeled = table.to_list()
    truth = read_task_targets(table, model.task)
    importance = compute_importance(model, [model.task.make_example(row) for row in labeled])
    order = importance.argsort(descending=True, stable=True).tolist()
    models, evaluated = dict[int, PromptModel](), list[PrunedLength]()
    for count in _choose_lengths(total, length):
        kept = tuple(sorted(order[:count]))
        shorter = models[count] = _shorten(model, kept)
        examples = [shorter.task.make_example(row) for row in labeled]
        report = shorter.evaluate_rendered(examples, truth, batch_size=batch_size)
        evaluated.append(PrunedLength(count, kept, report.metrics))
    chosen = _choose(evaluated, length, metric)
    return PruningResult(
        importance=tuple(importance.tolist()),
        lengths=tuple(evaluated),
        metric=metric,
        chosen=chosen,
        rows=len(labeled),
        model=_record(models[chosen.length], chosen, total=total, own_rows=rows is None),
    )


def compute_importance(model: PromptModel, examples: Sequence[Example]) -> Float[Tensor, " P"]:
    """The importance of each soft token: how much the loss of a row depends on a factor before it.

    Args:
        model: with the trained prompt.
        examples: rendered rows with their targets.

    Returns:
        The mean, over the rows, of the absolute gradient.
    """
    total = torch.zeros(model.prompt.length)
    for begin in range(0, len(examples), _ROWS_AT_ONCE):
        part = examples[begin : begin + _ROWS_AT_ONCE]
        # A prompt for each row, so that one backward pass gives the gradient of each.
        prompts: list[Prompt | None] = []
        leaves: list[list[Tensor]] = []
        for _ in part:
            own = model.prompt.map_tensors(lambda t: t.detach().clone().requires_grad_())
            prompts.append(own)
            leaves.append([*own.to_tensors().values()])
        with torch.enable_grad():
            loss = model.task.compute_loss(part, prompts, rows=torch.arange(len(part))).total
        gradients = iter(torch.autograd.grad(loss, [leaf for own in leaves for leaf in own]))
        for own_leaves in leaves:
            products = [leaf.detach() * next(gradients) for leaf in own_leaves]
            by_token = torch.stack([_sum_by_token(product) for product in products]).sum(dim=0)
            total += by_token.abs().float().cpu()
    return total / len(examples)


def keep_soft_tokens(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    """The prompt with some of its soft tokens, in their order.

    Args:
        prompt: the whole one.
        kept: the numbers of the soft tokens, from 0.
    """
    index = sorted(kept)
    match prompt:
        case InputPrompt():
            return replace(prompt, vectors=prompt.vectors[index])
        case KVPrefix():
            return replace(prompt, keys=prompt.keys[:, :, index], values=prompt.values[:, :, index])
        case _:
            assert_never(prompt)


def _sum_by_token(product: Tensor) -> Tensor:
    """The sum over all axes but that of the soft tokens: ``[P, E]`` or ``[L, N, P, D]``."""
    return product.sum(dim=1) if product.ndim == 2 else product.sum(dim=(0, 1, 3))  # noqa: PLR2004


def _choose_lengths(total: int, wanted: int | None) -> list[int]:
    """The lengths to evaluate, the longest first."""
    count = min(total, _MOST_LENGTHS)
    lengths = {total, 1, *([] if wanted is None else [wanted])}
    if total == count:
        lengths |= {*range(1, total + 1)}
    else:
        lengths |= {round(total ** (step / (count - 1))) for step in range(count)}
    return sorted(lengths, reverse=True)


def _choose(evaluated: Sequence[PrunedLength], wanted: int | None, metric: str) -> PrunedLength:
    """The wanted length, or the shortest that is at least as good as the whole prompt."""
    whole = evaluated[0]
    if metric not in whole.metrics:
        raise DataError(format_unknown("metric", metric, options=whole.metrics))
    sign = -1 if metric == "loss" else 1
    if wanted is not None:
        return next(each for each in evaluated if each.length == wanted)
    limit = sign * whole.metrics[metric]
    return [each for each in evaluated if sign * each.metrics[metric] >= limit][-1]


def _shorten(model: PromptModel, kept: Sequence[int]) -> PromptModel:
    """The model with some of the soft tokens of its prompt, and with a template that fits."""
    manifest = model.artifact.manifest
    template = manifest.template
    if isinstance(model.prompt, InputPrompt):
        template = parse_template(template).keep_soft_tokens(kept)
    recipe: dict[str, Any] = deepcopy(manifest.recipe)
    for section, key, value in (("task", "template", template), ("method", "length", len(kept))):
        table = recipe.get(section)
        if isinstance(table, dict) and key in table:
            table[key] = value
    # The distance from the initialization is that of the whole prompt.
    metrics = {name: value for name, value in manifest.metrics.items() if name != "moved"}
    artifact: Artifact = make_artifact(
        keep_soft_tokens(model.artifact.prompt, kept),
        model.artifact.head,
        template=template,
        max_length=manifest.max_length,
        task=describe_settings(read_task_settings(manifest), template=template),
        labels=manifest.labels,
        backbone=manifest.backbone,
        data=manifest.data,
        recipe=recipe,
        metrics=metrics,
    )
    return attach(artifact, model.backbone)


def _record(model: PromptModel, chosen: PrunedLength, *, total: int, own_rows: bool) -> PromptModel:
    """Record the kept soft tokens in the artifact, and the metrics on its validation rows."""
    manifest = model.artifact.manifest
    metrics: dict[str, object] = {
        **manifest.metrics,
        "pruned": {"from": total, "kept": [*chosen.kept]},
    }
    if own_rows:
        metrics["validation"] = dict(chosen.metrics)
    artifact = replace(model.artifact, manifest=replace(manifest, metrics=metrics))
    return replace(model, artifact=artifact)
