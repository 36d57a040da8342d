"""Several seeds of one recipe: each is trained alone, and the best is kept, or an ensemble of all.

Splits, readout, learning rate, length and cached states are those of the run; the seeds differ in
the initialization, the head and the order of rows. The first seed is that of the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, cast

import torch
from accelerate import Accelerator

from softprompt.artifact import Artifact, load_artifact
from softprompt.data.few_rows import count_rows
from softprompt.errors import ArtifactError
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.loops import EnsembleReport
from softprompt.inference.model import attach
from softprompt.inference.votes import choose_vote
from softprompt.recipe import Recipe
from softprompt.train.calibration import calibrate_task
from softprompt.train.events import Callback, PhaseStarted, TrainingWarning
from softprompt.train.folds import CrossValidation, score_seed
from softprompt.train.kept import read_kept, write_kept
from softprompt.train.precompute import share_cached_states
from softprompt.train.recorder import train_to_end
from softprompt.train.results import Outcome, collect_metrics, make_run_artifact, to_dict
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup, with_seed
from softprompt.train.stages import notify
from softprompt.train.trainer import compute_selection_score

# The metrics whose spread is in the sentence about the seeds.
_SHOWN = ("accuracy", "exact_match", "loss")
_OF_ONE_SEED = {"best_step", "steps"}
_NO_DIFFERENCE = (
    "the seeds make no difference: the prompt starts with the same values for every seed, and each "
    "step has all training rows. Set train.seeds to 1, give an initialization that is random "
    '(method.init = { from = "random" }), or a batch_size below the number of rows.'
)


@dataclass(frozen=True, eq=False)
class SeedResult:
    """What the training with one seed gave.

    Args:
        seed: of the training.
        artifact: with its best prompt.
        metrics: as in ``metrics.json``, without those on test rows.
    """

    seed: int
    artifact: Artifact
    metrics: Mapping[str, Any]

    @property
    def scores(self) -> Mapping[str, float]:
        """The metrics by which seeds are compared: the mean of folds, or of validation rows."""
        folds = self.metrics.get("cross_validation")
        return cast("Mapping[str, float]", folds["mean"] if folds else self.metrics["validation"])


def list_seeds(recipe: Recipe) -> list[int]:
    """The seeds of a run, that of its recipe first."""
    return [recipe.seed + number for number in range(recipe.train.seeds)]


def train_seeds(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    scores: CrossValidation | None,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
    resume: bool = False,
) -> list[SeedResult]:
    """Train every seed of a run, each in a folder of its own; those that are finished are read.

    Args:
        prepared: the parts of the run, settled.
        accelerator: of the run.
        scores: of the cross-validation that chose the length; None without folds.
        callbacks: called with every event.
        folder: of the run; None to keep the results in memory.
        resume: whether to resume the run in the folder.

    Raises:
        ArtifactError: the folder has seeds of another recipe, backbone or other rows.
    """
    seeds, results = list_seeds(prepared.recipe), list[SeedResult]()
    for number, seed in enumerate(seeds, start=1):
        inside = None if folder is None else folder.open_seed(seed)
        result = None if inside is None else read_result(inside, prepared, seed=seed)
        if result is None:
            prepared = share_cached_states(prepared, accelerator, callbacks=callbacks)
            if number == 1 and has_no_effect(prepared, with_seed(prepared, seeds[1])):
                notify(callbacks, TrainingWarning(0, _NO_DIFFERENCE))
            notify(callbacks, PhaseStarted("training", f"seed {number} of {len(seeds)}"))
            member = with_seed(prepared, seed)
            if scores is not None and number > 1:
                member = replace(member, cross_validation=None)
                if prepared.recipe.train.combine_seeds == "best":
                    found = score_seed(
                        member, accelerator, like=scores, callbacks=callbacks, folder=inside
                    )
                    member = replace(member, cross_validation=found.as_data())
            result = _train_seed(
                member, accelerator, callbacks=callbacks, folder=inside, resume=resume
            )
        results.append(result)
    return results


def has_no_effect(prepared: RunSetup, other: RunSetup) -> bool:
    """Whether two seeds train the same: from the same start, with all rows in every step.

    Args:
        prepared: the parts with one seed, before the first step.
        other: those with the other one.
    """
    training, rows = prepared.training, prepared.rows["train"].examples
    is_whole = training.max_tokens_per_batch is None and len(rows) <= training.batch_size
    if not is_whole or training.token_dropout or training.is_backbone_in_train_mode:
        return False
    pairs = [(prepared.method.state_dict(), other.method.state_dict())]
    if prepared.task.head is not None and other.task.head is not None:
        pairs.append((prepared.task.head.state_dict(), other.task.head.state_dict()))
    return all(torch.equal(one[name], two[name]) for one, two in pairs for name in one)


def _train_seed(
    member: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None,
    resume: bool,
) -> SeedResult:
    trainer, best = train_to_end(
        member, accelerator, callbacks=callbacks, folder=folder, resume=resume
    )
    member = calibrate_task(member, best, trainer=trainer, callbacks=callbacks)
    artifact = make_run_artifact(member, best, start=trainer.start)
    metrics = collect_metrics(trainer, best, prepared=member)
    if folder is not None and accelerator.is_main_process:
        folder.save_artifact(artifact)
        write_kept(folder, "result", prepared=member, value=metrics)
    accelerator.wait_for_everyone()
    return SeedResult(member.training.seed, artifact, metrics)


def read_result(folder: RunDir, prepared: RunSetup, *, seed: int) -> SeedResult | None:
    """Read what a finished seed gave; None if it is not finished, or its artifact is damaged.

    Args:
        folder: of the seed.
        prepared: the parts of the run, on which it depends.
        seed: of the training.

    Raises:
        ArtifactError: it was trained by another recipe, or its result cannot be read.
    """

    def parse(metrics: Mapping[str, Any]) -> SeedResult | None:
        try:
            artifact = load_artifact(folder.artifact)
        except ArtifactError:  # it is written again
            return None
        result = SeedResult(seed, artifact, metrics)
        _ = (result.scores, metrics["best_step"], metrics["steps"])
        return result

    return read_kept(folder, "result", prepared=prepared, parse=parse)


def choose_best_seed(results: Sequence[SeedResult], *, metric: str) -> SeedResult:
    """The result with the best score on validation rows or folds; of equal ones the first.

    Args:
        results: of all seeds.
        metric: that chooses.
    """
    scores = [
        compute_selection_score(result.scores, select=metric, step=result.metrics["best_step"])
        for result in results
    ]
    return results[scores.index(max(scores))]


def combine_seeds(
    results: Sequence[SeedResult],
    *,
    prepared: RunSetup,
    callbacks: Sequence[Callback] = (),
    has_test: bool = False,
) -> Outcome:
    """Keep the best of several seeds, or the ensemble of all, as the recipe says.

    Test rows only measure: the choice is made before they are looked at.

    Args:
        results: of all seeds that are trained.
        prepared: the parts of the run.
        callbacks: called as the test begins.
        has_test: whether the test rows are evaluated, if there are any.
    """
    models = [attach(result.artifact, prepared.backbone) for result in results]
    ensemble = Ensemble(models, vote=choose_vote(prepared.task))
    best = None
    if prepared.recipe.train.combine_seeds == "best":
        best = choose_best_seed(results, metric=prepared.training.best_metric)
    steps, test = results[-1].metrics["steps"], None
    if has_test and "test" in prepared.rows:
        rows = len(prepared.rows["test"].truth)
        what = f"{count_rows(rows)} with {len(results)} seeds"
        notify(callbacks, PhaseStarted("testing", what, rows, steps))
        test = _evaluate_all(ensemble, prepared, "test")
    summary = _summarize(results, chosen=best, test=test)
    if best is not None:
        at, metrics = results.index(best), {**best.metrics, "seeds": summary}
        if test is not None:
            metrics["test"] = to_dict(test.members[at])
        return Outcome(models[at], metrics, steps)
    # Which step was the best is known of each seed alone.
    metrics = {n: value for n, value in results[0].metrics.items() if n not in _OF_ONE_SEED}
    validation = _evaluate_all(ensemble, prepared, "validation")
    metrics["validation"] = {} if validation is None else dict(validation.ensemble.metrics)
    metrics["seeds"] = summary
    if test is not None:
        metrics["test"] = to_dict(test.ensemble)
    return Outcome(ensemble, metrics, steps, tuple(f"seed-{result.seed}" for result in results))


def _evaluate_all(ensemble: Ensemble, prepared: RunSetup, split: str) -> EnsembleReport | None:
    """The scores of all seeds and of their ensemble, in one run of the rows; None without rows."""
    rows = prepared.rows.get(split)
    if rows is None:
        return None
    views = [[example] * len(ensemble.members) for example in rows.examples]
    return ensemble.evaluate_rendered(views, rows.truth, batch_size=prepared.training.batch_size)


def _summarize(
    results: Sequence[SeedResult],
    *,
    chosen: SeedResult | None,
    test: EnsembleReport | None,
) -> dict[str, Any]:
    """The scores of each seed, and their spread, as JSON has them."""
    each = []
    for number, result in enumerate(results):
        scores = {
            "seed": result.seed,
            "best_step": result.metrics["best_step"],
            "steps": result.metrics["steps"],
            "validation": dict(result.metrics["validation"]),
        }
        if "cross_validation" in result.metrics:
            scores["folds"] = dict(result.metrics["cross_validation"]["mean"])
        if test is not None:
            scores["test"] = dict(test.members[number].metrics)
        each.append(scores)
    spread = {
        name: found
        for name in ("validation", "folds", "test")
        if (found := _measure_spread(each, name))
    }
    return {
        "combined": "ensemble" if chosen is None else "best",
        "chosen": None if chosen is None else chosen.seed,
        "each": each,
        "spread": spread,
    }


def _measure_spread(each: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """The mean and the standard deviation of each metric that all seeds have."""
    scores: list[Mapping[str, float]] = [seed.get(name) or {} for seed in each]
    names = [metric for metric in scores[0] if all(metric in one for one in scores)]
    values = {metric: [one[metric] for one in scores] for metric in names}
    return {
        metric: {"mean": fmean(found), "standard_deviation": stdev(found)}
        for metric, found in values.items()
    }


def describe_seeds(summary: Mapping[str, Any]) -> str:
    """The spread over the seeds of a run in a sentence.

    Args:
        summary: of the run's metrics, under the name ``seeds``.
    """
    parts = []
    for split, spread in summary["spread"].items():
        shown = [
            f"{metric} {spread[metric]['mean']:.4f} ± {spread[metric]['standard_deviation']:.4f}"
            for metric in _SHOWN
            if metric in spread
        ]
        parts.append(f"{split} {', '.join(shown)}")
    scores = f" ({'; '.join(parts)}: mean and standard deviation)" if parts else ""
    count = f"{len(summary['each'])} seeds{scores}"
    if summary["chosen"] is None:
        return f"{count} are combined in an ensemble."
    return f"Of {count}, seed {summary['chosen']} is the best by {_name_judge(summary)}."


def _name_judge(summary: Mapping[str, Any]) -> str:
    return "folds" if "folds" in summary["spread"] else "validation"
