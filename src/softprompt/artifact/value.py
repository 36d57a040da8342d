"""An artifact in memory: a trained prompt, what was trained with it, and what to know of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal, TypedDict, Unpack, assert_never

from torch import Tensor

from softprompt.artifact.agree import HEAD, PROMPT
from softprompt.artifact.manifest import SCHEMA, BackboneName, Manifest
from softprompt.backbone import Backbone, same_model
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@dataclass(frozen=True, eq=False)
class Artifact:
    """All that inference needs beside the backbone.

    Args:
        manifest: what to know of it.
        prompt: the trained prompt.
        head: the tensors of a trained head by name; empty if there is none.
    """

    manifest: Manifest
    prompt: Prompt
    head: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by their names in the file."""
        return named(self.prompt, self.head)


class Origin(TypedDict):
    """The fields of a `Manifest` that its tensors do not tell."""

    template: str
    max_length: int | None
    task: dict[str, object]
    labels: list[str]
    backbone: BackboneName
    data: dict[str, object]
    recipe: dict[str, object]
    metrics: dict[str, object]


def assemble(prompt: Prompt, head: Mapping[str, Tensor], **origin: Unpack[Origin]) -> Artifact:
    """Make an artifact; what the tensors tell goes into its manifest by itself.

    Args:
        prompt: the trained prompt, in the precision to keep it in.
        head: the tensors of a trained head by name; empty if there is none.
        origin: the other fields of the `Manifest`.
    """
    tensors = named(prompt, head)
    kind: Literal["input", "kv"]
    match prompt:
        case InputPrompt():
            kind, layers, shifted = "input", [prompt.layer] if prompt.layer else None, None
        case KVPrefix():
            kind, layers, shifted = "kv", [*prompt.layers], prompt.shifted
        case unreachable:
            assert_never(unreachable)
    first, *_ = prompt.tensors().values()
    manifest = Manifest(
        schema=SCHEMA,
        softprompt=version("softprompt"),
        kind=kind,
        length=prompt.length,
        shapes={name: [*tensor.shape] for name, tensor in tensors.items()},
        dtype=str(first.dtype).removeprefix("torch."),
        layers=layers,
        shifted=shifted,
        **origin,
    )
    return Artifact(manifest, prompt, {**head})


def name_of(backbone: Backbone) -> BackboneName:
    """What a manifest keeps of a backbone."""
    return {
        "name": backbone.name,
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint,
        "family": backbone.geometry.family,
    }


def check_backbone(artifact: Artifact, backbone: Backbone) -> None:
    """Refuse a backbone other than the one that the prompt was trained on.

    Another precision, or a quantised copy, is the same backbone.

    Raises:
        ArtifactError: the fingerprints are of different models.
    """
    own = artifact.manifest.backbone
    if same_model(own["fingerprint"], backbone.fingerprint):
        return
    revision = f", revision {own['revision']}" if own["revision"] else ""
    msg = (
        f"the prompt was trained on {own['name']!r} ({own['family']}{revision}, fingerprint "
        f"{own['fingerprint']}), but the backbone is {backbone.name!r} "
        f"({backbone.geometry.family}, fingerprint {backbone.fingerprint}). A prompt works on its "
        f"own backbone only: load {own['name']!r}, or train a prompt on {backbone.name!r}."
    )
    raise ArtifactError(msg)


def named(prompt: Prompt, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a prompt and a head, by their names in the file."""
    return {f"{PROMPT}{name}": tensor for name, tensor in prompt.tensors().items()} | {
        f"{HEAD}{name}": tensor for name, tensor in head.items()
    }
