"""Train from Python, on rows in memory, without a recipe file or a run's folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from datasets import Dataset

from softprompt.backbone.model import Backbone
from softprompt.evaluate.model import Model, bring
from softprompt.initialise import Initial
from softprompt.methods import MethodSettings, PromptTuning
from softprompt.recipe import make_recipe
from softprompt.tasks import TaskSettings
from softprompt.train.events import Event
from softprompt.train.launch import checkpointing, make_accelerator
from softprompt.train.prepare import prepare
from softprompt.train.result import artifact_of, on_all_rows
from softprompt.train.run import make_trainer
from softprompt.train.savings import begin

Row = Mapping[str, object]

MEMORY = "memory"


def fit(
    backbone: Backbone,
    task: TaskSettings,
    *,
    rows: Sequence[Row] | Mapping[str, Sequence[Row]],
    method: MethodSettings | None = None,
    initial: Initial | None = None,
    watch: Callable[[Event], None] | None = None,
    **training: Any,  # noqa: ANN401  # checked by the recipe
) -> Model:
    """Train a prompt on rows in memory.

    Args:
        task: :class:`Classify` or :class:`Generate`.
        rows: with the template's fields and the target column; by split as
            ``{"train": …, "validation": …}``, or a tenth is set aside to choose the best prompt by.
        method: prompt tuning by default.
        initial: what the prompt starts from; label words by default.
        watch: told every event.
        training: the keys of a recipe's ``[train]``, such as ``epochs=4, learning_rate=0.01``,
            and its ``seed``.

    Returns:
        The best prompt at work; ``save`` keeps it.

    Raises:
        RecipeError: a training key is unknown or wrong.
        SoftpromptError: rows, task, method and backbone do not fit; the message says what to do.
    """
    method = method or PromptTuning()
    recipe = make_recipe(
        {
            "seed": training.pop("seed", 42),
            "backbone": {"name": backbone.name},
            "data": {"train": MEMORY, "shares": {"train": 0.9, "validation": 0.1, "test": 0.0}},
            "task": {"kind": task.kind, **_given(task)},
            "method": {"name": method.name, **_given(method)},
            "train": training,
        }
    )
    split = rows if isinstance(rows, Mapping) else {"train": rows}
    tables = {name: Dataset.from_list([dict(r) for r in part]) for name, part in split.items()}
    prepared = prepare(recipe, backbone=backbone, tables=tables, start=initial)
    cpu = backbone.device.type == "cpu"
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=None)
    with checkpointing(backbone, wanted=recipe.train.gradient_checkpointing):
        trainer = make_trainer(prepared, accelerator)
        for event in chain(begin(trainer, prepared), trainer.run()):
            if watch is not None:
                watch(event)
    best = on_all_rows(trainer.chosen(), trainer, prepared=prepared)
    return bring(artifact_of(prepared, best, start=trainer.start), backbone)


def _given(settings: TaskSettings | MethodSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value is not None}
