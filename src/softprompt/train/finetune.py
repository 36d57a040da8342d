"""Fine-tune the backbone itself, all weights or LoRA, as a baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, assert_never

from accelerate import Accelerator
from torch import nn

from softprompt.backbone.finetuning import add_lora, unfreeze
from softprompt.backbone.model import Backbone, Geometry
from softprompt.data import Table
from softprompt.errors import DataError, FaultCollector
from softprompt.inference import predict_without_prompt
from softprompt.methods.defaults import Defaults
from softprompt.methods.initializers import FromRandom
from softprompt.recipe import Recipe
from softprompt.tasks import Choose, Classifier, Classify, Regress, Task
from softprompt.tasks.base import HeadTask
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.heads import PooledHeadTask
from softprompt.tasks.objective_settings import get_loss_unit
from softprompt.train.accelerator import make_accelerator, use_gradient_checkpointing
from softprompt.train.calibration import calibrate_by_rows, has_open_answers
from softprompt.train.config import ResolvedTraining, resolve_training
from softprompt.train.datasets import RenderedRows
from softprompt.train.events import Callback
from softprompt.train.heads import can_fit_head, fit_any_head
from softprompt.train.option_models import choose_head_readout
from softprompt.train.plots import draw_run
from softprompt.train.recipe_backbone import choose_device
from softprompt.train.run_dir import RunDir
from softprompt.train.stages import HARD_PROMPT_STAGES, Parts, render_rows, require, run_stages
from softprompt.train.trainer import Best, Trainer

FinetuneKind = Literal["fine-tuning", "lora"]
AnswerFn = Callable[[Sequence[Mapping[str, Any]]], list[str]]

# Hu et al. 2022, tables 9 and 11: ranks 4 to 8; alpha twice the rank is their usual scale.
_RANK, _ALPHA = 8, 16


@dataclass(frozen=True, eq=False)
class FinetuneSetup:
    """The parts of a run that trains the backbone.

    Args:
        kind: what is trained.
        task: bound to the backbone, without a prompt.
        weights: those of the backbone that are trained.
        parameters: the number of the backbone's parameters as it was loaded.
        training: all settings.
        rows: to train on.
        validation: all validation rows.
    """

    kind: FinetuneKind
    task: Task
    weights: Sequence[nn.Parameter]
    parameters: int
    training: ResolvedTraining
    rows: RenderedRows
    validation: RenderedRows

    @property
    def trained(self) -> list[nn.Parameter]:
        """All trained parameters, those of a head last."""
        return [*self.weights, *([] if self.task.head is None else self.task.head.parameters())]


def setup_finetune(
    recipe: Recipe, kind: FinetuneKind, *, backbone: Backbone, tables: Mapping[str, Table]
) -> FinetuneSetup:
    """Set up a run that trains the backbone.

    Args:
        recipe: its method is not used; its soft tokens are replaced as in the hard prompt.
        kind: what is trained.
        backbone: not used by anything else, since it is changed in place.
        tables: training and validation rows.

    Returns:
        The parts of the run.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    parts, trainable = Parts(recipe, backbone, tables), _Trainable(kind)
    stages = (*HARD_PROMPT_STAGES, trainable.choose_weights, render_rows)
    run_stages(stages, parts, collector=FaultCollector())
    if "validation" not in parts.rows:
        msg = (
            f"there are no validation rows, by which {kind} selects its best weights. Name some "
            "in [data], or leave both validation and test out, so that they are split off."
        )
        raise DataError(msg)
    return FinetuneSetup(
        kind=kind,
        task=_settle_head(require(parts.task), parts),
        weights=trainable.weights,
        parameters=trainable.parameters,
        training=resolve_training(
            recipe,
            choose_finetune_defaults(kind, backbone.geometry),
            rows=len(parts.rows["train"].examples),
        ),
        rows=parts.rows["train"],
        validation=parts.rows["validation"],
    )


def _settle_head(task: Task, parts: Parts) -> Task:
    """The task with the readout and the start of its head, as a prompt's has them."""
    settings, recipe = parts.recipe.task_settings, parts.recipe
    if not isinstance(task, HeadTask):
        return task
    is_open = isinstance(settings, Classify | Regress | Choose) and settings.pooling == "auto"
    if isinstance(task, PooledHeadTask) and is_open:
        choice = choose_head_readout(task, parts.rows, template=require(parts.template).text)
        task = task.with_pooling(choice.pooling)
    is_wanted = recipe.train.head_init == "regression" and can_fit_head(task)
    head = fit_any_head(task, parts.rows["train"], prompt=None) if is_wanted else None
    return task if head is None else task.with_head(head)


class _Trainable:
    """The stage that replaces the method: it makes the backbone's weights trainable."""

    def __init__(self, kind: FinetuneKind) -> None:
        self.kind = kind
        self.weights: Sequence[nn.Parameter] = ()
        self.parameters = 0

    def choose_weights(self, parts: Parts, collector: FaultCollector) -> None:
        """Count the backbone's parameters as loaded, and make the requested ones trainable."""
        task, seed = require(parts.task), parts.recipe.seed
        self.parameters = task.parameters
        self.weights = require(collector.attempt(self._make_trainable, task, seed=seed))

    def _make_trainable(self, task: Task, *, seed: int) -> list[nn.Parameter]:
        match self.kind:
            case "fine-tuning":
                return unfreeze(task.backbone, head=task.head is None)
            case "lora":
                return add_lora(task.backbone, rank=_RANK, alpha=_ALPHA, seed=seed)
            case _:
                assert_never(self.kind)


def choose_finetune_defaults(kind: FinetuneKind, geometry: Geometry) -> Defaults:
    """The default settings for training the backbone itself; their initialization is not used."""
    match kind:
        case "fine-tuning" if geometry.architecture == "encoder":
            rate, warmup = 5e-5, 0.1
            source = "Devlin et al. 2019, appendix A.3: 2e-5 to 5e-5, warm-up over a tenth"
        case "fine-tuning" if geometry.architecture == "encoder-decoder":
            rate, warmup = 1e-4, 0.1
            source = "transformers' guide to T5: AdamW at 1e-4 to 3e-4"
        case "fine-tuning":
            rate, warmup = 2e-5, 0.1
            source = "Radford et al. 2018: 6.25e-5 for GPT; 1e-5 to 5e-5 for instruction-tuned ones"
        case "lora":
            rate, warmup = 2e-4, 0.06
            source = "Hu et al. 2022, tables 9 and 11: 2e-4 for GPT-2, 2e-4 to 5e-4 for RoBERTa"
        case _:
            assert_never(kind)
    return Defaults("adamw", rate, 0.01, "linear", warmup, FromRandom(), source)


class BackboneWeights(nn.Module):
    """Trained weights of the backbone, in place of a method: its prompt is None.

    Args:
        weights: the backbone's parameters themselves, not copies.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self) -> None:
        """Return None: the rows are run without a prompt."""


def finetune(recipe: Recipe, folder: Path, *, parts: FinetuneSetup, callback: Callback) -> AnswerFn:
    """Train the backbone by a recipe, and write the run's folder without an artifact.

    Args:
        recipe: of the run.
        folder: of the run; a new one.
        parts: of the recipe. Their backbone is changed in place.
        callback: called with every event. A KeyboardInterrupt that it raises ends the run.

    Returns:
        A function that predicts rows with the best weights by validation.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    run, start = RunDir(folder), perf_counter()
    run.create(recipe)
    cpu = choose_device(recipe.backbone).startswith("cpu")
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=None)
    with use_gradient_checkpointing(
        parts.task.backbone, wanted=recipe.train.gradient_checkpointing
    ):
        trainer = make_finetune_trainer(parts, accelerator)
        for event in trainer.run():
            run.append_event(event, seconds=round(perf_counter() - start, 3))
            callback(event)
        best = load_best_weights(trainer)
        is_sampled = trainer.validation is not parts.validation
        metrics = trainer.evaluate(parts.validation).metrics if is_sampled else best.metrics
        task = _calibrate(trainer, recipe, parts.validation)
    added = parts.trained if parts.kind == "lora" else parts.trained[len(parts.weights) :]
    run.write_metrics(
        {
            "tuning": parts.kind,
            "validation": dict(metrics),
            "best_step": best.step,
            "steps": trainer.step,
            "trainable_parameters": sum(p.numel() for p in parts.trained),
            "backbone_parameters": parts.parameters,
            "added_parameters": sum(p.numel() for p in added),
        }
    )
    unit = get_loss_unit(recipe.task_settings)
    with run.replace_picture() as path:
        draw_run(run.read_events(), path, title=run.path.name, unit=unit)

    def answer(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        with accelerator.autocast():
            return predict_without_prompt(task, rows)

    return answer


def _calibrate(trainer: Trainer, recipe: Recipe, rows: RenderedRows) -> Task:
    """The task with what a recipe leaves to validation rows, as a prompt has it."""
    task = trainer.task
    if not isinstance(task, Classifier | Extractor):
        return task
    if not has_open_answers(recipe.task_settings, task.objective):
        return task
    return calibrate_by_rows(task, trainer.evaluate_parts(None, rows))[0]


def make_finetune_trainer(parts: FinetuneSetup, accelerator: Accelerator) -> Trainer:
    """The training loop over a backbone's weights, and the head's if there is one.

    Args:
        parts: of the recipe.
        accelerator: device and precision.
    """
    return Trainer(
        parts.task,
        BackboneWeights(parts.weights),
        rows=parts.rows,
        validation=parts.validation,
        training=parts.training,
        accelerator=accelerator,
    )


def load_best_weights(trainer: Trainer) -> Best:
    """Put the best weights back into the backbone and the head.

    Args:
        trainer: over :class:`BackboneWeights`.

    Returns:
        The best weights.
    """
    best = trainer.get_best()
    trainer.method.load_state_dict(best.weights)
    if trainer.task.head is not None:
        trainer.task.head.load_state_dict(best.head)
    return best
