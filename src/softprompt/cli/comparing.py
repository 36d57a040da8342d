"""A comparison as the terminal runs it: the rows, the controls, the engine, and how it goes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from softprompt.backbone.model import Backbone
from softprompt.cli.engine import MakeEngine
from softprompt.cli.insides import insides
from softprompt.cli.reporting import Written, write_reports
from softprompt.cli.runs import Runs
from softprompt.cli.say import note
from softprompt.cli.stop import Stop
from softprompt.compare import (
    Arm,
    Control,
    Event,
    Exam,
    Failed,
    Outcome,
    Protocol,
    Reader,
    Summary,
    Trained,
    Untrained,
    compare,
    fit_probe,
    hard_template,
    majority,
    search,
    summaries,
)
from softprompt.compare.plan import Plan
from softprompt.data import Rows as Table
from softprompt.errors import DataError, RecipeError
from softprompt.recipe import Recipe
from softprompt.recipe.sections import Limit
from softprompt.tasks import Classify, bind
from softprompt.train import RunFolder
from softprompt.train.prepare import default_template, open_section
from softprompt.train.rows import check_tables, find_labels, read_splits, target_column


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Args:
        measure: what a score is called.
        summaries: of the arms and controls.
        failed: what could not be run.
        written: where that is to be read.
    """

    measure: str
    summaries: Sequence[Summary]
    failed: Sequence[Failed]
    written: Written


def compared(plan: Plan, folder: Path, *, make: MakeEngine) -> Compared:
    """Run what is missing of a comparison, say how it goes, and write its report.

    Args:
        folder: of the comparison.
        make: makes the engine.
    """
    base = plan.base
    tables = _begun(base, folder, needed=("validation", "test"))
    exam = _exam(base, tables)
    protocol = Protocol(plan.seeds, plan.factors, plan.share, exam, plan.seconds)
    arms = [replace(arm, recipe=_whole(arm.recipe)) for arm in plan.arms]
    events = []
    with _running(base, folder, tables) as runs:
        beside = _Beside(base, runs.backbone, tables).named(plan.controls)
        path, engine = folder / "outcomes.jsonl", make(protocol, runs)
        for event in compare(arms, beside, protocol=protocol, engine=engine, path=path):
            note(_said(event, exam.measure))
            events.append(event)
        found = summaries([event for event in events if isinstance(event, Outcome)])
        extras = insides(found, folder, backbone=runs.backbone, tables=tables)
    written = write_reports(
        found,
        events,
        folder=folder,
        base=base,
        protocol=protocol,
        tables=tables,
        extras=extras,
    )
    failed = [event for event in events if isinstance(event, Failed)]
    return Compared(exam.measure, found, failed, written)


def searched(
    base: Recipe, folder: Path, *, factors: Sequence[float], share: float
) -> dict[float, Trained]:
    """Run what is missing of a search for a rate.

    Args:
        folder: of the search.
        factors: of the recipe's rate, or of its method's default.
        share: of the steps, for each.
    """
    tables = _begun(base, folder, needed=("validation",))
    with _running(base, folder, tables) as runs:
        arm = Arm(base.method.name, _whole(base))
        return search(arm, factors=factors, share=share, run=runs)


@dataclass(frozen=True, eq=False)
class _Beside:
    """The controls that are not trained with steps.

    Args:
        base: the recipe.
        backbone: that answers.
        tables: rows by split.
    """

    base: Recipe
    backbone: Backbone
    tables: Mapping[str, Table]

    def named(self, names: Sequence[str]) -> dict[str, Callable[[], Control]]:
        """Those that there are for the recipe, of the ones that are wanted.

        A trained head has no hard prompt: untrained it would be random. Free text has no probe.
        """
        settings = self.base.task_settings
        headed = isinstance(settings, Classify) and settings.verbalizer is None
        labels = find_labels(settings, self.tables["train"])
        made: dict[str, Callable[[], Control]] = {"majority": self._majority}
        if not headed:
            made["hard-prompt"] = self._hard_prompt
        if labels:
            made["linear-probe"] = self._probe
        return {name: make for name, make in made.items() if name in names}

    @property
    def _target(self) -> str:
        return target_column(self.base.task_settings)

    @property
    def _template(self) -> str:
        settings, table = self.base.task_settings, self.tables["train"]
        kind = self.backbone.geometry.kind
        text = settings.template or default_template(table, settings, kind=kind)
        return hard_template(self.base, text)

    def _majority(self) -> Control:
        return majority([str(answer) for answer in self.tables["train"][self._target]])

    def _hard_prompt(self) -> Control:
        settings = self.base.task_settings
        task = bind(
            settings,
            self.backbone,
            template=self._template,
            labels=find_labels(settings, self.tables["train"]),
            max_length=self.base.data.max_length,
        )
        return Untrained(task)

    def _probe(self) -> Control:
        began = perf_counter()
        reader = Reader(self.backbone, self._template, self.base.data.max_length)
        train, held = (self.tables[name].to_list() for name in ("train", "validation"))
        probe = fit_probe(reader, train=train, validation=held, target=self._target)
        seconds = round(perf_counter() - began, 1)
        return replace(probe, cost=replace(probe.cost, seconds=seconds))


def _exam(base: Recipe, tables: Mapping[str, Table]) -> Exam:
    rows, target = tables["test"].to_list(), target_column(base.task_settings)
    labels = find_labels(base.task_settings, tables["train"])
    return Exam(rows, [str(row[target]) for row in rows], labels)


def _whole(recipe: Recipe) -> Recipe:
    """The recipe without what chooses rows: they are chosen once, for all arms and seeds."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": Limit()})})


def _begun(base: Recipe, folder: Path, *, needed: Sequence[str]) -> dict[str, Table]:
    """The rows by split, checked, of what is begun or gone on with in a folder."""
    _remember(base, folder)
    tables = read_splits(base.data, seed=base.seed)
    _check_splits(tables, needed=needed)
    settings = base.task_settings
    check_tables(tables, settings, labels=find_labels(settings, tables["train"]))
    return tables


@contextmanager
def _running(base: Recipe, folder: Path, tables: Mapping[str, Table]) -> Iterator[Runs]:
    """Runs on one backbone, without the test rows, that Ctrl-C stops between two steps."""
    note("loading the backbone …")
    backbone = open_section(base.backbone)
    seen = {name: table for name, table in tables.items() if name != "test"}
    with Stop() as stop:
        yield Runs(backbone, seen, folder=folder, heed=stop.heed)


def _remember(recipe: Recipe, folder: Path) -> None:
    """What was begun with a recipe goes on with it."""
    kept = RunFolder(folder)
    if not (folder / "recipe.toml").exists():
        kept.begin(recipe)
    elif kept.recipe() != recipe:
        fault = (
            f"what is in {folder} was begun with another recipe. Put that back, or name another "
            "folder with --output."
        )
        raise RecipeError([fault])


def _check_splits(tables: Mapping[str, Table], *, needed: Sequence[str]) -> None:
    lacking = [name for name in needed if name not in tables]
    if lacking:
        msg = (
            f"there are no {' and '.join(lacking)} rows, but prompts are chosen by validation rows "
            "and compared by test rows. Name both in [data], or leave both out, to be split off."
        )
        raise DataError(msg)


def _said(event: Event, measure: str) -> str:
    match event:
        case Outcome(seed=None):
            return f"{event.arm}: {measure} {event.score:.1%}"
        case Outcome():
            seconds = 0.0 if event.cost is None else event.cost.seconds
            return f"{event.arm}, seed {event.seed}: {measure} {event.score:.1%}, {seconds:.0f} s"
        case Failed():
            return f"{event.arm} failed, the others go on: {event.error}"
        case _:
            tried = ", ".join(f"{f:g}: {s:.4f}" for f, s in event.scores.items())
            steps = "" if event.steps is None else f", {event.steps:,} steps a run"
            found = f"{event.arm}: learning rate times {event.factor:g}"
            return found + (tried and f" ({tried})") + steps
