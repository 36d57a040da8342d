"""Artifacts on disk: ``prompt.safetensors`` and ``manifest.json`` in one folder."""

import errno
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import assert_never

import safetensors.torch
from torch import Tensor

from softprompt.artifact.agree import HEAD, PROMPT, contradictions, disagreements
from softprompt.artifact.aside import aside
from softprompt.artifact.files import MANIFEST, TENSORS, find, read
from softprompt.artifact.manifest import Manifest, dump, parse
from softprompt.artifact.source import Source
from softprompt.artifact.tensors import UNREADABLE, is_pickle, to_bytes
from softprompt.artifact.value import Artifact
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save(artifact: Artifact, folder: Path) -> Path:
    """Write an artifact, which is then whole on disk or not there at all.

    Args:
        artifact: what to keep. Its tensors are written in their own precision, wherever they are.
        folder: where to; an artifact that stands there is replaced, and stays if anything fails.

    Returns:
        The folder.

    Raises:
        ArtifactError: the artifact could not be loaded again (NaN, a precision or value that is
            not stored, a manifest that does not fit the tensors), the folder holds other files, or
            it cannot be written.
    """
    source = Source(f"the artifact for {folder}", "Correct it; nothing was written.")
    tensors = artifact.tensors()
    manifest, _ = _manifest(dump(artifact.manifest, "0" * 64, source=source), source)
    _compare(manifest, tensors, source)
    raw = to_bytes(tensors)
    described = dump(manifest, hashlib.sha256(raw).hexdigest(), source=source)
    try:
        check_replaceable(folder)
        with aside(folder) as fresh:
            (fresh / TENSORS).write_bytes(raw)
            (fresh / MANIFEST).write_bytes(described)
    except OSError as error:
        raise ArtifactError(_unwritten(folder, error, len(raw) + len(described))) from error
    return folder


def load(path: Path) -> Artifact:
    """Read an artifact, and check all of it before anything is made of it.

    Args:
        path: the artifact's folder, or a run folder, which holds it under the name ``artifact``.

    Returns:
        The artifact, its tensors on the CPU, bit for bit as they were saved.

    Raises:
        ArtifactError: anything is missing, damaged, changed, of another version, or no number.
    """
    try:
        folder = find(path)
        source = Source(str(folder), "Restore the folder from a copy, or train again.")
        return load_from(folder, source=source)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Give a folder that this user may read."
        raise ArtifactError(msg) from error


def load_from(folder: Path, *, source: Source) -> Artifact:
    """As `load`, of the very folder.

    Args:
        folder: the artifact's.
        source: what to call it, and what to do if it is not whole.

    Raises:
        ArtifactError: anything is missing, damaged, changed, of another version, or no number.
        OSError: it cannot be read.
    """
    described = read(folder, MANIFEST, source=source)
    raw = read(folder, TENSORS, source=source)
    manifest, digest = _manifest(described, source)
    tensors = _tensors(raw, source)
    actual = hashlib.sha256(raw).hexdigest()
    if actual != digest:
        msg = (
            f"{TENSORS} has the SHA-256 {actual}, but the manifest says {digest}: one of the two "
            "files was changed, or they are of different artifacts."
        )
        raise source.fault(msg)
    _compare(manifest, tensors, source)
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    return Artifact(manifest, _prompt(manifest, tensors), head)


def check_replaceable(folder: Path, *, besides: Collection[str] = ()) -> None:
    """Do not replace a folder that holds anything but an artifact.

    Args:
        folder: the artifact's.
        besides: other files that may be lost.

    Raises:
        ArtifactError: it is a file, or holds other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        msg = f"{folder} is a file, but an artifact is a folder. Save to another name."
        raise ArtifactError(msg)
    own = {MANIFEST, TENSORS, *besides}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in own)
    if others:
        msg = (
            f"{folder} also holds {', '.join(others[:5])}, which saving an artifact there would "
            "remove. Save to a folder of its own."
        )
        raise ArtifactError(msg)


def _manifest(described: bytes, source: Source) -> tuple[Manifest, str]:
    manifest, digest = parse(described, source=source)
    found = contradictions(manifest)
    if found:
        raise source.faults(found)
    return manifest, digest


def _compare(manifest: Manifest, tensors: dict[str, Tensor], source: Source) -> None:
    found = disagreements(manifest, tensors)
    if found:
        raise source.faults(found)


def _tensors(raw: bytes, source: Source) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(raw)
    except UNREADABLE as error:
        if is_pickle(raw):
            msg = (
                f"{source.name}: {TENSORS} is a pickle or an archive of torch.save, which is "
                "refused: reading one can run any code. Convert it to safetensors where you trust "
                "it, or train again."
            )
            raise ArtifactError(msg) from error
        # A whole file starts with the length of a JSON header in eight bytes, and then the header.
        begun = raw[8:9] in {b"", b"{"}
        how = "cut short or damaged" if begun else "no safetensors file"
        first, *_ = str(error).split("\n")
        msg = f"{TENSORS} ({len(raw):,} bytes) is {how}: {first}."
        raise source.fault(msg) from error


def _prompt(manifest: Manifest, tensors: dict[str, Tensor]) -> Prompt:
    match manifest.kind:
        case "input":
            return InputPrompt(tensors[f"{PROMPT}vectors"], *(manifest.layers or ()))
        case "kv":
            keys, values = tensors[f"{PROMPT}keys"], tensors[f"{PROMPT}values"]
            layers = (*(manifest.layers or ()),)
            return KVPrefix(keys, values, layers, shifted=manifest.shifted is True)
        case unreachable:
            assert_never(unreachable)


def _unwritten(folder: Path, error: OSError, size: int) -> str:
    remedy = "Save to a folder that can be written."
    if error.errno in _FULL:
        remedy = "Free some space, or save to another disk."
    return (
        f"the artifact ({size:,} bytes) could not be written to {folder}: {error.strerror}. What "
        f"was there before is unchanged. {remedy}"
    )
