"""The core of SetFit without its contrastive training: logistic regression on mean states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from sklearn.linear_model import LogisticRegression

from softprompt.backbone import Backbone

# Inner modules: the features are those of the linear probe.
from softprompt.compare import Cost, FeatureReader
from softprompt.data import Row, Table
from softprompt.data.table import to_text
from softprompt.recipe import Recipe

_FP32_BYTES = 4


@dataclass(frozen=True, eq=False)
class LogisticHead:
    """A fitted head.

    Args:
        reader: reads the states of rows.
        fitted: on training rows.
        cost: of fitting it.
        validation: empty, as nothing is chosen by validation rows.
    """

    reader: FeatureReader
    fitted: LogisticRegression
    cost: Cost
    validation: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest label of each row."""
        return [str(label) for label in self.fitted.predict(_read_embeddings(self.reader, rows))]


def fit_logistic_head(
    recipe: Recipe, backbone: Backbone, tables: Mapping[str, Table]
) -> LogisticHead:
    """Fit a head with the settings of scikit-learn, as SetFit does; nothing is selected.

    Args:
        recipe: of the cell.
        backbone: frozen.
        tables: the training rows; validation rows are not used.
    """
    start = perf_counter()
    settings = recipe.task_settings
    reader = FeatureReader(backbone, settings.template or "{text}", recipe.data.max_length)
    rows = tables["train"].to_list()
    labels = [to_text(row[settings.label_column]) for row in rows]
    fitted = LogisticRegression(max_iter=1000).fit(_read_embeddings(reader, rows), labels)
    trainable = fitted.coef_.size + fitted.intercept_.size
    parameters = sum(p.numel() for p in backbone.body.parameters())
    seconds = round(perf_counter() - start, 1)
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, seconds, added=trainable)
    return LogisticHead(reader, fitted, cost)


def _read_embeddings(reader: FeatureReader, rows: Sequence[Row]) -> np.ndarray:
    """The mean of the last states, of length 1, as sentence-transformers' pipeline gives it."""
    means = reader.read(rows)["mean"]
    return means / np.linalg.norm(means, axis=1, keepdims=True)
