"""The cells of the leaderboard: what its file says, the rows that a cell gets, and its recipe."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field, PositiveInt, ValidationError, model_validator

# Inner modules: rows are drawn as the splits of a recipe are.
from softprompt._parsing import parse_toml
from softprompt.data import DataConfig, Table, TaskColumns, read_splits, sample
from softprompt.data.table import take_rows, to_text
from softprompt.errors import RecipeError, format_unknown
from softprompt.recipe import StrictModel, explain_validation_error

SPLITS = ("train", "validation", "test")


class ProtocolTable(StrictModel):
    """What all cells share."""

    rows: list[PositiveInt]
    seeds: PositiveInt
    max_train_rows: PositiveInt
    max_validation_rows: PositiveInt
    max_test_rows: PositiveInt
    length: PositiveInt
    batch_size: PositiveInt
    epochs: PositiveInt
    min_steps: PositiveInt
    lr_multipliers: list[float]
    search_fraction: float = Field(gt=0, le=1)


class BackboneLine(StrictModel):
    """A backbone: a name as in a recipe, and more keys of its table ``[backbone]``."""

    name: str
    head: bool = False  # always a trained head, which encoders need
    settings: dict[str, Any] = Field(default_factory=dict)


class TaskLine(StrictModel):
    """A data set with the columns ``text`` and ``label``, or a template of other columns."""

    train: str
    validation: str | None = None
    test: str | None = None
    group_by: str | None = None
    label: str = "label"
    template: str = Field("{text}", description="of a trained head")
    question: str | None = Field(None, description="the template before the words")
    words: dict[str, str] | None = Field(None, description="of the labels, to answer with")
    max_length: PositiveInt | None = None


class MethodLine(StrictModel):
    """A method with changes of the recipe, a baseline of `compare`, or a function of ours."""

    method: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = None
    function: str | None = Field(None, description="file:name, called with a recipe and its rows")
    backbones: list[str] | None = Field(None, description="only with these")

    @model_validator(mode="after")
    def _check_kind(self) -> "MethodLine":
        if sum(kind is not None for kind in (self.method, self.baseline, self.function)) != 1:
            msg = "give one of method, baseline and function"
            raise ValueError(msg)
        return self


class Leaderboard(StrictModel):
    """The whole file."""

    protocol: ProtocolTable
    backbones: dict[str, BackboneLine]
    tasks: dict[str, TaskLine]
    methods: dict[str, MethodLine]


@dataclass(frozen=True)
class Cell:
    """One number of the leaderboard before it is averaged over seeds.

    Args:
        backbone: its name in the file.
        task: its name in the file.
        rows: training rows of each class.
        seed: of the rows and of the training.
        method: its name in the file.
    """

    backbone: str
    task: str
    rows: int
    seed: int
    method: str

    @property
    def group(self) -> tuple[str, str, int, int]:
        """What the cells of one comparison share."""
        return self.backbone, self.task, self.rows, self.seed


def read_leaderboard(path: Path) -> Leaderboard:
    """Read the file.

    Raises:
        RecipeError: it has faults.
    """
    try:
        board = Leaderboard.model_validate(parse_toml(path.read_text("utf-8")))
    except ValidationError as error:
        raise RecipeError(explain_validation_error(error, owner=Leaderboard)) from error
    faults = [
        f"methods.{name}: {format_unknown('backbone', backbone, options=board.backbones)}"
        for name, line in board.methods.items()
        for backbone in line.backbones or ()
        if backbone not in board.backbones
    ]
    if faults:
        raise RecipeError(faults)
    return board


def list_cells(board: Leaderboard, only: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    """All cells, seed by seed and then from few rows to many, so that early results are broad.

    Args:
        board: the file.
        only: the names to keep of ``backbone``, ``task``, ``method``, ``rows`` and ``seed``.

    Raises:
        RecipeError: a name does not exist.
    """
    options: dict[str, list[str]] = {
        "backbone": [*board.backbones],
        "task": [*board.tasks],
        "rows": [*map(str, board.protocol.rows)],
        "seed": [*map(str, range(1, board.protocol.seeds + 1))],
        "method": [*board.methods],
    }
    faults = [
        format_unknown(key, name, options=options.get(key, [*options]))
        for key, names in only.items()
        for name in names
        if name not in options.get(key, [])
    ]
    if faults:
        raise RecipeError(faults)
    kept = {key: [n for n in names if n in only.get(key, names)] for key, names in options.items()}
    for seed in map(int, kept["seed"]):
        for rows in map(int, kept["rows"]):
            for task in kept["task"]:
                for backbone in kept["backbone"]:
                    for method in kept["method"]:
                        allowed = board.methods[method].backbones
                        if allowed is None or backbone in allowed:
                            yield Cell(backbone, task, rows, seed, method)


def digest_cell(board: Leaderboard, cell: Cell) -> str:
    """A digest of all lines that a cell depends on: if one changes, the cell is run again."""
    protocol = board.protocol.model_dump()
    del protocol["rows"], protocol["seeds"]  # others may be added
    lines = [
        board.backbones[cell.backbone].model_dump(),
        board.tasks[cell.task].model_dump(),
        board.methods[cell.method].model_dump(),
        protocol,
    ]
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:12]


# The recipe's default seed divides a data set, the same for all cells.
_SPLIT_SEED = 42


@cache
def _read_parts(line: str, max_test_rows: int) -> dict[str, Table]:
    """The three parts of a data set: the same for all cells of its task."""
    task = TaskLine.model_validate_json(line)
    data = DataConfig.model_validate(
        {
            "train": task.train,
            "validation": task.validation,
            "test": task.test,
            "group_by": task.group_by,
            "max_rows": {"test": max_test_rows},
        }
    )
    columns = TaskColumns(target=task.label, fields=("text",), has_labels=True)
    return dict(read_splits(data, seed=_SPLIT_SEED, columns=columns))


def draw_tables(board: Leaderboard, cell: Cell) -> dict[str, Table]:
    """The rows of a cell by split: drawn by its seed, but all rows of the test part.

    Training and validation rows have (as far as there are so many) the same number of each class.
    """
    task, protocol = board.tasks[cell.task], board.protocol
    parts = _read_parts(task.model_dump_json(), protocol.max_test_rows)
    most = {"train": protocol.max_train_rows, "validation": protocol.max_validation_rows}
    drawn = {
        split: draw_rows(
            parts[split], task.label, count=cell.rows, most=most[split], seed=cell.seed
        )
        for split in ("train", "validation")
    }
    return drawn | {"test": parts["test"]}


def draw_rows(table: Table, label: str, *, count: int, most: int, seed: int) -> Table:
    """So many rows of each class, or all there are.

    Args:
        table: the rows to draw from.
        label: the column of the class.
        count: of each class.
        most: of all classes together.
        seed: of the draw.
    """
    places: dict[str, list[int]] = {}
    for index, value in enumerate(table[label]):
        places.setdefault(to_text(value), []).append(index)
    count = max(1, min(count, most // len(places)))
    chosen: list[int] = []
    for _, indices in sorted(places.items()):
        pool = Dataset.from_dict({"index": indices})
        chosen += (
            pool["index"] if len(indices) <= count else sample(pool, count, seed=seed)["index"]
        )
    return take_rows(table, sorted(chosen))


def write_tables(tables: Mapping[str, Table], folder: Path) -> dict[str, str]:
    """Write the rows of a cell as files that a recipe can name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, table in tables.items():
        path = folder / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) for row in table.to_list())
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        paths[split] = str(path)
    return paths


def make_recipe_data(
    board: Leaderboard, cell: Cell, *, paths: Mapping[str, str], train_rows: int
) -> dict[str, Any]:
    """The recipe that the methods of a group share.

    Args:
        board: the file.
        cell: any cell of the group.
        paths: of the files of rows, by split.
        train_rows: how many there are.
    """
    task, backbone = board.tasks[cell.task], board.backbones[cell.backbone]
    protocol = board.protocol
    settings: dict[str, Any] = {"kind": "classify", "label_column": task.label}
    if backbone.head or task.question is None or task.words is None:
        settings["template"] = task.template
    else:
        settings |= {"template": task.question, "verbalizer": task.words}
    batches = ceil(train_rows / protocol.batch_size)
    steps = max(protocol.min_steps, protocol.epochs * batches)
    data: dict[str, Any] = {**paths}
    if task.max_length is not None:
        data["max_length"] = task.max_length
    return {
        "seed": cell.seed,
        "backbone": {"name": backbone.name, **backbone.settings},
        "data": data,
        "task": settings,
        "method": {"name": "p-tuning-v2", "length": protocol.length},
        "train": {
            "batch_size": protocol.batch_size,
            "epochs": ceil(steps / batches),
            "max_steps": steps,
            "eval_every_steps": max(1, steps // 6),
            "best_metric": "accuracy",
        },
    }
