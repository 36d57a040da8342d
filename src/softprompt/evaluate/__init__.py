"""Answers and what they are worth: predictions, losses, metrics."""

from softprompt.evaluate.metrics import Confusion, classification, confusion, generation, majority
from softprompt.evaluate.model import Model, bring, load_model, task_settings
from softprompt.evaluate.predict import Judged, Report, judge, predict, report

__all__ = [
    "Confusion",
    "Judged",
    "Model",
    "Report",
    "bring",
    "classification",
    "confusion",
    "generation",
    "judge",
    "load_model",
    "majority",
    "predict",
    "report",
    "task_settings",
]
