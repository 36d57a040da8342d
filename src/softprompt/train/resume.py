"""What a run's checkpoint holds beside the trainer's state, and going on from it."""

from collections.abc import Mapping
from typing import Any

from softprompt.errors import ArtifactError
from softprompt.train.folder import RunFolder
from softprompt.train.prepare import Prepared
from softprompt.train.trainer import Trainer


def whole_state(trainer: Trainer, prepared: Prepared, *, noted: int) -> dict[str, Any]:
    """What a run can go on from.

    Args:
        noted: how many events the run's folder keeps by now.
    """
    return {
        "trainer": trainer.state(),
        "noted": noted,
        "hashes": dict(prepared.hashes),
        "fingerprint": prepared.backbone.fingerprint,
    }


def restore(trainer: Trainer, run: RunFolder, *, prepared: Prepared) -> int:
    """Bring a new trainer to where the run in a folder was saved.

    Returns:
        How many events had been noted by then; 0 if the run was stopped before its first save.

    Raises:
        ArtifactError: the data or the backbone are others, or the checkpoint is not whole.
    """
    state = run.load_checkpoint()
    if state is None:
        return 0
    try:
        _check(state, run, prepared)
        trainer.load(state["trainer"])
        return int(state["noted"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        msg = (
            f"the checkpoint in {run.path} does not fit its recipe ({type(error).__name__}: "
            f"{error}): one of the two was changed. Put it back, or train anew."
        )
        raise ArtifactError(msg) from error


def _check(state: Mapping[str, Any], run: RunFolder, prepared: Prepared) -> None:
    before, now = state["hashes"], prepared.hashes
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        msg = (
            f"the {' and '.join(changed)} data is not what the run in {run.path} began with, so "
            "it cannot go on with the same numbers. Put the data back, or train anew."
        )
        raise ArtifactError(msg)
    if state["fingerprint"] != prepared.backbone.fingerprint:
        msg = (
            f"{prepared.backbone.name} (fingerprint {prepared.backbone.fingerprint}) is not the "
            f"backbone that the run in {run.path} began with ({state['fingerprint']}). Give the "
            "same revision, or train anew."
        )
        raise ArtifactError(msg)
