"""Prompts and controls under one protocol, and what their differences are worth."""

from softprompt.compare.arms import TUNED, Arm, Kind, hard_template, method_arms, tuned_arms
from softprompt.compare.controls import Control, Majority, Untrained, majority
from softprompt.compare.exam import Exam, Marks, Row
from softprompt.compare.outcome import Cost, Event, Failed, Outcome, Searched
from softprompt.compare.picture import draw_rates
from softprompt.compare.probe import Probe, Reader, fit_probe
from softprompt.compare.protocol import Engine, InOrder, Job, Protocol, compare, perform
from softprompt.compare.rates import Runner, Trained, Trial, best_of, search
from softprompt.compare.report import markdown, rows_of
from softprompt.compare.statistics import Difference, Summary, summaries

__all__ = [
    "TUNED",
    "Arm",
    "Control",
    "Cost",
    "Difference",
    "Engine",
    "Event",
    "Exam",
    "Failed",
    "InOrder",
    "Job",
    "Kind",
    "Majority",
    "Marks",
    "Outcome",
    "Probe",
    "Protocol",
    "Reader",
    "Row",
    "Runner",
    "Searched",
    "Summary",
    "Trained",
    "Trial",
    "Untrained",
    "best_of",
    "compare",
    "draw_rates",
    "fit_probe",
    "hard_template",
    "majority",
    "markdown",
    "method_arms",
    "perform",
    "rows_of",
    "search",
    "summaries",
    "tuned_arms",
]
