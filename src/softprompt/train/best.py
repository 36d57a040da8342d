"""The best prompt so far of a run that is not finished."""

from pathlib import Path
from shlex import quote

from softprompt.backbone.model import Backbone
from softprompt.errors import TrainingError
from softprompt.inference.model import PromptModel, attach
from softprompt.train.accelerator import make_accelerator
from softprompt.train.api import make_trainer
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.results import make_run_artifact, restore_run
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import settle_readout, setup_run


def load_best_prompt(
    folder: str | Path, *, backbone: Backbone | str | Path | None = None
) -> PromptModel:
    """The best prompt so far of a stopped run, or that of a finished one.

    Args:
        folder: of the run.
        backbone: that it was trained on, if it is loaded already; or its name for
            `load_backbone`, if it is in another place now.

    Returns:
        The best prompt by the validations so far, ready to predict.

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
        return PromptModel.from_pretrained(run.path, backbone=backbone)
    recipe = run.read_recipe()
    run.check_unedited()
    if backbone is not None and not isinstance(backbone, Backbone):
        # The recipe stays as it is, since it has to be that of the checkpoint.
        moved = {"name": str(backbone), "revision": None}
        backbone = load_recipe_backbone(recipe.backbone.model_copy(update=moved))
    prepared = setup_run(recipe, backbone=backbone)
    if prepared.has_open_readout and (checkpoint := run.load_checkpoint()) is not None:
        prepared = settle_readout(prepared, checkpoint=checkpoint)
    cpu = prepared.backbone.device.type == "cpu"
    trainer = make_trainer(prepared, make_accelerator(recipe.train, cpu=cpu, folder=None))
    if not restore_run(trainer, run, prepared=prepared):
        msg = (
            f"the run in {run.path} was stopped before its first checkpoint, so it has no prompt "
            f"yet. Resume it: softprompt resume {quote(str(run.path))}"
        )
        raise TrainingError(msg)
    artifact = make_run_artifact(prepared, trainer.get_best(), start=trainer.start)
    return attach(artifact, prepared.backbone)
