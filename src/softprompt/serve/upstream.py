"""A stock vLLM server as the engine's backbone: rows are sent to it as vectors.

The rows are rendered and embedded here, with their soft tokens between the words, and everything
else of the server stays as it is: names, keys, limits, protocols. vLLM gets what it takes from
anybody, ``prompt_embeds`` on ``/v1/completions``.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Coroutine, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import httpx
import msgspec
import torch

from softprompt.backbone.model import Backbone
from softprompt.errors import DataError, SoftpromptError
from softprompt.inference.generated_row import GeneratedRow, GenerationEvent, GenerationRequest
from softprompt.inference.mixed import PromptedRow
from softprompt.inference.model import PromptModel
from softprompt.inference.token_scores import TokenScores
from softprompt.interop.convert import make_export_request
from softprompt.interop.vllm_client import (
    encode_prompt_embeds,
    explain_missing,
    insert_vectors,
    make_label_request,
    read_label,
)
from softprompt.interop.vllm_export import make_vllm_spec
from softprompt.prompt import InputPrompt, Prompt
from softprompt.serve.admission import RowOutcome
from softprompt.serve.batches import RemoteBatch
from softprompt.serve.faults import ServingError
from softprompt.tasks.classification import CausalVerbalizer

_log = logging.getLogger(__name__)
_UNREACHABLE_RETRY = 5.0
_STEP_SECONDS = 0.01  # that a step waits for the first event
_BUSY = (429, 503)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class UpstreamSettings:
    """Where the vLLM server is.

    Args:
        url: of its root.
        model: its name of the backbone; None for the first that it lists.
        key: that it asks for.
        timeout: the most seconds without a byte of an answer.
    """

    url: str
    model: str | None = None
    key: str | None = None
    timeout: float = 30.0


class Upstream:
    """A connection to a vLLM server.

    Args:
        backbone: that the server serves; its table embeds the rows.
        settings: where the server is.
        transport: of httpx, for tests.

    Raises:
        DataError: the server cannot be reached, or does not list the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: UpstreamSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.backbone, self.settings = backbone, settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="softprompt-upstream", daemon=True
        )
        self._thread.start()
        headers = {} if settings.key is None else {"authorization": f"Bearer {settings.key}"}
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=headers,
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )
        try:
            self.model = self.run(self._find_model()).result()
        except ServingError as error:
            self.close()
            msg = f"{error} Check the address (--upstream) and that vLLM runs there."
            raise DataError(msg) from error
        except DataError:
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Run a coroutine in the thread of the connection.

        Args:
            coroutine: to run.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Close the connections, and end the thread."""
        with contextlib.suppress(RuntimeError):
            self.run(self._http.aclose()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def make_batch(self) -> "UpstreamBatch":
        """A running batch of rows that the server runs."""
        return UpstreamBatch(self)

    def make_body(self, ids: Sequence[int], prompt: Prompt | None) -> dict[str, Any]:
        """What every request has: the row, and that nothing is taken from the checkpoint.

        Args:
            ids: of the row.
            prompt: of the row; rows without one are sent as their ids.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # the end tokens are in stop_token_ids
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if not isinstance(prompt, InputPrompt):
            return body | {"prompt": list(ids)}
        dtype = self.backbone.dtype
        embeddings = insert_vectors(
            torch.tensor(ids),
            prompt.vectors.detach().to("cpu", dtype),
            vocabulary=self.backbone.geometry.vocab_size,
            embed=lambda words: self.backbone.embed(words).to("cpu", dtype),
        )
        return body | {"prompt_embeds": encode_prompt_embeds(embeddings)}

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        """The choices of a streamed completion, as they come.

        Args:
            body: of the request.

        Yields:
            The only choice of each event.

        Raises:
            ServingError: the server cannot be reached, or refuses.
        """
        content = msgspec.json.encode({**body, "stream": True})
        headers = {"content-type": "application/json"}
        with self._explain_failures():
            async with self._http.stream(
                "POST", "/v1/completions", content=content, headers=headers
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise _read_refusal(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:") or line == "data: [DONE]":
                        continue
                    event = _decode(line.removeprefix("data:"))
                    if "error" in event:
                        msg = f"the upstream server failed: {_describe(event)}"
                        raise _explain(msg)
                    for choice in event.get("choices", []):
                        yield choice

    async def classify(self, row: PromptedRow) -> RowOutcome:
        """Classify a row by its label words.

        Args:
            row: rendered.

        Returns:
            Its prediction, or why there is none.
        """
        try:
            return await self._ask_label(row)
        except ServingError as error:
            return error
        except SoftpromptError as error:
            return ServingError(str(error), kind="upstream")
        except Exception as error:  # noqa: BLE001  # an answer that is not vLLM's
            return _explain(f"the upstream server's answer cannot be read: {error!r}")

    async def _ask_label(self, row: PromptedRow) -> RowOutcome:
        task = row.task
        if not isinstance(task, CausalVerbalizer):
            msg = "an upstream server scores label words alone. Serve this prompt without one."
            raise ServingError(msg, kind="invalid", param="model")
        words = {
            label: [word[0] for word in of_label]
            for label, of_label in zip(task.words.labels, task.words.tokens, strict=True)
        }
        tokens = [token for of_label in words.values() for token in of_label]
        body = self.make_body(row.example.variants[0].input_ids, row.prompt)
        body |= {"max_tokens": 1, "temperature": 0.0, "stop_token_ids": []}
        answer = await self._post("/v1/completions", body | make_label_request(tokens))
        match answer.get("choices"):
            case [dict(choice)]:
                return read_label(words, choice)
        msg = "the upstream server's answer has not one choice"
        raise _explain(msg)

    async def _find_model(self) -> str:
        answer = await self._get("/v1/models")
        listed = answer.get("data")
        names = [
            str(one["id"])
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and "id" in one
        ]
        wanted = self.settings.model
        if wanted is None and names:
            return names[0]
        if wanted is not None and wanted in names:
            return wanted
        msg = (
            f"the upstream server has the models {', '.join(names) or 'nothing'}, not "
            f"{wanted or 'any'!r}. Name one of them: --upstream-model NAME."
        )
        raise DataError(msg)

    async def _get(self, path: str) -> dict[str, Any]:
        with self._explain_failures():
            return _read(await self._http.get(path))

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        with self._explain_failures():
            return _read(
                await self._http.post(path, content=msgspec.json.encode(body), headers=headers)
            )

    @contextlib.contextmanager
    def _explain_failures(self) -> Iterator[None]:
        # Clients read these messages, so its address, which may have a password, is left out.
        try:
            yield
        except httpx.TimeoutException as error:
            msg = (
                f"the upstream server has sent nothing for {self.settings.timeout:g} s. Try again "
                "later, or allow more time (--upstream-timeout)."
            )
            raise ServingError(msg, kind="expired") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("the upstream server cannot be reached: %r", error)
            msg = f"the upstream server cannot be reached ({type(error).__name__})."
            raise ServingError(msg, kind="unreachable", retry_after=_UNREACHABLE_RETRY) from error


def check_upstream(model: PromptModel) -> None:
    """Check that a stock vLLM server can run a prompt, before it is served.

    Args:
        model: to serve.

    Raises:
        ArtifactError: it cannot, and why.
    """
    make_vllm_spec(make_export_request(model))


class UpstreamBatch(RemoteBatch):
    """Rows that a vLLM server runs, as `ServingEngine` asks for them.

    Args:
        upstream: the connection.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._events: SimpleQueue[GenerationEvent] = SimpleQueue()
        self._running: dict[Hashable, Future[None]] = {}

    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Send a row.

        Args:
            key: the name of the row in its events.
            request: the row.

        Raises:
            ServingError: the request asks for what vLLM cannot do with vectors.
        """
        if request.scores is not None and request.scores.has_row:
            msg = (
                "an upstream server gives no log-probabilities of the row (echo with logprobs). "
                "Ask for those of the generated tokens alone."
            )
            raise ServingError(msg, kind="invalid", param="echo")
        row = GeneratedRow(key, request, is_separate=False)
        self._running[key] = self._upstream.run(self._write(row))

    def add_row(self, key: Hashable, row: PromptedRow) -> None:
        """Send a row to be classified by its label words.

        Args:
            key: the name of the row in its only event.
            row: the row.
        """
        self._running[key] = self._upstream.run(self._classify(key, row))

    def remove(self, key: Hashable) -> None:
        """Leave a row: its connection is closed, which ends it on the server.

        Args:
            key: of the row; one that has ended already is ignored.
        """
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel()

    def step(self) -> list[GenerationEvent]:
        """Wait for what the server sends.

        Returns:
            The events that have come.
        """
        events: list[GenerationEvent] = []
        with contextlib.suppress(Empty):
            events.append(self._events.get(timeout=_STEP_SECONDS))
            while True:
                events.append(self._events.get_nowait())
        known = [event for event in events if event.key in self._running]
        for event in known:
            if event.finish_reason is not None:
                self._running.pop(event.key, None)
        return known

    async def _classify(self, key: Hashable, row: PromptedRow) -> None:
        outcome = await self._upstream.classify(row)
        if isinstance(outcome, ServingError):
            event = GenerationEvent(key, "", (), "error", error=outcome)
        else:
            event = GenerationEvent(key, "", (), "stop", prediction=outcome)
        self._events.put(event)

    async def _write(self, row: GeneratedRow) -> None:
        try:
            await self._follow(row)
        except SoftpromptError as error:
            self._events.put(row.fail(error))
        except Exception as error:  # noqa: BLE001  # an answer that is not vLLM's
            fault = _explain(f"the upstream server's answer cannot be read: {error!r}")
            self._events.put(row.fail(fault))

    async def _follow(self, row: GeneratedRow) -> None:
        """Pass on the tokens of a row, up to its end."""
        body = self._upstream.make_body(row.request.ids, row.request.prompt)
        body |= _make_options(row.request)
        async with contextlib.aclosing(self._upstream.stream(body)) as choices:
            async for choice in choices:
                tokens = choice.get("token_ids")
                if not isinstance(tokens, list):
                    raise _explain(explain_missing("token_ids", choice))
                scores = _read_scores(row.request, choice, count=len(tokens))
                for token, of_token in zip(tokens, scores, strict=True):
                    event = row.accept(token, scores=of_token)
                    self._events.put(event)
                    if event.finish_reason is not None:
                        return
                reason = choice.get("finish_reason")
                if reason in ("stop", "length"):
                    self._events.put(row.finish(reason))
                    return
                if reason is not None:
                    msg = f"the upstream server ended the text: {reason}"
                    raise _explain(msg)
        msg = "the upstream server's answer ended before the text did"
        raise _explain(msg)


def _make_options(request: GenerationRequest) -> dict[str, Any]:
    """The settings of generation, all of them stated."""
    decoding = request.seeded_decoding
    body: dict[str, Any] = {
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": [*request.end_token_ids],
        "temperature": float(decoding.temperature) if decoding.do_sample else 0.0,
        "top_k": decoding.top_k if decoding.do_sample else 0,
        "top_p": float(decoding.top_p) if decoding.do_sample else 1.0,
        "min_p": float(decoding.min_p) if decoding.do_sample else 0.0,
        "seed": decoding.seed,
    }
    if request.scores is not None:
        body["logprobs"] = request.scores.top
        if request.scores.tokens:
            body["logprob_token_ids"] = [*request.scores.tokens]
    return body


def _read_scores(
    request: GenerationRequest, choice: Mapping[str, Any], *, count: int
) -> list[tuple[TokenScores, ...]]:
    """The log-probabilities of the tokens of an event; empty ones if they were not asked for."""
    options = request.scores
    if options is None:
        return [()] * count
    given = choice.get("logprobs") or {}
    names, own, best = (given.get(k) or [] for k in ("tokens", "token_logprobs", "top_logprobs"))
    if len(names) != count:
        raise _explain(explain_missing("logprobs", choice))
    found: list[tuple[TokenScores, ...]] = []
    for name, value, top in zip(names, own, best, strict=True):
        ranked = {_read_id(n): v for n, v in sorted(top.items(), key=lambda pair: -pair[1])}
        missing = [token for token in options.tokens if token not in ranked]
        if missing:
            raise _explain(explain_missing(f"the log-probability of token {missing[0]}", choice))
        likeliest = dict([*ranked.items()][: options.top])
        also = {token: ranked[token] for token in options.tokens}
        found.append((TokenScores(_read_id(name), value, likeliest, also),))
    return found


def _read_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _read(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise _read_refusal(response)
    return _decode(response.content)


def _decode(raw: str | bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        msg = "the upstream server's answer is not a JSON object"
        raise _explain(msg) from error


def _read_refusal(response: httpx.Response) -> ServingError:
    """The error of a refused request: the sender's own, a busy server's, or a fault."""
    try:
        described = _describe(_decode(response.content))
    except ServingError:
        described = f"status {response.status_code}"
    after = response.headers.get("retry-after", "")
    if response.status_code in _BUSY:
        seconds = float(after) if after.isdigit() else _UNREACHABLE_RETRY
        msg = f"the upstream server is busy: {described}. Try again later."
        return ServingError(msg, kind="full", retry_after=seconds)
    if response.status_code == httpx.codes.BAD_REQUEST:
        msg = (
            f"the upstream server refused the row: {described} It must serve the prompt's "
            "backbone, with --enable-prompt-embeds, and the row must fit its --max-model-len."
        )
        return ServingError(msg, kind="invalid")
    return _explain(f"the upstream server answered {response.status_code}: {described}")


def _describe(content: Mapping[str, Any]) -> str:
    match content:
        case {"error": {"message": str(message)}} | {"message": str(message)}:
            return message
        case {"error": str(message)} | {"detail": str(message)}:
            return message
    return str(dict(content))[:200]


def _explain(fact: str) -> ServingError:
    msg = f"{fact.rstrip('.')}. Look at its log, and check that it is vLLM 0.32 or later."
    return ServingError(msg, kind="upstream")
