"""Run the missing cells of the leaderboard, with the protocol of `compare`, and write its page.

scripts/bench leaderboard [--only task=reviews,spam method=linear-probe rows=8] [--minutes N]
                          [--fresh] [--list] [--file FILE]

A finished cell is appended to results/cells.jsonl. A cell that is there, from the same state of the
source code and of its lines of leaderboard.toml, is skipped. Ctrl-C or the end of the minutes stops
after the current step; the same command resumes.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import torch
from cells import (
    Cell,
    Leaderboard,
    digest_cell,
    draw_tables,
    list_cells,
    make_recipe_data,
    read_leaderboard,
    write_tables,
)
from page import write_page

from softprompt.backbone import Backbone

# Inner modules: one backbone is loaded for many comparisons, and no reports are drawn.
from softprompt.compare import (
    Baselines,
    Failed,
    HeldOutTest,
    Protocol,
    ResultEvent,
    RunResult,
    SequentialEngine,
    run_comparison,
)
from softprompt.compare.common_readout import settle_common_readout
from softprompt.compare.config import ComparisonPlan, read_plan
from softprompt.compare.runner import ComparisonRunner
from softprompt.data import Table, read_splits
from softprompt.data.table import to_text
from softprompt.errors import MissingPackageError, SoftpromptError, TrainingError
from softprompt.tasks.config import get_target_column
from softprompt.train import RunDir
from softprompt.train.datasets import get_task_columns
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.task_settings import build_objective

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "cells.jsonl"
PAGE = ROOT / "docs" / "reference" / "leaderboard.md"
_PACKAGES = ("softprompt", "torch", "transformers", "scikit-learn")


@dataclass
class Session:
    """A call of the command.

    Args:
        board: the file.
        commit: of the source code.
        runs: the folder of unfinished runs.
        results: the file that finished cells are appended to.
        should_stop: called after every step.
        backbones: loaded so far, by name.
    """

    board: Leaderboard
    commit: str
    runs: Path
    results: Path
    should_stop: Callable[[], bool]
    backbones: dict[str, Backbone] = field(default_factory=dict)


def run_group(session: Session, cells: Sequence[Cell]) -> Iterator[tuple[Cell, ResultEvent]]:
    """Run cells that share backbone, task, rows and seed, as one comparison.

    Yields:
        Each cell with its result.
    """
    board, first = session.board, cells[0]
    folder = session.runs / "-".join([*map(str, first.group), digest_session(session)])
    tables = draw_tables(board, first)
    paths = write_tables(tables, folder / "rows")
    data = make_recipe_data(board, first, paths=paths, train_rows=len(tables["train"]))
    plan = make_plan(board, data, cells)
    by_name = {get_variant_name(board, cell): cell for cell in cells}
    for event in run_plan(session, plan, first.backbone, folder=folder):
        if isinstance(event, RunResult | Failed) and event.variant in by_name:
            yield by_name[event.variant], event
    for cell in cells:
        if board.methods[cell.method].function is not None:
            yield cell, run_function(session, plan, cell)
    shutil.rmtree(folder)


def digest_session(session: Session) -> str:
    """A digest of what unfinished runs depend on, which does not include what cells are missing."""
    text = session.commit + session.board.model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def get_variant_name(board: Leaderboard, cell: Cell) -> str:
    """The name of a cell in its comparison."""
    return board.methods[cell.method].baseline or cell.method


def make_plan(board: Leaderboard, data: dict[str, Any], cells: Sequence[Cell]) -> ComparisonPlan:
    """The comparison of a group of cells."""
    lines = {cell.method: board.methods[cell.method] for cell in cells}
    variants = [
        {"name": name, "method": line.method, "overrides": line.overrides}
        for name, line in lines.items()
        if line.method is not None
    ]
    return read_plan(
        {"base": data},
        methods=[],
        variants=variants,
        baselines=[line.baseline for line in lines.values() if line.baseline is not None],
        num_seeds=1,
        lr_multipliers=board.protocol.lr_multipliers,
        search_fraction=board.protocol.search_fraction,
    )


def load_once(session: Session, plan: ComparisonPlan, name: str) -> Backbone:
    """The backbone of a plan; each is loaded once."""
    if name not in session.backbones:
        session.backbones[name] = load_recipe_backbone(plan.base.backbone)
    return session.backbones[name]


def read_rows(plan: ComparisonPlan) -> tuple[dict[str, Table], HeldOutTest]:
    """The rows of a plan, and its test rows with their answers, as `compare` reads them."""
    base = plan.base
    settings = base.task_settings
    tables = read_splits(base.data, seed=base.seed, columns=get_task_columns(settings))
    test, target = tables.pop("test").to_list(), get_target_column(settings)
    objective = build_objective(settings, tables["train"])
    return tables, HeldOutTest(test, [to_text(row[target]) for row in test], objective)


def run_plan(
    session: Session, plan: ComparisonPlan, backbone_name: str, *, folder: Path
) -> Iterator[ResultEvent]:
    """Run a comparison; the variants see no test rows."""
    if not plan.variants and not plan.baselines:
        return
    tables, test_set = read_rows(plan)
    protocol = Protocol(plan.num_seeds, plan.lr_multipliers, plan.search_fraction, test_set)
    backbone = load_once(session, plan, backbone_name)
    runner = ComparisonRunner(backbone, tables, folder=folder, should_stop=session.should_stop)
    base, variants, _ = settle_common_readout(
        plan.base, plan.variants, backbone=backbone, tables=tables, folder=folder
    )
    baselines = Baselines(base, backbone, tables)
    yield from run_comparison(
        variants,
        baselines.select(plan.baselines),
        protocol=protocol,
        engine=SequentialEngine(protocol, runner),
        path=folder / "results.jsonl",
    )


def run_function(session: Session, plan: ComparisonPlan, cell: Cell) -> ResultEvent:
    """Run a method that is a function: it gets no test rows, and is scored as the others are."""
    file, _, name = (session.board.methods[cell.method].function or "").partition(":")
    tables, test_set = read_rows(plan)
    backbone = load_once(session, plan, cell.backbone)
    predict = getattr(import_module(file), name)(plan.base, backbone, tables)
    scored = test_set.score(predict(test_set.rows))
    return RunResult(
        cell.method,
        cell.seed,
        **vars(scored),
        is_baseline=True,
        validation=predict.validation,
        cost=predict.cost,
    )


def make_record(
    session: Session, cell: Cell, result: RunResult, *, wall_seconds: float
) -> dict[str, Any]:
    """A line of the file of results."""
    cost = result.cost
    return {
        "backbone": cell.backbone,
        "task": cell.task,
        "rows": cell.rows,
        "seed": cell.seed,
        "method": cell.method,
        "accuracy": result.score,
        "metrics": dict(result.metrics),
        "validation": dict(result.validation),
        "test_rows": len(result.scores),
        "learning_rate": result.rate,
        "trainable": None if cost is None else cost.trainable,
        "parameters": None if cost is None else cost.parameters,
        "saved_bytes": None if cost is None else cost.size,
        "seconds": None if cost is None else cost.seconds,
        "wall_seconds": round(wall_seconds, 1),
        "commit": session.commit,
        "lines": digest_cell(session.board, cell),
        "machine": describe_machine(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def describe_machine() -> dict[str, Any]:
    """The processor; no names of machines or people."""
    lines = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (lines.read_text("utf-8").splitlines() if lines.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def find_commit() -> str:
    """The commit that last changed the source code, marked if it has been edited since."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments, "--", "src"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ask("log", "-1", "--format=%h") or "unknown"
    return f"{commit}+" if ask("status", "--porcelain") else commit


def read_records(path: Path) -> list[dict[str, Any]]:
    """The finished cells, without a last line that was cut off."""
    if not path.exists():
        return []
    *lines, _ = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a finished cell; a line that a killed process cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1 if size else 0)
        file.write(json.dumps(record).encode() + b"\n")


def find_missing(
    board: Leaderboard,
    cells: Sequence[Cell],
    records: Sequence[Mapping[str, Any]],
    *,
    commit: str,
) -> list[Cell]:
    """The cells without a result of this commit and of their present lines."""
    keys = (*Cell.__dataclass_fields__, "commit", "lines")
    done = {tuple(record[key] for key in keys) for record in records}

    def identify(cell: Cell) -> tuple[Any, ...]:
        return (*vars(cell).values(), commit, digest_cell(board, cell))

    return [cell for cell in cells if identify(cell) not in done]


def run_cells(session: Session, cells: Sequence[Cell]) -> bool:
    """Run cells group by group, and append each result.

    Returns:
        Whether none failed.

    Raises:
        KeyboardInterrupt: it was stopped; what is done is appended.
    """
    is_complete, left_out = True, set[str]()
    for _, group in groupby(cells, key=lambda cell: cell.group):
        if session.should_stop():
            raise KeyboardInterrupt
        began = time.monotonic()
        members = [*group]
        try:
            for cell, event in run_group(session, members):
                seconds, began = time.monotonic() - began, time.monotonic()
                is_complete &= record_event(session, cell, event, wall_seconds=seconds)
        except MissingPackageError as error:
            if str(error) not in left_out:
                say(f"left out: {error}")
            left_out.add(str(error))
        except SoftpromptError as error:
            say(f"{members[0]}: failed: {error}")
            is_complete = False
    return is_complete


def record_event(session: Session, cell: Cell, event: ResultEvent, *, wall_seconds: float) -> bool:
    """Append a result, or say why there is none."""
    name = f"{cell.backbone}, {cell.task}, {cell.rows} rows, seed {cell.seed}, {cell.method}"
    if not isinstance(event, RunResult):
        say(f"{name}: failed: {event}")
        return False
    record = make_record(session, cell, event, wall_seconds=wall_seconds)
    append_record(session.results, record)
    say(f"{name}: {event.score:.1%}, {wall_seconds:.0f} s")
    return True


def say(message: str) -> None:
    """Print to the error stream, at once."""
    print(message, file=sys.stderr, flush=True)


def parse_filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read ``key=a,b`` arguments."""
    pairs = (text.partition("=") for text in texts)
    return {key: names.split(",") for key, _, names in pairs}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY=NAMES")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--fresh", action="store_true", help="run finished cells again")
    parser.add_argument("--list", action="store_true", help="print the missing cells only")
    parser.add_argument("--file", type=Path, default=HERE / "leaderboard.toml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "leaderboard")
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing cells, and write the page."""
    args = parse_arguments(arguments)
    datasets.disable_progress_bars()
    end = time.monotonic() + 60 * args.minutes
    try:
        board = read_leaderboard(args.file)
        cells = [*list_cells(board, parse_filters(args.only))]
    except SoftpromptError as error:
        say(str(error))
        return 2
    commit = find_commit()
    before = [] if args.fresh else read_records(args.results)
    missing = find_missing(board, cells, before, commit=commit)
    say(f"{len(cells) - len(missing)} of {len(cells)} cells are done at commit {commit}")
    if args.list:
        print(*missing, sep="\n")
        return 0
    if args.fresh:
        shutil.rmtree(args.runs, ignore_errors=True)
    session = Session(board, commit, args.runs, args.results, lambda: time.monotonic() > end)
    status = 0
    try:
        with RunDir(args.runs).lock():
            status = 0 if run_cells(session, missing) else 1
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
    except TrainingError as error:
        say(str(error))
        return 2
    write_page(board, read_records(args.results), args.page)
    return status


if __name__ == "__main__":
    sys.exit(main())
