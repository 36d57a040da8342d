"""The best prompt so far of a run that is not finished."""

from pathlib import Path
from shlex import quote

from softprompt.backbone.model import Backbone
from softprompt.errors import TrainingError
from softprompt.inference.ensemble import Ensemble, load_model
from softprompt.inference.model import PromptModel, attach
from softprompt.train.accelerator import make_accelerator
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.results import collect_metrics, make_run_artifact, restore_run
from softprompt.train.run_dir import RunDir
from softprompt.train.seeds import SeedResult, combine_seeds, list_seeds, read_result
from softprompt.train.setup import (
    RunSetup,
    make_trainer,
    settle_readout,
    setup_run,
    with_seed,
)


def load_best_prompt(
    folder: str | Path, *, backbone: Backbone | str | Path | None = None
) -> PromptModel | Ensemble:
    """The best prompt so far of a stopped run, or that of a finished one.

    Args:
        folder: of the run.
        backbone: that it was trained on, if it is loaded already; or its name for
            `load_backbone`, if it is in another place now.

    Returns:
        The best prompt by the validations so far, ready to predict. Of several seeds, the best one
        so far, or the ensemble of those that have begun.

    Raises:
        TrainingError: the run has no checkpoint yet.
        SoftpromptError: the folder is not that of a run, or its data or backbone have changed.

    Examples:
        ```python
        model = load_best_prompt("runs/recipe")
        ```
    """
    run = RunDir(Path(folder))
    if run.artifact.exists():
        return load_model(run.path, backbone=backbone)
    recipe = run.read_recipe()
    run.check_unedited()
    if backbone is not None and not isinstance(backbone, Backbone):
        # The recipe stays as it is, since it has to be that of the checkpoint.
        moved = {"name": str(backbone), "revision": None}
        backbone = load_recipe_backbone(recipe.backbone.model_copy(update=moved))
    prepared = setup_run(recipe, backbone=backbone)
    if prepared.has_open_readout and (checkpoint := run.load_any_checkpoint()) is not None:
        prepared = settle_readout(prepared, checkpoint=checkpoint)
    results = _read_seeds(run, prepared)
    if not results:
        msg = (
            f"the run in {run.path} was stopped before its first checkpoint, so it has no prompt "
            f"yet. Resume it: softprompt resume {quote(str(run.path))}"
        )
        raise TrainingError(msg)
    if len(results) == 1:
        return attach(results[0].artifact, prepared.backbone)
    return combine_seeds(results, prepared=prepared).model


def _read_seeds(run: RunDir, prepared: RunSetup) -> list[SeedResult]:
    """The best prompt so far of the only seed, or of each seed that has a checkpoint.

    Where folds choose the best seed, the last one has no score until it is finished.
    """
    if prepared.recipe.train.seeds == 1:
        return _read_checkpoint(run, prepared)
    results: list[SeedResult] = []
    for seed in list_seeds(prepared.recipe):
        folder = run.open_seed(seed)
        finished = read_result(folder, prepared, seed=seed)
        if finished is not None:
            results.append(finished)
            continue
        begun = _read_checkpoint(folder, with_seed(prepared, seed))
        is_comparable = prepared.recipe.train.combine_seeds == "ensemble" or not prepared.folds
        return [*results, *begun] if is_comparable or not results else results
    return results


def _read_checkpoint(folder: RunDir, prepared: RunSetup) -> list[SeedResult]:
    """The best prompt so far of one training; nothing without a checkpoint."""
    cpu = prepared.backbone.device.type == "cpu"
    accelerator = make_accelerator(prepared.recipe.train, cpu=cpu, folder=None)
    trainer = make_trainer(prepared, accelerator)
    if not restore_run(trainer, folder, prepared=prepared):
        return []
    best = trainer.get_best()
    artifact = make_run_artifact(prepared, best, start=trainer.start)
    metrics = collect_metrics(trainer, best, prepared=prepared)
    return [SeedResult(prepared.training.seed, artifact, metrics)]
