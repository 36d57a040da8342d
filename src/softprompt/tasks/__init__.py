"""What is asked of a backbone's output: the loss and the answer, whatever the prompt."""

from softprompt.tasks.base import Answer, Example, Loss, Task
from softprompt.tasks.bind import Room, bind
from softprompt.tasks.classifier import Classifier
from softprompt.tasks.settings import TASKS, Classify, Generate, TaskSettings

__all__ = [
    "TASKS",
    "Answer",
    "Classifier",
    "Classify",
    "Example",
    "Generate",
    "Loss",
    "Room",
    "Task",
    "TaskSettings",
    "bind",
]
