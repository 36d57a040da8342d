"""A description of an artifact as plain data."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softprompt.artifact.artifact import Artifact
from softprompt.artifact.store import find_artifact


def describe_artifact(artifact: Artifact, path: Path) -> dict[str, Any]:
    """The artifact's folder, its size in bytes, and the fields of its manifest.

    Args:
        artifact: the loaded artifact.
        path: the folder that it was loaded from, or the folder of its run.

    Returns:
        Plain data, which JSON can represent.

    Raises:
        ArtifactError: there is no artifact.
    """
    folder = find_artifact(path)
    return {
        "artifact": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        **asdict(artifact.manifest),
    }


def read_distances(manifest: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The distance of each soft token, or layer, from its initialization, relative to its norm.

    Args:
        manifest: the manifest as plain data.

    Returns:
        One number per soft token of an input prompt, or per layer of a prefix; None if they were
        not recorded.
    """
    count = manifest["length"] if manifest["kind"] == "input" else len(manifest["layers"])
    match manifest["metrics"].get("moved"):
        case {"each": [*each]} if len(each) == count and all(isinstance(x, float) for x in each):
            return tuple(each)
        case _:
            return None


def describe_no_labels(task: Mapping[str, object]) -> str:
    """What a task without labels predicts, in parentheses.

    Args:
        task: its settings, as a manifest has them.
    """
    kinds = {"regress": "numbers", "extract": "parts of a text", "choose": "options of each row"}
    return f"none ({kinds.get(str(task.get('kind')), 'free text')})"
