"""A linear probe for options: a linear model on the frozen backbone's states of rows with options.

It is the baseline of `softprompt.compare.linear_probe` for rows that have options of their own:
each row is run with each of its options behind it, or where its template has the option. All
options of a row share one softmax, as the task's own scores do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softprompt.backbone.model import Backbone
from softprompt.compare.linear_probe import FeatureReader
from softprompt.compare.results import Cost
from softprompt.data import Table
from softprompt.data.inputs import Row
from softprompt.errors import DataError
from softprompt.recipe import Recipe
from softprompt.tasks import Choose
from softprompt.tasks.config import OPTION_FIELD
from softprompt.tasks.option_cells import Options, read_choice_rows, read_options
from softprompt.tasks.pooling import Pooling, resolve_pooling
from softprompt.tasks.targets import resolve_target_settings
from softprompt.train.option_models import (
    MOST_OPTION_ROWS,
    OptionModel,
    fit_option_model,
    list_option_parts,
)
from softprompt.train.regression import normalize_features
from softprompt.train.templates import resolve_hard_template

_FP32_BYTES = 4


@dataclass(frozen=True, eq=False)
class OptionProbe:
    """A fitted probe.

    Args:
        reader: reads features of rows with an option.
        reading: the readout whose features are used.
        model: of the options' scores.
        settings: of the task.
        cost: its parameters; the seconds are measured by the caller.
    """

    reader: FeatureReader
    reading: Pooling
    model: OptionModel
    settings: Choose
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The answer to each row."""
        options = [read_options(row, self.settings) for row in rows]
        states = _read_options(self.reader, rows, options)[self.reading]
        chosen = self.model.choose(states)
        return [of_row.texts[at] for of_row, at in zip(options, chosen, strict=True)]


def fit_option_probe(
    recipe: Recipe, *, backbone: Backbone, tables: Mapping[str, Table]
) -> OptionProbe:
    """Fit a probe on training rows; validation rows choose its readout.

    Args:
        recipe: of the task; soft tokens of its template are left out.
        backbone: without a prompt.
        tables: rows by split; of the training rows the first 1,000 are used.

    Raises:
        DataError: the training rows are too few.
    """
    settings = recipe.task_settings
    assert isinstance(settings, Choose)  # noqa: S101  # that of such a recipe
    settings = _resolve(settings, tables["train"])
    kind = backbone.geometry.architecture
    template = resolve_hard_template(recipe, tables["train"], kind=kind)
    text = template.text
    if OPTION_FIELD not in template.fields:
        text = f"{text} {{{OPTION_FIELD}}}"
    is_named = settings.head is not None and settings.pooling != "auto"
    pooling = resolve_pooling(settings.pooling, kind) if is_named else None
    reader = FeatureReader(backbone, text, recipe.data.max_length, pooling)
    train = tables["train"].select(range(min(MOST_OPTION_ROWS, len(tables["train"]))))
    known, judged = (
        _read_split(reader, table, settings, name=name)
        for name, table in (("train", train), ("validation", tables["validation"]))
    )
    parts = list_option_parts(len(known[1]))
    if not parts:
        msg = "the training rows are too few for a linear probe. Give more, or leave it out."
        raise DataError(msg)
    models = {n: fit_option_model(rows, known[1], parts=parts) for n, rows in known[0].items()}
    reading = max(models, key=lambda name: _count_hits(models[name], judged[0][name], judged[1]))
    trainable = models[reading].weight.size
    parameters = sum(p.numel() for p in backbone.body.parameters())
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, 0.0, added=trainable)
    return OptionProbe(reader, reading, models[reading], settings, cost)


def _resolve(settings: Choose, train: Table) -> Choose:
    found = resolve_target_settings(settings, train)
    assert isinstance(found, Choose)  # noqa: S101  # of the same kind
    return found


def _count_hits(
    model: OptionModel, rows: Sequence[NDArray[np.float64]], choices: Sequence[int]
) -> int:
    return sum(a == b for a, b in zip(model.choose(rows), choices, strict=True))


_Features = Mapping[Pooling, Sequence[NDArray[np.float64]]]


def _read_split(
    reader: FeatureReader, table: Table, settings: Choose, *, name: str
) -> tuple[_Features, list[int]]:
    """The features of the rows of a split, and the index of the right option of each."""
    pairs = read_choice_rows(table, settings, split=name)
    options, choices = [options for options, _ in pairs], [choice for _, choice in pairs]
    return _read_options(reader, table.to_list(), options), choices


def _read_options(
    reader: FeatureReader, rows: Sequence[Row], options: Sequence[Options]
) -> _Features:
    """The normalized features ``[options, H]`` of each row, by readout."""
    pairs = [
        {**row, OPTION_FIELD: text}
        for row, of_row in zip(rows, options, strict=True)
        for text in of_row.texts
    ]
    ends = np.cumsum([len(of_row.texts) for of_row in options])[:-1]
    features = reader.read(pairs)
    return {name: np.split(normalize_features(part), ends) for name, part in features.items()}
