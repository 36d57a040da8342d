"""Tasks: the loss and the predictions that are computed from a backbone's output."""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
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

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.tasks.base": ("Example", "Prediction", "SummedLoss", "Task"),
        "softprompt.tasks.binding": ("LengthBudget", "build_task"),
        "softprompt.tasks.classification": ("Classifier",),
        "softprompt.tasks.config": ("TASKS", "Classify", "Generate", "TaskSettings"),
    },
)
