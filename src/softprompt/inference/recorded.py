"""What an artifact records of its training: its backbone, its data and its seed."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softprompt.artifact import Artifact, Manifest
from softprompt.backbone.devices import AUTO, DTYPES
from softprompt.backbone.model import Backbone
from softprompt.data import DataConfig
from softprompt.errors import ArtifactError, BackboneError
from softprompt.hub.model_card import MEMORY
from softprompt.injection.verify import load_backbone


def read_data_config(manifest: Manifest) -> DataConfig:
    """The data that a prompt was trained with.

    Args:
        manifest: of its artifact.

    Raises:
        ArtifactError: it does not record the data, or not in a form that can be read.
    """
    table = manifest.recipe.get("data")
    if not isinstance(table, dict) or not table or table.get("train") == MEMORY:
        msg = "the artifact does not say which data it was trained on. Give the rows, or a file."
        raise ArtifactError(msg)
    try:
        return DataConfig.model_validate(table)
    except ValidationError as error:
        first, *_ = error.errors()
        where = ".".join(map(str, ("data", *first["loc"])))
        msg = (
            f"the artifact's recipe cannot be read: {where}: {first['msg']}. It may be of another "
            "version of softprompt. Give the rows, or a file."
        )
        raise ArtifactError(msg) from error


def read_seed(manifest: Manifest) -> int:
    """The seed of the training.

    Args:
        manifest: of the artifact.

    Raises:
        ArtifactError: it is not a number.
    """
    seed = manifest.recipe.get("seed", 42)
    if isinstance(seed, int):
        return seed
    msg = f"the artifact's recipe cannot be read: seed is {seed!r}. Give the rows, or a file."
    raise ArtifactError(msg)


def load_recorded_backbone(artifact: Artifact, name: str | Path | None) -> Backbone:
    """Load the backbone of an artifact, from its recorded place or from another one.

    Args:
        artifact: of the prompt.
        name: of the other place, as `load_backbone` takes it; None for the recorded one.

    Raises:
        BackboneError: it cannot be loaded.
    """
    options = _get_load_options(artifact)
    if name is not None:  # the revision is that of the recorded place
        return load_backbone(name, **(options | {"revision": None}))
    try:
        return load_backbone(artifact.manifest.backbone["name"], **options)
    except BackboneError as error:
        msg = (
            f"{error} If the backbone of this prompt is in another place now, name it: "
            "--backbone NAME (in Python backbone=NAME)."
        )
        raise BackboneError(msg) from error


def _get_load_options(artifact: Artifact) -> dict[str, Any]:
    """The arguments of `load_backbone` in the recipe, except for the device and remote code."""
    table = artifact.manifest.recipe.get("backbone")
    section = table if isinstance(table, dict) else {}
    dtype, device_map = section.get("dtype"), section.get("device_map")
    return {
        "revision": artifact.manifest.backbone["revision"],
        "dtype": dtype if isinstance(dtype, str) and dtype in DTYPES else AUTO,
        "device_map": device_map if isinstance(device_map, str) else None,
        "quantization_config": section.get("quantization_config"),
    }
