"""Tasks: the loss and the predictions that are computed from a backbone's output."""

from softprompt.tasks.base import Example, Prediction, SummedLoss, Task
from softprompt.tasks.binding import LengthBudget, build_task
from softprompt.tasks.classification import Classifier
from softprompt.tasks.config import TASKS, Classify, Generate, TaskSettings

__all__ = [
    "TASKS",
    "Classifier",
    "Classify",
    "Example",
    "Generate",
    "LengthBudget",
    "Prediction",
    "SummedLoss",
    "Task",
    "TaskSettings",
    "build_task",
]
