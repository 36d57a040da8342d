"""A linear probe: a linear model on the hidden states of the frozen backbone, no prompt.

It is a baseline: a prompt is worth its training only if it does better. The probe has the readout
of the trained heads that it is compared with. Where there is no head, its readout is selected by
validation rows, as the strength of its regularization is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from softprompt.backbone.model import Backbone
from softprompt.compare.results import Cost
from softprompt.data import Table, parse_template
from softprompt.data.inputs import Row
from softprompt.errors import DataError, FaultCollector
from softprompt.inference import predict_without_prompt
from softprompt.recipe import Recipe
from softprompt.tasks.binding import make_plain_renderer
from softprompt.tasks.config import TaskSettings
from softprompt.tasks.objectives import ScoreObjective, SingleLabel
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.tasks.tagger import Tagger
from softprompt.train.heads import fit_tag_head
from softprompt.train.linear_models import (
    divide_rows,
    fit_linear_model,
    list_answers,
    list_fold_parts,
)
from softprompt.train.readout import Features, compute_features
from softprompt.train.regression import (
    REGRESSIONS,
    fit_regression,
    is_clearly_worse,
    normalize_features,
    weigh_regressions,
)
from softprompt.train.stages import HARD_PROMPT_STAGES, Parts, render_rows, require, run_stages

_FP32_BYTES = 4
# More words change a logistic regression little, and take long.
_MOST_WORDS = 20_000


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reads features of rows from a frozen backbone.

    Args:
        backbone: without a prompt.
        template: of a row, without soft tokens.
        max_length: of a row in tokens; None for all positions that the backbone has.
        pooling: the only readout; None for all that the backbone can have.
        settings: of the task whose rows may be conversations; None for texts.
    """

    backbone: Backbone
    template: str
    max_length: int | None = None
    pooling: Pooling | None = None
    settings: TaskSettings | None = None

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The readouts of the features."""
        if self.pooling is not None:
            return (self.pooling,)
        return list_poolings(self.backbone.geometry.architecture, parse_template(self.template))

    def read(self, rows: Sequence[Row]) -> Features:
        """The features ``[rows, H]`` of each readout, in fp32."""
        renderer = make_plain_renderer(
            self.backbone, self.template, max_length=self.max_length, settings=self.settings
        )
        texts = [renderer.render(row) for row in rows]
        return compute_features(self.backbone, texts, poolings=self.poolings)


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Args:
        reader: reads features of rows.
        reading: the readout whose features are used.
        answer: the answers to rows with these features, as text.
        cost: its parameters; the seconds are measured by the caller.
    """

    reader: FeatureReader
    reading: Pooling
    answer: Callable[[np.ndarray], list[str]]
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The answer to each row."""
        return self.answer(normalize_features(self.reader.read(rows)[self.reading]))


def fit_probe(
    reader: FeatureReader,
    *,
    train: Sequence[Row],
    validation: Sequence[Row],
    truth: Sequence[Sequence[str]],
    objective: ScoreObjective,
) -> Probe:
    """Fit a probe on training rows, and select its settings by validation rows.

    For one label it is the first, with the strongest regularization, that is not worse than the
    best by more than one standard error, as `choose_regression` chooses. For other objectives folds
    of the training rows choose the regularization, and validation rows the readout.

    Args:
        reader: reads features of rows.
        train: the training rows.
        validation: the validation rows.
        truth: the targets of the training and of the validation rows as text.
        objective: of the task.
    """
    features = [
        {name: normalize_features(values) for name, values in reader.read(rows).items()}
        for rows in (train, validation)
    ]
    fit = _fit_classifier if isinstance(objective, SingleLabel) else _fit_linear
    reading, answer, trainable = fit(features, truth, objective)
    parameters = sum(p.numel() for p in reader.backbone.body.parameters())
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, 0.0, added=trainable)
    return Probe(reader, reading, answer, cost)


_Fitted = tuple[Pooling, Callable[[np.ndarray], list[str]], int]


def _fit_classifier(
    features: Sequence[Features], truth: Sequence[Sequence[str]], objective: ScoreObjective
) -> _Fitted:
    """Logistic regression for one label."""
    weights = objective.weights if isinstance(objective, SingleLabel) else None
    by_label = None if weights is None else dict(zip(objective.labels, weights, strict=True))
    fitted, hits = {}, {}
    for choice in product(features[0], weigh_regressions(REGRESSIONS, by_label)):
        reading, settings = choice
        fitted[choice] = fit_regression(features[0][reading], truth[0], settings=settings)
        hits[choice] = fitted[choice].predict(features[1][reading]) == np.array(truth[1])
    best = max(hits.values(), key=np.mean)
    chosen = next(choice for choice in hits if not is_clearly_worse(hits[choice], best, errors=1))
    probe = fitted[chosen]

    def answer(states: np.ndarray) -> list[str]:
        return [str(label) for label in probe.predict(states)]

    return chosen[0], answer, sum(part.size for part in (probe[-1].coef_, probe[-1].intercept_))


def _fit_linear(
    features: Sequence[Features], truth: Sequence[Sequence[str]], objective: ScoreObjective
) -> _Fitted:
    """A linear model of sets of labels, or of numbers."""
    parts = list_fold_parts(truth[0], divide_rows(truth[0], objective, seed=0), objective=objective)
    fitted = {
        reading: fit_linear_model(
            states, truth[0], objective=objective, parts=parts, is_normalized=False
        )
        for reading, states in features[0].items()
    }

    def measure(reading: Pooling) -> float:
        scores = fitted[reading].score(features[1][reading])
        return sum(objective.score_rows(truth[1], list_answers(scores, objective)))

    reading = max(fitted, key=measure)
    model = fitted[reading]

    def answer(states: np.ndarray) -> list[str]:
        return list_answers(model.score(states), objective)

    return reading, answer, model.weight.numel() + model.bias.numel()


@dataclass(frozen=True, eq=False)
class TagProbe:
    """A linear head of tags on the frozen backbone's states.

    Args:
        task: whose head is fitted; each word gets its likeliest tag, whatever its neighbors have.
        cost: its parameters; the seconds are measured by the caller.
    """

    task: Tagger
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The answer to each row."""
        return predict_without_prompt(self.task, rows)


def fit_tag_probe(recipe: Recipe, *, backbone: Backbone, tables: Mapping[str, Table]) -> TagProbe:
    """Fit a logistic regression on the states of words, of which folds choose the regularization.

    Args:
        recipe: of the task; soft tokens of its template are left out.
        backbone: without a prompt.
        tables: rows by split.

    Raises:
        DataError: the training rows are too few.
    """
    settings = {"constrained_decoding": True, "aggregation": "first", "head": "linear"}
    task = recipe.task.model_copy(update=settings)
    parts = Parts(recipe.model_copy(update={"task": task}), backbone, {"train": tables["train"]})
    run_stages((*HARD_PROMPT_STAGES, render_rows), parts, collector=FaultCollector())
    tagger = require(parts.task)
    assert isinstance(tagger, Tagger)  # noqa: S101  # that of such a recipe
    head = fit_tag_head(tagger, parts.rows["train"], prompt=None, most_words=_MOST_WORDS)
    if head is None:
        msg = "the training rows are too few for a linear probe. Give more, or leave it out."
        raise DataError(msg)
    trained = sum(p.numel() for p in head.parameters())
    parameters = sum(p.numel() for p in backbone.body.parameters())
    cost = Cost(trained, parameters, _FP32_BYTES * trained, 0.0, added=trained)
    objective = replace(tagger.objective, is_constrained=False)
    return TagProbe(tagger.with_head(head).with_objective(objective), cost)
