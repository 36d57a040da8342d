"""What a run's folder keeps of its parts: a chosen start or rate, finished folds and seeds.

Each is kept with what it depends on, and is refused where that has changed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from softprompt.errors import ArtifactError
from softprompt.train.recipe_changes import diff_recipes
from softprompt.train.run_dir import RunDir
from softprompt.train.setup import RunSetup

Value = TypeVar("Value")

Kept = Literal["folds", "learning-rate", "result", "start"]

_WHAT = {
    "folds": "the folds",
    "learning-rate": "the search for the learning rate",
    "result": "the finished seed",
    "start": "the choice of the start",
}
# The keys that none of them depends on.
_WITHOUT_EFFECT = frozenset({"train.trackers", "cache.memory_gb", "cache.disk_gb"})
_NAMES = {"hashes": "the rows", "fingerprint": "the backbone"}


def write_kept(folder: RunDir, name: Kept, *, prepared: RunSetup, value: object) -> None:
    """Keep a value in a run's folder.

    Args:
        folder: of the run.
        name: of the value.
        prepared: the parts of the run, on which it depends.
        value: as JSON has it.
    """
    folder.write_state(name, {**_describe_basis(prepared), name: value})


def read_kept(
    folder: RunDir, name: Kept, *, prepared: RunSetup, parse: Callable[[Any], Value]
) -> Value | None:
    """Read what `write_kept` wrote; None if it is not there.

    Args:
        folder: of the run.
        name: of the value.
        prepared: the parts of the run, on which it depends.
        parse: makes the value of what JSON has.

    Raises:
        ArtifactError: it cannot be read, or depends on other parts.
    """
    state = folder.read_state(name)
    if state is None:
        return None
    basis = _describe_basis(prepared)
    try:
        changes = [*diff_recipes(state["recipe"], basis["recipe"])]
        changed = [str(change) for change in changes if change.key not in _WITHOUT_EFFECT]
        changed += [_NAMES[key] for key in _NAMES if state[key] != basis[key]]
        value = state[name]
    except (KeyError, TypeError, AttributeError) as error:
        raise _explain_unreadable(folder, name, error=error) from error
    if changed:
        msg = (
            f"{_WHAT[name]} in {folder.path} had something else: {'; '.join(changed)}. Restore "
            "that, or train again."
        )
        raise ArtifactError(msg)
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _explain_unreadable(folder, name, error=error) from error


def _explain_unreadable(folder: RunDir, name: Kept, *, error: Exception) -> ArtifactError:
    """The error of a kept value that is not of its form."""
    return ArtifactError(
        f"{name}.json in {folder.path} cannot be read ({type(error).__name__}: {error}). Remove it "
        "and resume the run, which makes it again."
    )


def _describe_basis(prepared: RunSetup) -> Mapping[str, Any]:
    return {
        "recipe": prepared.recipe.as_data(),
        "hashes": dict(prepared.hashes),
        "fingerprint": prepared.backbone.fingerprint,
    }
