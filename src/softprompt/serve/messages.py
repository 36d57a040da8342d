"""Requests and answers of the protocols, as msgspec reads and writes them.

Unknown fields are errors: a misspelt option must not be ignored. Fields of OpenAI's protocol that
have no effect here are listed, so that a request that relies on one gets an error.
"""

import time
from collections.abc import Mapping
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Struct, field

from softprompt.serve.faults import ServingError

# A list has words, labels, or the messages of a conversation.
RequestRow = str | dict[str, str | int | float | bool | list[str | dict[str, Any]] | None]


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """What all requests have.

    Args:
        model: the name of a prompt, perhaps with ``@VERSION``, or of the backbone.
        timeout: the most seconds until the answer; None for the server's.
        user: an opaque name of the user; it is not read.
        request_id: an opaque name of the request; it is not read.
    """

    model: str
    timeout: float | None = None
    user: str | None = None
    request_id: str | None = None


class PredictRequest(Request, kw_only=True):
    """Rows for any task.

    Args:
        rows: texts, or mappings of the template's fields.
        explain: whether to return what each row looks like after its template.
    """

    rows: list[RequestRow]
    explain: bool = False


class ClassifyRequest(Request, kw_only=True):
    """Texts to classify, as vLLM's ``/classify`` takes them.

    Args:
        input: a text or several.
        use_activation: only True: probabilities are returned.
        truncate_prompt_tokens: not supported; long texts are shortened to fit.
    """

    input: str | list[str]
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a stream.

    Args:
        include_usage: whether the last piece has the number of tokens.
    """

    include_usage: bool = False


class TextRequest(Request, kw_only=True):
    """Options of generation that completions and chat have in common."""

    min_p: float | None = None
    stop_token_ids: list[int] | None = None
    return_tokens_as_token_ids: bool = False

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        stop = self.stop or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)


class CompletionRequest(TextRequest, kw_only=True):
    """A text to continue.

    Args:
        prompt: the value of the template's only field, or a mapping of its fields; or a list.
        logprobs: the number of the likeliest tokens whose log-probabilities are returned.
        echo: whether the text of the row comes before what is generated.
        suffix: not supported.
        best_of: how many texts are generated, of which the likeliest ``n`` are returned.
    """

    prompt: RequestRow | list[RequestRow]
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


class ContentPart(Struct, kw_only=True):
    """A part of a message.

    Args:
        type: only ``text``.
        text: of the part.
    """

    type: str
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """A message of a conversation.

    Args:
        role: of its sender.
        content: a text, or parts of text.
        name: of the sender.
    """

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text of all parts.

        Raises:
            ServingError: a part is not text.
        """
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.type != "text" or part.text is None:
                msg = f"a message has a part of type {part.type!r}; only text can be read."
                raise ServingError(msg, kind="invalid", param="messages")
        return "".join(part.text or "" for part in self.content)


class ChatRequest(TextRequest, kw_only=True):
    """A conversation to continue.

    Args:
        messages: of the conversation.
        max_completion_tokens: OpenAI's newer name of max_tokens.
        logprobs: whether log-probabilities are returned.
        top_logprobs: the number of the likeliest tokens whose log-probabilities are returned.
        tools: not supported.
        tool_choice: not supported.
    """

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None


class ScoreRequest(Request, kw_only=True):
    """Items whose next token is scored, as vLLM's ``/generative_scoring`` takes them.

    Args:
        query: the text before each item.
        items: the texts.
        label_token_ids: the tokens that may come next.
        apply_softmax: whether scores are shares among these tokens; otherwise they are
            probabilities among all tokens. None for the route's own default.
        item_first: whether each item comes before the query.
        add_special_tokens: only True: the template decides.
        priority: only 0.
    """

    query: str
    items: list[str]
    label_token_ids: list[int]
    apply_softmax: bool | None = None
    item_first: bool = False
    add_special_tokens: bool = True
    priority: int = 0


class UploadedPrompt(Struct, kw_only=True, forbid_unknown_fields=True):
    """The files of one artifact, in base64.

    Args:
        manifest: of ``manifest.json``.
        tensors: of ``prompt.safetensors``.
    """

    manifest: bytes
    tensors: bytes


class UploadRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """An artifact to publish, or an ensemble of several; the files in base64.

    Args:
        manifest: of an artifact, ``manifest.json``.
        tensors: of an artifact, ``prompt.safetensors``.
        ensemble: of an ensemble, ``ensemble.json``.
        members: of an ensemble, the artifacts by the names of their folders.
    """

    manifest: bytes | None = None
    tensors: bytes | None = None
    ensemble: bytes | None = None
    members: dict[str, UploadedPrompt] | None = None


class PinRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which version a name means.

    Args:
        version: its number; None for the newest.
    """

    version: int | None


class Usage(Struct, kw_only=True):
    """The tokens of a request.

    Args:
        prompt_tokens: of the rows, with their soft tokens.
        completion_tokens: that were generated.
        total_tokens: both.
        prompt_tokens_details: the number of soft tokens.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, int] = field(default_factory=dict)


_Decoded = TypeVar("_Decoded")


def decode(raw: bytes, kind: type[_Decoded]) -> _Decoded:
    """Read a request.

    Args:
        raw: the body.
        kind: of the request.

    Raises:
        ServingError: it is not JSON, or not such a request.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        msg = f"the body is not a valid request: {error}."
        param = _find_param(str(error))
        raise ServingError(msg, kind="invalid", param=param) from error


def _find_param(message: str) -> str | None:
    """The field that msgspec names: ``… - at `$.rows[0]```."""
    _, found, path = message.rpartition("at `$.")
    if found:
        return path.rstrip("`")
    _, found, name = message.rpartition("field `")
    return name.rstrip("`") if found else None


def encode(content: object) -> bytes:
    """Write an answer as JSON.

    Args:
        content: plain data and structs.
    """
    return msgspec.json.encode(content)


def make_schemas(*kinds: type) -> dict[str, Any]:
    """The JSON schemas of requests, by name.

    Args:
        kinds: of the requests.
    """
    template = "#/components/schemas/{name}"
    _, components = msgspec.json.schema_components(kinds, ref_template=template)
    return components


def make_error_body(error: ServingError) -> dict[str, object]:
    """An error in OpenAI's form.

    Args:
        error: to report.
    """
    content = {"message": str(error), "type": error.type, "param": error.param, "code": error.kind}
    return {"error": content}


def make_header(kind: str, model: str, *, prefix: str) -> dict[str, object]:
    """The first fields of an answer in OpenAI's form.

    Args:
        kind: of the object.
        model: as the request named it.
        prefix: of the id.
    """
    name = f"{prefix}-{uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


# Fields of OpenAI's protocol that would change the answer, and the values that do not.
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "use_activation": (None, True),
    "add_special_tokens": (True,),
    "priority": (0,),
    "truncate_prompt_tokens": (None,),
}


def check_supported(request: Request) -> None:
    """Check that a request does not rely on what this server cannot do.

    Args:
        request: of any kind.

    Raises:
        ServingError: it does.
    """
    for name, value in msgspec.structs.asdict(request).items():
        if name in _WITHOUT_EFFECT and value not in _WITHOUT_EFFECT[name]:
            msg = f"{name} = {value!r} is not supported. Leave {name} out."
            raise ServingError(msg, kind="invalid", param=name)
    if request.timeout is not None and not 0 < request.timeout < float("inf"):
        msg = f"timeout = {request.timeout}: seconds, more than 0."
        raise ServingError(msg, kind="invalid", param="timeout")
