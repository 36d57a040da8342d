"""The results of a run: its artifact, its metrics, and its checkpoints."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from softprompt._io import ErrorContext
from softprompt.analysis import measure_distance_from_init
from softprompt.artifact import Artifact, describe_backbone, make_artifact
from softprompt.artifact.ensembles import SavedEnsemble
from softprompt.artifact.store import check_savable
from softprompt.data.few_rows import count_rows
from softprompt.errors import ArtifactError, TrainingError
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.loops import EvaluationReport, make_report
from softprompt.inference.model import PromptModel, attach
from softprompt.prompt import Prompt
from softprompt.recipe import Recipe
from softprompt.tasks.config import describe_settings
from softprompt.tasks.heads import PooledHeadTask
from softprompt.tasks.objective_settings import describe_objective, get_loss_unit
from softprompt.train.datasets import RenderedRows
from softprompt.train.demonstrations import describe_demonstrations
from softprompt.train.events import Callback, PhaseStarted
from softprompt.train.plots import draw_run, draw_seeds
from softprompt.train.recipe_changes import CHANGEABLE, diff_recipes, explain_changes
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup
from softprompt.train.stages import notify
from softprompt.train.trainer import Best, Trainer, describe_untrained, evaluate_split


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run keeps.

    Args:
        model: the prompt, the plain head, or the ensemble of several seeds.
        metrics: as ``metrics.json`` has them.
        steps: of the last training.
        names: of the folders of an ensemble's members.
    """

    model: PromptModel | Ensemble
    metrics: Mapping[str, Any]
    steps: int
    names: tuple[str, ...] = ()

    @property
    def artifact(self) -> Artifact | SavedEnsemble:
        """The files of the model."""
        if isinstance(self.model, PromptModel):
            return self.model.artifact
        artifacts = [member.artifact for member in self.model.members]
        return SavedEnsemble(self.model.vote, dict(zip(self.names, artifacts, strict=True)))


def make_run_artifact(prepared: RunSetup, best: Best, *, start: Prompt | None) -> Artifact:
    """Make the artifact of a run: its prompt, and a record of how it was trained.

    Args:
        prepared: the parts of the run.
        best: the prompt to save.
        start: the prompt before the first step; only the distance from it is recorded.

    Raises:
        TrainingError: the run trained the backbone and no prompt.
    """
    if best.prompt is None or start is None:
        msg = (
            "an artifact holds a prompt, but this run trained the backbone's own weights. Save "
            "those with the backbone (backbone.model.save_pretrained), or train a prompt."
        )
        raise TrainingError(msg)
    recipe = prepared.recipe
    distance = measure_distance_from_init(start, best.prompt)
    return make_artifact(
        best.prompt,
        best.head,
        template=prepared.template,
        max_length=recipe.data.max_length,
        task=_describe_task(prepared),
        labels=list(prepared.task.labels),
        backbone=describe_backbone(prepared.backbone),
        data=prepared.data_record,
        recipe=_describe_recipe(prepared),
        metrics=_drop_infinite(
            {
                "validation": dict(best.metrics),
                **_describe_cross_validation(prepared),
                **describe_demonstrations(prepared.demonstrations),
                **_describe_start_choice(prepared),
                **_describe_others(prepared),
                "step": best.step,
                **_describe_seed(prepared),
                **_describe_calibration(prepared),
                "moved": {"overall": distance.overall, "each": [*distance.each]},
            }
        ),
    )


def _describe_task(prepared: RunSetup) -> dict[str, object]:
    """The settings of the task, with the readout of its head and the weights of its labels."""
    facts = describe_settings(prepared.recipe.task_settings, template=prepared.template)
    facts |= describe_objective(prepared.task.objective)
    if isinstance(prepared.task, PooledHeadTask):
        facts["pooling"] = prepared.task.pooling
    return facts


def _describe_recipe(prepared: RunSetup) -> dict[str, Any]:
    """The recipe of the run, with the readout that was chosen."""
    data = prepared.recipe.as_data()
    if isinstance(prepared.task, PooledHeadTask):
        data["task"]["pooling"] = prepared.task.pooling
    return data


def _drop_infinite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out numbers that overflowed: JSON does not have them, and the prompt counts more."""
    kept: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            kept[name] = _drop_infinite(value)
        elif isinstance(value, list | tuple):
            kept[name] = [None if _is_infinite(x) else x for x in value]
        elif not _is_infinite(value):
            kept[name] = value
    return kept


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _describe_cross_validation(prepared: RunSetup) -> dict[str, Any]:
    scores = prepared.cross_validation
    return {} if scores is None else {"cross_validation": dict(scores)}


def _describe_calibration(prepared: RunSetup) -> dict[str, Any]:
    return {} if prepared.calibration is None else {"calibration": dict(prepared.calibration)}


def _describe_seed(prepared: RunSetup) -> dict[str, int]:
    """The seed of the training, where the recipe has several."""
    return {} if prepared.recipe.train.seeds == 1 else {"seed": prepared.training.seed}


def _describe_readout(prepared: RunSetup) -> dict[str, Any]:
    readout = prepared.readout
    return {} if readout is None else {"readout": readout.as_data()}


def _describe_rate_search(prepared: RunSetup) -> dict[str, Any]:
    search = prepared.rate_search
    return {} if search is None else {"learning_rate_search": dict(search)}


def _describe_start_choice(prepared: RunSetup) -> dict[str, Any]:
    return {} if prepared.start_choice is None else {"start_choice": dict(prepared.start_choice)}


def _describe_others(prepared: RunSetup) -> dict[str, Any]:
    return {"trained_with": [*prepared.trained_with]} if prepared.trained_with else {}


def check_run_savable(trainer: Trainer, prepared: RunSetup) -> None:
    """Check before training that the artifact of a run can be saved.

    Args:
        trainer: before its first step.
        prepared: the parts of the run.

    Raises:
        ArtifactError: it cannot, such as for a number that JSON does not have.
    """
    artifact = make_run_artifact(prepared, trainer.get_best(), start=trainer.start)
    source = ErrorContext("the artifact of this run", "Correct the recipe; nothing was trained.")
    check_savable(artifact, source=source)


def count_final_rows(trainer: Trainer, prepared: RunSetup) -> int:
    """The number of rows that are evaluated after the last step, for the run's folder.

    Several seeds are tested together, after the last one.
    """
    rows, test = _get_unseen_validation(trainer, prepared), prepared.rows.get("test")
    test = test if prepared.recipe.train.seeds == 1 else None
    return sum(len(part.examples) for part in (rows, test) if part is not None)


def _get_unseen_validation(trainer: Trainer, prepared: RunSetup) -> RenderedRows | None:
    """All validation rows, if the best prompt was selected by a sample of them."""
    rows = prepared.rows.get("validation")
    return None if trainer.validation is rows else rows


def evaluate_all_validation_rows(
    best: Best, trainer: Trainer, *, prepared: RunSetup, callbacks: Sequence[Callback]
) -> Best:
    """The best prompt with its metrics on all validation rows, if it was selected by a sample."""
    rows = _get_unseen_validation(trainer, prepared)
    if rows is None:
        return best
    count = len(rows.examples)
    notify(callbacks, PhaseStarted("validating", f"all {count_rows(count)}", count, trainer.step))
    model = attach(make_run_artifact(prepared, best, start=trainer.start), prepared.backbone)
    return replace(best, metrics=dict(_evaluate(model, trainer, rows).metrics))


def collect_metrics(trainer: Trainer, best: Best, *, prepared: RunSetup) -> dict[str, Any]:
    """Collect the metrics of a finished training, without those on test rows.

    Args:
        trainer: after its last step.
        best: the prompt that it chose, with its metrics on all validation rows.
        prepared: the parts of the run.
    """
    settings = asdict(prepared.training)
    warnings = [*prepared.warnings]
    if best.step == 0 and trainer.step and best.metrics:
        warnings.append(describe_untrained(best, prepared.training.best_metric))
    return {
        "validation": dict(best.metrics),
        **_describe_cross_validation(prepared),
        **_describe_readout(prepared),
        **_describe_rate_search(prepared),
        **describe_demonstrations(prepared.demonstrations),
        **_describe_start_choice(prepared),
        **_describe_others(prepared),
        "rows": {name: len(rows.truth) for name, rows in prepared.rows.items()},
        "warnings": warnings,
        **_describe_calibration(prepared),
        "best_step": best.step,
        "steps": trainer.step,
        "truncated_rows": {name: rows.truncated for name, rows in prepared.rows.items()},
        "trainable_parameters": sum(p.numel() for p in trainer.modules.parameters()),
        "backbone_parameters": prepared.task.parameters,
        "template": prepared.template,
        "training": {
            name: value for name, value in settings.items() if value is not None and name != "end"
        },
        "defaults_from": prepared.defaults.source,
    }


def measure_test(
    model: PromptModel, trainer: Trainer, *, prepared: RunSetup, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    """Evaluate the prompt of a run on its test rows, which nothing before has read.

    All processes must call it: each evaluates its share.

    Args:
        model: the prompt.
        trainer: of the run.
        prepared: the parts of the run.
        callbacks: called as it begins.

    Returns:
        The metrics under the name ``test``; nothing without test rows.
    """
    test = prepared.rows.get("test")
    if test is None:
        return {}
    count = len(test.examples)
    notify(callbacks, PhaseStarted("testing", count_rows(count), count, trainer.step))
    return {"test": to_dict(_evaluate(model, trainer, test))}


def draw_picture(run: RunDir, recipe: Recipe) -> None:
    """Draw the learning curves of a run into its folder.

    Args:
        run: with its events.
        recipe: of the run.
    """
    title = f"{run.path.name}: {recipe.method.name}"
    unit = get_loss_unit(recipe.task_settings)
    seeds = {each.path.name: [*each.read_events()] for each in run.list_seeds()}
    with run.replace_picture() as path:
        if seeds:
            draw_seeds(seeds, path, title=title, unit=unit)
        else:
            kept = run.read_state("folds")
            folds = () if kept is None else kept["folds"]
            draw_run(run.read_events(), path, title=title, unit=unit, folds=folds)


def to_dict(report: EvaluationReport) -> dict[str, Any]:
    """A report as JSON has it: the metrics, their intervals, the rows, the confusion matrix."""
    data: dict[str, Any] = {"rows": report.rows, **report.metrics, "intervals": report.intervals}
    if report.confusion is not None:
        data["confusion"] = asdict(report.confusion)
    return data


def _evaluate(model: PromptModel, trainer: Trainer, rows: RenderedRows) -> EvaluationReport:
    """Evaluate a prompt in all processes; the same report in each."""
    parts = evaluate_split(
        model.task,
        rows,
        prompt=model.prompt,
        batch_size=trainer.training.batch_size,
        accelerator=trainer.accelerator,
    )
    return make_report(model.task, parts)


def collect_checkpoint(trainer: Trainer, prepared: RunSetup, *, num_events: int) -> dict[str, Any]:
    """Collect the state from which a run can resume.

    Args:
        trainer: of the run.
        prepared: the parts of the run.
        num_events: the number of events in the run's folder.
    """
    return {
        "trainer": trainer.state_dict(),
        "num_events": num_events,
        "recipe": prepared.recipe.as_data(),
        "hashes": dict(prepared.hashes),
        "fingerprint": prepared.backbone.fingerprint,
        **_describe_readout(prepared),
    }


def restore_run(trainer: Trainer, run: RunDir, *, prepared: RunSetup) -> int:
    """Load the checkpoint in a run's folder into a new trainer.

    Returns:
        The number of events at the time of the checkpoint; 0 without one.

    Raises:
        ArtifactError: the data or the backbone have changed, or the checkpoint is damaged.
    """
    state = run.load_checkpoint()
    if state is None:
        return 0
    with explain_misfit(run):
        restore_trainer(trainer, state, run=run, prepared=prepared)
        check_steps(trainer.step, trainer.total)
        return int(state["num_events"])


def restore_trainer(
    trainer: Trainer, state: Mapping[str, Any], *, run: RunDir, prepared: RunSetup
) -> None:
    """Load what `collect_checkpoint` returned into a new trainer.

    Args:
        trainer: of the run.
        state: of the checkpoint.
        run: for messages.
        prepared: the parts of the run.

    Raises:
        ArtifactError: the data or the backbone have changed.
    """
    _check_unchanged(state, run, prepared)
    trainer.load_state_dict(state["trainer"])


@contextmanager
def explain_misfit(run: RunDir) -> Iterator[None]:
    """Raise an ArtifactError for a checkpoint that does not fit the run that reads it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        msg = (
            f"the checkpoint in {run.path} does not fit its recipe ({type(error).__name__}: "
            f"{error}): one of the two was changed, or another version of softprompt wrote the "
            "checkpoint. Restore it, or train again."
        )
        raise ArtifactError(msg) from error


def check_steps(step: int, total: int) -> None:
    """Check that a shorter run has not gone beyond its new end.

    Args:
        step: the number of finished steps.
        total: the number of all steps.

    Raises:
        ArtifactError: it has.
    """
    if step > total:
        msg = (
            f"the run is at step {step} already, but its epochs and max_steps end it at step "
            f"{total}. Give a later end."
        )
        raise ArtifactError(msg)


def _check_unchanged(state: Mapping[str, Any], run: RunDir, prepared: RunSetup) -> None:
    """Check that recipe, data and backbone are those that the run started with."""
    changed_keys = diff_recipes(state["recipe"], prepared.recipe.as_data())
    if fixed := [change for change in changed_keys if change.key not in CHANGEABLE]:
        raise ArtifactError(explain_changes(fixed, run.root))
    before, now = state["hashes"], prepared.hashes
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        msg = (
            f"the {' and '.join(changed)} data is not what the run in {run.path} started with, so "
            "it cannot resume with the same numbers. Restore the data, or train again."
        )
        raise ArtifactError(msg)
    if state["fingerprint"] != prepared.backbone.fingerprint:
        msg = (
            f"{prepared.backbone.name} (fingerprint {prepared.backbone.fingerprint}) is not the "
            f"backbone that the run in {run.path} started with ({state['fingerprint']}). Use the "
            "same revision, or train again."
        )
        raise ArtifactError(msg)
