"""Find an artifact's folder and read its two files, and no other file whatever they say."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from softprompt.artifact.aside import previous
from softprompt.artifact.source import Source
from softprompt.errors import ArtifactError

MANIFEST = "manifest.json"
TENSORS = "prompt.safetensors"
INSIDE_RUN = "artifact"
_PICKLED = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def find(path: Path) -> Path:
    """The artifact's folder: ``path`` itself, or the one inside a run folder.

    Raises:
        ArtifactError: there is no such folder.
        OSError: it cannot be looked at.
    """
    if path.is_file():
        msg = f"{path} is a file, but an artifact is a folder. Give its folder {path.parent}."
        raise ArtifactError(msg)
    if not path.is_dir():
        raise ArtifactError(_missing(path))
    inside = path / INSIDE_RUN
    return inside if inside.is_dir() and not (path / MANIFEST).exists() else path


def read(folder: Path, name: str, *, source: Source) -> bytes:
    """The content of a file that lies in the folder and nowhere else.

    Args:
        folder: the artifact's.
        name: ``MANIFEST`` or ``TENSORS``.
        source: the artifact, for messages.

    Raises:
        ArtifactError: the file is missing or leads out of the folder.
        OSError: it cannot be read.
    """
    path = folder / name
    home, goal = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not goal.is_relative_to(home):
        msg = (
            f"{source.name}: {name} is a link to {goal}, outside the folder; only what lies in it "
            f"is read. Copy the file itself: cp --remove-destination {goal} {path}"
        )
        raise ArtifactError(msg)
    if not path.is_file():
        raise ArtifactError(_incomplete(folder, name))
    return path.read_bytes()


def looks_pickled(name: str) -> bool:
    """Whether a file's name is one that pickles have."""
    return Path(name).suffix in _PICKLED


def few(names: Sequence[str], most: int = 8) -> str:
    """The first of some names, for messages; ``nothing`` if there are none."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "") or "nothing"


def _missing(path: Path) -> str:
    if previous(path).is_dir():
        return (
            f"there is no folder {path}: a save was cut off in its last instant. The artifact from "
            f"before is whole in {previous(path)}; rename that to {path}."
        )
    if not path.parent.is_dir():
        return f"there is no folder {path}: its parent {path.parent} does not exist either."
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    close = get_close_matches(path.name, folders, n=3)
    near = f"Did you mean {' or '.join(close)}?" if close else "No folder there has a like name."
    return f"there is no folder {path} (looked in {path.parent.resolve()}). {near}"


def _incomplete(folder: Path, name: str) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    fact = f"{folder} has no file {name}; it holds {few(names)}."
    pickled = [entry for entry in names if looks_pickled(entry)]
    if name == TENSORS and pickled:
        return (
            f"{fact} {pickled[0]} looks like a pickle, which is refused: reading one can run any "
            "code. Convert it to safetensors where you trust it, or train again."
        )
    return (
        f"{fact} An artifact is a folder with {MANIFEST} and {TENSORS}; a run folder has such a "
        f"folder in it, named {INSIDE_RUN}. Give one of the two."
    )
