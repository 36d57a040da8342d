"""One tensor ``[P, E]`` in a safetensors file, whatever its name."""

from pathlib import Path

from softprompt.artifact.formats.foreign import Foreign, Outgoing
from softprompt.artifact.formats.reading import checked, found, tensors
from softprompt.artifact.formats.vectors import only_vectors, plain
from softprompt.artifact.tensors import to_bytes
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError

FILE = "prompt.safetensors"


def read(source: Path, backbone: Backbone) -> dict[str, Foreign]:
    """The only tensor of a file.

    Raises:
        ArtifactError: there are none or several, or it is no prompt of the backbone's width.
    """
    path = found(source, [FILE, "model.safetensors"], what="safetensors prompt")
    held = tensors(path)
    checked(path, held)
    if len(held) != 1:
        msg = (
            f"{path} holds {len(held)} tensors ({', '.join(sorted(held)[:5])}), but a plain prompt "
            "is one. Save it alone; for adapters there are the formats peft and p-tuning-v2."
        )
        raise ArtifactError(msg)
    (vectors,) = held.values()
    return {"": plain(vectors, backbone, path=path, form="safetensors")}


def write(given: Outgoing) -> dict[str, bytes]:
    """One file with the tensor ``prompt``.

    Raises:
        ArtifactError: the prompt is keys and values, or is not all that there is.
    """
    vectors = only_vectors(given.artifact, form="safetensors")
    return {FILE: to_bytes({"prompt": vectors}, {"format": "pt"})}
