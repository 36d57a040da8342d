"""Vectors ``[P, E]`` alone, which say nothing of where they stood."""

from pathlib import Path

from torch import Tensor

from softprompt.artifact.formats.foreign import Foreign
from softprompt.artifact.value import Artifact
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix


def plain(vectors: Tensor, backbone: Backbone, *, path: Path, form: str) -> Foreign:
    """A prompt of vectors; before the text, unless somebody knows better.

    Raises:
        ArtifactError: they are no table of the backbone's width.
    """
    width = backbone.geometry.embedding_size
    if vectors.ndim == 3 and len(vectors) == 1:  # noqa: PLR2004  # some keep a batch of one
        vectors = vectors[0]
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:  # noqa: PLR2004  # a table
        msg = (
            f"{path} holds {[*vectors.shape]}, but a prompt for {backbone.name!r} is [P, {width}]: "
            "P soft tokens. Take another file, or name the prompt's own backbone with --backbone."
        )
        raise ArtifactError(msg)
    task = None if backbone.geometry.kind == "encoder" else {"kind": "generate"}
    template = f"{{soft:{len(vectors)}}}{{text}}"
    return Foreign(
        InputPrompt(vectors.contiguous()), template=template, task=task, note={"format": form}
    )


def only_vectors(artifact: Artifact, *, form: str) -> Tensor:
    """The vectors of an artifact that consists of nothing else.

    Raises:
        ArtifactError: it has a head, keys and values, or enters late.
    """
    match artifact.prompt:
        case InputPrompt(vectors=vectors, layer=0) if not artifact.head:
            return vectors.detach().cpu().contiguous()
        case InputPrompt(layer=0):
            has = "a trained head"
        case InputPrompt(layer=layer):
            has = f"soft tokens that enter at layer {layer}"
        case KVPrefix():
            has = "keys and values"
    msg = (
        f"the artifact has {has}, but a {form} file holds vectors for the input alone. "
        "Export it as peft, or keep the artifact itself."
    )
    raise ArtifactError(msg)
