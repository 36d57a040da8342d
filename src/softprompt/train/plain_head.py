"""A head without a prompt: what a prompt has to beat, and what a run keeps where none does.

The plain head is a logistic regression on the states of the bare backbone, with the readout of the
run. Validation rows, or folds, decide between it and the trained prompt; test rows never do. As an
artifact it is a prompt of length 0 with a linear head: the standardization of the features is
folded into its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.artifact import Artifact, describe_backbone, make_artifact
from softprompt.data import parse_template
from softprompt.inference.model import PromptModel, attach
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, LengthBudget, build_task
from softprompt.tasks.config import describe_settings
from softprompt.tasks.heads import HeadClassifier
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.train.datasets import RenderedRows, render_table, sample_rows
from softprompt.train.readout import (
    STRENGTHS,
    choose_readout,
    compute_features,
    divide_by_label,
    fit_regression,
    select_texts,
)
from softprompt.train.setup import RunSetup
from softprompt.train.trainer import Best

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# More training rows change a logistic regression little, and take long.
_MOST_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class PlainHead:
    """A logistic regression on the bare backbone's states, and its scores on unseen rows.

    Args:
        pooling: the readout.
        strength: C, the inverse of its regularization.
        weight: ``[C, H]``, one row for each label.
        bias: ``[C]``.
        accuracy: on the rows that judge, 0 to 1.
        loss: on these rows.
    """

    pooling: Pooling
    strength: float
    weight: Tensor
    bias: Tensor
    accuracy: float
    loss: float


@dataclass(frozen=True)
class HeadDecision:
    """Which of the two a run keeps.

    Args:
        keeps_prompt: whether the prompt was better.
        prompt: its accuracy and loss on the rows that judge; None where there are none.
        head: those of the plain head.
        judge: these rows.
    """

    keeps_prompt: bool
    prompt: Mapping[str, float] | None
    head: Mapping[str, float]
    judge: str

    def as_data(self) -> dict[str, Any]:
        """The decision as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        if self.prompt is None:
            return "the prompt is kept: there are no rows to compare it with a plain head by"
        scores = (
            f"{self.prompt['accuracy']:.1%} of {self.judge}, a plain head without a prompt "
            f"{self.head['accuracy']:.1%}"
        )
        if self.keeps_prompt:
            return f"the prompt is kept: it is right in {scores}"
        return (
            "no prompt was better than a plain head, which is kept, with a prompt of length 0: "
            f"the prompt is right in {scores}"
        )


def fit_plain_head(prepared: RunSetup) -> PlainHead:
    """Fit the plain head of a run on its training rows.

    The regularization is chosen by folds of the training rows; the scores are those on the
    validation rows, or on the folds where there are none.

    Args:
        prepared: the parts of the run, with a chosen readout.
    """
    backbone, labels = prepared.backbone, prepared.task.labels
    rows = {
        name: sample_rows(render_plain_rows(prepared, name), _MOST_ROWS)
        for name in ("train", "validation")
        if name in prepared.tables
    }
    pooling = _choose_pooling(prepared, rows)
    texts = {name: [e.variants[0] for e in part.examples] for name, part in rows.items()}
    features = {
        name: compute_features(backbone, part, poolings=[pooling])[pooling]
        for name, part in texts.items()
    }
    truth = {name: np.array(part.truth) for name, part in rows.items()}
    parts = _divide(prepared, truth["train"])
    scores = {
        strength: _cross_validate(features["train"], truth["train"], labels, strength, parts)
        for strength in STRENGTHS
    }
    strength = min(scores, key=lambda name: scores[name][1])
    accuracy, loss = scores[strength]
    fitted = fit_regression(features["train"], truth["train"], strength=strength)
    if "validation" in rows:
        accuracy, loss = _score(fitted, features["validation"], truth["validation"], labels)
    weight, bias = fold_regression(fitted, labels)
    return PlainHead(pooling, strength, weight, bias, accuracy, loss)


def fold_regression(fitted: "Pipeline", labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The weight ``[C, H]`` and bias ``[C]`` of a linear head with a regression's probabilities.

    Args:
        fitted: on standardized features, as `fit_regression` makes it.
        labels: in the order of the head's scores. One that the regression has not seen gets a
            probability of almost 0.
    """
    scaler, regression = fitted[0], fitted[-1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes, for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    by_label = {str(label): at for at, label in enumerate(regression.classes_)}
    folded = torch.zeros(len(labels), weight.shape[1])
    biases = torch.full((len(labels),), float(bias.min()) - 30)
    for at, label in enumerate(labels):
        if label in by_label:
            folded[at] = torch.from_numpy(weight[by_label[label]])
            biases[at] = float(bias[by_label[label]])
    return folded, biases


def decide(prepared: RunSetup, best: Best, *, head: PlainHead) -> HeadDecision:
    """Decide between the prompt of a run and its plain head, by rows that neither was fitted on.

    Of equally accurate ones the one with the lower loss is kept.

    Args:
        prepared: the parts of the run, after its cross-validation if it has one.
        best: the prompt, with its metrics on all validation rows.
        head: fitted on the same training rows.
    """
    validation, count = prepared.rows.get("validation"), len(prepared.rows["train"].truth)
    scores: Mapping[str, float] | None = None
    judge = ""
    if prepared.cross_validation is not None:
        scores = prepared.cross_validation["mean"]
        judge = f"{count:,} rows in {len(prepared.folds)} folds"
    elif validation is not None:
        scores, judge = best.metrics, f"{len(validation.truth):,} validation rows"
    of_head = {"accuracy": head.accuracy, "loss": head.loss}
    if scores is None:
        return HeadDecision(keeps_prompt=True, prompt=None, head=of_head, judge=judge)
    of_prompt = {name: scores[name] for name in of_head}
    is_better = (of_prompt["accuracy"], -of_prompt["loss"]) > (head.accuracy, -head.loss)
    return HeadDecision(is_better, of_prompt, of_head, judge)


def keep_better(model: PromptModel, best: Best, *, prepared: RunSetup) -> PromptModel:
    """The prompt of a run, or its plain head where no prompt was better.

    Args:
        model: the prompt of the run.
        best: the same, with its metrics on all validation rows.
        prepared: the parts of the run.
    """
    head = fit_plain_head(prepared)
    decision = decide(prepared, best, head=head)
    if decision.keeps_prompt:
        return model
    return attach(make_plain_artifact(prepared, head, decision=decision), prepared.backbone)


def make_plain_artifact(prepared: RunSetup, head: PlainHead, *, decision: HeadDecision) -> Artifact:
    """Make the artifact of a plain head: a prompt of length 0 and a linear head.

    Args:
        prepared: the parts of the run.
        head: fitted on its training rows.
        decision: that the manifest records.
    """
    plain = replace(_make_plain_settings(prepared), pooling=head.pooling)
    template = plain.template or ""
    width = prepared.backbone.geometry.embedding_size
    return make_artifact(
        InputPrompt(torch.zeros(0, width)),
        {"output.weight": head.weight, "output.bias": head.bias},
        template=template,
        max_length=prepared.recipe.data.max_length,
        task=describe_settings(plain, template=template),
        labels=list(prepared.task.labels),
        backbone=describe_backbone(prepared.backbone),
        data=prepared.data_record,
        recipe=prepared.recipe.as_data(),
        metrics={
            "validation": {"accuracy": head.accuracy, "loss": head.loss},
            "step": 0,
            "plain_head": decision.as_data(),
        },
    )


def render_plain_rows(prepared: RunSetup, split: str) -> RenderedRows:
    """The rows of a split without soft tokens, as the artifact of a plain head renders them.

    Args:
        prepared: the parts of the run.
        split: whose rows.
    """
    settings, recipe = _make_plain_settings(prepared), prepared.recipe
    task = build_task(
        settings,
        prepared.backbone,
        template=settings.template or "",
        labels=prepared.task.labels,
        budget=LengthBudget(recipe.data.max_length),
        seed=recipe.seed,
    )
    return render_table(task, prepared.tables[split], where=f"the {split} data")


def _make_plain_settings(prepared: RunSetup) -> Classify:
    """The settings of the task with a linear head, and no soft tokens in its template."""
    settings = prepared.recipe.task_settings
    if not isinstance(settings, Classify):  # refused by `check_plain_head`
        raise TypeError(settings)
    template = parse_template(prepared.template).replace_soft_tokens("")
    return replace(settings, template=template, verbalizer=None, head="linear", pooling="auto")


def _choose_pooling(prepared: RunSetup, rows: Mapping[str, RenderedRows]) -> Pooling:
    """The readout of the run's head; where it has none, the one that a probe finds best."""
    if isinstance(prepared.task, HeadClassifier):
        return prepared.task.pooling
    template = parse_template(_make_plain_settings(prepared).template or "")
    poolings = list_poolings(prepared.backbone.geometry.architecture, template)
    size = prepared.backbone.geometry.vocab_size
    texts = {name: select_texts(part, size) for name, part in rows.items()}
    return choose_readout(prepared.backbone, poolings, **texts).pooling


def _divide(prepared: RunSetup, truth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows to fit on and to judge by: the folds of the run, or some of the training rows."""
    every = np.arange(len(truth))
    folds: list[np.ndarray] = [np.array(fold) for fold in prepared.folds]
    if not folds or len(truth) != sum(map(len, folds)):
        folds = divide_by_label(truth, seed=prepared.recipe.seed)
    parts = [(np.setdiff1d(every, fold), fold) for fold in folds]
    return [(fit, judge) for fit, judge in parts if len({*truth[fit]}) > 1]


def _cross_validate(
    features: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    strength: float,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
    """The accuracy and the loss over all parts."""
    right, total, count = 0.0, 0.0, 0
    for fit, judge in parts:
        fitted = fit_regression(features[fit], truth[fit], strength=strength)
        accuracy, loss = _score(fitted, features[judge], truth[judge], labels)
        right, total = right + accuracy * len(judge), total + loss * len(judge)
        count += len(judge)
    return (right / count, total / count) if count else (0.0, float("inf"))


def _score(
    fitted: "Pipeline", features: np.ndarray, truth: np.ndarray, labels: Sequence[str]
) -> tuple[float, float]:
    """The accuracy and the loss of a linear head that is folded from a regression."""
    weight, bias = fold_regression(fitted, labels)
    scores = torch.from_numpy(features).float() @ weight.T + bias
    targets = torch.tensor([labels.index(str(label)) for label in truth])
    accuracy = (scores.argmax(dim=-1) == targets).double().mean()
    return float(accuracy), float(F.cross_entropy(scores.double(), targets))
