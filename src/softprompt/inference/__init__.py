"""Inference: predict and evaluate with trained prompts; models, ensembles, metrics."""

from softprompt.inference.ensemble import Ensemble, EnsembleReport, Vote, combine
from softprompt.inference.loops import (
    EvaluatedRows,
    EvaluationReport,
    evaluate_rows,
    make_report,
    predict_rows,
    predict_without_prompt,
    read_answers,
)
from softprompt.inference.metrics import (
    ClassScores,
    Confusion,
    ConfusionMatrix,
    compute_classification_metrics,
    compute_confusion_matrix,
    compute_generation_metrics,
    compute_majority_accuracy,
)
from softprompt.inference.model import PromptModel, attach

__all__ = [
    "ClassScores",
    "Confusion",
    "ConfusionMatrix",
    "Ensemble",
    "EnsembleReport",
    "EvaluatedRows",
    "EvaluationReport",
    "PromptModel",
    "Vote",
    "attach",
    "combine",
    "compute_classification_metrics",
    "compute_confusion_matrix",
    "compute_generation_metrics",
    "compute_majority_accuracy",
    "evaluate_rows",
    "make_report",
    "predict_rows",
    "predict_without_prompt",
    "read_answers",
]
