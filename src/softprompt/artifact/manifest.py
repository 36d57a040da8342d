"""What an artifact says about itself: one strict JSON file that a person can read."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 only

from softprompt.artifact.source import Source
from softprompt.artifact.strict import strict
from softprompt.errors import ArtifactError, unknown

SCHEMA = 1
_STRICT = ConfigDict(extra="forbid", strict=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONG = 60


@with_config(_STRICT)
class BackboneName(TypedDict):
    """Which backbone a prompt was trained on.

    Args:
        name: how it was asked for.
        revision: the Hub commit, when there is one.
        fingerprint: what tells it from others, whatever precision it is loaded in.
        family: the model type as its configuration names it.
    """

    name: str
    revision: str | None
    fingerprint: str
    family: str


@with_config(_STRICT)
@dataclass(frozen=True)
class Manifest:
    """Everything about a trained prompt that is no tensor.

    Args:
        schema: the version of this list of fields.
        softprompt: the version of softprompt that wrote it.
        kind: ``input`` for an `InputPrompt`, ``kv`` for a `KVPrefix`.
        length: P, the number of soft tokens.
        shapes: of every tensor in the file, by its name there (``prompt.…``, ``head.…``).
        dtype: of the prompt's tensors.
        layers: the attention sites of a prefix; for an input prompt the one layer that it enters
            at, None for the input.
        shifted: whether a prefix moves the row's positions up by P; None for an input prompt.
        template: what a row looks like.
        max_length: the longest row in tokens that training let pass; None for the backbone's limit.
        task: its settings, with ``kind``.
        labels: the labels in the order of the head's scores; empty where there are none.
        backbone: which one the prompt was trained on.
        data: hashes by split, names of the sources, numbers of rows.
        recipe: everything that decided the run.
        metrics: what the prompt scored.
    """

    schema: int
    softprompt: str
    kind: Literal["input", "kv"]
    length: int
    shapes: dict[str, list[int]]
    dtype: str
    layers: list[int] | None
    shifted: bool | None
    template: str
    max_length: int | None
    task: dict[str, object]
    labels: list[str]
    backbone: BackboneName
    data: dict[str, object]
    recipe: dict[str, object]
    metrics: dict[str, object]


_ADAPTER = TypeAdapter(Manifest)
_KEYS = (*(field.name for field in fields(Manifest)), "digest")


def dump(manifest: Manifest, digest: str, *, source: Source) -> bytes:
    """The manifest as it is written.

    Args:
        manifest: what to write.
        digest: the SHA-256 of the tensors' file, in hexadecimal.
        source: what is being saved, for messages.

    Raises:
        ArtifactError: something in it is no JSON, such as a path or NaN.
    """
    try:
        content = asdict(manifest) | {"shapes": dict(sorted(manifest.shapes.items()))}
        content["digest"] = digest
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        msg = (
            f"its manifest holds what JSON cannot say ({error}). Possible are text, finite "
            "numbers, true, false, null, and lists and tables of these."
        )
        raise source.fault(msg) from error


def parse(raw: bytes, *, source: Source) -> tuple[Manifest, str]:
    """The manifest that was written, and the SHA-256 that the tensors' file must have.

    Args:
        raw: the file's content.
        source: where it came from, for messages.

    Raises:
        ArtifactError: it is no UTF-8, no JSON, of another schema, has unknown or missing keys or
            values of a wrong type.
    """
    content = _table(raw, source)
    _check_schema(content, source)
    digest = content.pop("digest", None)
    try:
        # Only in JSON does pydantic's strict mode take a table for a dataclass.
        manifest = _ADAPTER.validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        raise source.faults([_said(item) for item in error.errors()]) from error
    except (ValueError, RecursionError) as error:
        msg = f"its manifest.json cannot be read ({error})."
        raise source.fault(msg) from error
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        msg = f"digest in manifest.json is {digest!r}, not 64 hexadecimal digits (SHA-256)."
        raise source.fault(msg)
    return manifest, digest


def _table(raw: bytes, source: Source) -> dict[str, object]:
    try:
        content = strict(raw)
    except UnicodeDecodeError as error:
        byte, offset = raw[error.start], error.start
        msg = f"its manifest.json is not UTF-8: byte 0x{byte:02x} at offset {offset}."
        raise source.fault(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"its manifest.json is not JSON: {error}."
        raise source.fault(msg) from error
    if not isinstance(content, dict):
        msg = f"its manifest.json holds a {type(content).__name__}, but a table of keys is needed."
        raise source.fault(msg)
    return content


def _check_schema(content: Mapping[str, object], source: Source) -> None:
    schema, writer = content.get("schema"), content.get("softprompt")
    if isinstance(schema, int) and schema > SCHEMA:
        msg = (
            f"{source.name}: softprompt {writer} wrote it with schema {schema}, but softprompt "
            f"{version('softprompt')} reads schema {SCHEMA}. Update: pip install -U softprompt"
        )
        raise ArtifactError(msg)
    if schema != SCHEMA:
        msg = f"its manifest.json says schema {schema!r}, but there is only schema {SCHEMA}."
        raise source.fault(msg)


def _said(error: ErrorDetails) -> str:
    """One fault that pydantic found, in our words."""
    where = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "missing" | "missing_argument":
            return f"manifest.json lacks the key {where!r}."
        case "extra_forbidden" | "unexpected_keyword_argument":
            *parents, key = map(str, error["loc"])
            known = BackboneName.__annotations__ if parents else _KEYS
            what = f"key of {'.'.join(parents)}" if parents else "key"
            return f"manifest.json has an {unknown(what, key, options=known)}"
        case "json_invalid":
            return f"manifest.json cannot be read. {error['msg']}."
        case _:
            given = repr(error["input"])
            short = f"{given[:_LONG]}…" if len(given) > _LONG else given
            return f"{where} in manifest.json is {short}. {error['msg']}."
