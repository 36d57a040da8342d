"""Tasks: the loss and the predictions that are computed from a backbone's output."""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.tasks.base import Example, Task
    from softprompt.tasks.binding import LengthBudget, build_task
    from softprompt.tasks.choices import ChoicePrediction
    from softprompt.tasks.classification import Classifier
    from softprompt.tasks.config import (
        TASKS,
        Choose,
        Classify,
        Extract,
        Generate,
        Regress,
        Tag,
        TaskSettings,
    )
    from softprompt.tasks.extraction import AnswerPrediction
    from softprompt.tasks.label_sets import LabelSetPrediction
    from softprompt.tasks.objective_settings import make_objective
    from softprompt.tasks.objectives import Objective, Prediction, Scores, SummedLoss
    from softprompt.tasks.regression import NumberPrediction
    from softprompt.tasks.tag_sequences import TaggedSpan, TagPrediction

__all__ = [
    "TASKS",
    "AnswerPrediction",
    "ChoicePrediction",
    "Choose",
    "Classifier",
    "Classify",
    "Example",
    "Extract",
    "Generate",
    "LabelSetPrediction",
    "LengthBudget",
    "NumberPrediction",
    "Objective",
    "Prediction",
    "Regress",
    "Scores",
    "SummedLoss",
    "Tag",
    "TagPrediction",
    "TaggedSpan",
    "Task",
    "TaskSettings",
    "build_task",
    "make_objective",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.tasks.base": ("Example", "Task"),
        "softprompt.tasks.binding": ("LengthBudget", "build_task"),
        "softprompt.tasks.objective_settings": ("make_objective",),
        "softprompt.tasks.choices": ("ChoicePrediction",),
        "softprompt.tasks.classification": ("Classifier",),
        "softprompt.tasks.config": (
            "TASKS",
            "Choose",
            "Classify",
            "Extract",
            "Generate",
            "Regress",
            "Tag",
            "TaskSettings",
        ),
        "softprompt.tasks.extraction": ("AnswerPrediction",),
        "softprompt.tasks.label_sets": ("LabelSetPrediction",),
        "softprompt.tasks.objectives": ("Objective", "Prediction", "Scores", "SummedLoss"),
        "softprompt.tasks.regression": ("NumberPrediction",),
        "softprompt.tasks.tag_sequences": ("TaggedSpan", "TagPrediction"),
    },
)
