"""What `softprompt fit` does with the rows of a cell: its recipe chooses all that is open in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from softprompt import PromptModel
from softprompt.backbone import Backbone
from softprompt.compare import Cost
from softprompt.data import Row, Table
from softprompt.recipe import Recipe, make_recipe
from softprompt.recipe.drafting import FEWEST_JUDGES

# Inner modules: the rows are in memory, and no folder is written.
from softprompt.train.api import run_prepared
from softprompt.train.setup import setup_run

_AUTOMATIC = {
    "learning_rate": "auto",
    "epochs": "auto",
    "batch_size": 32,
    "keep_plain_head": True,
}


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """The prompt, or the plain head, that a run keeps.

    Args:
        model: it, on its backbone.
        cost: of the run, with its search for a learning rate.
        validation: the accuracy of each setting that was tried, on the validation rows.
    """

    model: PromptModel
    cost: Cost
    validation: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PromptModel, *, seconds: float) -> "KeptPrompt":
        """A model with its cost.

        Args:
            model: on its backbone.
            seconds: that it took to find it.
        """
        head = model.task.head
        trainable = sum(tensor.numel() for tensor in model.prompt.to_tensors().values())
        trainable += 0 if head is None else sum(p.numel() for p in head.parameters())
        parameters = sum(p.numel() for p in model.backbone.body.parameters())
        took = round(seconds, 1)
        return cls(model, Cost(trainable, parameters, 4 * trainable, took, added=trainable))

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest label of each row."""
        return [prediction.label for prediction in self.model.predict(rows)]


def fit_default(recipe: Recipe, backbone: Backbone, tables: Mapping[str, Table]) -> KeptPrompt:
    """Train as `softprompt fit` does, with the validation rows that all methods of a cell have.

    Args:
        recipe: of the cell.
        backbone: frozen.
        tables: the training and validation rows.
    """
    start = perf_counter()
    data = recipe.as_data()
    method = {"name": "p-tuning-v2", "length": 20}
    metric = "accuracy" if len(tables["validation"]) >= FEWEST_JUDGES else "loss"
    train = {**_AUTOMATIC, "best_metric": metric}
    automatic = make_recipe({**data, "method": method, "train": train})
    used = {name: tables[name] for name in ("train", "validation")}
    prepared = setup_run(automatic, backbone=backbone, tables=used)
    model = run_prepared(prepared, callbacks=[])
    return KeptPrompt.of(model, seconds=perf_counter() - start)
