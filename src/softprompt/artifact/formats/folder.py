"""Write the files of a format into a folder of their own, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from softprompt.artifact.aside import aside
from softprompt.errors import ArtifactError


def put(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write files into a folder that is new or empty.

    Args:
        files: their contents by name.

    Raises:
        ArtifactError: something stands there, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is not empty, and is not written over. Choose another folder."
        raise ArtifactError(msg)
    try:
        with aside(folder) as fresh:
            for name, content in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(content)
    except OSError as error:
        size = sum(map(len, files.values()))
        msg = (
            f"{size:,} bytes could not be written to {folder}: {error.strerror}. Nothing was "
            "changed. Choose a folder that can be written, on a disk with room."
        )
        raise ArtifactError(msg) from error
    return folder
