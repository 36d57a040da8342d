"""Training: a loop that yields steps, and the run folder around it."""

from softprompt.train.events import Caching, Evaluation, Event, Finished, Planned, Step, Warned
from softprompt.train.folder import RunFolder, free_folder
from softprompt.train.prepare import Prepared, prepare
from softprompt.train.result import artifact_of, plain
from softprompt.train.run import Watcher, make_trainer, train
from softprompt.train.settings import Training
from softprompt.train.trainer import Trainer

__all__ = [
    "Caching",
    "Evaluation",
    "Event",
    "Finished",
    "Planned",
    "Prepared",
    "RunFolder",
    "Step",
    "Trainer",
    "Training",
    "Warned",
    "Watcher",
    "artifact_of",
    "free_folder",
    "make_trainer",
    "plain",
    "prepare",
    "train",
]
