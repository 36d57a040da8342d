"""``vllm.json``: everything about requests to a vLLM server that is no tensor."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 only

from softprompt.artifact.agree import DTYPES
from softprompt.artifact.manifest import BackboneName
from softprompt.artifact.source import Source
from softprompt.artifact.strict import strict

SCHEMA = 1
PLAN, VECTORS, TABLE, TOKENIZER = (
    "vllm.json",
    "prompt.safetensors",
    "table.safetensors",
    "tokenizer",
)
# As many as vLLM gives log-probabilities of at once (its MAX_LOGPROB_TOKEN_IDS).
MOST_WORDS = 128

_STRICT = ConfigDict(extra="forbid", strict=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(rf"{TOKENIZER}/[A-Za-z0-9_][A-Za-z0-9_.-]*")
Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]


@with_config(_STRICT)
class VLLMDecoding(TypedDict):
    """How a request asks for tokens.

    Args:
        max_tokens: at most so many.
        stop_token_ids: those that end a text.
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
class VLLMPlan:
    """What requests are made by, and what their answers are read by.

    Args:
        schema: the version of this list of fields.
        softprompt: the version of softprompt that wrote it.
        backbone: which one the server must serve.
        template: what a row looks like.
        room: how many tokens a rendered row may have.
        length: P, the number of soft tokens.
        vocabulary: V, the rows of the table.
        hidden_size: H, the width of all vectors.
        dtype: of all vectors, what the backbone computes in.
        task: its settings, with ``kind``.
        decoding: how a request asks for tokens.
        words: for each label the tokens that are its words; empty where text is written.
    """

    schema: int
    softprompt: str
    backbone: BackboneName
    template: str
    room: Count
    length: Count
    vocabulary: Count
    hidden_size: Count
    dtype: str
    task: dict[str, object]
    decoding: VLLMDecoding
    words: dict[str, list[TokenId]]


_ADAPTER = TypeAdapter(VLLMPlan)


def dump(plan: VLLMPlan, digests: Mapping[str, str]) -> bytes:
    """The plan as it is written.

    Args:
        digests: the SHA-256 of every other file, in hexadecimal, by its name in the folder.
    """
    content = asdict(plan) | {"files": dict(sorted(digests.items()))}
    return f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def parse(raw: bytes, *, source: Source) -> tuple[VLLMPlan, dict[str, str]]:
    """The plan that was written, and the SHA-256 of every other file by its name.

    Raises:
        ArtifactError: it is no strict JSON, of another schema, has unknown or missing keys, or
            values that cannot be.
    """
    try:
        content = strict(raw)
    except (ValueError, RecursionError) as error:
        msg = f"{PLAN} is no strict JSON in UTF-8: {error}."
        raise source.fault(msg) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        msg = f"{PLAN} has the schema {schema!r}, but this softprompt reads schema {SCHEMA} only."
        raise source.fault(msg)
    files = content.pop("files", None)
    try:
        # Only in JSON does pydantic's strict mode take a table for a dataclass.
        plan = _ADAPTER.validate_json(json.dumps(content))
    except ValidationError as error:
        raise source.faults(
            [f"{'.'.join(map(str, e['loc']))} in {PLAN}: {e['msg']}." for e in error.errors()]
        ) from error
    found = [*_faults(plan), *_file_faults(files)]
    if found:
        raise source.faults(found)
    return plan, files


def _faults(plan: VLLMPlan) -> Iterator[str]:
    if plan.dtype not in DTYPES:
        yield f"dtype is {plan.dtype!r}; it must be one of {', '.join(DTYPES)}."
    if not math.isfinite(plan.decoding["temperature"]):
        yield "temperature is no finite number."
    words = [token for of_label in plan.words.values() for token in of_label]
    beyond = max([*words, *plan.decoding["stop_token_ids"]], default=-1)
    if beyond >= plan.vocabulary:
        yield f"it names the token {beyond}, but the table has {plan.vocabulary} rows."
    if len({*words}) != len(words) or not all(plan.words.values()) or len(plan.words) == 1:
        yield f"words are {plan.words}; there must be two labels or more, with words of their own."
    kind = plan.task.get("kind")
    if kind != ("classify" if words else "generate"):
        yield f"the task's kind is {kind!r}, which does not go with the words {plan.words}."
    if words and (plan.decoding["max_tokens"] != 1 or len(words) > MOST_WORDS):
        yield f"label words are one token of at most {MOST_WORDS}, asked for one at a time."


def _file_faults(files: object) -> Iterator[str]:
    if not isinstance(files, dict):
        yield f"files in {PLAN} is {files!r}, but it must be a table of names and digests."
        return
    own = {name for name in files if _NAME.fullmatch(name)}
    if not own or files.keys() - own != {VECTORS, TABLE}:
        yield (
            f"files in {PLAN} are {', '.join(sorted(files)) or 'none'}; they must be {VECTORS}, "
            f"{TABLE} and files right in {TOKENIZER}/."
        )
    for name, digest in files.items():
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            yield f"the digest of {name} is {digest!r}, not 64 hexadecimal digits (SHA-256)."
