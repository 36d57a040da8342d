"""A linear probe: logistic regression on the hidden states of the frozen backbone, no prompt.

It is a baseline: a prompt is worth its training only if it does better. The probe has the readout
of the trained heads that it is compared with. Where there is no head, its readout is selected by
validation rows, as the strength of its regularization is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from sklearn.pipeline import Pipeline

from softprompt.backbone.model import Backbone
from softprompt.compare.results import Cost
from softprompt.data import parse_template
from softprompt.data.inputs import Row
from softprompt.data.table import to_text
from softprompt.tasks.binding import make_plain_renderer
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.train.readout import Features, compute_features
from softprompt.train.regression import (
    REGRESSIONS,
    fit_regression,
    is_clearly_worse,
    normalize_features,
    weigh_regressions,
)

_FP32_BYTES = 4


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reads features of rows from a frozen backbone.

    Args:
        backbone: without a prompt.
        template: of a row, without soft tokens.
        max_length: of a row in tokens; None for all positions that the backbone has.
        pooling: the only readout; None for all that the backbone can have.
    """

    backbone: Backbone
    template: str
    max_length: int | None = None
    pooling: Pooling | None = None

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The readouts of the features."""
        if self.pooling is not None:
            return (self.pooling,)
        return list_poolings(self.backbone.geometry.architecture, parse_template(self.template))

    def read(self, rows: Sequence[Row]) -> Features:
        """The features ``[rows, H]`` of each readout, in fp32."""
        renderer = make_plain_renderer(self.backbone, self.template, max_length=self.max_length)
        texts = [renderer.render(row) for row in rows]
        return compute_features(self.backbone, texts, poolings=self.poolings)


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Args:
        reader: reads features of rows.
        reading: the readout whose features are used.
        fitted: the pipeline, fitted on the training rows.
        cost: its parameters; the seconds are measured by the caller.
    """

    reader: FeatureReader
    reading: Pooling
    fitted: Pipeline
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest label of each row."""
        features = normalize_features(self.reader.read(rows)[self.reading])
        return [str(label) for label in self.fitted.predict(features)]


def fit_probe(
    reader: FeatureReader,
    *,
    train: Sequence[Row],
    validation: Sequence[Row],
    target: str,
    class_weights: Mapping[str, float] | None = None,
) -> Probe:
    """Fit a probe on training rows, and select its settings by validation rows.

    It is the first, with the strongest regularization, that is not worse than the best by more than
    one standard error, as `choose_regression` chooses.

    Args:
        reader: reads features of rows.
        train: the training rows.
        validation: the validation rows.
        target: the column of the right answers.
        class_weights: how much a row of each label counts; None if all count the same.
    """
    train_features, validation_features = (
        {name: normalize_features(values) for name, values in reader.read(rows).items()}
        for rows in (train, validation)
    )
    labels, truth = ([to_text(row[target]) for row in rows] for rows in (train, validation))
    fitted, hits = {}, {}
    for choice in product(reader.poolings, weigh_regressions(REGRESSIONS, class_weights)):
        reading, settings = choice
        fitted[choice] = fit_regression(train_features[reading], labels, settings=settings)
        hits[choice] = fitted[choice].predict(validation_features[reading]) == np.array(truth)
    best = max(hits.values(), key=np.mean)
    chosen = next(choice for choice in hits if not is_clearly_worse(hits[choice], best, errors=1))
    probe, reading = fitted[chosen], chosen[0]
    trainable = sum(part.size for part in (probe[-1].coef_, probe[-1].intercept_))
    parameters = sum(p.numel() for p in reader.backbone.body.parameters())
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, 0.0, added=trainable)
    return Probe(reader, reading, probe, cost)
