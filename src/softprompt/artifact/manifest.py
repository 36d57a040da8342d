"""The manifest of an artifact: one strict JSON file, checked against the artifact's tensors."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Literal, assert_never

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 only

from softprompt._io import ErrorContext, load_strict_json
from softprompt.backbone.references import shorten_name
from softprompt.errors import ArtifactError, format_unknown

# Schema 1 had other names for the keys of `task` and `recipe`. Schema 2 is as this one, but without
# `manifest_digest`; it is still read.
SCHEMA = 3
_WITHOUT_DIGEST = 2
READABLE = (_WITHOUT_DIGEST, SCHEMA)
# The first parts of the tensors' names in the file.
PROMPT = "prompt."
HEAD = "head."
STORED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STRICT = ConfigDict(extra="forbid", strict=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_SHOWN = 60  # characters of a wrong value in a message

_Axes = tuple[int | None, ...]


@with_config(_STRICT)
class BackboneRef(TypedDict):
    """The backbone that a prompt was trained on.

    Args:
        name: the name it was loaded by.
        revision: the Hub commit, if there is one.
        fingerprint: identifies the model, whatever precision it is loaded in.
        model_type: the model type in its configuration.
    """

    name: str
    revision: str | None
    fingerprint: str
    model_type: str


@with_config(_STRICT)
@dataclass(frozen=True)
class Manifest:
    """Everything about a trained prompt except its tensors.

    Args:
        schema: the version of this list of fields.
        softprompt: the version of softprompt that wrote it.
        kind: ``input`` for an `InputPrompt`, ``kv`` for a `KVPrefix`.
        length: P, the number of soft tokens.
        shapes: the shape of every tensor in the file, by its name (``prompt.…``, ``head.…``).
        dtype: the dtype of the prompt's tensors.
        layers: the attention sites of a prefix; for an input prompt the layer that it enters at,
            None for the input embeddings.
        shift_positions: whether a prefix shifts the row's positions by P; None for an input
            prompt.
        template: the text of a row.
        max_length: the most tokens of a row in training; None for the backbone's limit.
        task: the settings of the task, with ``kind``.
        labels: the labels in the order of the head's scores; empty if there are none.
        backbone: the backbone that the prompt was trained on.
        data: hashes by split, names of the sources, numbers of rows.
        recipe: the recipe of the run.
        metrics: the scores of the prompt.
    """

    schema: int
    softprompt: str
    kind: Literal["input", "kv"]
    length: int
    shapes: dict[str, list[int]]
    dtype: str
    layers: list[int] | None
    shift_positions: bool | None
    template: str
    max_length: int | None
    task: dict[str, object]
    labels: list[str]
    backbone: BackboneRef
    data: dict[str, object]
    recipe: dict[str, object]
    metrics: dict[str, object]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(kind={self.kind!r}, length={self.length}, "
            f"task={self.task.get('kind')!r}, labels={len(self.labels)}, "
            f"backbone={shorten_name(self.backbone['name'])!r})"
        )


_ADAPTER = TypeAdapter(Manifest)
_KEYS = (*(field.name for field in fields(Manifest)), "digest", "manifest_digest")


def dump_manifest(manifest: Manifest, digest: str, *, source: ErrorContext) -> bytes:
    """Serialize a manifest.

    Args:
        manifest: the manifest.
        digest: the SHA-256 of the tensors' file, in hexadecimal.
        source: the artifact, for messages.

    Returns:
        The content of the file.

    Raises:
        ArtifactError: JSON cannot represent one of its values, such as a path or NaN.
    """
    try:
        content = asdict(manifest) | {"shapes": dict(sorted(manifest.shapes.items()))}
        content["digest"] = digest
        content = json.loads(json.dumps(content, allow_nan=False))  # its keys and lists as read
        content["manifest_digest"] = compute_digest(content)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        msg = (
            f"its manifest has a value that JSON cannot represent ({error}). Possible are text, "
            "finite numbers, true, false, null, and lists and tables of these."
        )
        raise source.make_error(msg) from error


def compute_digest(content: Mapping[str, object]) -> str:
    """The SHA-256 of a manifest's content, in hexadecimal.

    It is taken over the values, in whatever order and with whatever spaces they are written. Since
    the digest of the tensors is among them, it covers the whole artifact. It shows damage, and no
    forgery: who changes a value can compute it again.

    Args:
        content: all keys except for ``manifest_digest``, as JSON has them.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(raw: bytes, *, source: ErrorContext) -> tuple[Manifest, str]:
    """Parse a manifest, and the SHA-256 that the tensors' file must have.

    Args:
        raw: the file's content.
        source: the artifact, for messages.

    Returns:
        The manifest and the digest.

    Raises:
        ArtifactError: it is not UTF-8 or JSON, has another schema, unknown or missing keys, values
            of a wrong type, or was changed since it was written.
    """
    content = _parse_object(raw, source)
    _check_schema(content, source)
    has_digest, expected = "manifest_digest" in content, content.pop("manifest_digest", None)
    try:
        actual = compute_digest(content)
        digest = content.pop("digest", None)
        # pydantic's strict mode accepts a table for a dataclass only in JSON.
        manifest = _ADAPTER.validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        raise source.join_faults([explain_fault(item) for item in error.errors()]) from error
    except (ValueError, RecursionError) as error:
        msg = f"its manifest.json cannot be read ({error})."
        raise source.make_error(msg) from error
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        msg = f"digest in manifest.json is {digest!r}, not 64 hexadecimal digits (SHA-256)."
        raise source.make_error(msg)
    if has_digest != (manifest.schema != _WITHOUT_DIGEST) or (has_digest and expected != actual):
        msg = (
            f"its manifest.json has the SHA-256 {actual}, but says {expected!r}: it was changed "
            "after it was written."
        )
        raise source.make_error(msg)
    return manifest, digest


def _parse_object(raw: bytes, source: ErrorContext) -> dict[str, object]:
    try:
        content = load_strict_json(raw)
    except UnicodeDecodeError as error:
        byte, offset = raw[error.start], error.start
        msg = f"its manifest.json is not UTF-8: byte 0x{byte:02x} at offset {offset}."
        raise source.make_error(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"its manifest.json is not JSON: {error}."
        raise source.make_error(msg) from error
    if not isinstance(content, dict):
        msg = f"its manifest.json is a {type(content).__name__}, but a table of keys is needed."
        raise source.make_error(msg)
    return content


def _check_schema(content: Mapping[str, object], source: ErrorContext) -> None:
    schema, writer = content.get("schema"), content.get("softprompt")
    if isinstance(schema, int) and schema > SCHEMA:
        msg = (
            f"{source.name}: softprompt {writer} wrote it with schema {schema}, but softprompt "
            f"{version('softprompt')} reads schema {SCHEMA}. Update: pip install -U softprompt"
        )
        raise ArtifactError(msg)
    if schema == 1:
        msg = (
            f"{source.name}: its manifest.json has schema {schema}, but softprompt reads schema "
            f"{SCHEMA}, in which keys of task and recipe have other names. Train or import the "
            "prompt again."
        )
        raise ArtifactError(msg)
    if schema not in READABLE:
        msg = f"its manifest.json has schema {schema!r}, but softprompt reads schema {SCHEMA}."
        raise source.make_error(msg)


def explain_fault(error: ErrorDetails, *, table: str = "") -> str:
    """The message for one fault that pydantic found.

    Args:
        error: of pydantic.
        table: the table of the manifest that was checked; empty for the manifest itself.
    """
    where = ".".join(map(str, (*filter(None, [table]), *error["loc"])))
    match error["type"]:
        case "extra_forbidden" if table:
            return f"manifest.json has the unknown key {where!r}."
        case "missing" | "missing_argument":
            return f"manifest.json lacks the key {where!r}."
        case "extra_forbidden" | "unexpected_keyword_argument":
            *parents, key = map(str, error["loc"])
            known = BackboneRef.__annotations__ if parents else _KEYS
            what = f"key of {'.'.join(parents)}" if parents else "key"
            return f"manifest.json has an {format_unknown(what, key, options=known)}"
        case "json_invalid":
            return f"manifest.json cannot be read. {error['msg']}."
        case _:
            value = repr(error["input"])
            short = f"{value[:_MAX_SHOWN]}…" if len(value) > _MAX_SHOWN else value
            return f"{where} in manifest.json is {short}. {error['msg']}."


def check_manifest(manifest: Manifest) -> list[str]:
    """Find contradictions in a manifest, such as shapes that do not fit its kind.

    Returns:
        The faults.
    """
    faults = [*_find_kind_faults(manifest), *_find_shape_faults(manifest)]
    if manifest.length < 1 and not _is_head_alone(manifest):
        faults.append(
            f"length is {manifest.length}; it must be at least 1 (or 0, with a trained head)."
        )
    if manifest.max_length is not None and manifest.max_length < 1:
        faults.append(f"max_length is {manifest.max_length}; it must be null or at least 1.")
    if manifest.dtype not in STORED_DTYPES:
        faults.append(f"dtype is {manifest.dtype!r}; it must be one of {', '.join(STORED_DTYPES)}.")
    return faults


def _is_head_alone(manifest: Manifest) -> bool:
    """Whether it is of a trained head without a prompt, which has no soft tokens."""
    has_head = any(name.startswith(HEAD) for name in manifest.shapes)
    return manifest.length == 0 and manifest.kind == "input" and has_head


def check_tensors(manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors with their manifest, and check that they are finite numbers.

    Args:
        manifest: a manifest without faults of its own, as `check_manifest` finds them.
        tensors: the tensors by their names in the file.

    Returns:
        The faults.
    """
    missing = sorted(manifest.shapes.keys() - tensors.keys())
    extra = sorted(tensors.keys() - manifest.shapes.keys())
    faults = [f"the tensor {name!r} is missing." for name in missing]
    faults += [f"the tensor {name!r} is not in the manifest." for name in extra]
    for name in sorted(tensors.keys() & manifest.shapes.keys()):
        faults += _find_tensor_faults(name, tensors[name], manifest)
    return faults


def _find_kind_faults(manifest: Manifest) -> Iterator[str]:
    layers = manifest.layers
    match manifest.kind:
        case "input":
            if manifest.shift_positions is not None:
                yield (
                    f"shift_positions is {manifest.shift_positions}; an input prompt does not "
                    "shift positions, so it must be null."
                )
            if layers is not None and (len(layers) != 1 or layers[0] < 1):
                yield f"layers is {layers}; an input prompt needs null or one layer, from 1 up."
        case "kv":
            if layers is None or manifest.shift_positions is None:
                yield "kind is 'kv', so neither layers nor shift_positions may be null."
            elif min(layers, default=-1) < 0 or len({*layers}) != len(layers):
                yield f"layers is {layers}; it needs at least one layer, each from 0 up and once."
        case unreachable:
            assert_never(unreachable)


def _list_axes(manifest: Manifest) -> dict[str, _Axes]:
    """The axes of each tensor of the prompt; None where any size is possible."""
    match manifest.kind:
        case "input":
            return {f"{PROMPT}vectors": (manifest.length, None)}
        case "kv":
            axes = (len(manifest.layers or ()), None, manifest.length, None)
            return {f"{PROMPT}keys": axes, f"{PROMPT}values": axes}
        case unreachable:
            assert_never(unreachable)


def _find_shape_faults(manifest: Manifest) -> Iterator[str]:
    expected = _list_axes(manifest)
    heads = {name for name in manifest.shapes if name.startswith(HEAD)}
    if manifest.shapes.keys() - heads != expected.keys():
        names = ", ".join(sorted(manifest.shapes)) or "nothing"
        yield (
            f"shapes has {names}; kind {manifest.kind!r} needs {', '.join(expected)}, and all "
            f"other names must begin with {HEAD!r}."
        )
        return
    for name, shape in sorted(manifest.shapes.items()):
        axes = expected.get(name, (None,) * len(shape))
        sizes = zip(shape, axes, strict=False)
        fits = [(size >= 1 or axis == 0) and axis in {None, size} for size, axis in sizes]
        if len(shape) != len(axes) or not all(fits):
            shown = ", ".join("at least 1" if axis is None else str(axis) for axis in axes)
            yield f"shapes has {shape} for {name}, but it must be [{shown}]."
    if len({tuple(manifest.shapes[name]) for name in expected}) > 1:
        yield "shapes of keys and values differ; they must be the same."


def _find_tensor_faults(name: str, tensor: Tensor, manifest: Manifest) -> Iterator[str]:
    shape, expected = [*tensor.shape], manifest.shapes[name]
    if shape != expected:
        yield f"{name} has the shape {shape}, but the manifest says {expected}."
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in STORED_DTYPES:
        yield f"{name} is {dtype}; a tensor must be one of {', '.join(STORED_DTYPES)}."
        return
    if name.startswith(PROMPT) and dtype != manifest.dtype:
        yield f"{name} is {dtype}, but the manifest says {manifest.dtype}."
    invalid = int((~tensor.isfinite()).sum())
    if invalid:
        yield f"{name}: {invalid} of its {tensor.numel()} values are NaN or infinite."
