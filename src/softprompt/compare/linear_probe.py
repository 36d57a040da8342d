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
from softprompt.data.table import to_text
from softprompt.injection.forward import forward
from softprompt.tasks.base import gather_positions, pad_rows
from softprompt.tasks.binding import make_plain_renderer

# The mean over the row, or the state at one position.
Reading = Literal["mean", "point"]
# Features `[rows, H]` of each reading.
Features = dict[Reading, np.ndarray]

_READINGS: tuple[Reading, ...] = ("mean", "point")
# The C of logistic regression, from strong to weak regularization. Of equally good settings the
# first reading is taken, and of that the strongest regularization.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BATCH_SIZE = 32
_FP32_BYTES = 4


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reads features of rows from a frozen backbone.

    Args:
        backbone: without a prompt.
        template: of a row, without soft tokens.
        max_length: of a row in tokens; None for all positions that the backbone has.
    """

    backbone: Backbone
    template: str
    max_length: int | None = None

    def read(self, rows: Sequence[Row]) -> Features:
        """The features ``[rows, H]`` of each reading, in fp32."""
        renderer = make_plain_renderer(self.backbone, self.template, max_length=self.max_length)
        texts = [renderer.render(row) for row in rows]
        lengths = [len(text.input_ids) for text in texts]
        features: dict[Reading, list[np.ndarray]] = {
            name: [np.empty(0)] * len(rows) for name in _READINGS
        }
        for batch in group_by_length(lengths, size=_BATCH_SIZE, seed=None):
            read = self._read_batch([texts[index] for index in batch])
            for index, row_features in zip(batch, read, strict=True):
                for name, values in row_features.items():
                    features[name][index] = values
        return {name: np.stack(values) for name, values in features.items()}

    @torch.no_grad()
    def _read_batch(self, texts: Sequence[RenderedRow]) -> Iterator[Mapping[Reading, np.ndarray]]:
        """The features of each row of a batch."""
        states, mask = self._compute_states(texts)
        is_encoder = self.backbone.geometry.architecture == "encoder"
        points = [(0 if is_encoder else len(text.input_ids) - 1,) for text in texts]
        means = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for mean, point in zip(means.cpu(), gather_positions(states, points).cpu(), strict=True):
            yield {"mean": mean.numpy(), "point": point.numpy()}

    def _compute_states(
        self, texts: Sequence[RenderedRow]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T"]]:
        """The last hidden states, and the attention mask."""
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
        reader: reads features of rows.
        reading: which features are used.
        fitted: the pipeline, fitted on the training rows.
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
        reader: reads features of rows.
        train: the training rows.
        validation: the validation rows.
        target: the column of the right answers.
    """
    train_features, validation_features = reader.read(train), reader.read(validation)
    labels, truth = ([to_text(row[target]) for row in rows] for rows in (train, validation))
    candidates = []
    for reading, strength in product(_READINGS, _STRENGTHS):
        fitted = _fit(train_features[reading], labels, strength)
        score = float(fitted.score(validation_features[reading], truth))
        candidates.append((score, reading, fitted))
    # Of equally good ones, max takes the first.
    _, reading, fitted = max(candidates, key=lambda candidate: candidate[0])
    trainable = sum(part.size for part in (fitted[-1].coef_, fitted[-1].intercept_))
    parameters = sum(p.numel() for p in reader.backbone.body.parameters())
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, 0.0, added=trainable)
    return Probe(reader, reading, fitted, cost)


def _fit(features: np.ndarray, labels: Sequence[str], strength: float) -> Pipeline:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    with catch_warnings():
        # A fit that has not converged is scored on validation rows like the others.
        simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(features, labels)
