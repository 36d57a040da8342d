"""The state dict of THUDM's P-tuning v2: a prefix, perhaps behind an MLP, and a classifier.

``prefix_encoder.embedding.weight`` is ``[P, 2·L·H]``; with their ``prefix_projection`` it is
``[P, H]`` and ``prefix_encoder.trans`` (linear, tanh, linear) makes the other of it. Their models
are BERT and RoBERTa with a pooler, a linear ``classifier`` on it, and positions moved up by P.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.artifact.formats.foreign import Foreign, Outgoing
from softprompt.artifact.formats.layout import packed, unpacked
from softprompt.artifact.formats.reading import checked, found, tensors
from softprompt.artifact.tensors import to_bytes
from softprompt.backbone import Backbone
from softprompt.backbone.parts import classifier_parts
from softprompt.errors import ArtifactError
from softprompt.prompt import KVPrefix

FILE = "model.safetensors"
_EMBEDDING = "prefix_encoder.embedding.weight"
_MLP = tuple(f"prefix_encoder.trans.{at}.{part}" for at in (0, 2) for part in ("weight", "bias"))
_HEAD = {"output.weight": "classifier.weight", "output.bias": "classifier.bias"}
_OUTPUT = "output.weight"
_FAMILIES = ("bert", "roberta")


def read(source: Path, backbone: Backbone) -> dict[str, Foreign]:
    """The prefix of a checkpoint and its classifier, if it has one.

    The backbone's own weights may be in it; of these, its pooler alone is read.

    Raises:
        ArtifactError: tensors are missing, are none of this kind, or do not fit the backbone.
        BackboneError: neither file nor backbone has the pooler that the classifier stands on.
    """
    path = found(source, [FILE, "prompt.safetensors"], what="P-tuning v2 checkpoint")
    held = tensors(path)
    family = backbone.geometry.family
    prefix = _prefix(held, path)
    spare = [k for k in held if not k.startswith((f"{family}.", "prefix_encoder.", "classifier."))]
    if spare:
        msg = (
            f"{path} also holds {', '.join(sorted(spare)[:3])}, which no P-tuning v2 of {family} "
            "has. It may be of another method, or of another backbone."
        )
        raise ArtifactError(msg)
    head = _head(held, backbone, path=path)
    checked(path, {_EMBEDDING: prefix} | head)
    task = {"kind": "classify", "head": "mlp"} if head else None
    return {
        "": Foreign(
            unpacked(prefix, backbone),
            template="{text}",
            task=task,
            head=head,
            classes=len(head[_OUTPUT]) if head else 0,
            note={"format": "p-tuning-v2"},
        )
    }


def write(given: Outgoing) -> dict[str, bytes]:
    """The trained part of such a state dict, the pooler included.

    Raises:
        ArtifactError: that code could not load it; the message says why.
    """
    artifact = given.artifact
    prefix, task = artifact.prompt, artifact.manifest.task
    family = artifact.manifest.backbone["family"]
    faults = {
        "is no prefix of keys and values": not isinstance(prefix, KVPrefix),
        f"is for {family}, and that code has BERT and RoBERTa": family not in _FAMILIES,
        "has a head other than 'mlp'": bool(artifact.head) and task.get("head") != "mlp",
    }
    if isinstance(prefix, KVPrefix):
        partial = prefix.layers != given.backbone.geometry.own_sites
        faults |= {
            "leaves the row its positions": not prefix.shifted,
            "leaves layers out": partial,
        }
    found_faults = [fact for fact, wrong in faults.items() if wrong]
    if found_faults or not isinstance(prefix, KVPrefix):
        msg = (
            f"the artifact cannot be a P-tuning v2 checkpoint: it {', and '.join(found_faults)}. "
            'Train p-tuning-v2 with method.shifted = true, layers = "all", and task.head = "mlp".'
        )
        raise ArtifactError(msg)
    names = _HEAD | {f"dense.{p}": f"{family}.pooler.dense.{p}" for p in ("weight", "bias")}
    held = {_EMBEDDING: packed(prefix, given.backbone)} | {
        names[key]: t for key, t in artifact.head.items()
    }
    return {FILE: to_bytes(held, {"format": "pt"})}


def _prefix(held: Mapping[str, Tensor], path: Path) -> Tensor:
    if _EMBEDDING not in held:
        msg = (
            f"{path} has no tensor {_EMBEDDING!r}; it has {', '.join(sorted(held)[:5]) or 'none'}. "
            "Give a checkpoint of P-tuning v2."
        )
        raise ArtifactError(msg)
    embedding = held[_EMBEDDING]
    checked(path, {key: held[key] for key in held if key.startswith("prefix_encoder.")})
    present = [name for name in _MLP if name in held]
    known = {_EMBEDDING, *_MLP}
    odd = sorted(k for k in held if k.startswith("prefix_encoder.") and k not in known)
    if odd or (present and len(present) != len(_MLP)):
        what = f"holds {odd[0]}" if odd else f"has {', '.join(present)} but not all four of its MLP"
        msg = f"{path} {what}: it is no whole prefix encoder of P-tuning v2. Fetch it again."
        raise ArtifactError(msg)
    made = _through(*(held[name].float() for name in (_EMBEDDING, *_MLP))) if present else embedding
    if made is None or made.ndim != 2 or not len(made):  # noqa: PLR2004  # a table
        shapes = ", ".join(f"{key} {[*held[key].shape]}" for key in (_EMBEDDING, *present))
        msg = (
            f"{path} holds {shapes}, but a prefix of P soft tokens is [P, 2·L·H], or [P, H] with "
            "an MLP that makes the other of it. Give a checkpoint of P-tuning v2."
        )
        raise ArtifactError(msg)
    return made


def _through(embedding: Tensor, *mlp: Tensor) -> Tensor | None:
    """What their MLP makes of the embedding; None if the shapes do not fit."""
    first, first_bias, second, second_bias = mlp
    if [t.ndim for t in (embedding, *mlp)] != [2, 2, 1, 2, 1]:
        return None
    try:
        with torch.no_grad():
            return F.linear(F.linear(embedding, first, first_bias).tanh(), second, second_bias)
    except RuntimeError:
        return None


def _head(held: Mapping[str, Tensor], backbone: Backbone, *, path: Path) -> dict[str, Tensor]:
    own = {name: held[theirs] for name, theirs in _HEAD.items() if theirs in held}
    if not own:
        return {}
    family = backbone.geometry.family
    if family not in _FAMILIES or len(own) != len(_HEAD) or own[_OUTPUT].ndim != 2:  # noqa: PLR2004  # [C, H]
        msg = (
            f"{path} has a classifier that cannot be read for {family}: of BERT and RoBERTa, "
            "classifier.weight [C, H] and classifier.bias [C] are. Give a backbone of these, "
            "or the prefix alone."
        )
        raise ArtifactError(msg)
    pooler = {f"dense.{p}": held.get(f"{family}.pooler.dense.{p}") for p in ("weight", "bias")}
    given = {name: tensor for name, tensor in pooler.items() if tensor is not None}
    if len(given) == len(pooler):
        return given | own
    return classifier_parts(backbone, {"dense": f"{family}.pooler.dense"}) | own
