"""Transfer: choose the trained prompt to start from among those of several other tasks.

Source: Vu et al. 2022 (SPoT), who start a prompt from that of another task. They choose it by the
similarity of prompts (`compute_similarity`); here the loss on the task's own rows decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from accelerate import Accelerator

from softprompt.artifact import Artifact
from softprompt.data import parse_template
from softprompt.errors import TrainingError
from softprompt.methods import build_method
from softprompt.methods.initializers import FromPrompt
from softprompt.train.datasets import RenderedRows, choose_judges
from softprompt.train.events import Callback, PhaseStarted
from softprompt.train.kept import read_kept, write_kept
from softprompt.train.precompute import share_cached_states
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup, make_trainer, restore_start, settle_head
from softprompt.train.stages import notify

# A trained head fits none of the prompts at first: only after some steps does the loss say which.
_HEAD_STEPS = 30


@dataclass(frozen=True)
class StartChoice:
    """The losses of several prompts to start from.

    Args:
        losses: of each, by its name; infinite where training failed.
        steps: that each was trained for before it was judged.
        judge: the rows that decided.
    """

    losses: Mapping[str, float]
    steps: int
    judge: str

    @property
    def chosen(self) -> str:
        """The name of the prompt with the lowest loss; of equal ones the first."""
        return min(self.losses, key=lambda name: self.losses[name])

    def as_data(self) -> dict[str, Any]:
        """The choice as JSON has it."""
        losses = [[name, loss if isfinite(loss) else None] for name, loss in self.losses.items()]
        return {
            "chosen": self.chosen,
            "losses": losses,
            "steps": self.steps,
            "judge": self.judge,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "StartChoice":
        """The choice that `as_data` returned."""
        losses = {name: inf if loss is None else loss for name, loss in data["losses"]}
        return cls(losses, data["steps"], data["judge"])

    def __str__(self) -> str:
        when = f"after {self.steps} steps" if self.steps else "before the first step"
        listed = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
        return (
            f"the prompt starts as that of {self.chosen}, which has the lowest loss on "
            f"{self.judge} {when}: {listed}"
        )


def settle_start(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
) -> RunSetup:
    """Choose the artifact to start from, if there are several.

    Args:
        prepared: the parts of the run.
        accelerator: of the run.
        callbacks: called as the choice begins.
        folder: of the run, which keeps the choice for a resumed run; None to keep it in memory.

    Returns:
        The parts with a method that starts from the chosen prompt.

    Raises:
        ArtifactError: the folder has the choice of another recipe or other rows.
        TrainingError: training failed from every artifact.
    """
    if not prepared.candidates:
        return prepared
    choice = None
    if folder is not None:
        choice = read_kept(folder, "start", prepared=prepared, parse=StartChoice.from_data)
    if choice is None:
        choice = try_starts(prepared, accelerator, callbacks=callbacks)
        if folder is not None and accelerator.is_main_process:
            write_kept(folder, "start", prepared=prepared, value=choice.as_data())
    chosen = start_from(prepared, prepared.candidates[choice.chosen])
    return replace(chosen, start_choice=choice.as_data(), notes=(*prepared.notes, str(choice)))


def start_from(prepared: RunSetup, artifact: Artifact) -> RunSetup:
    """The parts with a new method that starts from the prompt of an artifact.

    Args:
        prepared: the parts of a run.
        artifact: to start from.
    """
    init = FromPrompt(artifact.prompt)
    method = build_method(
        prepared.backbone,
        prepared.recipe.method_settings,
        soft_length=parse_template(prepared.template).soft_length,
        init=init,
        seed=prepared.recipe.seed,
    )
    return replace(prepared, method=method, init=init)


def try_starts(
    prepared: RunSetup, accelerator: Accelerator, *, callbacks: Sequence[Callback]
) -> StartChoice:
    """Measure the loss of each prompt to start from.

    It is measured before training; with a trained head after a few steps on the training rows.

    Args:
        prepared: the parts of the run, which are as before afterwards.
        accelerator: of the run.
        callbacks: called as the choice begins.

    Raises:
        TrainingError: training failed from every artifact.
    """
    judges, judge = choose_judges(prepared.rows)
    count = len(prepared.candidates)
    notify(callbacks, PhaseStarted("searching", f"the start, {count} artifacts"))
    prepared = share_cached_states(prepared, accelerator, callbacks=callbacks)
    steps = 0
    if prepared.task.head is not None:
        steps = min(_HEAD_STEPS, make_trainer(prepared, accelerator).total)
    losses = {
        name: _measure_loss(
            settle_head(start_from(prepared, each)), accelerator, judges=judges, steps=steps
        )
        for name, each in prepared.candidates.items()
    }
    if not any(map(isfinite, losses.values())):
        msg = (
            "training failed from every artifact that was tried. Lower train.learning_rate, or "
            "start from something else (method.init)."
        )
        raise TrainingError(msg)
    return StartChoice(losses, steps, judge)


def _measure_loss(
    prepared: RunSetup, accelerator: Accelerator, *, judges: RenderedRows, steps: int
) -> float:
    """The loss after some steps, which leave the head as it was."""
    with restore_start(prepared):
        trainer = make_trainer(prepared, accelerator)
        try:
            for _ in range(steps):
                trainer.train_step()
            loss = trainer.evaluate(judges).metrics["loss"]
        except TrainingError:  # a loss or a gradient is not finite
            return inf
        return loss if isfinite(loss) else inf
