"""Methods side by side: arms and seeds under one protocol, and what their differences are worth."""

from softprompt.compare.arms import Arm, method_arms
from softprompt.compare.controls import controls
from softprompt.compare.outcome import Failed, Outcome, Searched
from softprompt.compare.protocol import Control, Protocol, Runner, Trained, compare
from softprompt.compare.report import markdown, rows_of
from softprompt.compare.statistics import Summary, summaries

__all__ = [
    "Arm",
    "Control",
    "Failed",
    "Outcome",
    "Protocol",
    "Runner",
    "Searched",
    "Summary",
    "Trained",
    "compare",
    "controls",
    "markdown",
    "method_arms",
    "rows_of",
    "summaries",
]
