"""What twelve settings of deep prefixes come to: rate, initialization and length."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from time import perf_counter
from typing import Any

from default_fit import KeptPrompt

from softprompt import PromptModel
from softprompt.backbone import Backbone
from softprompt.data import Table
from softprompt.methods.defaults import choose_defaults
from softprompt.recipe import Recipe, make_recipe

# Inner modules: the rows are in memory, and no folder is written.
from softprompt.train.api import run_prepared
from softprompt.train.setup import setup_run

_METHOD = "p-tuning-v2"
_RATES = (1 / 3, 1.0, 3.0)  # times the default
_INITS = ("random", "vocabulary")
_LENGTHS = (5, 20)


def fit_search(recipe: Recipe, backbone: Backbone, tables: Mapping[str, Table]) -> KeptPrompt:
    """Train with each of twelve settings, and keep the prompt with the best validation accuracy.

    Readout, steps and the start of the head are those of the other methods. Of equally accurate
    prompts the one with the lower validation loss is kept.

    Args:
        recipe: of the cell.
        backbone: frozen.
        tables: the training and validation rows.
    """
    start, found = perf_counter(), dict[str, tuple[float, float, PromptModel]]()
    usual = choose_defaults(_METHOD, backbone.geometry).learning_rate
    for init, length, times in product(_INITS, _LENGTHS, _RATES):
        model = _train(
            recipe,
            backbone,
            tables,
            method={"name": _METHOD, "length": length, "init": {"from": init}},
            rate=times * usual,
        )
        scores = model.artifact.manifest.metrics["validation"]
        point = f"{init}, length {length}, {times:.2g} times the rate"
        found[point] = (scores["accuracy"], -scores["loss"], model)
    *_, best = max(found.values(), key=lambda each: each[:2])
    kept = KeptPrompt.of(best, seconds=perf_counter() - start)
    return replace(kept, validation={point: accuracy for point, (accuracy, *_) in found.items()})


def _train(
    recipe: Recipe,
    backbone: Backbone,
    tables: Mapping[str, Table],
    *,
    method: Mapping[str, Any],
    rate: float,
) -> PromptModel:
    data = recipe.as_data()
    changed = make_recipe(
        {**data, "method": method, "train": {**data["train"], "learning_rate": rate}}
    )
    used = {name: tables[name] for name in ("train", "validation")}
    prepared = setup_run(changed, backbone=backbone, tables=used)
    model = run_prepared(prepared, callbacks=[])
    if not isinstance(model, PromptModel):  # one seed makes no ensemble
        raise TypeError(model)
    return model
