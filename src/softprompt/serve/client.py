"""A client of a server: typed answers, and repetitions when the server asks for them."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from softprompt.serve.faults import STATUS, FaultKind, ServingError
from softprompt.tasks import (
    AnswerPrediction,
    ChoicePrediction,
    LabelSetPrediction,
    NumberPrediction,
    Prediction,
    TaggedSpan,
    TagPrediction,
)
from softprompt.tasks.answer_spans import AnswerSpan

_RETRIED = (429, 503)
_MAX_WAIT = 30.0


@dataclass(frozen=True)
class Answer:
    """The answer for one row.

    Args:
        prediction: the label with its probabilities, or the text; None if there is an error.
        error: why there is no prediction.
        truncated: whether a field was shortened to fit.
    """

    prediction: Prediction | None
    error: str | None = None
    truncated: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """A prompt, or the backbone, that a server has.

    Args:
        name: to ask it by.
        parent: the backbone; None for the backbone itself.
    """

    name: str
    parent: str | None


class _Protocol:
    """Requests and answers of both clients."""

    def __init__(self, *, key: str | None, retries: int) -> None:
        self.retries = retries
        self.headers = {"content-type": "application/json"}
        if key is not None:
            self.headers["authorization"] = f"Bearer {key}"

    def make_body(
        self,
        model: str,
        rows: str | Mapping[str, object] | Sequence[object],
        *,
        timeout: float | None,
    ) -> bytes:
        """The body of a request for predictions."""
        listed = [rows] if isinstance(rows, str | Mapping) else list(rows)
        content: dict[str, object] = {"model": model, "rows": listed}
        return msgspec.json.encode(content if timeout is None else {**content, "timeout": timeout})

    def choose_wait(self, response: httpx.Response, attempt: int) -> float | None:
        """The seconds until the next attempt; None if there is none."""
        after = response.headers.get("retry-after", "")
        if response.status_code not in _RETRIED or attempt >= self.retries or not after.isdigit():
            return None
        return min(_MAX_WAIT, float(after)) * random.uniform(1.0, 1.25)  # noqa: S311  # spread

    def read(self, response: httpx.Response) -> Any:  # noqa: ANN401  # what JSON holds
        """The content of an answer.

        Raises:
            ServingError: the server refused the request.
        """
        try:
            content = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            content = None
        if response.is_success and content is not None:
            return content
        match content:
            case {"error": {"message": str(message), "code": str(code), "param": param}}:
                kind: FaultKind = next((k for k in STATUS if k == code), "failed")
                after = response.headers.get("retry-after", "")
                raise ServingError(
                    message,
                    kind=kind,
                    param=param,
                    retry_after=float(after) if after.isdigit() else None,
                )
        msg = (
            f"{response.url} answered with status {response.status_code}, and not as a softprompt "
            "server does. Check the address."
        )
        raise ServingError(msg, kind="failed")


def _read_answers(content: Mapping[str, Any]) -> list[Answer]:
    answers = []
    for one in content["data"]:
        if "error" in one:
            answers.append(Answer(None, one["error"]["message"]))
            continue
        label = one["label"] if "label" in one else one["text"]
        prediction = _read_prediction(label, one)
        answers.append(Answer(prediction, truncated=one["truncated"]))
    return answers


def _read_prediction(label: str, one: Mapping[str, Any]) -> Prediction:
    """The prediction of its task, which its further fields tell."""
    shares, abstained = one.get("probabilities", {}), bool(one.get("abstained"))
    match one:
        case {"labels": [*labels]}:
            return LabelSetPrediction(label, shares, labels=tuple(map(str, labels)))
        case {"values": [*values]}:
            return NumberPrediction(label, shares, values=tuple(map(float, values)))
        case {"tags": [*tags], "words": [*words], "spans": [*spans], "scores": [*scores]}:
            return TagPrediction(
                label,
                shares,
                tags=tuple(map(str, tags)),
                words=tuple(map(str, words)),
                spans=tuple(TaggedSpan(**span) for span in spans),
                scores=tuple(map(float, scores)),
            )
        case {"candidates": [*candidates], "null_score": null_score}:
            return AnswerPrediction(
                label,
                shares,
                start=one["start"],
                end=one["end"],
                score=one["score"],
                null_score=float(null_score),
                candidates=tuple(AnswerSpan(**candidate) for candidate in candidates),
            )
        case {"choice": int(choice), "scores": [*scores], "twin_choice": twin}:
            numbers = tuple(map(float, scores))
            return ChoicePrediction(label, shares, choice=choice, scores=numbers, twin_choice=twin)
        case _:
            return Prediction(label, shares, abstained=abstained)


def _read_models(content: Mapping[str, Any]) -> list[ModelInfo]:
    return [ModelInfo(one["id"], one["parent"]) for one in content["data"]]


class Client:
    """A client of ``softprompt serve``.

    It repeats what the server refused because it was full, after the time that the server gave.

    Args:
        url: of the server's root.
        key: that the server asks for.
        retries: the most repetitions of a request.
        timeout: the most seconds for one attempt.
        transport: of httpx, for tests.

    Examples:
        >>> import httpx
        >>> row = {"index": 0, "label": "good", "probabilities": {"good": 1.0}, "truncated": False}
        >>> server = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [row]}))
        >>> with Client("http://127.0.0.1:8000", transport=server) as client:
        ...     [answer] = client.predict("reviews", "Moving and funny.")
        >>> answer.prediction.label
        'good'
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        retries: int = 4,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._protocol = _Protocol(key=key, retries=retries)
        headers = self._protocol.headers
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )

    def predict(
        self,
        model: str,
        rows: str | Mapping[str, object] | Sequence[str | Mapping[str, object]],
        *,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Predict rows.

        Args:
            model: the name of a prompt, perhaps with ``@VERSION``.
            rows: texts, or mappings of the template's fields.
            timeout: the most seconds that the server may take; None for its own limit.

        Returns:
            An answer for each row, in their order.

        Raises:
            ServingError: the server refused the request.
        """
        body = self._protocol.make_body(model, rows, timeout=timeout)
        return _read_answers(self._send("POST", "/v1/predict", body))

    def list_models(self) -> list[ModelInfo]:
        """The backbone and the prompts of the server.

        Returns:
            Their names, the backbone first if it can be asked.

        Raises:
            ServingError: the server refused the request.
        """
        return _read_models(self._send("GET", "/v1/models"))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, body: bytes | None = None) -> Any:  # noqa: ANN401
        attempt = 0
        while True:
            response = self._http.request(method, path, content=body)
            wait = self._protocol.choose_wait(response, attempt)
            if wait is None:
                return self._protocol.read(response)
            attempt += 1
            time.sleep(wait)


class AsyncClient:
    """As `Client`, for asyncio.

    Args:
        url: of the server's root.
        key: that the server asks for.
        retries: the most repetitions of a request.
        timeout: the most seconds for one attempt.
        transport: of httpx, for tests.

    Examples:
        >>> import asyncio, httpx
        >>> row = {"index": 0, "label": "good", "probabilities": {"good": 1.0}, "truncated": False}
        >>> server = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [row]}))
        >>> async def ask():
        ...     async with AsyncClient("http://127.0.0.1:8000", transport=server) as client:
        ...         return await client.predict("reviews", "Moving and funny.")
        >>> asyncio.run(ask())[0].prediction.label
        'good'
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        retries: int = 4,
        timeout: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._protocol = _Protocol(key=key, retries=retries)
        headers = self._protocol.headers
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )

    async def predict(
        self,
        model: str,
        rows: str | Mapping[str, object] | Sequence[str | Mapping[str, object]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # the server's time, not this program's
    ) -> list[Answer]:
        """Predict rows, as `Client.predict`.

        Args:
            model: the name of a prompt, perhaps with ``@VERSION``.
            rows: texts, or mappings of the template's fields.
            timeout: the most seconds that the server may take; None for its own limit.

        Returns:
            An answer for each row, in their order.

        Raises:
            ServingError: the server refused the request.
        """
        body = self._protocol.make_body(model, rows, timeout=timeout)
        return _read_answers(await self._send("POST", "/v1/predict", body))

    async def list_models(self) -> list[ModelInfo]:
        """The backbone and the prompts of the server.

        Returns:
            Their names, the backbone first if it can be asked.

        Raises:
            ServingError: the server refused the request.
        """
        return _read_models(await self._send("GET", "/v1/models"))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, method: str, path: str, body: bytes | None = None) -> Any:  # noqa: ANN401
        attempt = 0
        while True:
            response = await self._http.request(method, path, content=body)
            wait = self._protocol.choose_wait(response, attempt)
            if wait is None:
                return self._protocol.read(response)
            attempt += 1
            await asyncio.sleep(wait)
