"""The state dict of THUDM's P-tuning v2: a prefix, perhaps made by an MLP, and a head.

The classifier is one of rows, on the pooler, or one of words' tags, on their own states.

``prefix_encoder.embedding.weight`` is ``[P, 2·L·H]``; with ``prefix_projection`` it is ``[P, H]``,
and the MLP ``prefix_encoder.trans`` (linear, tanh, linear) maps it to ``[P, 2·L·H]``. The models
are BERT and RoBERTa, with positions shifted by P, and with a pooler and a linear ``classifier``, or
with ``qa_outputs`` on every token, for answers that are parts of a text.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt._io import to_bytes
from softprompt.backbone import Backbone
from softprompt.backbone.classifier_weights import read_classifier_weights
from softprompt.errors import ArtifactError, BackboneError
from softprompt.interop.base import ExportRequest, ForeignPrompt
from softprompt.interop.files import check_finite, find_file, read_tensors
from softprompt.interop.kv_layout import pack_kv, unpack_kv
from softprompt.prompt import KVPrefix
from softprompt.tasks.extraction import DEFAULT_NULL_THRESHOLD

FILE = "model.safetensors"
_EMBEDDING = "prefix_encoder.embedding.weight"
_MLP = tuple(f"prefix_encoder.trans.{i}.{part}" for i in (0, 2) for part in ("weight", "bias"))
_HEAD = {"output.weight": "classifier.weight", "output.bias": "classifier.bias"}
_WITH_CLS = ', and task.pooling = "cls"'
_TAG: dict[str, object] = {"kind": "tag", "head": "linear"}
_SPAN_HEAD = {"output.weight": "qa_outputs.weight", "output.bias": "qa_outputs.bias"}
# Readouts of the first position, which is that of [CLS] behind a prefix.
_FIRST = ("cls", "first")
_OUTPUT = "output.weight"
_FAMILIES = ("bert", "roberta")


def read_p_tuning_v2(source: Path, backbone: Backbone) -> dict[str, ForeignPrompt]:
    """The prefix of a checkpoint and its head, if it has one.

    It may contain the weights of the backbone too; of these, only the pooler is read.

    Raises:
        ArtifactError: tensors are missing, not of this method, or do not fit the backbone.
    """
    path = find_file(source, [FILE, "prompt.safetensors"], what="P-tuning v2 checkpoint")
    tensors = read_tensors(path)
    family = backbone.geometry.model_type
    prefix = _read_prefix(tensors, path)
    _check_names(tensors, family, path=path)
    linear, spans = (
        {name: tensors[foreign] for name, foreign in names.items() if foreign in tensors}
        for names in (_HEAD, _SPAN_HEAD)
    )
    template, head = "{text}", linear
    task: dict[str, object] | None = _TAG
    fault: BackboneError | None = None
    if spans and not linear:
        head, template = spans, "{question}{sep}{context}"
        task = {"kind": "extract", "head": "linear", "null_threshold": DEFAULT_NULL_THRESHOLD}
    elif not linear or not _is_of_words(tensors, family):
        try:
            head = _read_head(tensors, backbone, path=path)
        except BackboneError as error:
            fault = error
        task = {"kind": "classify", "head": "mlp-tanh", "pooling": "cls"} if head else None
    check_finite(path, {_EMBEDDING: prefix} | head)
    return {
        "": ForeignPrompt(
            unpack_kv(prefix, backbone),
            template=template,
            task=task,
            head=head,
            classes=len(head[_OUTPUT]) if _OUTPUT in head else 0,
            note={"format": "p-tuning-v2"},
            tag_head=linear,
            fault=fault,
        )
    }


def _check_names(tensors: Mapping[str, Tensor], family: str, *, path: Path) -> None:
    """Check that a checkpoint has no tensors but those of this method and the backbone.

    Raises:
        ArtifactError: it has others.
    """
    known = (f"{family}.", "prefix_encoder.", "classifier.", *_SPAN_HEAD.values())
    others = [name for name in tensors if not name.startswith(known)]
    if others:
        msg = (
            f"{path} also holds {', '.join(sorted(others)[:3])}, which P-tuning v2 of {family} "
            "does not have. It may be of another method, or of another backbone."
        )
        raise ArtifactError(msg)


def _is_of_words(tensors: Mapping[str, Tensor], family: str) -> bool:
    """Whether a checkpoint is of token classification: it has the backbone without its pooler."""
    inner = [key for key in tensors if key.startswith(f"{family}.")]
    return bool(inner) and not any(key.startswith(f"{family}.pooler.") for key in inner)


def write_p_tuning_v2(request: ExportRequest) -> dict[str, bytes]:
    """Make such a state dict of the trained tensors, and the pooler of a classifier.

    Raises:
        ArtifactError: P-tuning v2's code could not load it; the message says why.
    """
    artifact = request.artifact
    prefix, task = artifact.prompt, artifact.manifest.task
    family = artifact.manifest.backbone["model_type"]
    if task.get("kind") == "choose":
        msg = (
            "the artifact chooses one of a row's own options, for which this format has no form. "
            "Use the artifact itself."
        )
        raise ArtifactError(msg)
    is_extract = task.get("kind") == "extract"
    is_of_tokens = is_extract or task.get("kind") == "tag"
    kind = "linear" if is_of_tokens else "mlp-tanh"
    faults = {
        "is not a prefix of keys and values": not isinstance(prefix, KVPrefix),
        f"is for {family}, but that code supports BERT and RoBERTa": family not in _FAMILIES,
        f"has a head other than {kind!r}": bool(artifact.head) and task.get("head") != kind,
        "has a head that does not read [CLS]": bool(artifact.head)
        and not is_extract
        and task.get("pooling", "cls") not in _FIRST,
    }
    if isinstance(prefix, KVPrefix):
        partial = prefix.sites != request.backbone.geometry.self_attention_sites
        faults |= {
            "does not shift the row's positions": not prefix.shift_positions,
            "leaves layers out": partial,
        }
    facts = [fact for fact, is_fault in faults.items() if is_fault]
    if facts or not isinstance(prefix, KVPrefix):
        msg = (
            f"the artifact cannot be a P-tuning v2 checkpoint: it {', and '.join(facts)}. "
            'Train p-tuning-v2 with method.shift_positions = true, method.layers = "all", '
            f'task.head = "{kind}"{"" if is_of_tokens else _WITH_CLS}.'
        )
        raise ArtifactError(msg)
    names = _SPAN_HEAD if is_extract else _HEAD | _name_pooler(family)
    tensors = {_EMBEDDING: pack_kv(prefix, request.backbone)} | {
        names[key]: t for key, t in artifact.head.items()
    }
    return {FILE: to_bytes(tensors, {"format": "pt"})}


def _name_pooler(family: str) -> dict[str, str]:
    """The pooler's parameters: their names in softprompt's head, and in the checkpoint."""
    return {f"dense.{part}": f"{family}.pooler.dense.{part}" for part in ("weight", "bias")}


def _read_prefix(tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    """The keys and values ``[P, 2·L·H]``, computed by the MLP if there is one."""
    if _EMBEDDING not in tensors:
        msg = (
            f"{path} has no tensor {_EMBEDDING!r}; it has "
            f"{', '.join(sorted(tensors)[:5]) or 'none'}. Give a checkpoint of P-tuning v2."
        )
        raise ArtifactError(msg)
    embedding = tensors[_EMBEDDING]
    check_finite(path, {key: tensors[key] for key in tensors if key.startswith("prefix_encoder.")})
    present = [name for name in _MLP if name in tensors]
    known = {_EMBEDDING, *_MLP}
    unknown = sorted(k for k in tensors if k.startswith("prefix_encoder.") and k not in known)
    if unknown or (present and len(present) != len(_MLP)):
        fact = (
            f"holds {unknown[0]}"
            if unknown
            else f"has {', '.join(present)} but not all four of its MLP"
        )
        msg = f"{path} {fact}: it is not a complete prefix encoder of P-tuning v2. Fetch it again."
        raise ArtifactError(msg)
    prefix = (
        _apply_mlp(*(tensors[name].float() for name in (_EMBEDDING, *_MLP)))
        if present
        else embedding
    )
    if prefix is None or prefix.ndim != 2 or not len(prefix):  # noqa: PLR2004  # a table
        shapes = ", ".join(f"{key} {[*tensors[key].shape]}" for key in (_EMBEDDING, *present))
        msg = (
            f"{path} holds {shapes}, but a prefix of P soft tokens is [P, 2·L·H], or [P, H] with "
            "an MLP that maps it to that. Give a checkpoint of P-tuning v2."
        )
        raise ArtifactError(msg)
    return prefix


def _apply_mlp(embedding: Tensor, *mlp: Tensor) -> Tensor | None:
    """The output of the MLP; None if the shapes do not fit."""
    first, first_bias, second, second_bias = mlp
    if [t.ndim for t in (embedding, *mlp)] != [2, 2, 1, 2, 1]:
        return None
    try:
        with torch.no_grad():
            return F.linear(F.linear(embedding, first, first_bias).tanh(), second, second_bias)
    except RuntimeError:
        return None


def _read_head(
    tensors: Mapping[str, Tensor], backbone: Backbone, *, path: Path
) -> dict[str, Tensor]:
    """The classifier and its pooler, which may be that of the backbone's checkpoint."""
    output = {name: tensors[foreign] for name, foreign in _HEAD.items() if foreign in tensors}
    if not output:
        return {}
    family = backbone.geometry.model_type
    if family not in _FAMILIES or len(output) != len(_HEAD) or output[_OUTPUT].ndim != 2:  # noqa: PLR2004  # [C, H]
        msg = (
            f"{path} has a classifier that cannot be read for {family}: it must be of BERT or "
            "RoBERTa, with classifier.weight [C, H] and classifier.bias [C]. Give a backbone of "
            "these, or the prefix alone."
        )
        raise ArtifactError(msg)
    names = _name_pooler(family)
    pooler = {name: tensors[foreign] for name, foreign in names.items() if foreign in tensors}
    if len(pooler) == len(names):
        return pooler | output
    return read_classifier_weights(backbone, {"dense": f"{family}.pooler.dense"}) | output
