"""Artifacts on disk: ``prompt.safetensors`` and ``manifest.json`` in one folder."""

import errno
import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import assert_never

import safetensors.torch
from torch import Tensor

from softprompt._io import (
    UNREADABLE,
    ErrorContext,
    find_backup,
    is_pickle,
    to_bytes,
    write_atomically,
)
from softprompt._paths import is_file, is_present
from softprompt.artifact.artifact import Artifact
from softprompt.artifact.checks import find_faults
from softprompt.artifact.manifest import (
    HEAD,
    PROMPT,
    READABLE,
    SCHEMA,
    Manifest,
    dump_manifest,
    parse_manifest,
)
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

MANIFEST = "manifest.json"
TENSORS = "prompt.safetensors"
INSIDE_RUN = "artifact"
ENSEMBLE = "ensemble.json"
_RECIPE = "recipe.toml"
# The folder of a run of several tasks that has one for each of them.
_TASKS = "tasks"
# Far larger than any artifact, and small enough to be read at once.
_LARGEST = {MANIFEST: 64 << 20, TENSORS: 4 << 30, ENSEMBLE: 1 << 20}
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def find_artifact(path: Path) -> Path:
    """The artifact's folder: ``path`` itself, or the one inside a run directory.

    Raises:
        ArtifactError: there is no such folder.
        OSError: it cannot be read.
    """
    if is_file(path):
        msg = f"{path} is a file, but an artifact is a folder. Give its folder {path.parent}."
        raise ArtifactError(msg)
    if not is_present(path) or not path.is_dir():
        raise ArtifactError(_explain_missing(path))
    inside = path / INSIDE_RUN
    return inside if inside.is_dir() and not (path / MANIFEST).exists() else path


def read_file_bytes(folder: Path, name: str, *, source: ErrorContext) -> bytes:
    """Read a file that is in the folder, and not a link to a file elsewhere.

    Args:
        folder: the artifact's folder.
        name: ``MANIFEST``, ``TENSORS`` or ``ENSEMBLE``, or the path of such a file in it.
        source: the artifact, for messages.

    Raises:
        ArtifactError: the file is missing, or is a link to a file outside the folder.
        OSError: it cannot be read.
    """
    path = folder / name
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not target.is_relative_to(root):
        msg = (
            f"{source.name}: {name} is a link to {target}, outside the folder; only files in it "
            f"are read. Copy the file itself: cp --remove-destination {quote(str(target))} "
            f"{quote(str(path))}"
        )
        raise ArtifactError(msg)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        msg = f"{path} is {what}, but an artifact has a file of this name."
        raise source.make_error(msg)
    if not path.is_file():
        raise ArtifactError(_explain_incomplete(folder, name))
    _check_size(name, path.stat().st_size, source=source)
    return path.read_bytes()


def _check_size(name: str, size: int, *, source: ErrorContext) -> None:
    most = _LARGEST[name.rpartition("/")[2]]
    if size > most:
        msg = f"{name} has {size:,} bytes, but at most {most:,} are possible."
        raise source.make_error(msg)


def has_pickle_suffix(name: str) -> bool:
    """Whether a file's name has a suffix that is usual for pickles."""
    return Path(name).suffix in _PICKLE_SUFFIXES


def abbreviate(names: Sequence[str], most: int = 8) -> str:
    """List the first of some names, for messages; ``nothing`` if there are none."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "") or "nothing"


def _explain_missing(path: Path) -> str:
    backup = find_backup(path)
    if backup is not None:
        return (
            f"there is no folder {path}: a save was interrupted just before it finished. The "
            f"previous artifact is complete in {backup}; rename that to {path}."
        )
    if not is_present(path.parent):
        return f"there is no folder {path}: its parent {path.parent} does not exist either."
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    close = get_close_matches(path.name, folders, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "No folder there has a similar name."
    return f"there is no folder {path} (looked in {path.parent.resolve()}). {hint}"


def _explain_incomplete(folder: Path, name: str) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if _RECIPE in names and (folder / _TASKS).is_dir():
        tasks = abbreviate(sorted(entry.name for entry in (folder / _TASKS).iterdir()))
        return (
            f"{folder} is a run of several tasks ({tasks}), each of which has a prompt of its own. "
            f"Give the folder of one, {folder / _TASKS / 'NAME'}, or that of the shared prompt, "
            f"{folder / 'shared'}."
        )
    if _RECIPE in names and INSIDE_RUN not in names:
        return (
            f"the run in {folder} is not finished, so it has no artifact yet. Resume it with: "
            f"softprompt resume {quote(str(folder))}\nOr use its best prompt so far: --best with "
            "softprompt predict or evaluate, softprompt.train.load_best_prompt in Python."
        )
    if ENSEMBLE in names:
        members = [entry for entry in names if (folder / entry / MANIFEST).is_file()]
        return (
            f"{folder} is an ensemble of {len(members)} prompts, but a single one is needed here. "
            f"Give one of them: {abbreviate([str(folder / entry) for entry in members])}. "
            "softprompt predict and evaluate, and load_model in Python, take the ensemble itself."
        )
    fact = f"{folder} has no file {name}; it has {abbreviate(names)}."
    pickles = [entry for entry in names if has_pickle_suffix(entry)]
    if name == TENSORS and pickles:
        return (
            f"{fact} {pickles[0]} looks like a pickle, which is refused: reading one can run any "
            "code. Convert it to safetensors in a place where you trust it, or train again."
        )
    return (
        f"{fact} An artifact is a folder with {MANIFEST} and {TENSORS}; a run directory has such a "
        f"folder in it, named {INSIDE_RUN}. Give one of the two."
    )


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write an artifact atomically.

    Args:
        artifact: the artifact. Its tensors are written in their own dtype, from any device.
        folder: where to write; an existing artifact is replaced, and stays if anything fails.

    Returns:
        The folder.

    Raises:
        ArtifactError: the artifact could not be loaded again (NaN, an unsupported dtype or value,
            a manifest that does not fit the tensors), the folder has other files, or it cannot be
            written.
    """
    source = ErrorContext(f"the artifact for {folder}", "Correct it; nothing was written.")
    raw, described = _serialize(artifact, source)
    try:
        check_replaceable(folder)
        with write_atomically(folder) as fresh:
            (fresh / TENSORS).write_bytes(raw)
            (fresh / MANIFEST).write_bytes(described)
    except OSError as error:
        what = f"the artifact ({len(raw) + len(described):,} bytes)"
        raise ArtifactError(explain_write_error(folder, error, what=what)) from error
    return folder


def check_savable(artifact: Artifact, *, source: ErrorContext) -> None:
    """Check that an artifact could be saved: what `save_artifact` checks, without writing it.

    Args:
        artifact: to check.
        source: the artifact, for messages.

    Raises:
        ArtifactError: as `save_artifact`, except that nothing is written.
    """
    _serialize(artifact, source)


def _serialize(artifact: Artifact, source: ErrorContext) -> tuple[bytes, bytes]:
    """The files of tensors and manifest, which can be loaded again."""
    tensors, written = artifact.to_tensors(), artifact.manifest
    if written.schema in READABLE:
        written = replace(written, schema=SCHEMA)
    # Parsed again, so that everything that loading checks is checked here.
    draft = dump_manifest(written, "0" * 64, source=source)
    manifest, _ = parse_manifest(draft, source=source)
    _check(manifest, tensors, source)
    raw = to_bytes(tensors)
    described = dump_manifest(manifest, hashlib.sha256(raw).hexdigest(), source=source)
    for name, content in ((MANIFEST, described), (TENSORS, raw)):
        _check_size(name, len(content), source=source)
    return raw, described


def load_artifact(path: Path) -> Artifact:
    """Load an artifact, and check all of it first.

    Args:
        path: the artifact's folder, or a run directory, which has it under the name ``artifact``.

    Returns:
        The artifact, its tensors on the CPU, bit for bit as they were saved.

    Raises:
        ArtifactError: anything is missing, damaged, changed, of another version, or not finite.
    """
    try:
        folder = find_artifact(path)
        source = ErrorContext(str(folder), "Restore the folder from a copy, or train again.")
        return load_artifact_from(folder, source=source)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Give a folder that this user may read."
        raise ArtifactError(msg) from error


def load_artifact_from(folder: Path, *, source: ErrorContext) -> Artifact:
    """Load an artifact from exactly this folder, as `load_artifact` does.

    Args:
        folder: the artifact's folder.
        source: the artifact, for messages.

    Returns:
        The artifact.

    Raises:
        ArtifactError: anything is missing, damaged, changed, of another version, or not finite.
        OSError: it cannot be read.
    """
    described = read_file_bytes(folder, MANIFEST, source=source)
    raw = read_file_bytes(folder, TENSORS, source=source)
    manifest, digest = parse_manifest(described, source=source)
    tensors = _read_tensors(raw, source)
    actual = hashlib.sha256(raw).hexdigest()
    if actual != digest:
        msg = (
            f"{TENSORS} has the SHA-256 {actual}, but the manifest says {digest}: one of the two "
            "files was changed, or they belong to different artifacts."
        )
        raise source.make_error(msg)
    _check(manifest, tensors, source)
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    return Artifact(manifest, _make_prompt(manifest, tensors), head)


def check_replaceable(folder: Path, *, also: Collection[str] = ()) -> None:
    """Check that a folder contains only an artifact, so that it may be replaced.

    Args:
        folder: the artifact's folder; it need not exist.
        also: the names of other files that may be replaced.

    Raises:
        ArtifactError: it is a file, or contains other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        msg = f"{folder} is a file, but an artifact is a folder. Save to another name."
        raise ArtifactError(msg)
    replaceable = {MANIFEST, TENSORS, *also}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in replaceable)
    if others:
        msg = (
            f"{folder} also contains {', '.join(others[:5])}, which saving an artifact there would "
            "remove. Save to another folder."
        )
        raise ArtifactError(msg)


def _check(manifest: Manifest, tensors: dict[str, Tensor], source: ErrorContext) -> None:
    faults = find_faults(manifest, tensors)
    if faults:
        raise source.join_faults(faults)


def _read_tensors(raw: bytes, source: ErrorContext) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(raw)
    except UNREADABLE as error:
        if is_pickle(raw):
            msg = (
                f"{source.name}: {TENSORS} is a pickle or an archive of torch.save, which is "
                "refused: reading one can run any code. Convert it to safetensors in a place where "
                "you trust it, or train again."
            )
            raise ArtifactError(msg) from error
        # A valid file starts with the length of a JSON header in eight bytes, and then the header.
        has_header = raw[8:9] in {b"", b"{"}
        how = "truncated or damaged" if has_header else "not a safetensors file"
        first, *_ = str(error).split("\n")
        msg = f"{TENSORS} ({len(raw):,} bytes) is {how}: {first}."
        raise source.make_error(msg) from error


def _make_prompt(manifest: Manifest, tensors: dict[str, Tensor]) -> Prompt:
    match manifest.kind:
        case "input":
            return InputPrompt(tensors[f"{PROMPT}vectors"], *(manifest.layers or ()))
        case "kv":
            keys, values = tensors[f"{PROMPT}keys"], tensors[f"{PROMPT}values"]
            layers = (*(manifest.layers or ()),)
            return KVPrefix(keys, values, layers, shift_positions=manifest.shift_positions is True)
        case unreachable:
            assert_never(unreachable)


def explain_write_error(folder: Path, error: OSError, *, what: str) -> str:
    """The message for a folder that could not be written.

    Args:
        folder: that was to be written.
        error: of the system.
        what: was to be written, as the subject of the sentence.
    """
    remedy = "Save to a writable folder."
    if error.errno in _DISK_FULL:
        remedy = "Free some space, or save to another disk."
    return (
        f"{what} could not be written to {folder}: {error.strerror}. Nothing was changed. {remedy}"
    )
