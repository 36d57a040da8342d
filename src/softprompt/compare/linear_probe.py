"""A linear probe: logistic regression on the hidden states of the frozen backbone, no prompt.

It is a baseline: a prompt is worth its training only if it does better. The probe reads the last
hidden states, either their mean over the row or the one at the position that a trained head would
read; that choice and the strength of the regularization are selected by validation rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.compare.results import Cost
from softprompt.data.collate import group_by_length
from softprompt.data.inputs import Row
from softprompt.data.rendering import RenderedRow
from softprompt.injection.forward import forward
from softprompt.tasks.base import gather_positions, pad_rows
from softprompt.tasks.binding import make_plain_renderer

Reading = Literal["mean", "point"]
Read = dict[Reading, np.ndarray]

_READINGS: tuple[Reading, ...] = ("mean", "point")
# From strong to weak regularization; of equally good ones the first is taken, of the first reading.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BATCH = 32
_WORD = 4


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Rows as features of a frozen backbone.

    Args:
        backbone: without a prompt.
        template: of a row, without soft tokens.
        max_length: of a row in tokens; None for all positions that the backbone has.
    """

    backbone: Backbone
    template: str
    max_length: int | None = None

    def read(self, rows: Sequence[Row]) -> Read:
        """The features ``[rows, H]`` of each reading, in fp32."""
        made = make_plain_renderer(self.backbone, self.template, max_length=self.max_length)
        texts = [made.render(row) for row in rows]
        found: dict[Reading, list[np.ndarray]] = {
            name: [np.empty(0)] * len(rows) for name in _READINGS
        }
        for batch in group_by_length(
            [len(text.input_ids) for text in texts], size=_BATCH, seed=None
        ):
            for at, features in zip(batch, self._features([texts[i] for i in batch]), strict=True):
                for name, values in features.items():
                    found[name][at] = values
        return {name: np.stack(values) for name, values in found.items()}

    @torch.no_grad()
    def _features(self, texts: Sequence[RenderedRow]) -> Iterator[Mapping[Reading, np.ndarray]]:
        states, mask = self._states(texts)
        first = self.backbone.geometry.architecture == "encoder"
        points = [(0 if first else len(text.input_ids) - 1,) for text in texts]
        means = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for mean, point in zip(means.cpu(), gather_positions(states, points).cpu(), strict=True):
            yield {"mean": mean.numpy(), "point": point.numpy()}

    def _states(
        self, texts: Sequence[RenderedRow]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T"]]:
        inputs = pad_rows(self.backbone, texts)
        if self.backbone.geometry.architecture == "encoder-decoder":
            states = self.backbone.encode(inputs)
        else:
            states = forward(self.backbone, inputs, prompts=[None])
        return states.float(), inputs.attention_mask.float()


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Args:
        reader: makes features of rows.
        reading: which features are used.
        fitted: on the training rows.
        cost: its parameters; the seconds are measured by the caller.
    """

    reader: FeatureReader
    reading: Reading
    fitted: Pipeline
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest label of each row."""
        return [str(label) for label in self.fitted.predict(self.reader.read(rows)[self.reading])]


def fit_probe(
    reader: FeatureReader, *, train: Sequence[Row], validation: Sequence[Row], target: str
) -> Probe:
    """Fit a probe on training rows, and select its settings by validation rows.

    Args:
        target: the column of the right answers.
    """
    features, held_out = reader.read(train), reader.read(validation)
    labels, truth = ([str(row[target]) for row in rows] for rows in (train, validation))
    scored = []
    for order, (reading, strength) in enumerate(product(_READINGS, _STRENGTHS)):
        fitted = _fit(features[reading], labels, strength)
        scored.append((float(fitted.score(held_out[reading], truth)), -order, reading, fitted))
    _, _, reading, fitted = max(scored, key=lambda found: found[:2])
    trainable = sum(part.size for part in (fitted[-1].coef_, fitted[-1].intercept_))
    body = reader.backbone.model.base_model
    whole = sum(p.numel() for p in body.parameters())
    cost = Cost(trainable, whole, _WORD * trainable, 0.0, added=trainable)
    return Probe(reader, reading, fitted, cost)


def _fit(features: np.ndarray, labels: Sequence[str], strength: float) -> Pipeline:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    with catch_warnings():
        # A fit that has not converged is scored on validation rows like the others.
        simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(features, labels)
