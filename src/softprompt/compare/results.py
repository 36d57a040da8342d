"""The test rows of a comparison, its results, and the log that they are written to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softprompt._io import name_event, replace_file
from softprompt.data.inputs import Row
from softprompt.errors import DataError
from softprompt.inference import (
    ConfusionMatrix,
)
from softprompt.tasks import Objective, Prediction


@dataclass(frozen=True)
class ScoredAnswers:
    """The scores of answers to the test rows.

    Args:
        scores: of each row, 0 to 1.
        metrics: over all rows.
        confusion: true labels against answers; None where rows have no single label.
        measure: the name of the scores.
    """

    scores: tuple[float, ...]
    metrics: Mapping[str, float]
    confusion: ConfusionMatrix | None
    measure: str


@dataclass(frozen=True)
class HeldOutTest:
    """The test rows and their right answers.

    Args:
        rows: with all their columns, also those that a template does not use.
        truth: the right answer of each row.
        objective: of the task.
    """

    rows: Sequence[Row]
    truth: Sequence[str]
    objective: Objective

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the task; empty where there are none."""
        return self.objective.labels

    @property
    def measure(self) -> str:
        """The name of the score, such as ``accuracy``, or ``chrf`` for free text."""
        return self.objective.measure

    def score(self, answers: Sequence[str]) -> ScoredAnswers:
        """Score answers.

        Args:
            answers: one for each row, in the order of the rows.
        """
        found = self.objective.score(self.truth, [Prediction(text, {}) for text in answers])
        scores = self.objective.score_rows(self.truth, answers)
        return ScoredAnswers(scores, found.metrics, found.confusion, self.measure)


@dataclass(frozen=True)
class Cost:
    """The cost of training a variant.

    Args:
        trainable: parameters.
        parameters: of the backbone that are run, trained or not.
        added: trained parameters that are not part of the backbone.
        size: bytes that have to be saved, without the backbone.
        seconds: of training with its validations, without the search for a learning rate.
        steps: of the optimizer; 0 without one.
        speed: training rows per second, without validations; 0 if unknown.
        memory: bytes of the backbone plus the peak that training adds to it; 0 if unknown.
    """

    trainable: int
    parameters: int
    size: int
    seconds: float
    steps: int = 0
    speed: float = 0.0
    memory: int = 0
    added: int = 0


@dataclass(frozen=True)
class RunResult:
    """The test result of a trained variant or of a baseline.

    Args:
        variant: its name.
        seed: of the training; None where nothing is random.
        scores: of each test row: 1 or 0 for right or wrong, the similarity of a text, and so on.
        metrics: on the test rows.
        is_baseline: whether prompts are compared with it.
        confusion: true labels against answers; None for free text.
        validation: metrics of the selected state on the validation rows; empty without one.
        rate: the learning rate; None without one.
        cost: None where nothing was trained.
        run: the name of the run's folder in the comparison's folder; empty without one.
        measure: the name of the scores; of earlier results empty.
    """

    variant: str
    seed: int | None
    scores: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_baseline: bool = False
    confusion: ConfusionMatrix | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None
    cost: Cost | None = None
    run: str = ""
    measure: str = ""

    @property
    def score(self) -> float:
        """The mean over test rows: the accuracy, where answers are right or wrong."""
        return sum(self.scores) / len(self.scores)

    def __str__(self) -> str:
        measure = self.measure or ("chrf" if self.confusion is None else "accuracy")
        if self.seed is None:
            return f"{self.variant}: {measure} {self.score:.1%}"
        seconds = 0.0 if self.cost is None else self.cost.seconds
        return f"{self.variant}, seed {self.seed}: {measure} {self.score:.1%}, {seconds:.0f} s"


@dataclass(frozen=True)
class SearchResult:
    """The result of the short search for a variant's learning rate.

    Args:
        variant: its name.
        scores: by the multiplier of the learning rate; higher is better.
        multiplier: the best one.
        fraction: of the steps, for each multiplier.
        cache_key: of the variant's settings; another variant of the same name has another.
        seconds: the time budget of a whole run; None if the recipe sets the steps.
        steps: of a whole run within the time budget.
    """

    variant: str
    scores: Mapping[float, float]
    multiplier: float
    fraction: float
    cache_key: str
    seconds: float | None = None
    steps: int | None = None

    @property
    def multipliers(self) -> tuple[float, ...]:
        """The candidates in order; a single one is used without a search."""
        return tuple(sorted(self.scores)) or (self.multiplier,)

    def __str__(self) -> str:
        tried = ", ".join(f"{number:g}: {score:.4f}" for number, score in self.scores.items())
        best = f"{self.variant}: learning rate times {self.multiplier:g}"
        steps = "" if self.steps is None else f", {self.steps:,} steps per run"
        return best + (tried and f" ({tried})") + steps


@dataclass(frozen=True)
class Failed:
    """A variant or baseline that could not be run; the others still run.

    Args:
        variant: its name.
        seed: of the failed run; None for the search, or where nothing is random.
        error: the message.
    """

    variant: str
    seed: int | None
    error: str

    def __str__(self) -> str:
        return f"{self.variant} failed, the others continue: {self.error}"


@dataclass(frozen=True)
class BaselineSkipped:
    """A baseline that does not exist for the recipe.

    Args:
        name: of the baseline.
        reason: why it does not exist.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is skipped. {self.reason}"


@dataclass(frozen=True)
class Status:
    """What a comparison is doing.

    Args:
        message: a sentence.
    """

    message: str

    def __str__(self) -> str:
        return self.message


# The events that are logged to a file, and all events that callbacks get.
ResultEvent = RunResult | SearchResult | Failed
ComparisonEvent = ResultEvent | BaselineSkipped | Status


def as_line(event: ResultEvent) -> dict[str, Any]:
    """An event as JSON has it; scores that are only 0 and 1 are a string with a digit a row."""
    line = {"event": name_event(event), **asdict(event)}
    if isinstance(event, RunResult):
        line["scores"] = [*event.scores]
        if {*event.scores} <= {0.0, 1.0}:
            line["scores"] = "".join(f"{score:.0f}" for score in event.scores)
    if isinstance(event, SearchResult):
        line["scores"] = [[multiplier, score] for multiplier, score in event.scores.items()]
    return line


def from_line(line: Mapping[str, Any]) -> ResultEvent:
    """Read an event that was written by `as_line`.

    Raises:
        DataError: the line is not an event; the message does not name the line.
    """
    values = {name: value for name, value in line.items() if name != "event"}
    try:
        match line.get("event"):
            case "run_result":
                cost, confusion = values.pop("cost", None), values.pop("confusion", None)
                scores = tuple(float(score) for score in values.pop("scores"))
                return RunResult(
                    **values,
                    scores=scores,
                    cost=None if cost is None else Cost(**cost),
                    confusion=None if confusion is None else _make_confusion(**confusion),
                )
            case "search_result":
                pairs = values.pop("scores")
                by_multiplier = {float(number): float(score) for number, score in pairs}
                return SearchResult(**values, scores=by_multiplier)
            case "failed":
                return Failed(**values)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"the keys of the event {line.get('event')!r} are not valid ({error})"
        raise DataError(msg) from error
    msg = f"unknown event {line.get('event')!r}"
    raise DataError(msg)


def _make_confusion(
    labels: Sequence[str], predicted_labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> ConfusionMatrix:
    return ConfusionMatrix((*labels,), (*predicted_labels,), tuple((*row,) for row in counts))


@dataclass(frozen=True)
class ResultsLog:
    """The file of the results of one comparison, one JSON object a line.

    Args:
        path: of the file.
    """

    path: Path

    def read(self) -> list[ResultEvent]:
        """The events in the file, without a last line that was cut off by a kill.

        Raises:
            DataError: the file is damaged.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")
        events = []
        for number, line in enumerate(lines, 1):
            try:
                events.append(from_line(json.loads(line)))
            except (AttributeError, DataError, ValueError) as error:  # AttributeError: no object
                msg = (
                    f"line {number} of {self.path} is damaged: {error}. Remove the line; what it "
                    "recorded is run again."
                )
                raise DataError(msg) from error
        return events

    def write(self, events: Sequence[ResultEvent]) -> None:
        """Replace the file atomically by one with these events."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path) as fresh:
            fresh.write_text("".join(map(_dump_line, events)), encoding="utf-8")

    def add(self, event: ResultEvent) -> None:
        """Append an event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_dump_line(event))


# The multipliers of a search, its fraction of the steps, and the time budget if there is one.
SearchSettings = tuple[tuple[float, ...], float, float | None]


def check_results(
    events: Sequence[ResultEvent],
    *,
    rows: int,
    search: SearchSettings,
    cache_keys: Mapping[str, str],
) -> None:
    """Check that earlier results can be compared with new ones.

    Args:
        events: the earlier results.
        rows: the number of test rows.
        search: the settings of the search.
        cache_keys: of the variants, by name.

    Raises:
        DataError: the test rows, the search or the settings of a variant have changed.
    """
    for event in events:
        if isinstance(event, RunResult) and len(event.scores) != rows:
            msg = (
                f"the comparison was started with {len(event.scores)} test rows, but there are "
                f"{rows} now. Start a new comparison in another folder."
            )
            raise DataError(msg)
        if isinstance(event, SearchResult):
            _check_search((event.multipliers, event.fraction, event.seconds), search)
            if cache_keys.get(event.variant, event.cache_key) != event.cache_key:
                msg = (
                    f"the variant {event.variant!r} was started with other settings. Give it "
                    "another name, or start a new comparison in another folder."
                )
                raise DataError(msg)


def _check_search(before: SearchSettings, now: SearchSettings) -> None:
    if before == now:
        return
    multipliers, fraction, seconds = before
    tried = ", ".join(f"{multiplier:g}" for multiplier in multipliers)
    budget = "the steps" if seconds is None else f"{seconds:g} seconds"
    msg = (
        f"the comparison was started with learning rates times {tried}, each for {fraction:.0%} of "
        f"{budget}. All variants get the same search: use the same settings, or start a new "
        "comparison in another folder."
    )
    raise DataError(msg)


def _dump_line(event: ResultEvent) -> str:
    return json.dumps(as_line(event)) + "\n"
