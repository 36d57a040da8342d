"""What `compare_methods` and `find_learning_rate` return."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from softprompt.compare.report.table import format_header, format_rows
from softprompt.compare.report.write import ReportPaths
from softprompt.compare.results import Failed
from softprompt.compare.statistics import Summary


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison. A notebook shows it as its table.

    Args:
        measure: the name of the score: ``accuracy``, or ``chrf`` for free text.
        summaries: of the methods and baselines, in the order that they were run.
        failed: variants and baselines that could not be run, with the error message.
        output: the folder of the comparison.

    Examples:
        >>> from softprompt.compare import RunResult, summarize_variants
        >>> majority = RunResult("majority", None, scores=(1.0, 0.0), is_baseline=True)
        >>> prompt = RunResult("prompt-tuning", 42, scores=(1.0, 1.0))
        >>> summaries = summarize_variants([majority, prompt])
        >>> Comparison("accuracy", summaries, (), Path("runs/films"))
        Comparison(accuracy: prompt-tuning 100.0 %, majority 50.0 %; output='runs/films')
    """

    measure: str
    summaries: tuple[Summary, ...]
    failed: tuple[Failed, ...]
    output: Path

    @property
    def results(self) -> Path:
        """The file of all results, one JSON object a line, with the score of every test row."""
        return self.output / "results.jsonl"

    @property
    def report(self) -> Path:
        """The table in Markdown."""
        return ReportPaths.locate(self.output).table

    @property
    def report_html(self) -> Path:
        """The page with table and pictures."""
        return ReportPaths.locate(self.output).page

    @property
    def columns(self) -> list[str]:
        """The names of the table's columns; that of the first, which has the names, is empty."""
        return [*format_header(self.measure)]

    def to_rows(self) -> list[dict[str, str]]:
        """The cells of the table by the names of its columns, the best first.

        Returns:
            A mapping for each method and baseline; its name has the key ``name``.
        """
        columns = ["name", *self.columns[1:]]
        return [dict(zip(columns, row, strict=True)) for row in format_rows(self.summaries)]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, as ``softprompt compare --json`` prints it.

        Returns:
            Values that JSON can hold. The scores of single test rows are only in the file
            `results`.
        """
        return {
            "report": str(self.report),
            "page": str(self.report_html),
            "measure": self.measure,
            "variants": [_without_scores(asdict(summary)) for summary in self.summaries],
            "failed": [asdict(failed) for failed in self.failed],
        }

    def __repr__(self) -> str:
        rows = self.to_rows()
        parts = [", ".join(f"{row['name']} {row[self.measure]}" for row in rows)] if rows else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return f"Comparison({self.measure}: {'; '.join(parts)}; output='{self.output}')"

    def _repr_html_(self) -> str:
        return _format_html(self.columns, [[*row.values()] for row in self.to_rows()])


@dataclass(frozen=True)
class LearningRateTrial:
    """A short run with one learning rate.

    Args:
        learning_rate: of the run.
        multiplier: of the recipe's learning rate, or of its method's default.
        steps: of the run.
        validation: the metrics of the run's best prompt on the validation rows.
    """

    learning_rate: float
    multiplier: float
    steps: int
    validation: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class LearningRateSearch:
    """The result of a search for a learning rate. A notebook shows it as its table.

    Args:
        trials: by their learning rates.
        best: the trial with the best validation metrics.
        best_metric: by which it was selected; where that ties, the loss decides.
        head_learning_rate: of a trained head in the best trial; None without such a head.
        picture: the metrics over the learning rate, as PNG.

    Examples:
        >>> trial = LearningRateTrial(0.01, 1.0, steps=30, validation={"loss": 0.5})
        >>> LearningRateSearch((trial,), trial, "loss", None, Path("runs/rates/rates.png"))
        LearningRateSearch(learning_rate=0.01, 1 trial, picture='runs/rates/rates.png')
    """

    trials: tuple[LearningRateTrial, ...]
    best: LearningRateTrial
    best_metric: str
    head_learning_rate: float | None
    picture: Path

    @property
    def learning_rate(self) -> float:
        """The learning rate of the best trial."""
        return self.best.learning_rate

    def to_rows(self) -> list[dict[str, str]]:
        """The cells of a table by the names of its columns, the lowest rate first.

        Returns:
            A mapping for each trial.
        """
        names = dict.fromkeys(("loss", self.best_metric))
        return [
            {"learning rate": f"{trial.learning_rate:g}"}
            | {f"valid. {name}": f"{trial.validation[name]:.4f}" for name in names}
            for trial in self.trials
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, as ``softprompt find-lr --json`` prints it.

        Returns:
            Values that JSON can hold.
        """
        trials = [
            {"rate": trial.learning_rate, "steps": trial.steps, **trial.validation}
            for trial in self.trials
        ]
        return {"rate": self.learning_rate, "picture": str(self.picture), "tried": trials}

    def __repr__(self) -> str:
        count = f"{len(self.trials)} trial{'' if len(self.trials) == 1 else 's'}"
        rate = f"learning_rate={self.learning_rate:g}"
        return f"LearningRateSearch({rate}, {count}, picture='{self.picture}')"

    def _repr_html_(self) -> str:
        rows = self.to_rows()
        return _format_html([*rows[0]], [[*row.values()] for row in rows])


def _without_scores(summary: dict[str, Any]) -> dict[str, Any]:
    for result in summary["results"]:
        result.pop("scores")
    return summary


def _format_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    tagged = [("th", head), *(("td", row) for row in rows)]
    lines = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in tagged)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
