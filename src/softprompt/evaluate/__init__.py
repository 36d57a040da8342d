"""Answers and what they are worth: predictions, losses, metrics."""

from softprompt.evaluate.ensemble import Ensemble, Verdict
from softprompt.evaluate.exchange import export_prompt, import_prompts
from softprompt.evaluate.metrics import Confusion, classification, confusion, generation, majority
from softprompt.evaluate.model import Model, bring, load_model, task_settings
from softprompt.evaluate.predict import Judged, Report, bare_answers, judge, predict, report
from softprompt.evaluate.vllm import VLLMPrompt
from softprompt.evaluate.vote import Vote, voted

__all__ = [
    "Confusion",
    "Ensemble",
    "Judged",
    "Model",
    "Report",
    "VLLMPrompt",
    "Verdict",
    "Vote",
    "bare_answers",
    "bring",
    "classification",
    "confusion",
    "export_prompt",
    "generation",
    "import_prompts",
    "judge",
    "load_model",
    "majority",
    "predict",
    "report",
    "task_settings",
    "voted",
]
