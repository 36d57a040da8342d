"""Which rows are held back to choose and to measure: files beside the data, or shares of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.cli.guess import Guess
from softprompt.data import Rows, check_columns, check_labels, split
from softprompt.errors import DataError
from softprompt.train.rows import read_source

_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARES = (
    {"train": 0.8, "validation": 0.1, "test": 0.1},
    {"train": 0.6, "validation": 0.2, "test": 0.2},
)
_NONE = {"train": 1.0, "validation": 0.0, "test": 0.0}
_SEEDS = (42, *range(20))


@dataclass(frozen=True)
class Held:
    """The rows that are held back.

    Args:
        files: by the name of their split.
        shares: of the data, for splits without a file.
        seed: one with which no split has a label that the training rows lack.
        remarks: what to tell the user.
    """

    files: Mapping[str, str]
    shares: Mapping[str, float]
    seed: int
    remarks: tuple[str, ...]


def hold(table: Rows, source: str, guess: Guess) -> Held:
    """Choose the rows to hold back, so that the recipe can be run as it stands."""
    files: dict[str, str] = {}
    remarks: list[str] = []
    for name, path in _beside(source).items():
        try:
            other = read_source(str(path))
            check_columns(other, guess.texts, where=str(path))
            check_labels(other, guess.label, known=guess.labels, split=name)
        except DataError as error:
            remarks.append(f"{path} is left out: {error}")
        else:
            files[name] = str(path)
    if "validation" in files:
        return Held(files, _NONE, _SEEDS[0], tuple(remarks))
    found = _split(table, guess, has_test="test" in files)
    if found is None:
        remarks.append(f"{guess.rows} rows are too few to hold some back: all are trained on")
        return Held(files, _NONE, _SEEDS[0], tuple(remarks))
    shares, seed = found
    return Held(files, shares, seed, tuple(remarks))


def _beside(source: str) -> dict[str, Path]:
    """The files that lie beside ``train.…`` and are called like it."""
    path = Path(source).expanduser()
    if not path.is_file() or "train" not in path.name:
        return {}
    found: dict[str, Path] = {}
    for name, words in _NAMES.items():
        paths = [path.with_name(path.name.replace("train", word)) for word in words]
        there = [p for p in paths if p.is_file()]
        found |= {name: there[0]} if there else {}
    return found


def _split(table: Rows, guess: Guess, *, has_test: bool) -> tuple[Mapping[str, float], int] | None:
    """Shares and a seed that leave every label among the training rows."""
    for whole in _SHARES:
        used = {n: s for n, s in whole.items() if n != "test" or not has_test}
        total = sum(used.values())
        shares = {name: share / total for name, share in used.items()}
        for seed in _SEEDS:
            try:
                parts = split(table, seed=seed, shares=shares)
                known = {*map(str, parts["train"][guess.label])}
                check_labels(table, guess.label, known=known, split="whole")
            except DataError:
                continue
            return whole, seed
    return None
