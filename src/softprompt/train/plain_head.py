"""A head without a prompt: what a prompt has to beat, and what a run keeps where none does.

The plain head is a linear model on the states of the bare backbone, with the readout of the
run. Validation rows, or folds, decide between it and the trained prompt; test rows never do. As an
artifact it is a prompt of length 0 with a linear head on normalized states, into whose weights the
regression is folded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softprompt.artifact import Artifact, describe_backbone, make_artifact
from softprompt.data import parse_template
from softprompt.data.few_rows import count_rows
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, LengthBudget, Regress, build_task
from softprompt.tasks.config import describe_settings
from softprompt.tasks.heads import HeadClassifier
from softprompt.tasks.objective_settings import describe_objective
from softprompt.tasks.objectives import ScoreObjective, SingleLabel
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.tasks.regression import WordNumbers
from softprompt.train.datasets import RenderedRows, render_table, sample_rows
from softprompt.train.linear_models import (
    divide_rows,
    fit_linear_model,
    list_answers,
    list_fold_parts,
)
from softprompt.train.readout import choose_readout, compute_features, select_texts
from softprompt.train.regression import Part, normalize_features
from softprompt.train.setup import RunSetup

# More training rows change a logistic regression little, and take long.
_MOST_ROWS = 20_000
# Below so many training rows a class a prompt has to be clearly better than the plain head.
_FEW_ROWS = 32


@dataclass(frozen=True, eq=False)
class PlainHead:
    """A linear model on the bare backbone's states, and its scores on unseen rows.

    Args:
        pooling: the readout.
        settings: of the linear model.
        weight: ``[C, H]`` of a ``linear-normalized`` head.
        bias: ``[C]``.
        measure: the name of the score.
        score: on the rows that judge.
        loss: on these rows.
    """

    pooling: Pooling
    settings: Mapping[str, Any]
    weight: Tensor
    bias: Tensor
    measure: str
    score: float
    loss: float

    @property
    def metrics(self) -> dict[str, float]:
        """The score and the loss, by name."""
        return {self.measure: self.score, "loss": self.loss}


@dataclass(frozen=True)
class HeadDecision:
    """Which of the two a run keeps.

    Args:
        keeps_prompt: whether the prompt was better.
        prompt: its score and loss on the rows that judge; None where there are none.
        head: those of the plain head.
        judge: these rows.
        name: of what is compared with the head: the prompt, or the ensemble.
        subject: what of it these rows measured.
        measure: the name of the score.
    """

    keeps_prompt: bool
    prompt: Mapping[str, float] | None
    head: Mapping[str, float]
    judge: str
    name: str = "prompt"
    subject: str = "it"
    measure: str = "accuracy"

    def as_data(self) -> dict[str, Any]:
        """The decision as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        if self.prompt is None:
            return f"the {self.name} is kept: there are no rows to compare it with a plain head by"
        of_prompt, of_head = self.prompt[self.measure], self.head[self.measure]
        verb, scores = f"has a {self.measure} of", f"{of_prompt:.3f} on {self.judge}"
        other = f"{of_head:.3f}"
        if self.measure == "accuracy":
            verb, scores, other = (
                "is right in",
                f"{of_prompt:.1%} of {self.judge}",
                f"{of_head:.1%}",
            )
        scores = f"{scores}, a plain head without a prompt {other}"
        if self.keeps_prompt:
            return f"the {self.name} is kept: {self.subject} {verb} {scores}"
        best = "no prompt was better than a plain head"
        if of_prompt > of_head:
            best = "with so few rows no prompt was clearly better than a plain head"
        subject = (
            f"the {self.name}" if self.subject == "it" else f"of the {self.name}, {self.subject}"
        )
        return f"{best}, which is kept, with a prompt of length 0: {subject} {verb} {scores}"


def fit_plain_head(prepared: RunSetup) -> PlainHead:
    """Fit the plain head of a run on its training rows.

    The regularization is chosen by folds of the training rows, which also calibrate the scores. The
    accuracy and the loss are those on the validation rows, or on the folds where there are none.

    Args:
        prepared: the parts of the run, with a chosen readout.
    """
    backbone = prepared.backbone
    rows = {
        name: sample_rows(render_plain_rows(prepared, name), _MOST_ROWS)
        for name in ("train", "validation")
        if name in prepared.tables
    }
    pooling = _choose_pooling(prepared, rows)
    texts = {name: [e.variants[0] for e in part.examples] for name, part in rows.items()}
    features = {
        name: normalize_features(compute_features(backbone, part, poolings=[pooling])[pooling])
        for name, part in texts.items()
    }
    objective = get_objective(prepared)
    found = fit_linear_model(
        features["train"],
        rows["train"].truth,
        objective=objective,
        parts=_divide(prepared, rows["train"].truth),
        is_normalized=True,
    )
    truth = [rows["train"].truth[at] for at in found.judged]
    scores = found.unseen
    if "validation" in rows:
        states = features["validation"] * features["validation"].shape[1] ** 0.5
        truth, scores = [*rows["validation"].truth], found.score(states)
    judged = objective.score_rows(truth, list_answers(scores, objective))
    targets = [objective.read_target(text) for text in truth]
    loss = float("inf")
    if truth:
        loss = float(objective.sum_loss(scores.double(), targets).total) / len(truth)
    return PlainHead(
        pooling,
        found.settings,
        found.weight,
        found.bias,
        objective.measure,
        float(np.mean(judged)) if truth else 0.0,
        loss,
    )


def get_objective(prepared: RunSetup) -> ScoreObjective:
    """The objective of a run's head, before validation rows have decided anything.

    Args:
        prepared: the parts of a run with a trained head, or with label words.
    """
    objective = prepared.task.objective
    if isinstance(objective, SingleLabel):
        return replace(objective, temperature=1.0)
    if isinstance(objective, WordNumbers):
        return objective.numbers
    if not isinstance(objective, ScoreObjective):  # refused by `check_plain_head`
        raise TypeError(objective)
    return objective


def decide(
    prepared: RunSetup, metrics: Mapping[str, Any], *, head: PlainHead, name: str = "prompt"
) -> HeadDecision:
    """Decide between the prompt of a run and its plain head, by rows that neither was fitted on.

    Of equally accurate ones the one with the lower loss is kept. With few training rows the prompt
    must be clearly better, by one standard error: the rows that judge are then few too, and in the
    cells of the leaderboard with 8 and 16 rows a class the plain head was the better one.

    Args:
        prepared: the parts of the run.
        metrics: of the run: on all validation rows, or of its cross-validation.
        head: fitted on the same training rows.
        name: of what is compared with the head. Folds train the first seed of an ensemble alone.
    """
    validation, count = prepared.rows.get("validation"), len(prepared.rows["train"].truth)
    scores: Mapping[str, float] | None = None
    judge, subject = "", "it"
    if "cross_validation" in metrics:
        scores = metrics["cross_validation"]["mean"]
        judge = f"{count:,} rows in {len(prepared.folds)} folds"
        subject = "it" if name == "prompt" else "its first seed alone"
    elif validation is not None:
        scores, judge = metrics["validation"], count_rows(len(validation.truth), "validation")
    of_head, measure = head.metrics, head.measure
    if scores is None:
        return HeadDecision(True, None, of_head, judge, name=name, measure=measure)  # noqa: FBT003  # a value
    of_prompt = {name: scores[name] for name in of_head}
    is_better = (of_prompt[measure], -of_prompt["loss"]) > (head.score, -head.loss)
    if measure == "accuracy" and count < _FEW_ROWS * len(prepared.task.labels):
        judges = count if validation is None else len(validation.truth)
        error = (head.score * (1 - head.score) / judges) ** 0.5
        is_better = of_prompt[measure] > head.score + error
    return HeadDecision(
        is_better, of_prompt, of_head, judge, name=name, subject=subject, measure=measure
    )


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
            "validation": head.metrics,
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


def _make_plain_settings(prepared: RunSetup) -> Classify | Regress:
    """The settings of the task with a linear head, and no soft tokens in its template."""
    settings = prepared.recipe.task_settings
    template = parse_template(prepared.template).replace_soft_tokens("")
    facts = describe_objective(get_objective(prepared))
    common = {"template": template, "head": "linear-normalized", "pooling": "auto", **facts}
    match settings:
        case Classify():
            return replace(settings, verbalizer=None, **common)
        case Regress():
            return replace(settings, words=None, **common)
        case _:  # refused by `check_plain_head`
            raise TypeError(settings)


def _choose_pooling(prepared: RunSetup, rows: Mapping[str, RenderedRows]) -> Pooling:
    """The readout of the run's head; where it has none, the one that a probe finds best."""
    if isinstance(prepared.task, HeadClassifier):
        return prepared.task.pooling
    template = parse_template(_make_plain_settings(prepared).template or "")
    poolings = list_poolings(prepared.backbone.geometry.architecture, template)
    size = prepared.backbone.geometry.vocab_size
    texts = {name: select_texts(part, size) for name, part in rows.items()}
    objective = get_objective(prepared)
    return choose_readout(prepared.backbone, poolings, objective=objective, **texts).pooling


def _divide(prepared: RunSetup, truth: Sequence[str]) -> list[Part]:
    """The rows to fit on and to judge by: the folds of the run, or some of the training rows."""
    folds: Sequence[Sequence[int] | np.ndarray] = prepared.folds
    objective = get_objective(prepared)
    if not folds or len(truth) != sum(map(len, folds)):
        folds = divide_rows(truth, objective, seed=prepared.recipe.seed)
    return list_fold_parts(truth, folds, objective=objective)
