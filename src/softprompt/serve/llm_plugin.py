"""A plugin for the command line tool ``llm``: a server's named prompts as its models.

``SOFTPROMPT_URL`` names the server; without it nothing is asked. The prompts are then listed as
``softprompt/NAME``, and their answers are streamed.
"""

import json
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import httpx
import llm
from pydantic import Field

URL = "SOFTPROMPT_URL"
KEY = "SOFTPROMPT_API_KEY"
_NAME = "softprompt"
# For the list of models, which every command of llm asks for.
_LIST_SECONDS = 2.0
_ANSWER_SECONDS = 120.0
_log = logging.getLogger(__name__)


class _Options(llm.Options):
    """The options that a server understands; those left out are the prompt's own."""

    max_tokens: int | None = Field(default=None, description="The most tokens to generate")
    temperature: float | None = Field(default=None, description="0 for the likeliest token")
    top_p: float | None = Field(default=None, description="Sample from this much probability")
    top_k: int | None = Field(default=None, description="Sample from the k likeliest tokens")
    min_p: float | None = Field(default=None, description="Sample only tokens this likely")
    seed: int | None = Field(default=None, description="The seed of sampling")


class _Request:
    """What both kinds of models send, and how they read it."""

    def __init__(self, url: str, name: str, *, is_prompt: bool) -> None:
        self.url, self.name, self.is_prompt = url.rstrip("/"), name, is_prompt

    @property
    def path(self) -> str:
        """A prompt has a template of its own; the backbone gets a conversation."""
        return "/v1/completions" if self.is_prompt else "/v1/chat/completions"

    def make_body(self, prompt: Any, conversation: Any, *, stream: bool) -> dict[str, Any]:  # noqa: ANN401  # llm's own
        """The body of a request."""
        options = prompt.options.model_dump(exclude_none=True)
        body = {"model": self.name, "stream": stream, **options}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if self.is_prompt:
            return {**body, "prompt": prompt.prompt}
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for turn in conversation.responses if conversation else ():
            messages.append({"role": "user", "content": turn.prompt.prompt})
            messages.append({"role": "assistant", "content": turn.text_or_raise()})
        return {**body, "messages": [*messages, {"role": "user", "content": prompt.prompt}]}

    def make_client_options(self, key: str | None) -> dict[str, Any]:
        """The options of httpx."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return {"base_url": self.url, "headers": headers, "timeout": _ANSWER_SECONDS}

    def explain(self, error: httpx.HTTPError) -> Exception:
        """The error that llm shows."""
        msg = f"the softprompt server {self.url} ({URL}) cannot be reached: {error}"
        return _make_error(msg)

    def read_whole(self, raw: bytes, response: Any) -> str:  # noqa: ANN401  # llm's own
        """The text of a whole answer."""
        content = json.loads(raw)
        _record(content, response)
        choice = content["choices"][0]
        return str(choice["text"] if self.is_prompt else choice["message"]["content"])

    def read_line(self, line: str, response: Any) -> str:  # noqa: ANN401  # llm's own
        """The text of one line of a stream."""
        if not line.startswith("data: {"):
            return ""
        content = json.loads(line.removeprefix("data: "))
        if "error" in content:
            raise _make_error(content["error"]["message"])
        _record(content, response)
        for choice in content["choices"]:
            return str(choice["text"] if self.is_prompt else choice["delta"].get("content") or "")
        return ""


def _make_error(message: str) -> Exception:
    error: Exception = llm.ModelError(message)
    return error


def _record(content: dict[str, Any], response: Any) -> None:  # noqa: ANN401  # llm's own
    usage = content.get("usage")
    if usage:
        response.set_usage(input=usage["prompt_tokens"], output=usage["completion_tokens"])


def _check(status: int, raw: bytes) -> None:
    """Raise the server's own message if it refused the request."""
    if status == httpx.codes.OK:
        return
    try:
        message = json.loads(raw)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = f"the server answered with status {status}. Check {URL}."
    raise _make_error(str(message))


class _Served:
    """What both kinds of models have in common."""

    needs_key = _NAME
    key_env_var = KEY
    can_stream = True
    Options = _Options

    def __init__(self, request: _Request) -> None:
        self.model_id = f"{_NAME}/{request.name}"
        self._request = request

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key, which a server on the same machine may not need."""
        return _get_key(explicit_key)


class _Model(_Served, llm.KeyModel):
    """A prompt of a server, or its backbone."""

    def execute(
        self,
        prompt: Any,  # noqa: ANN401  # llm's own
        *,
        stream: bool,
        response: Any,  # noqa: ANN401
        conversation: Any,  # noqa: ANN401
        key: str | None = None,
    ) -> Iterator[str]:
        """Ask the server, and yield the text."""
        request = self._request
        body = request.make_body(prompt, conversation, stream=stream)
        try:
            with (
                httpx.Client(**request.make_client_options(key)) as http,
                http.stream("POST", request.path, json=body) as answer,
            ):
                if not stream or not answer.is_success:
                    raw = answer.read()
                    _check(answer.status_code, raw)
                    yield request.read_whole(raw, response)
                    return
                for line in answer.iter_lines():
                    yield request.read_line(line, response)
        except httpx.HTTPError as error:
            raise request.explain(error) from error


class _AsyncModel(_Served, llm.AsyncKeyModel):
    """As `_Model`, for asyncio."""

    async def execute(
        self,
        prompt: Any,  # noqa: ANN401  # llm's own
        *,
        stream: bool,
        response: Any,  # noqa: ANN401
        conversation: Any,  # noqa: ANN401
        key: str | None = None,
    ) -> AsyncGenerator[str, None]:
        """Ask the server, and yield the text."""
        request = self._request
        body = request.make_body(prompt, conversation, stream=stream)
        try:
            async with (
                httpx.AsyncClient(**request.make_client_options(key)) as http,
                http.stream("POST", request.path, json=body) as answer,
            ):
                if not stream or not answer.is_success:
                    raw = await answer.aread()
                    _check(answer.status_code, raw)
                    yield request.read_whole(raw, response)
                    return
                async for line in answer.aiter_lines():
                    yield request.read_line(line, response)
        except httpx.HTTPError as error:
            raise request.explain(error) from error


def _get_key(explicit: str | None) -> str | None:
    key: str | None = llm.get_key(explicit_key=explicit, key_alias=_NAME, env_var=KEY)
    return key


def _list_requests(url: str) -> list[_Request]:
    """The prompts of a server, and its backbone; none if it cannot be asked."""
    key = _get_key(None)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=_LIST_SECONDS)
        _check(answer.status_code, answer.content)
        listed = answer.json()["data"]
    except (httpx.HTTPError, httpx.InvalidURL, llm.ModelError, ValueError, LookupError) as error:
        _log.warning("the softprompt server %s (%s) lists no prompts: %s", url, URL, error)
        return []
    return [_Request(url, one["id"], is_prompt=one["parent"] is not None) for one in listed]


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Register every prompt of the server as a model of ``llm``.

    Args:
        register: of ``llm``.
    """
    url = os.environ.get(URL)
    for request in _list_requests(url) if url else ():
        register(_Model(request), _AsyncModel(request))
