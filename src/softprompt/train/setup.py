"""Set up a run: from a recipe to all its parts, for a prompt or for the hard prompt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from softprompt.artifact import Artifact
from softprompt.backbone.model import Backbone
from softprompt.data import Table, parse_template
from softprompt.data.labels import describe_labels
from softprompt.errors import DataError, FaultCollector, TemplateError, format_unknown
from softprompt.inference.loops import EvaluationReport, evaluate_rows, make_report
from softprompt.methods import Method, PrefixTuning, PTuningV2
from softprompt.methods.defaults import Defaults
from softprompt.recipe import Recipe
from softprompt.tasks import Choose, Classify, Task
from softprompt.tasks.base import HeadTask
from softprompt.tasks.heads import PooledHeadTask
from softprompt.train.config import ResolvedTraining, resolve_training
from softprompt.train.datasets import RenderedRows
from softprompt.train.demonstrations import TOKEN_DROPOUT, Demonstrations
from softprompt.train.events import Callback, PhaseStarted
from softprompt.train.heads import can_fit_head, fit_any_head
from softprompt.train.initialization import InitLike
from softprompt.train.option_models import choose_head_fold_readouts, choose_head_readout
from softprompt.train.readout import MAX_PROBED_ROWS, ReadoutChoice
from softprompt.train.stages import (
    HARD_PROMPT_STAGES,
    PROMPT_STAGES,
    Parts,
    bind_task,
    make_method,
    notify,
    render_rows,
    require,
    run_stages,
    start_head,
)
from softprompt.train.templates import find_template_slips
from softprompt.train.trainer import Trainer


@dataclass(frozen=True, eq=False)
class RunSetup:
    """All the parts of a run.

    Args:
        recipe: of the run.
        backbone: frozen.
        task: bound to the backbone.
        method: at its initialization.
        template: the recipe's or the default one.
        training: all settings.
        defaults: of the method, with their source.
        rows: rendered, by split.
        hashes: of each split's contents.
        warnings: about the rows and the initialization.
        notes: on what the initialization took from an artifact, and on folds.
        demonstrations: the training rows that the prompt starts from; None without any.
        folds: the indices of the training rows of each; empty without cross-validation.
        cross_validation: a summary of its scores as JSON has it, once it is done.
        readout: of a trained head, once it is chosen, or that of the artifact whose head it takes.
        rate_search: the search for the learning rate as JSON has it, once it is done.
        tables: the rows by split, before they are rendered.
        candidates: the artifacts of which one is chosen as the start.
        start_choice: the choice among them as JSON has it, once it is done.
        trained_with: the names of the other tasks that train the same shared prompt.
        fold_readouts: of each fold, chosen without the rows that validate there; empty where they
            are all that of the run.
        init: the initialization, where it is given instead of the recipe's.
        calibration: what validation rows decided after the training.
        takes_head: whether the head starts as that of an artifact.
    """

    recipe: Recipe
    backbone: Backbone
    task: Task
    method: Method
    template: str
    training: ResolvedTraining
    defaults: Defaults
    rows: Mapping[str, RenderedRows]
    hashes: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    demonstrations: Demonstrations | None = None
    folds: tuple[tuple[int, ...], ...] = ()
    cross_validation: Mapping[str, Any] | None = None
    readout: ReadoutChoice | None = None
    rate_search: Mapping[str, Any] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    candidates: Mapping[str, Artifact] = field(default_factory=dict)
    start_choice: Mapping[str, Any] | None = None
    trained_with: tuple[str, ...] = ()
    fold_readouts: tuple[ReadoutChoice, ...] = ()
    init: InitLike | None = None
    calibration: Mapping[str, Any] | None = None
    takes_head: bool = False

    @property
    def is_first_seed(self) -> bool:
        """Whether these are the parts of the first seed, or of the only one."""
        return self.training.seed == self.recipe.seed

    @property
    def fits_head(self) -> bool:
        """Whether the head starts as a logistic regression, and not at random or as another's."""
        is_wanted = self.recipe.train.head_init == "regression"
        return is_wanted and can_fit_head(self.task) and not self.takes_head

    @property
    def has_open_readout(self) -> bool:
        """Whether the readout of a trained head is still to be chosen."""
        settings = self.recipe.task_settings
        is_open = self.task.head is not None and self.readout is None
        return is_open and isinstance(settings, Classify | Choose) and settings.pooling == "auto"

    def with_readout(self, readout: ReadoutChoice) -> "RunSetup":
        """The parts with a readout of their trained head."""
        if not isinstance(self.task, PooledHeadTask):
            return self
        task = self.task.with_pooling(readout.pooling)
        return replace(self, task=task, readout=readout, notes=(*self.notes, str(readout)))

    @property
    def data_record(self) -> dict[str, object]:
        """The rows of each split as an artifact records them: their number and their hash."""
        return {
            name: {"rows": len(self.rows[name].truth), "sha256": digest}
            for name, digest in self.hashes.items()
        }

    @property
    def slips(self) -> tuple[str, ...]:
        """Messages on what is possible but rarely meant, in labels and template."""
        settings, template = self.recipe.task_settings, parse_template(self.template)
        slips = [*find_template_slips(template, settings, backbone=self.backbone)]
        counts = self.task.objective.count_labels(self.rows["train"].truth)
        slips += describe_labels(counts, self.task.target_column)
        return tuple(slips)


def setup_run(
    recipe: Recipe,
    *,
    backbone: Backbone | None = None,
    tables: Mapping[str, Table] | None = None,
    init: InitLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunSetup:
    """Read, load, check and build everything that a run needs.

    Args:
        recipe: of the run.
        backbone: if it is already loaded.
        tables: rows by split, if they are in memory. They are used unchanged; missing splits are
            split off.
        init: the initialization, instead of the recipe's; an artifact gives its prompt, and its
            head where labels and shapes agree; of several, one gives its prompt.
        callbacks: called with the phases of the setup, as they start.

    Returns:
        The parts of the run.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    parts = Parts(recipe, backbone, tables, init)
    run_stages(PROMPT_STAGES, parts, collector=FaultCollector(), callbacks=callbacks)
    return _assemble(parts)


def check_setup(
    recipe: Recipe,
    collector: FaultCollector,
    *,
    backbone: Backbone | None = None,
    tables: Mapping[str, Table] | None = None,
) -> RunSetup | None:
    """Set up a run; the collector decides whether to continue after a fault.

    Args:
        recipe: of the run.
        collector: of faults.
        backbone: if it is already loaded. Otherwise, with a collector that keeps going, a backbone
            that would have to be downloaded is only noted, and what depends on it is not checked.
        tables: rows by split, if they are in memory. They are used unchanged; missing splits are
            split off.

    Returns:
        The parts of the run. None if there are faults, or if something could not be checked.

    Raises:
        SoftpromptError: something does not fit, and the collector does not keep going.
    """
    parts = Parts(recipe, backbone, tables)
    run_stages(PROMPT_STAGES, parts, collector=collector)
    return _assemble(parts) if collector.is_clean else None


def settle_readout(
    prepared: RunSetup,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Mapping[str, Any] | None = None,
) -> RunSetup:
    """Choose the readout of a trained head, if neither recipe nor artifact says which it is.

    Args:
        prepared: the parts of the run.
        callbacks: called as the choice begins.
        checkpoint: from which the run resumes with the readout that it has.

    Returns:
        The parts with the readout.
    """
    if not prepared.has_open_readout or not isinstance(prepared.task, PooledHeadTask):
        return prepared
    if checkpoint is not None:
        # Runs that began before readouts were chosen have the conventional one.
        began = ReadoutChoice(prepared.task.pooling, {}, "as the run began with")
        recorded = checkpoint.get("readout")
        choice = began if recorded is None else ReadoutChoice.from_data(recorded)
        return prepared.with_readout(choice)
    rows = min(len(prepared.rows["train"].examples), MAX_PROBED_ROWS)
    notify(callbacks, PhaseStarted("probing", "the readout", rows))
    return prepared.with_readout(
        choose_head_readout(prepared.task, prepared.rows, template=prepared.template)
    )


def settle_head(prepared: RunSetup) -> RunSetup:
    """Start a linear head as a logistic regression on the training rows with the prompt's start.

    Args:
        prepared: the parts of the run, with the readout and the start of the prompt.

    Returns:
        The parts with that head; as they are where the head starts otherwise.
    """
    task = prepared.task
    if not prepared.fits_head or not isinstance(task, HeadTask):
        return prepared
    method = prepared.method.to(prepared.backbone.device).eval()
    with torch.no_grad():
        prompt = method()
    head = fit_any_head(task, prepared.rows["train"], prompt=prompt)
    return prepared if head is None else replace(prepared, task=task.with_head(head))


def settle_fold_readouts(prepared: RunSetup) -> RunSetup:
    """Choose the readout of each fold without its own rows, if that of the run was chosen by rows.

    The rows are run once for all folds.

    Args:
        prepared: the parts of the run, with its readout.
    """
    chosen, task = prepared.readout, prepared.task
    is_open = chosen is not None and chosen.is_chosen and not prepared.fold_readouts
    if not is_open or not isinstance(task, PooledHeadTask):
        return prepared
    readouts = choose_head_fold_readouts(
        task, prepared.rows["train"], folds=prepared.folds, template=prepared.template
    )
    return replace(prepared, fold_readouts=readouts)


def with_seed(prepared: RunSetup, seed: int) -> RunSetup:
    """The parts with another seed of the initialization, the head and the order of rows.

    Splits, demonstrations, readout, learning rate and length stay as they are.

    Args:
        prepared: the parts of the run, settled, whose method and head are as they were made.
        seed: of the training.
    """
    if seed == prepared.training.seed:
        return prepared
    parts = Parts(
        prepared.recipe.model_copy(update={"seed": seed}),
        prepared.backbone,
        init=prepared.init,
        labels=prepared.task.labels,
        valid_tables=dict(prepared.tables),
        template=parse_template(prepared.template),
        demonstrations=prepared.demonstrations,
    )
    run_stages((make_method, bind_task, start_head), parts, collector=FaultCollector())
    task, fresh = prepared.task, require(parts.task)
    if isinstance(task, HeadTask) and isinstance(fresh, HeadTask):
        task = task.with_head(fresh.head)
    training = replace(prepared.training, seed=seed)
    return settle_head(
        replace(prepared, method=require(parts.method), task=task, training=training)
    )


@contextmanager
def restore_start(prepared: RunSetup) -> Iterator[None]:
    """Give the method and the head their present values again, after a trial run on them.

    Args:
        prepared: the parts of the run.
    """
    head = prepared.task.head
    modules = nn.ModuleList([prepared.method, *([] if head is None else [head])])
    start = deepcopy(modules.state_dict())
    try:
        yield
    finally:
        modules.load_state_dict(start)


def make_trainer(prepared: RunSetup, accelerator: Accelerator) -> Trainer:
    """Make the trainer of a recipe's parts.

    Args:
        prepared: the parts.
        accelerator: of the run.
    """
    training, validation = prepared.training, prepared.rows.get("validation")
    if prepared.folds and validation is None:
        training = replace(training, max_eval_rows=None, eval_train_rows=None)
    return Trainer(
        prepared.task,
        prepared.method.to(prepared.backbone.device),
        rows=prepared.rows["train"],
        validation=validation,
        training=training,
        accelerator=accelerator,
    )


def setup_hard_prompt(
    recipe: Recipe,
    *,
    backbone: Backbone | None = None,
    tables: Mapping[str, Table] | None = None,
) -> Task:
    """Set up the hard prompt: the same template with words, for the backbone without training.

    Args:
        recipe: of the prompt that it is compared with. Soft tokens are replaced by the text of
            their initialization; without one they are left out.
        backbone: if it is already loaded.
        tables: rows by split, if they are in memory. Only labels and columns are read from them.

    Returns:
        The task. Its template has no soft tokens.

    Raises:
        TemplateError: the task predicts with a trained head, which is random before training.
        SoftpromptError: something does not fit; the message says what to do.
    """
    parts = Parts(recipe, backbone, tables)
    run_stages((*HARD_PROMPT_STAGES, _check_untrained), parts, collector=FaultCollector())
    return require(parts.task)


def evaluate_hard_prompt(
    recipe: Recipe,
    *,
    split: str = "test",
    backbone: Backbone | None = None,
    tables: Mapping[str, Table] | None = None,
    batch_size: int = 32,
) -> EvaluationReport:
    """Evaluate the hard prompt: the backbone with the template's words, without training.

    It is a baseline for the prompt that the recipe trains.

    Args:
        recipe: of that prompt. Soft tokens are replaced by the text of their initialization;
            without one they are left out.
        split: ``"train"``, ``"validation"`` or ``"test"``, of the recipe's data.
        backbone: if it is already loaded.
        tables: rows by split, each a ``datasets.Dataset``, if they are in memory.
        batch_size: the number of rows per batch.

    Returns:
        Loss and metrics on the split.

    Raises:
        DataError: the data has no such split.
        TemplateError: the task predicts with a trained head, which is random before training.
        SoftpromptError: something else does not fit; the message says what to do.

    Examples:
        ```python
        report = evaluate_hard_prompt(read_recipe("recipe.toml"), backbone=model.backbone)
        print(report.metrics["accuracy"])
        ```

        >>> from softprompt import make_recipe
        >>> recipe = make_recipe(
        ...     {
        ...         "backbone": {"name": "builtin:minilm"},
        ...         "data": {"train": "reviews.csv"},
        ...         "task": {"kind": "classify"},
        ...         "method": {"name": "prompt-tuning"},
        ...     }
        ... )
        >>> evaluate_hard_prompt(recipe)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.DataError: there is no file reviews.csv ...
    """
    parts = Parts(recipe, backbone, tables)
    stages = (*HARD_PROMPT_STAGES, _check_untrained, render_rows)
    run_stages(stages, parts, collector=FaultCollector())
    if split not in parts.rows:
        msg = f"in the recipe's data: {format_unknown('split', split, options=parts.rows)}"
        raise DataError(msg)
    task, rows = require(parts.task), parts.rows[split]
    evaluated = evaluate_rows(
        task, rows.examples, truth=rows.truth, prompt=None, batch_size=batch_size
    )
    return make_report(task, [evaluated])


def _check_untrained(parts: Parts, collector: FaultCollector) -> None:
    """The stage that refuses a task that cannot predict without training."""
    collector.check(_refuse_head, require(parts.task))


def _refuse_head(task: Task) -> None:
    if task.head is not None:
        msg = (
            "there is no hard prompt without a verbalizer: the task predicts with a head that is "
            "random until it is trained. Write label words into task.verbalizer."
        )
        raise TemplateError(msg)


def _assemble(parts: Parts) -> RunSetup:
    defaults = require(parts.defaults)
    return RunSetup(
        recipe=parts.recipe,
        backbone=require(parts.backbone),
        task=require(parts.task),
        method=require(parts.method),
        template=require(parts.template).text,
        training=replace(
            resolve_training(parts.recipe, defaults, rows=len(parts.rows["train"].examples)),
            token_dropout=_choose_token_dropout(parts),
        ),
        defaults=defaults,
        rows=parts.rows,
        hashes=parts.hashes,
        warnings=tuple(parts.warnings),
        notes=tuple(parts.notes),
        demonstrations=parts.demonstrations,
        folds=parts.folds,
        readout=parts.readout,
        tables=parts.valid_tables,
        candidates=parts.candidates,
        init=parts.init,
        takes_head=parts.takes_head,
    )


def _choose_token_dropout(parts: Parts) -> float:
    settings = parts.recipe.method_settings
    if isinstance(settings, PTuningV2 | PrefixTuning) and settings.token_dropout is not None:
        return settings.token_dropout
    return 0.0 if parts.demonstrations is None else TOKEN_DROPOUT
