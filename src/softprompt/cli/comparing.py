"""A comparison as the terminal runs it: the rows, the controls, the engine, and how it goes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from softprompt.cli.beside import Beside
from softprompt.cli.engine import MakeEngine
from softprompt.cli.insides import insides
from softprompt.cli.reporting import Written, write_reports
from softprompt.cli.runs import Runs
from softprompt.cli.say import note
from softprompt.cli.stop import Stop
from softprompt.compare import (
    Arm,
    Event,
    Exam,
    Failed,
    Outcome,
    Protocol,
    Searched,
    Summary,
    Trained,
    compare,
    search,
    summaries,
)
from softprompt.compare.plan import Plan
from softprompt.data import Rows as Table
from softprompt.errors import DataError, RecipeError, TrainingError
from softprompt.recipe import Recipe
from softprompt.recipe.sections import Limit
from softprompt.train import RunFolder
from softprompt.train.prepare import open_section
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
        beside = Beside(base, runs.backbone, tables).named(plan.controls)
        path, engine = folder / "outcomes.jsonl", make(protocol, runs)
        for event in compare(arms, beside, protocol=protocol, engine=engine, path=path):
            note(_said(event, exam.measure))
            events.append(event)
        failed = [event for event in events if isinstance(event, Failed)]
        found = summaries(_whole_arms(events, failed))
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


def _whole_arms(events: Sequence[Event], failed: Sequence[Failed]) -> list[Outcome]:
    """The outcomes of the arms that came through: with some seeds only, none can be compared."""
    broken = {event.arm for event in failed}
    return [e for e in events if isinstance(e, Outcome) and e.arm not in broken]


def _exam(base: Recipe, tables: Mapping[str, Table]) -> Exam:
    rows, target = tables["test"].to_list(), target_column(base.task_settings)
    labels = find_labels(base.task_settings, tables["train"])
    return Exam(rows, [str(row[target]) for row in rows], labels)


def _whole(recipe: Recipe) -> Recipe:
    """The recipe without what chooses rows: they are chosen once, for all arms and seeds."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": Limit()})})


def _begun(base: Recipe, folder: Path, *, needed: Sequence[str]) -> dict[str, Table]:
    """The rows by split, checked, of what is begun or gone on with in a folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        msg = (
            "a comparison is run by one process, but this is one of several. Start it without "
            "accelerate launch; --engine ray runs many arms at once."
        )
        raise TrainingError(msg)
    tables = read_splits(base.data, seed=base.seed)
    _check_splits(tables, needed=needed)
    settings = base.task_settings
    check_tables(tables, settings, labels=find_labels(settings, tables["train"]))
    _remember(base, folder)
    return tables


@contextmanager
def _running(base: Recipe, folder: Path, tables: Mapping[str, Table]) -> Iterator[Runs]:
    """Runs on one backbone, without the test rows, that Ctrl-C stops between two steps."""
    seen = {name: table for name, table in tables.items() if name != "test"}
    with _alone(folder):
        note("loading the backbone …")
        backbone = open_section(base.backbone)
        with Stop() as stop:
            yield Runs(backbone, seen, folder=folder, heed=stop.heed)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other command works in the folder meanwhile: both would write the same files."""
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout as error:
        msg = (
            f"another command works in {folder}. Wait until it is done, or name another folder "
            "with --output."
        )
        raise TrainingError(msg) from error


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
        case Searched():
            tried = ", ".join(f"{f:g}: {s:.4f}" for f, s in event.scores.items())
            steps = "" if event.steps is None else f", {event.steps:,} steps a run"
            found = f"{event.arm}: learning rate times {event.factor:g}"
            return found + (tried and f" ({tried})") + steps
