"""The page of the leaderboard: a table of means over seeds, to sort and filter in the browser."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import Cell, Leaderboard, digest_cell

from softprompt.data.few_rows import compute_wilson_interval

Record = Mapping[str, Any]
# Seeds of one row of the table.
Entry = list[Record]
COLUMNS = (
    "task",
    "rows a class",
    "backbone",
    "method",
    "accuracy %",
    "±",
    "macro F1 %",
    "seeds",
    "trained parameters",
    "saved kB",
    "seconds",
)
# Rows a class: where the default has to be above the probe, and where SetFit's core is strong.
_MANY, _FEW = 64, 16
_TEXT_COLUMNS = {"task", "backbone", "method"}


def write_page(board: Leaderboard, records: Sequence[Record], path: Path) -> None:
    """Write the page of all results that belong to the present lines of the file."""
    path.write_text(format_page(board, records), encoding="utf-8")


def format_page(board: Leaderboard, records: Sequence[Record]) -> str:
    """The page in Markdown."""
    entries = collect_entries(board, records)
    return "\n".join(
        [
            *_format_introduction(board),
            *_format_targets(entries),
            *_format_table(entries),
            *_format_foot(entries),
        ]
    )


def collect_entries(board: Leaderboard, records: Iterable[Record]) -> list[Entry]:
    """The results of each row of the table: of each seed the latest one.

    Results of lines that are not in the file any more, or have changed, are left out.
    """
    latest: dict[Cell, Record] = {}
    for record in records:
        cell = _get_cell(record)
        is_known = (
            cell.backbone in board.backbones
            and cell.task in board.tasks
            and cell.method in board.methods
        )
        if is_known and digest_cell(board, cell) == record["lines"]:
            latest[cell] = record
    order = {
        name: at
        for names in (board.tasks, board.backbones, board.methods)
        for at, name in enumerate(names)
    }
    entries: dict[tuple[str, int, str, str], Entry] = {}
    for cell, record in latest.items():
        key = (cell.task, cell.rows, cell.backbone, cell.method)
        entries.setdefault(key, []).append(record)

    def rank(key: tuple[str, int, str, str]) -> tuple[Any, ...]:
        task, rows, backbone, _ = key
        return order[task], rows, order[backbone], -average(entries[key], "accuracy")

    return [entries[key] for key in sorted(entries, key=rank)]


def average(entry: Entry, key: str) -> float:
    """The mean over seeds."""
    return statistics.fmean(record[key] for record in entry)


def _format_introduction(board: Leaderboard) -> list[str]:
    protocol = board.protocol
    return [
        *("---", "hide: [toc]", "---"),  # the table is wide
        "",
        "# Leaderboard",
        "",
        (
            "What prompts, baselines and their settings reach on the [built-in data "
            "sets](data-sets.md) and [backbones](backbones.md), under "
            "[one protocol](../how-to/compare.md). `scripts/bench leaderboard` runs the cells that "
            "are missing and writes this page; no number is typed in. Click a column to sort by it."
        ),
        "",
        (
            "Each data set is divided once into training, validation and test rows. A cell's seed "
            "draws so many training rows of each class (or all there are, up to "
            f"{protocol.max_train_rows:,} in total), as many validation rows (up to "
            f"{protocol.max_validation_rows:,} in total), and trains; the learning rate is "
            "searched by these validation rows. Accuracy is on all test rows, up to "
            f"{protocol.max_test_rows:,}, which nothing else sees. ± is the standard deviation "
            "over seeds. `default` is what `softprompt fit` does. Seconds are of training one "
            "seed, without the search, except for `default`, which makes its own, and without "
            "loading the backbone; compare them within a machine only."
        ),
        "",
        (
            "A backbone, a method or a data set more is one line of "
            "[leaderboard.toml](../../benchmarks/leaderboard/leaderboard.toml). "
            "`--only task=reviews method=p-tuning-v2` runs a part, `--minutes 30` stops in time, "
            "and the same command resumes."
        ),
        "",
    ]


def _format_targets(entries: Sequence[Entry]) -> list[str]:
    """How the default compares with what people would pick instead, cell by cell."""
    scores = {_get_cell(record): record for entry in entries for record in entry}
    pairs = {
        other: [*_pair(scores, other)] for other in ("search", "linear-probe", "logistic-head")
    }
    near = [ours["accuracy"] >= theirs["accuracy"] - 0.01 for ours, theirs in pairs["search"]]
    probe = pairs["linear-probe"]
    within = [_reaches(ours, theirs["accuracy"]) for ours, theirs in probe]
    many = [
        ours["accuracy"] > theirs["accuracy"] for ours, theirs in probe if ours["rows"] >= _MANY
    ]
    few = [
        ours["accuracy"] >= theirs["accuracy"]
        for ours, theirs in pairs["logistic-head"]
        if ours["rows"] <= _FEW
    ]
    lines = (
        ("within 1 point of the best of twelve settings (`search`), or above it", near, "90 %"),
        ("the linear probe is not above the default's 95 % interval", within, "all"),
        ("above the linear probe, with 64 rows a class or more", many, "70 %"),
        ("equal to or above `logistic-head` (the core of SetFit), with 8 and 16 rows", few, "50 %"),
    )
    if not probe:
        return []
    return [
        "| `default`, in cells of one seed | cells | target |",
        "|---|--:|--:|",
        *(
            f"| {what} | {sum(found)} of {len(found)} | {aim} |"
            for what, found, aim in lines
            if found
        ),
        "",
    ]


def _get_cell(record: Record) -> Cell:
    return Cell(**{name: record[name] for name in Cell.__dataclass_fields__})


def _pair(scores: Mapping[Cell, Record], other: str) -> Iterator[tuple[Record, Record]]:
    """The results of the default with those of another method on the same rows."""
    for cell, record in scores.items():
        rival = replace(cell, method=other)
        if cell.method == "default" and rival in scores:
            yield record, scores[rival]


def _reaches(record: Record, accuracy: float) -> bool:
    """Whether the 95 % interval of a result reaches an accuracy."""
    _, high = compute_wilson_interval(record["accuracy"], record["test_rows"])
    return high >= accuracy


def _format_table(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return ["Nothing is measured yet.", ""]
    best = _find_best(entries)
    rows = [f"| {' | '.join(_format_cells(entry, best))} |" for entry in entries]
    rule = "|".join("---" if name in _TEXT_COLUMNS else "--:" for name in COLUMNS)
    return [
        '<div class="sortable" markdown>',
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{rule}|",
        *rows,
        "",
        "</div>",
        "",
        "Bold: the best of a task, a number of rows and a backbone.",
        "",
    ]


def _find_best(entries: Sequence[Entry]) -> dict[tuple[Any, ...], float]:
    """The best accuracy of each task, number of rows and backbone, as it is shown."""
    best: dict[tuple[Any, ...], float] = {}
    for entry in entries:
        key = _get_contest(entry)
        best[key] = max(best.get(key, 0.0), _get_shown_accuracy(entry))
    return best


def _get_shown_accuracy(entry: Entry) -> float:
    """In percent, as the page has it."""
    return round(100 * average(entry, "accuracy"), 1)


def _get_contest(entry: Entry) -> tuple[Any, ...]:
    first = entry[0]
    return first["task"], first["rows"], first["backbone"]


def _format_cells(entry: Entry, best: Mapping[tuple[Any, ...], float]) -> list[str]:
    first = entry[0]
    accuracies = [100 * record["accuracy"] for record in entry]
    accuracy = _get_shown_accuracy(entry)
    spread = f"{statistics.stdev(accuracies):.1f}" if len(entry) > 1 else ""
    f1 = statistics.fmean(100 * record["metrics"]["macro_f1"] for record in entry)
    is_best = accuracy == best[_get_contest(entry)]
    trained = first["trainable"] is not None
    return [
        first["task"],
        str(first["rows"]),
        first["backbone"],
        first["method"],
        f"**{accuracy:.1f}**" if is_best else f"{accuracy:.1f}",
        spread,
        f"{f1:.1f}",
        str(len(entry)),
        f"{first['trainable']:,}" if trained else "",
        f"{first['saved_bytes'] / 1000:,.1f}" if trained else "",
        f"{average(entry, 'seconds'):,.0f}" if trained else "",
    ]


def _format_foot(entries: Sequence[Entry]) -> list[str]:
    """The machines, versions and commits of the results."""
    records = [record for entry in entries for record in entry]
    machines = {
        f"{record['machine']['cpu']}, {record['machine']['threads']} threads" for record in records
    }
    versions = {
        ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        for record in records
    }
    commits = {record["commit"] for record in records}
    at = "at the commit" if len(commits) == 1 else "at the commits"
    facts = (("Measured on", machines), ("with", versions), (at, commits))
    lines = [f"{text} {'; '.join(sorted(values))}" for text, values in facts if values]
    return [f"{', '.join(lines)}.", ""] if lines else []
