"""Changes of a recipe under a stopped run: which ones a resumed run may have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote
from typing import Any

from softprompt.errors import RecipeError

# The keys that a resumed run may change: the steps so far do not depend on them.
CHANGEABLE = frozenset(
    {
        "train.epochs",
        "train.max_steps",
        "train.early_stopping_patience",
        "train.gradient_accumulation_steps",
        "train.gradient_checkpointing",
        "train.trackers",
        "cache.memory_gb",
        "cache.disk_gb",
    }
)
# What these keys name is compared by its contents: the rows' hash and the backbone's fingerprint.
_BY_CONTENT = frozenset(
    {
        *(f"data.{split}" for split in ("train", "validation", "test")),
        *(f"backbone.{key}" for key in ("name", "revision", "device", "device_map")),
    }
)
_MISSING = object()


@dataclass(frozen=True)
class RecipeChange:
    """A key of a recipe with two values.

    Args:
        key: its path, such as ``train.epochs``.
        before: its value when the run started; None if it was left out.
        now: its value now; None if it is left out.
    """

    key: str
    before: object
    now: object

    def __str__(self) -> str:
        return f"{self.key}: {_format(self.before)}, now {_format(self.now)}"


def diff_recipes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[RecipeChange, ...]:
    """List the keys that differ, except those that are compared by their contents.

    Args:
        before: a recipe as plain data.
        now: another one.
    """
    first, second = dict(_flatten(before)), dict(_flatten(now))
    return tuple(
        RecipeChange(key, first.get(key), second.get(key))
        for key in sorted({*first, *second} - _BY_CONTENT)
        if first.get(key, _MISSING) != second.get(key, _MISSING)
    )


def explain_changes(changes: Sequence[RecipeChange], folder: Path) -> str:
    """The message for a run that cannot resume since its recipe was changed.

    Args:
        changes: at least one.
        folder: of the run.
    """
    allowed = [change for change in changes if change.key in CHANGEABLE and change.now is not None]
    lines = "".join(f"\n  - {change}" for change in changes)
    remedy = "Restore these values, or train again."
    if len(allowed) < len(changes) and allowed:
        remedy = f"Restore the others, or train again. {_list_allowed(allowed, folder)}"
    elif allowed:
        remedy = _list_allowed(allowed, folder)
    return f"the recipe of the run in {folder} was changed since it started:{lines}\n{remedy}"


def check_changeable(changes: Sequence[str]) -> None:
    """Check that changes set only keys that a resumed run may change.

    Args:
        changes: as ``section.key=value``.

    Raises:
        RecipeError: another key is set.
    """
    keys = [change.partition("=")[0].strip() for change in changes]
    faults = [
        f"{key}: cannot be changed in a run that has started. Train again with it. What may be "
        f"changed: {', '.join(sorted(CHANGEABLE))}."
        for key in keys
        if key not in CHANGEABLE
    ]
    if faults:
        raise RecipeError(faults, where="the changes")


def _list_allowed(changes: Sequence[RecipeChange], folder: Path) -> str:
    options = [part for c in changes for part in ("--set", f"{c.key}={_format(c.now)}")]
    keys = " and ".join(change.key for change in changes)
    return (
        f"{keys} may be changed with: softprompt resume {quote(str(folder))} {join(options)} (in "
        "Python in the recipe that train_recipe gets)"
    )


def _flatten(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _format(value: object) -> str:
    return "left out" if value is None else str(value)
