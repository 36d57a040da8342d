"""A linear probe: logistic regression on what the frozen backbone makes of a row, no prompt at all.

What a prompt adds is what it gets right beyond this. The probe reads the last hidden states, either
their mean over the row or the one where a trained head would stand; that and the strength of the
regularisation are chosen by validation rows.
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
from softprompt.compare.exam import Row
from softprompt.compare.outcome import Cost
from softprompt.data.batch import like_length
from softprompt.data.tokenise import Tokenised
from softprompt.injection.run import run
from softprompt.tasks.bind import plain_renderer
from softprompt.tasks.layout import padded, picked

Reading = Literal["mean", "point"]
Read = dict[Reading, np.ndarray]

_READINGS: tuple[Reading, ...] = ("mean", "point")
# Strengths from strong to weak; of equally good ones the first is taken, of the first reading.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BATCH = 32
_WORD = 4


@dataclass(frozen=True, eq=False)
class Reader:
    """Rows as features of a frozen backbone.

    Args:
        backbone: without a prompt.
        template: what a row looks like; no soft tokens.
        max_length: of a row in tokens; None for all positions that the backbone has.
    """

    backbone: Backbone
    template: str
    max_length: int | None = None

    def read(self, rows: Sequence[Row]) -> Read:
        """The features ``[rows, H]`` of each reading, in fp32."""
        made = plain_renderer(self.backbone, self.template, max_length=self.max_length)
        texts = [made.render(row) for row in rows]
        found: dict[Reading, list[np.ndarray]] = {
            name: [np.empty(0)] * len(rows) for name in _READINGS
        }
        for batch in like_length([len(text.ids) for text in texts], size=_BATCH, seed=None):
            for at, features in zip(batch, self._features([texts[i] for i in batch]), strict=True):
                for name, values in features.items():
                    found[name][at] = values
        return {name: np.stack(values) for name, values in found.items()}

    @torch.no_grad()
    def _features(self, texts: Sequence[Tokenised]) -> Iterator[Mapping[Reading, np.ndarray]]:
        states, mask = self._states(texts)
        first = self.backbone.geometry.kind == "encoder"
        points = [(0 if first else len(text.ids) - 1,) for text in texts]
        means = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for mean, point in zip(means.cpu(), picked(states, points).cpu(), strict=True):
            yield {"mean": mean.numpy(), "point": point.numpy()}

    def _states(
        self, texts: Sequence[Tokenised]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T"]]:
        inputs = padded(self.backbone, texts)
        if self.backbone.geometry.kind == "encoder-decoder":
            states = self.backbone.encode(inputs)
        else:
            states = run(self.backbone, inputs, prompts=[None])
        return states.float(), inputs.mask.float()


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Args:
        reader: makes features of rows.
        reading: which of them.
        fitted: on the training rows.
        cost: its own parameters; the clock is read elsewhere.
    """

    reader: Reader
    reading: Reading
    fitted: Pipeline
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest label of each row."""
        return [str(label) for label in self.fitted.predict(self.reader.read(rows)[self.reading])]


def fit_probe(
    reader: Reader, *, train: Sequence[Row], validation: Sequence[Row], target: str
) -> Probe:
    """Fit a probe on training rows, and choose how by validation rows.

    Args:
        target: the column of the right answers.
    """
    read, held = reader.read(train), reader.read(validation)
    labels, wanted = ([str(row[target]) for row in rows] for rows in (train, validation))
    scored = []
    for order, (reading, strength) in enumerate(product(_READINGS, _STRENGTHS)):
        fitted = _fitted(read[reading], labels, strength)
        scored.append((float(fitted.score(held[reading], wanted)), -order, reading, fitted))
    _, _, reading, fitted = max(scored, key=lambda found: found[:2])
    trainable = sum(part.size for part in (fitted[-1].coef_, fitted[-1].intercept_))
    body = reader.backbone.model.base_model
    whole = sum(p.numel() for p in body.parameters())
    cost = Cost(trainable, whole, _WORD * trainable, 0.0, added=trainable)
    return Probe(reader, reading, fitted, cost)


def _fitted(features: np.ndarray, labels: Sequence[str], strength: float) -> Pipeline:
    made = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    with catch_warnings():
        # One that has not settled is judged by validation rows like the others.
        simplefilter("ignore", ConvergenceWarning)
        return made.fit(features, labels)
