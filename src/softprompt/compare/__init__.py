"""Compare prompts and baselines under one protocol, with confidence intervals."""

from softprompt.compare.baselines import (
    Baseline,
    Baselines,
    HardPromptBaseline,
    MajorityBaseline,
    fit_majority,
)
from softprompt.compare.checks import check_comparison
from softprompt.compare.config import (
    TUNED,
    Variant,
    VariantKind,
    make_finetune_variants,
    make_method_variants,
)
from softprompt.compare.linear_probe import FeatureReader, Probe, fit_probe
from softprompt.compare.lr_search import (
    RunSpec,
    TrainedRun,
    TrainFn,
    search_learning_rate,
    select_best,
)
from softprompt.compare.protocol import (
    Engine,
    Job,
    Protocol,
    SequentialEngine,
    run_comparison,
    run_job,
)
from softprompt.compare.report.figures import draw_learning_rates
from softprompt.compare.report.table import format_markdown, format_rows
from softprompt.compare.results import (
    BaselineSkipped,
    ComparisonEvent,
    Cost,
    Failed,
    HeldOutTest,
    ResultEvent,
    RunResult,
    ScoredAnswers,
    SearchResult,
    Status,
)
from softprompt.compare.statistics import Difference, Summary, summarize_variants

__all__ = [
    "TUNED",
    "Baseline",
    "BaselineSkipped",
    "Baselines",
    "ComparisonEvent",
    "Cost",
    "Difference",
    "Engine",
    "Failed",
    "FeatureReader",
    "HardPromptBaseline",
    "HeldOutTest",
    "Job",
    "MajorityBaseline",
    "Probe",
    "Protocol",
    "ResultEvent",
    "RunResult",
    "RunSpec",
    "ScoredAnswers",
    "SearchResult",
    "SequentialEngine",
    "Status",
    "Summary",
    "TrainFn",
    "TrainedRun",
    "Variant",
    "VariantKind",
    "check_comparison",
    "draw_learning_rates",
    "fit_majority",
    "fit_probe",
    "format_markdown",
    "format_rows",
    "make_finetune_variants",
    "make_method_variants",
    "run_comparison",
    "run_job",
    "search_learning_rate",
    "select_best",
    "summarize_variants",
]
