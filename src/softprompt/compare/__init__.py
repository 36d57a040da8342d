"""Methods side by side: arms and seeds under one protocol, and what their differences are worth."""

from softprompt.compare.arms import Arm, method_arms
from softprompt.compare.controls import controls_of
from softprompt.compare.outcome import Failed, Outcome, Searched
from softprompt.compare.picture import draw_rates
from softprompt.compare.protocol import Control, Protocol, compare
from softprompt.compare.rates import Runner, Trained, best_of, search
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
    "best_of",
    "compare",
    "controls_of",
    "draw_rates",
    "markdown",
    "method_arms",
    "rows_of",
    "search",
    "summaries",
]
