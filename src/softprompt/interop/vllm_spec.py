"""``vllm.json``: everything about requests to a vLLM server except the tensors."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 only

from softprompt._io import ErrorContext, load_strict_json
from softprompt.artifact.manifest import STORED_DTYPES, BackboneRef

VLLM_SCHEMA = 1
SPEC, VECTORS, TABLE, TOKENIZER = (
    "vllm.json",
    "prompt.safetensors",
    "table.safetensors",
    "tokenizer",
)
# vLLM's own limit: MAX_LOGPROB_TOKEN_IDS.
MOST_WORDS = 128

_STRICT = ConfigDict(extra="forbid", strict=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOKENIZER_FILE = re.compile(rf"{TOKENIZER}/[A-Za-z0-9_][A-Za-z0-9_.-]*")
Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]


@with_config(_STRICT)
class VLLMDecoding(TypedDict):
    """The sampling parameters of a request.

    Args:
        max_tokens: the most tokens to generate.
        stop_token_ids: the end tokens.
        temperature: 0 takes the likeliest token.
        top_k: sample from the k likeliest; 0 for all.
        top_p: sample from the smallest set with this probability.
    """

    max_tokens: Count
    stop_token_ids: list[TokenId]
    temperature: Annotated[float, Field(ge=0)]
    top_k: TokenId
    top_p: Annotated[float, Field(gt=0, le=1)]


@with_config(_STRICT)
@dataclass(frozen=True)
class VLLMSpec:
    """How requests are made, and how responses are read.

    Args:
        schema: the version of this list of fields.
        softprompt: the version of softprompt that wrote it.
        backbone: that the server must serve.
        template: what a row looks like.
        room: the most tokens of a rendered row.
        length: P, the number of soft tokens.
        vocabulary: V, the rows of the embedding table.
        hidden_size: H, the width of all vectors.
        dtype: of all vectors, and of the backbone.
        task: its settings, with ``kind``.
        decoding: the sampling parameters of a request.
        words: for each label the tokens of its words; empty for text generation.
    """

    schema: int
    softprompt: str
    backbone: BackboneRef
    template: str
    room: Count
    length: Count
    vocabulary: Count
    hidden_size: Count
    dtype: str
    task: dict[str, object]
    decoding: VLLMDecoding
    words: dict[str, list[TokenId]]

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible answers of text generation; empty for any text."""
        choices = self.task.get("choices")
        return tuple(map(str, choices)) if isinstance(choices, list) else ()


_ADAPTER = TypeAdapter(VLLMSpec)


def dump_vllm_spec(plan: VLLMSpec, digests: Mapping[str, str]) -> bytes:
    """The content of ``vllm.json``.

    Args:
        plan: to write.
        digests: the SHA-256 of every other file, in hexadecimal, by its name in the folder.

    Returns:
        JSON in UTF-8.
    """
    content = asdict(plan) | {"files": dict(sorted(digests.items()))}
    return f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def parse_vllm_spec(raw: bytes, *, source: ErrorContext) -> tuple[VLLMSpec, dict[str, str]]:
    """Parse a ``vllm.json``: the specification, and the SHA-256 of every other file by its name.

    Args:
        raw: the content of the file.
        source: the export, for messages.

    Raises:
        ArtifactError: it is not strict JSON, of another schema, has unknown or missing keys, or
            invalid values.
    """
    try:
        content = load_strict_json(raw)
    except (ValueError, RecursionError) as error:
        msg = f"{SPEC} is not strict JSON in UTF-8: {error}."
        raise source.make_error(msg) from error
    if not isinstance(content, dict) or content.get("schema") != VLLM_SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        msg = (
            f"{SPEC} has the schema {schema!r}, but this version of softprompt reads only schema "
            f"{VLLM_SCHEMA}."
        )
        raise source.make_error(msg)
    files = content.pop("files", None)
    try:
        # In strict mode, pydantic makes a dataclass of JSON, but not of a mapping.
        plan = _ADAPTER.validate_json(json.dumps(content))
    except ValidationError as error:
        raise source.join_faults(
            [f"{'.'.join(map(str, e['loc']))} in {SPEC}: {e['msg']}." for e in error.errors()]
        ) from error
    faults = [*_find_faults(plan), *_find_file_faults(files)]
    if faults:
        raise source.join_faults(faults)
    return plan, files


def _find_faults(plan: VLLMSpec) -> Iterator[str]:
    if plan.dtype not in STORED_DTYPES:
        yield f"dtype is {plan.dtype!r}; it must be one of {', '.join(STORED_DTYPES)}."
    if not math.isfinite(plan.decoding["temperature"]):
        yield "temperature is not a finite number."
    words = [token for tokens in plan.words.values() for token in tokens]
    highest = max([*words, *plan.decoding["stop_token_ids"]], default=-1)
    if highest >= plan.vocabulary:
        yield f"it names the token {highest}, but the table has {plan.vocabulary} rows."
    if len({*words}) != len(words) or not all(plan.words.values()) or len(plan.words) == 1:
        yield f"words are {plan.words}; there must be two or more labels, all with different words."
    kind = plan.task.get("kind")
    if kind != ("classify" if words else "generate"):
        yield f"the task's kind is {kind!r}, which does not match the words {plan.words}."
    choices = plan.task.get("choices")
    if not isinstance(choices, list | None) or not all(isinstance(c, str) for c in choices or ()):
        yield f"the task's choices are {choices!r}; they must be a list of texts. Export it again."
    if words and (plan.decoding["max_tokens"] != 1 or len(words) > MOST_WORDS):
        yield f"label words need max_tokens = 1 and at most {MOST_WORDS} words."


def _find_file_faults(files: object) -> Iterator[str]:
    if not isinstance(files, dict):
        yield f"files in {SPEC} is {files!r}, but it must be a table of names and digests."
        return
    tokenizer_files = {name for name in files if _TOKENIZER_FILE.fullmatch(name)}
    if not tokenizer_files or files.keys() - tokenizer_files != {VECTORS, TABLE}:
        yield (
            f"files in {SPEC} are {', '.join(sorted(files)) or 'none'}; they must be {VECTORS}, "
            f"{TABLE} and files directly in {TOKENIZER}/."
        )
    for name, digest in files.items():
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            yield f"the digest of {name} is {digest!r}, not 64 hexadecimal digits (SHA-256)."
