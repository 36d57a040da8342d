"""Training: a loop that yields steps, and the run folder around it."""

from softprompt.train.events import Evaluation, Event, Finished, Step, Warned
from softprompt.train.folder import RunFolder, free_folder
from softprompt.train.prepare import Prepared, prepare
from softprompt.train.run import artifact_of, make_trainer, train
from softprompt.train.settings import Training
from softprompt.train.trainer import Trainer

__all__ = [
    "Evaluation",
    "Event",
    "Finished",
    "Prepared",
    "RunFolder",
    "Step",
    "Trainer",
    "Training",
    "Warned",
    "artifact_of",
    "free_folder",
    "make_trainer",
    "prepare",
    "train",
]
