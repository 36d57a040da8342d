"""Cross-validation for few rows: train on all folds but one, choose how long, then on all rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from accelerate import Accelerator

from softprompt.inference.loops import compute_intervals
from softprompt.tasks.heads import PooledHeadTask
from softprompt.train.datasets import select_rendered
from softprompt.train.demonstrations import build_from_demonstrations
from softprompt.train.events import Callback, Evaluation, FoldProgress
from softprompt.train.kept import read_kept, write_kept
from softprompt.train.precompute import share_cached_states
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import (
    RunSetup,
    make_trainer,
    restore_start,
    settle_fold_readouts,
    settle_head,
)
from softprompt.train.stages import notify
from softprompt.train.trainer import compute_selection_score

_UNTRAINED = (
    "nothing was learned: the best mean of all folds is that of the start, before the first step. "
    "The prompt of this run is the untrained one, and so is its head if it has one. Try another "
    "learning rate, three times as high or a third, or more epochs."
)


@dataclass(frozen=True)
class FoldScores:
    """The validations of one fold.

    Args:
        rows: the number of its rows.
        progress: of each validation, the fraction of the steps before it, 0 to 1.
        metrics: of each validation.
    """

    rows: int
    progress: tuple[float, ...]
    metrics: tuple[Mapping[str, float], ...]

    def as_data(self) -> dict[str, Any]:
        """The scores as JSON has them."""
        return {"rows": self.rows, "progress": [*self.progress], "metrics": [*self.metrics]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "FoldScores":
        """The scores that `as_data` returned."""
        return cls(data["rows"], tuple(data["progress"]), tuple(data["metrics"]))


@dataclass(frozen=True)
class CrossValidation:
    """The scores of all folds, and the length of training that they choose.

    Args:
        folds: the scores of each.
        best_metric: that chooses.
        chosen: the index of the validation with the best mean.
    """

    folds: tuple[FoldScores, ...]
    best_metric: str
    chosen: int

    @classmethod
    def from_folds(cls, folds: Sequence[FoldScores], best_metric: str) -> "CrossValidation":
        """Choose the validation with the best mean; of equal ones the first."""
        count = min(len(fold.metrics) for fold in folds)
        means = [_average(folds, index) for index in range(count)]
        scores = [
            compute_selection_score(mean, select=best_metric, step=index)
            for index, mean in enumerate(means)
        ]
        return cls(tuple(folds), best_metric, scores.index(max(scores)))

    @property
    def rows(self) -> int:
        """The number of rows, each of which is in one fold."""
        return sum(fold.rows for fold in self.folds)

    @property
    def progress(self) -> float:
        """The fraction of the steps after which the mean is best, 0 to 1."""
        return fmean(fold.progress[self.chosen] for fold in self.folds)

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the folds, weighted by their rows."""
        return _average(self.folds, self.chosen)

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation of each metric over the folds."""
        values = [fold.metrics[self.chosen] for fold in self.folds]
        return {name: stdev(value[name] for value in values) for name in self.metrics}

    def as_data(self) -> dict[str, Any]:
        """The summary that a run's ``metrics.json`` has."""
        return {
            "folds": len(self.folds),
            "rows": self.rows,
            "mean": self.metrics,
            "standard_deviation": self.spread,
            "intervals": compute_intervals(self.metrics, self.rows),
            "progress": self.progress,
        }

    def __str__(self) -> str:
        scores = ", ".join(
            f"{name} {value:.4f} ± {self.spread[name]:.4f}" for name, value in self.metrics.items()
        )
        return (
            f"{len(self.folds)} folds of {self.rows:,} rows: {scores} (mean and standard "
            f"deviation), best after {self.progress:.0%} of the steps"
        )


def train_folds(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    finished: Sequence[FoldScores] = (),
) -> Iterator[FoldScores]:
    """Train on all folds but one and validate on that one, for each fold from the same start.

    Args:
        prepared: the parts of the run, which are as before when the last fold is done.
        accelerator: of the run.
        callbacks: called with a `FoldProgress` at each step.
        finished: the scores of the first folds, if they are known.

    Yields:
        The scores of each fold, the finished ones too.
    """
    yield from finished
    for number in range(len(finished) + 1, len(prepared.folds) + 1):
        with restore_start(prepared):
            scores = _run_fold(prepared, accelerator, number=number, callbacks=callbacks)
        yield scores


def _run_fold(
    prepared: RunSetup, accelerator: Accelerator, *, number: int, callbacks: Sequence[Callback]
) -> FoldScores:
    trainer = make_trainer(make_fold(prepared, number), accelerator)
    progress, metrics = list[float](), list[Mapping[str, float]]()
    for event in trainer.run():
        if isinstance(event, Evaluation):
            progress.append(event.step / trainer.total)
            metrics.append(dict(event.metrics))
        done = FoldProgress(number, len(prepared.folds), event.step, trainer.total)
        notify(callbacks, done)
    return FoldScores(len(prepared.folds[number - 1]), tuple(progress), tuple(metrics))


def make_fold(prepared: RunSetup, number: int) -> RunSetup:
    """The parts of a run on all folds but one, which validates.

    Args:
        prepared: the parts of the run; the fold trains the same method and head.
        number: of the fold that validates, counted from 1.

    Returns:
        The parts. Readout, demonstrations and the start of the head are chosen without the rows
        that validate.
    """
    rows = prepared.rows["train"]
    held_out = prepared.folds[number - 1]
    others = [index for fold in prepared.folds if fold is not held_out for index in fold]
    parts = {
        "train": select_rendered(rows, sorted(others)),
        "validation": select_rendered(rows, held_out),
    }
    fold, task = replace(prepared, rows=parts), prepared.task
    if prepared.fold_readouts and isinstance(task, PooledHeadTask):
        task = task.with_pooling(prepared.fold_readouts[number - 1].pooling)
    return settle_head(_start_fold(replace(fold, task=task)))


def _start_fold(fold: RunSetup) -> RunSetup:
    """The parts of a fold, which does not start from the rows that it validates by."""
    if fold.demonstrations is None:
        return fold
    demonstrations = fold.demonstrations.drop_held_out(fold.rows["validation"].examples)
    method = build_from_demonstrations(
        fold.backbone,
        fold.recipe.method_settings,
        demonstrations=demonstrations,
        seed=fold.training.seed,
    )
    rows = {**fold.rows, "train": demonstrations.mark(fold.rows["train"])}
    return replace(fold, method=method, demonstrations=demonstrations, rows=rows)


def _average(folds: Sequence[FoldScores], index: int) -> dict[str, float]:
    """The mean of each metric of a validation over the folds, weighted by their rows."""
    rows = sum(fold.rows for fold in folds)
    return {
        name: sum(fold.rows * fold.metrics[index][name] for fold in folds) / rows
        for name in folds[0].metrics[index]
    }


def run_folds(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
) -> tuple[RunSetup, CrossValidation]:
    """Cross-validate, and choose how long to train on all rows.

    Args:
        prepared: the parts of the run, with folds.
        accelerator: of the run.
        callbacks: called with a `FoldProgress` at each step.
        folder: of the run, which keeps each finished fold; None to keep them in memory.

    Returns:
        The parts, with the scores and with training that ends where their mean was best; and the
        scores.

    Raises:
        ArtifactError: the folder has folds of another recipe, backbone or other rows.
    """
    scores = _score_folds(prepared, accelerator, callbacks=callbacks, folder=folder)
    result = CrossValidation.from_folds(scores, prepared.training.best_metric)
    warnings = prepared.warnings if result.progress else (*prepared.warnings, _UNTRAINED)
    settled = replace(
        prepared,
        training=replace(prepared.training, end=result.progress),
        cross_validation=result.as_data(),
        warnings=warnings,
        notes=(*prepared.notes, str(result)),
    )
    return settled, result


def score_seed(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    like: CrossValidation,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
) -> CrossValidation:
    """Cross-validate another seed of a run, at the length that the first one chose.

    Args:
        prepared: the parts of the run with the other seed.
        accelerator: of the run.
        like: the scores of the first seed.
        callbacks: as for `run_folds`.
        folder: of the seed.
    """
    whole = replace(prepared, training=replace(prepared.training, end=1.0))
    scores = _score_folds(whole, accelerator, callbacks=callbacks, folder=folder)
    return replace(like, folds=tuple(scores))


def _score_folds(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None,
) -> list[FoldScores]:
    finished = [] if folder is None else _read_finished(folder, prepared)
    if len(finished) < len(prepared.folds):
        prepared = settle_fold_readouts(prepared)
        prepared = share_cached_states(prepared, accelerator, callbacks=callbacks)
    scores: list[FoldScores] = []
    for fold in train_folds(prepared, accelerator, callbacks=callbacks, finished=finished):
        scores.append(fold)
        is_new = len(scores) > len(finished)
        if folder is not None and is_new and accelerator.is_main_process:
            value = [each.as_data() for each in scores]
            write_kept(folder, "folds", prepared=prepared, value=value)
    return scores


def _read_finished(folder: RunDir, prepared: RunSetup) -> list[FoldScores]:
    def parse(scores: list[dict[str, Any]]) -> list[FoldScores]:
        return [FoldScores.from_data(fold) for fold in scores]

    return read_kept(folder, "folds", prepared=prepared, parse=parse) or []
