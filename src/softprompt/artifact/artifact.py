"""An artifact in memory: a trained prompt, its head and its manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, assert_never

from torch import Tensor

from softprompt.artifact.manifest import HEAD, PROMPT, SCHEMA, BackboneRef, Manifest
from softprompt.backbone.references import is_same_model, shorten_name
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

if TYPE_CHECKING:
    from softprompt.backbone.model import Backbone


@dataclass(frozen=True, eq=False)
class Artifact:
    """Everything that inference needs, except the backbone.

    Args:
        manifest: the description of the prompt.
        prompt: the trained prompt.
        head: the tensors of a trained head by name; empty if there is none.
    """

    manifest: Manifest
    prompt: Prompt
    head: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"{type(self).__name__}({self.prompt!r}, task={manifest.task.get('kind')!r}, "
            f"labels={len(manifest.labels)}, "
            f"backbone={shorten_name(manifest.backbone['name'])!r})"
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors, by their names in the file."""
        return name_tensors(self.prompt, self.head)


class ManifestFields(TypedDict):
    """The fields of a `Manifest` that do not follow from the tensors."""

    template: str
    max_length: int | None
    task: dict[str, object]
    labels: list[str]
    backbone: BackboneRef
    data: dict[str, object]
    recipe: dict[str, object]
    metrics: dict[str, object]


def make_artifact(
    prompt: Prompt, head: Mapping[str, Tensor], **fields: Unpack[ManifestFields]
) -> Artifact:
    """Make an artifact; the fields that follow from the tensors are added to its manifest.

    Args:
        prompt: the trained prompt, in the dtype to store it in.
        head: the tensors of a trained head by name; empty if there is none.
        fields: the other fields of the `Manifest`.
    """
    tensors = name_tensors(prompt, head)
    kind: Literal["input", "kv"]
    match prompt:
        case InputPrompt():
            layers = [prompt.start_layer] if prompt.start_layer else None
            kind, shift_positions = "input", None
        case KVPrefix():
            layers = [*prompt.sites]
            kind, shift_positions = "kv", prompt.shift_positions
        case unreachable:
            assert_never(unreachable)
    first, *_ = prompt.to_tensors().values()
    manifest = Manifest(
        schema=SCHEMA,
        softprompt=version("softprompt"),
        kind=kind,
        length=prompt.length,
        shapes={name: [*tensor.shape] for name, tensor in tensors.items()},
        dtype=str(first.dtype).removeprefix("torch."),
        layers=layers,
        shift_positions=shift_positions,
        **fields,
    )
    return Artifact(manifest, prompt, {**head})


def describe_backbone(backbone: "Backbone") -> BackboneRef:
    """The reference to a backbone that a manifest stores."""
    return {
        "name": backbone.name,
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint,
        "model_type": backbone.geometry.model_type,
    }


def check_backbone(artifact: Artifact, backbone: "Backbone") -> None:
    """Check that a backbone is the one that the prompt was trained on.

    The same model in another dtype or quantized is accepted.

    Raises:
        ArtifactError: the fingerprints are of different models.
    """
    ref = artifact.manifest.backbone
    if is_same_model(ref["fingerprint"], backbone.fingerprint):
        return
    revision = f", revision {ref['revision']}" if ref["revision"] else ""
    msg = (
        f"the prompt was trained on {ref['name']!r} ({ref['model_type']}{revision}, fingerprint "
        f"{ref['fingerprint']}), but the backbone is {backbone.name!r} "
        f"({backbone.geometry.model_type}, fingerprint {backbone.fingerprint}). A prompt works "
        f"only on its own backbone: load {ref['name']!r}, or train a prompt on {backbone.name!r}."
    )
    raise ArtifactError(msg)


def name_tensors(prompt: Prompt, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a prompt and a head, by their names in the file."""
    return {f"{PROMPT}{name}": tensor for name, tensor in prompt.to_tensors().items()} | {
        f"{HEAD}{name}": tensor for name, tensor in head.items()
    }
