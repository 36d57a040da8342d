"""Inference: predict and evaluate with trained prompts; models, ensembles, metrics."""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.inference.continuous import GenerationBatch
    from softprompt.inference.ensemble import Ensemble, load_model
    from softprompt.inference.generated_row import GenerationEvent, GenerationRequest
    from softprompt.inference.loops import (
        EnsembleReport,
        EvaluatedRows,
        EvaluationReport,
        evaluate_rows,
        make_report,
        predict_rows,
        predict_without_prompt,
        read_answers,
    )
    from softprompt.inference.model import PromptModel, attach
    from softprompt.inference.votes import Vote, combine
    from softprompt.tasks.metrics import (
        ClassScores,
        Confusion,
        ConfusionMatrix,
        compute_classification_metrics,
        compute_confusion_matrix,
        compute_majority_accuracy,
    )
    from softprompt.tasks.text_metrics import compute_generation_metrics

__all__ = [
    "ClassScores",
    "Confusion",
    "ConfusionMatrix",
    "Ensemble",
    "EnsembleReport",
    "EvaluatedRows",
    "EvaluationReport",
    "GenerationBatch",
    "GenerationEvent",
    "GenerationRequest",
    "PromptModel",
    "Vote",
    "attach",
    "combine",
    "compute_classification_metrics",
    "compute_confusion_matrix",
    "compute_generation_metrics",
    "compute_majority_accuracy",
    "evaluate_rows",
    "load_model",
    "make_report",
    "predict_rows",
    "predict_without_prompt",
    "read_answers",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.inference.continuous": ("GenerationBatch",),
        "softprompt.inference.generated_row": ("GenerationEvent", "GenerationRequest"),
        "softprompt.inference.ensemble": ("Ensemble", "load_model"),
        "softprompt.inference.loops": (
            "EnsembleReport",
            "EvaluatedRows",
            "EvaluationReport",
            "evaluate_rows",
            "make_report",
            "predict_rows",
            "predict_without_prompt",
            "read_answers",
        ),
        "softprompt.tasks.metrics": (
            "ClassScores",
            "Confusion",
            "ConfusionMatrix",
            "compute_classification_metrics",
            "compute_confusion_matrix",
            "compute_majority_accuracy",
        ),
        "softprompt.tasks.text_metrics": ("compute_generation_metrics",),
        "softprompt.inference.model": ("PromptModel", "attach"),
        "softprompt.inference.votes": ("Vote", "combine"),
    },
)
