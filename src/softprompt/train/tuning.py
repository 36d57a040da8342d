"""The parts of a run that trains the backbone itself, all of it or low-rank changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from torch import nn

from softprompt.backbone.model import Backbone, Geometry
from softprompt.backbone.thaw import add_lora, thaw
from softprompt.data import Rows as Table
from softprompt.initialise import FromRandom
from softprompt.methods.defaults import Defaults
from softprompt.recipe import Recipe
from softprompt.tasks import Room, Task, bind
from softprompt.train.prepare import default_template
from softprompt.train.rows import Rows, check_tables, find_labels, render, sampled
from softprompt.train.settings import Training, resolve

Tuning = Literal["fine-tuning", "lora"]

# Hu et al. 2022, tables 9 and 11: ranks 4 to 8; alpha twice the rank is their usual scale.
_RANK, _ALPHA = 8, 16


@dataclass(frozen=True, eq=False)
class Tuned:
    """The parts of a run that trains the backbone.

    Args:
        kind: what is trained.
        task: bound to the backbone, without a prompt.
        weights: of the backbone, that are trained.
        parameters: of the backbone as it was loaded.
        training: all settings.
        rows: to learn from.
        validation: to choose by.
        held: all validation rows, if it is chosen by some of them.
    """

    kind: Tuning
    task: Task
    weights: Sequence[nn.Parameter]
    parameters: int
    training: Training
    rows: Rows
    validation: Rows
    held: Rows

    @property
    def trained(self) -> list[nn.Parameter]:
        """Everything that is trained, a head's parameters last."""
        return [*self.weights, *([] if self.task.head is None else self.task.head.parameters())]


def prepare_tuning(
    recipe: Recipe, kind: Tuning, *, backbone: Backbone, tables: Mapping[str, Table]
) -> Tuned:
    """Everything that a run which trains the backbone needs.

    Args:
        recipe: its method is not used; its template has no soft tokens.
        backbone: nobody else's: it is changed for good.
        tables: training and validation rows.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    settings = recipe.task_settings
    labels = find_labels(settings, tables["train"])
    check_tables(tables, settings, labels=labels)
    text = settings.template
    if text is None:
        text = default_template(tables["train"], settings, kind=backbone.geometry.kind)
    room = Room(recipe.data.max_length)
    task = bind(settings, backbone, template=text, labels=labels, room=room, seed=recipe.seed)
    whole = task.parameters
    match kind:
        case "fine-tuning":
            weights = thaw(backbone, head=task.head is None)
        case "lora":
            weights = add_lora(backbone, rank=_RANK, alpha=_ALPHA, seed=recipe.seed)
        case _:
            assert_never(kind)
    train, held = (
        render(task, tables[name], where=f"the {name} data") for name in ("train", "validation")
    )
    training = resolve(recipe, tuning_defaults(kind, backbone.geometry))
    some = sampled(held, training.evaluate_rows)
    return Tuned(kind, task, weights, whole, training, train, some, held)


def tuning_defaults(kind: Tuning, geometry: Geometry) -> Defaults:
    """Good settings for training the backbone itself."""
    match kind:
        case "fine-tuning" if geometry.kind == "encoder":
            return Defaults(
                "adamw", 5e-5, 0.01, "linear", 0.1, FromRandom(),
                "Devlin et al. 2019, appendix A.3: 2e-5 to 5e-5, warm-up over a tenth",
            )  # fmt: skip
        case "fine-tuning" if geometry.kind == "encoder-decoder":
            return Defaults(
                "adamw", 1e-4, 0.01, "linear", 0.1, FromRandom(),
                "transformers' guide to T5: AdamW at 1e-4 to 3e-4",
            )  # fmt: skip
        case "fine-tuning":
            return Defaults(
                "adamw", 2e-5, 0.01, "linear", 0.1, FromRandom(),
                "Radford et al. 2018: 6.25e-5 for GPT; 1e-5 to 5e-5 for instruction-tuned ones",
            )  # fmt: skip
        case "lora":
            return Defaults(
                "adamw", 2e-4, 0.01, "linear", 0.06, FromRandom(),
                "Hu et al. 2022, tables 9 and 11: 2e-4 for GPT-2, 2e-4 to 5e-4 for RoBERTa",
            )  # fmt: skip
        case _:
            assert_never(kind)
