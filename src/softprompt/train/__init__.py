"""Training: the loop that yields events, the setup of a run, and run directories."""

from softprompt.train.api import make_run_artifact, run_recipe, to_dict, train_recipe
from softprompt.train.best import load_best_prompt
from softprompt.train.config import ResolvedTraining
from softprompt.train.events import (
    Callback,
    Evaluation,
    Event,
    Finished,
    FoldProgress,
    PhaseStarted,
    PrecomputePlanned,
    PrecomputeProgress,
    SearchProgress,
    Started,
    Step,
    TrainingWarning,
)
from softprompt.train.run_dir import RunDir, find_free_dir
from softprompt.train.setup import (
    RunSetup,
    evaluate_hard_prompt,
    make_trainer,
    setup_hard_prompt,
    setup_run,
)
from softprompt.train.trainer import Trainer

__all__ = [
    "Callback",
    "Evaluation",
    "Event",
    "Finished",
    "FoldProgress",
    "PhaseStarted",
    "PrecomputePlanned",
    "PrecomputeProgress",
    "ResolvedTraining",
    "RunDir",
    "RunSetup",
    "SearchProgress",
    "Started",
    "Step",
    "Trainer",
    "TrainingWarning",
    "evaluate_hard_prompt",
    "find_free_dir",
    "load_best_prompt",
    "make_run_artifact",
    "make_trainer",
    "run_recipe",
    "setup_hard_prompt",
    "setup_run",
    "to_dict",
    "train_recipe",
]
