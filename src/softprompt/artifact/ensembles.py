"""Ensembles on disk: a folder with ``ensemble.json`` and a folder for each member's artifact."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt._io import ErrorContext, load_strict_json, write_atomically
from softprompt.artifact.artifact import Artifact
from softprompt.artifact.store import (
    ENSEMBLE,
    MANIFEST,
    TENSORS,
    check_replaceable,
    explain_write_error,
    find_artifact,
    load_artifact,
    load_artifact_from,
    read_file_bytes,
    save_artifact,
)
from softprompt.errors import ArtifactError

_SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_REMEDY = "Restore the folder from a copy, or train again."
_LARGEST = 1 << 20  # bytes of ``ensemble.json``


@dataclass(frozen=True, eq=False)
class SavedEnsemble:
    """The artifacts whose predictions are combined.

    Args:
        vote: how, as `softprompt.Ensemble` takes it.
        members: by name.
    """

    vote: str
    members: Mapping[str, Artifact]


def is_ensemble(path: Path) -> bool:
    """Whether a folder, or that of a run, holds an ensemble.

    Args:
        path: of the folder; it need not exist.
    """
    try:
        return path.is_dir() and (find_artifact(path) / ENSEMBLE).is_file()
    except OSError:
        return False


def save_ensemble(ensemble: SavedEnsemble, folder: Path) -> Path:
    """Write an ensemble atomically.

    Args:
        ensemble: its members and their vote.
        folder: where to write; an existing ensemble or artifact is replaced.

    Returns:
        The folder.

    Raises:
        ArtifactError: a member could not be loaded again, the folder has other files, or it cannot
            be written.
    """
    check_replaceable(folder, also=[ENSEMBLE, *_list_names(folder)])
    try:
        with write_atomically(folder) as fresh:
            for name, artifact in ensemble.members.items():
                save_artifact(artifact, fresh / name)
            digests = {name: _digest(fresh / name / MANIFEST) for name in ensemble.members}
            described = {"schema": _SCHEMA, "vote": ensemble.vote, "members": digests}
            (fresh / ENSEMBLE).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ArtifactError(explain_write_error(folder, error, what="the ensemble")) from error
    return folder


def load_ensemble(path: Path) -> SavedEnsemble:
    """Load an ensemble, and check all of it first.

    Args:
        path: its folder, or that of the run that made it.

    Returns:
        The members, as `load_artifact` returns them, and their vote.

    Raises:
        ArtifactError: anything is missing, damaged or changed.
    """
    try:
        folder = find_artifact(path)
        source = ErrorContext(str(folder), _REMEDY)
        return _load_ensemble_from(folder, source)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Give a folder that this user may read."
        raise ArtifactError(msg) from error


def _load_ensemble_from(folder: Path, source: ErrorContext) -> SavedEnsemble:
    vote, digests = _read_description(folder, source)
    members = {
        name: _load_member(folder, name, digest=digest, source=source)
        for name, digest in digests.items()
    }
    return SavedEnsemble(vote, members)


def load_saved(path: Path) -> Artifact | SavedEnsemble:
    """Load what a folder holds, and check all of it first.

    Args:
        path: the folder of an artifact, of an ensemble, or of the run that made it.

    Raises:
        ArtifactError: anything is missing, damaged or changed.
    """
    return load_ensemble(path) if is_ensemble(path) else load_artifact(path)


def load_saved_from(folder: Path, *, source: ErrorContext) -> Artifact | SavedEnsemble:
    """As `load_saved`, from a folder that is another one for the user.

    Args:
        folder: of an artifact or of an ensemble.
        source: its name in messages.

    Raises:
        ArtifactError: anything is missing, damaged or changed.
        OSError: it cannot be read.
    """
    if (folder / ENSEMBLE).is_file():
        return _load_ensemble_from(folder, source)
    return load_artifact_from(folder, source=source)


def digest_saved(folder: Path, *, source: ErrorContext | None = None) -> str:
    """The SHA-256 of an artifact's manifest, which holds that of its tensors.

    That of an ensemble is of its description, which holds those of its members' manifests.

    Args:
        folder: of the artifact or of the ensemble.
        source: its name in messages; None for the folder.

    Raises:
        ArtifactError: the file cannot be read.
    """
    source = source or ErrorContext(str(folder), _REMEDY)
    name = ENSEMBLE if (folder / ENSEMBLE).is_file() else MANIFEST
    try:
        return hashlib.sha256(read_file_bytes(folder, name, source=source)).hexdigest()
    except OSError as error:
        msg = f"{name} cannot be read: {error.strerror}."
        raise source.make_error(msg) from error


def read_saved_files(folder: Path, *, source: ErrorContext) -> dict[str, bytes]:
    """All files of an artifact or of an ensemble, by their paths in the folder.

    Args:
        folder: of an artifact or of an ensemble.
        source: its name in messages.

    Raises:
        ArtifactError: one is missing, or is a link to a file elsewhere.
        OSError: one cannot be read.
    """
    if not (folder / ENSEMBLE).is_file():
        return {part: read_file_bytes(folder, part, source=source) for part in (MANIFEST, TENSORS)}
    _, digests = _read_description(folder, source)
    files = {ENSEMBLE: read_file_bytes(folder, ENSEMBLE, source=source)}
    for name in digests:
        for part in (MANIFEST, TENSORS):
            files[f"{name}/{part}"] = read_file_bytes(folder, f"{name}/{part}", source=source)
    return files


def list_members(path: Path) -> list[Path]:
    """The folders of the members of an ensemble; of an artifact, its own.

    Args:
        path: of the ensemble, of an artifact, or of a run.

    Raises:
        ArtifactError: the description of the ensemble is damaged.
    """
    if not is_ensemble(path):
        return [path]
    folder = find_artifact(path)
    source = ErrorContext(str(folder), _REMEDY)
    _, digests = _read_description(folder, source)
    return [folder / name for name in digests]


def _read_description(folder: Path, source: ErrorContext) -> tuple[str, dict[str, Any]]:
    """What ``ensemble.json`` says: the vote, and the digest of each member by its name."""
    file = folder / ENSEMBLE
    if not file.is_file():
        msg = f"it has no file {ENSEMBLE}, so it is not the folder of an ensemble."
        raise source.make_error(msg)
    if file.stat().st_size > _LARGEST:
        msg = (
            f"{ENSEMBLE} has {file.stat().st_size:,} bytes, but at most {_LARGEST:,} are possible."
        )
        raise source.make_error(msg)
    try:
        described = load_strict_json(file.read_bytes())
    except ValueError as error:
        msg = f"{ENSEMBLE} is not JSON: {error}."
        raise source.make_error(msg) from error
    match described:
        case {"schema": 1, "vote": str(vote), "members": dict(members)} if members:
            unsafe = [name for name in members if not _NAME.fullmatch(name)]
            if unsafe:
                msg = f"{ENSEMBLE} names {unsafe[0]!r}, which is not the name of a folder in it."
                raise source.make_error(msg)
            return vote, members
        case _:
            msg = (
                f"{ENSEMBLE} must have schema = {_SCHEMA}, a vote, and at least one member with "
                "its SHA-256. Another version of softprompt may have written it."
            )
            raise source.make_error(msg)


def _load_member(folder: Path, name: str, *, digest: object, source: ErrorContext) -> Artifact:
    member = folder / name
    root = Path(os.path.realpath(folder))
    if not Path(os.path.realpath(member)).is_relative_to(root):
        msg = f"{name} is a link to a folder outside; only what is in the folder is read."
        raise source.make_error(msg)
    if not (member / MANIFEST).is_file():
        msg = f"the member {name} is missing."
        raise source.make_error(msg)
    actual = _digest(member / MANIFEST)
    if actual != digest:
        msg = (
            f"the manifest of {name} has the SHA-256 {actual}, but {ENSEMBLE} says {digest!r}: it "
            "was changed, or belongs to another ensemble."
        )
        raise source.make_error(msg)
    return load_artifact_from(member, source=ErrorContext(str(member), source.remedy))


def _list_names(folder: Path) -> list[str]:
    """The folders of an ensemble's members that may be replaced; none if it is damaged."""
    try:
        return [path.name for path in list_members(folder)] if is_ensemble(folder) else []
    except ArtifactError:
        return []


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
