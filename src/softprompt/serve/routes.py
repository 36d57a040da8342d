"""Routes: predictions of any task, vLLM's classification, models, administration, health."""

import asyncio
import base64
import hashlib
import re
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version as version_of
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from softprompt.artifact.ensembles import list_members
from softprompt.artifact.store import ENSEMBLE, MANIFEST, TENSORS
from softprompt.errors import ArtifactError
from softprompt.serve.admission import RowOutcome
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    PinRequest,
    PredictRequest,
    RequestRow,
    ScoreRequest,
    UploadedPrompt,
    UploadRequest,
    Usage,
    make_error_body,
    make_header,
    make_schemas,
)
from softprompt.serve.prompts import RegistrySource
from softprompt.serve.registry import PublishedPrompt, Registry
from softprompt.serve.site import Site, read_body, record_facts, respond, wait_for
from softprompt.serve.targets import RowOrder, ServedRow, Target
from softprompt.tasks import Prediction

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def read_playground() -> tuple[bytes, str]:
    """The page to try prompts on, and the policy that lets it run its own script and no other."""
    page = files("softprompt.serve").joinpath("playground.html").read_bytes()
    allowed = {
        kind.decode(): base64.b64encode(hashlib.sha256(content).digest()).decode()
        for kind, content in _INLINE.findall(page)
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; "
        f"style-src 'sha256-{allowed['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def count_usage(target: Target, rows: Sequence[ServedRow], *, completion: int = 0) -> Usage:
    """The tokens of a request.

    Args:
        target: of the request.
        rows: its rows.
        completion: the tokens that were generated.
    """
    pairs = [target.count_tokens(row) for row in rows]
    prompt, soft = sum(all_ for all_, _ in pairs), sum(own for _, own in pairs)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details={"virtual_tokens": soft},
    )


class Routes:
    """The routes of a site, except OpenAI's.

    Args:
        site: the shared state.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    async def predict(self, http: HttpRequest) -> Response:
        """Rows in, typed predictions out; a row that cannot be predicted has an error instead."""
        request = await read_body(http, PredictRequest)
        self.site.check_count(request.rows, "rows")
        target = await self.site.open(request.model)
        record_facts(http, prompt=target.name, version=target.version, rows=len(request.rows))
        try:
            examples = await self._render(http, target, request.rows)
            started = time.monotonic()
            outcomes = await self._run(http, target, examples, self.site.get_deadline(request))
        finally:
            self.site.service.close(target)
        if all(isinstance(outcome, ServingError) for outcome in outcomes):
            raise_first(outcomes)
        data = [
            self._describe(index, *pair, explain=request.explain)
            for index, pair in enumerate(zip(examples, outcomes, strict=True))
        ]
        good = [example for example in examples if isinstance(example, ServedRow)]
        written = sum(len(o.token_ids or ()) for o in outcomes if isinstance(o, Prediction))
        header = make_header("list", request.model, prefix="predict")
        usage = count_usage(target, good, completion=written)
        return respond(
            {
                **header,
                "version": target.version,
                "data": data,
                "usage": usage,
                "seconds": round(time.monotonic() - started, 4),
            }
        )

    async def classify(self, http: HttpRequest) -> Response:
        """Texts in, probabilities out, in vLLM's form."""
        request = await read_body(http, ClassifyRequest)
        texts = [request.input] if isinstance(request.input, str) else request.input
        self.site.check_count(texts, "input")
        target = await self.site.open(request.model)
        record_facts(http, prompt=target.name, version=target.version, rows=len(texts))
        try:
            if not target.task.objective.has_probabilities:
                msg = f"{target.name} has no probabilities of labels. Ask it at /v1/predict."
                raise ServingError(msg, kind="invalid", param="model")
            examples = await self._render(http, target, texts)
            raise_first(examples)
            outcomes = await self._run(http, target, examples, self.site.get_deadline(request))
        finally:
            self.site.service.close(target)
        raise_first(outcomes)
        data = [
            {
                "index": index,
                "label": one.label,
                "probs": list(one.probabilities.values()),
                "num_classes": len(one.probabilities),
            }
            for index, one in enumerate(outcomes)
            if isinstance(one, Prediction)
        ]
        good = [example for example in examples if isinstance(example, ServedRow)]
        usage = count_usage(target, good)
        header = make_header("list", request.model, prefix="classify")
        return respond({**header, "data": data, "usage": usage})

    async def list_models(self, _http: HttpRequest) -> Response:
        """The backbone and the prompts, as OpenAI and vLLM list them."""
        service = self.site.service
        base = service.base_name
        facts = {"object": "model", "created": 0, "owned_by": "softprompt"}
        names = await asyncio.to_thread(service.store.source.list_names)
        bare = [{"id": base, **facts, "root": base, "parent": None}] if service.has_base else []
        prompts = [{"id": name, **facts, "root": name, "parent": base} for name in names]
        return respond({"object": "list", "data": [*bare, *prompts]})

    async def show_model(self, http: HttpRequest) -> Response:
        """The card of a prompt."""
        name = http.path_params["name"]
        return respond(await asyncio.to_thread(self.site.service.describe, name))

    async def list_prompts(self, _http: HttpRequest) -> Response:
        """All versions of all prompts, and which of them are in memory."""
        source, resident = self.site.service.store.source, self.site.service.store.versions
        if isinstance(source, RegistrySource):
            published = await asyncio.to_thread(source.registry.list_prompts)
            data = [one.as_data() | {"resident": str(one.version) in resident} for one in published]
        else:
            data = [
                {"prompt": n, "name": n, "resident": n in resident} for n in source.list_names()
            ]
        return respond({"object": "list", "data": data})

    async def publish(self, http: HttpRequest) -> Response:
        """Publish an artifact or an ensemble as the newest version of a name."""
        registry, name = self._get_registry(), http.path_params["name"]
        upload = await read_body(http, UploadRequest)
        published = await asyncio.to_thread(_publish, registry, name, upload)
        await asyncio.to_thread(self.site.service.store.source.refresh)
        return respond(published.as_data(), status=201)

    async def pin(self, http: HttpRequest) -> Response:
        """Say which version a name means."""
        registry, name = self._get_registry(), http.path_params["name"]
        request = await read_body(http, PinRequest)
        await _attempt(registry.pin, name, request.version)
        await asyncio.to_thread(self.site.service.store.source.refresh)
        return respond({"name": name, "current": str(await _attempt(registry.resolve, name))})

    async def unpublish(self, http: HttpRequest) -> Response:
        """Withdraw a version, or all of a name."""
        registry = self._get_registry()
        gone = await _attempt(registry.unpublish, http.path_params["name"])
        await asyncio.to_thread(self.site.service.store.source.refresh)
        return respond({"unpublished": [str(version) for version in gone]})

    async def show_live(self, _http: HttpRequest) -> Response:
        """Whether the process answers."""
        return respond({"status": "ok"})

    async def show_ready(self, _http: HttpRequest) -> Response:
        """Whether to send requests here."""
        if self.site.is_ready:
            return respond({"status": "ready"})
        status = "draining" if self.site.is_draining else "stalled"
        return respond({"status": status}, status=503)

    async def show_metrics(self, _http: HttpRequest) -> Response:
        """The counters, for Prometheus."""
        content = self.site.metrics.render()
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show_openapi(self, _http: HttpRequest) -> Response:
        """The description of these routes."""
        return respond(make_openapi())

    async def show_playground(self, _http: HttpRequest) -> Response:
        """The page to try prompts on."""
        page, policy = await asyncio.to_thread(read_playground)
        headers = {"content-security-policy": policy, "cache-control": "no-store"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    def _get_registry(self) -> Registry:
        source = self.site.service.store.source
        if isinstance(source, RegistrySource) and self.site.settings.can_publish:
            return source.registry
        msg = "prompts cannot be changed here. Start the server with --registry DIR and keys."
        raise ServingError(msg, kind="forbidden")

    async def _render(
        self, http: HttpRequest, target: Target, rows: Sequence[RequestRow]
    ) -> list[ServedRow | ServingError]:
        service = self.site.service
        return await self.site.run_rendering(http, lambda: service.render_all(target, rows))

    async def _run(
        self,
        http: HttpRequest,
        target: Target,
        examples: Sequence[ServedRow | ServingError],
        deadline: float,
    ) -> list[RowOutcome]:
        """The outcome of each row; rows that were not rendered keep their error."""
        service = self.site.service
        good = [example for example in examples if isinstance(example, ServedRow)]
        tickets = service.submit(target, [RowOrder(row) for row in good], deadline=deadline)
        answers = await wait_for(tickets, receive=http.receive, deadline=deadline)
        found = iter([outcome for of_ticket in answers for outcome in of_ticket])
        return [next(found) if isinstance(one, ServedRow) else one for one in examples]

    def _describe(
        self, index: int, example: ServedRow | ServingError, outcome: RowOutcome, *, explain: bool
    ) -> dict[str, Any]:
        """The answer for one row."""
        if isinstance(outcome, ServingError) or isinstance(example, ServingError):
            fault = outcome if isinstance(outcome, ServingError) else example
            assert isinstance(fault, ServingError)  # noqa: S101  # for the types alone
            return {"index": index, **make_error_body(fault)}
        answer: dict[str, Any] = {"index": index}
        name = "label" if outcome.probabilities else "text"
        answer |= {name: outcome.label, **outcome.details}
        if outcome.probabilities:
            answer["probabilities"] = dict(outcome.probabilities)
        answer["truncated"] = example.is_truncated
        if explain:
            answer["rendered"] = self.site.service.explain(example)
        return answer


def raise_first(outcomes: Sequence[object]) -> None:
    """Raise the first error among outcomes.

    Args:
        outcomes: of rows.

    Raises:
        ServingError: a row has one.
    """
    for outcome in outcomes:
        if isinstance(outcome, ServingError):
            raise outcome


async def _attempt(function: Any, *arguments: Any) -> Any:  # noqa: ANN401  # of the registry
    """Call the registry in a thread; its errors are the sender's."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except ArtifactError as error:
        raise ServingError(str(error), kind="invalid") from error


def _publish(registry: Registry, name: str, upload: UploadRequest) -> PublishedPrompt:
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        try:
            _unpack(upload, artifact)
            return registry.publish(artifact, name)
        except ArtifactError as error:
            message = str(error).replace(str(artifact), "the artifact")
            raise ServingError(message, kind="invalid") from error


def _unpack(upload: UploadRequest, folder: Path) -> None:
    """Write the files of an upload as `softprompt.Ensemble.save` or `PromptModel.save` does."""
    folder.mkdir()
    match upload:
        case UploadRequest(manifest=bytes(one), tensors=bytes(two), ensemble=None, members=None):
            _write(UploadedPrompt(manifest=one, tensors=two), folder)
        case UploadRequest(manifest=None, tensors=None, ensemble=bytes(own), members=dict(members)):
            (folder / ENSEMBLE).write_bytes(own)
            # The description names the folders, and none that lies elsewhere.
            named = {path.name for path in list_members(folder)}
            if named != {*members}:
                msg = (
                    f"{ENSEMBLE} names the members {', '.join(sorted(named))}, but the upload has "
                    f"{', '.join(sorted(members)) or 'none'}. Send the files of each of them."
                )
                raise ServingError(msg, kind="invalid", param="members")
            for name in named:
                (folder / name).mkdir()
                _write(members[name], folder / name)
        case _:
            msg = (
                "an upload has manifest and tensors, the files of one artifact, or ensemble and "
                "members, those of an ensemble. Send one of the two pairs."
            )
            raise ServingError(msg, kind="invalid")


def _write(prompt: UploadedPrompt, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(prompt.manifest)
    (folder / TENSORS).write_bytes(prompt.tensors)


_BODIES: dict[str, tuple[str, type]] = {
    "/v1/predict": ("Predictions of any task", PredictRequest),
    "/classify": ("Classification in vLLM's form", ClassifyRequest),
    "/v1/classify": ("Classification in vLLM's form", ClassifyRequest),
    "/generative_scoring": ("Scores of the next token in vLLM's form", ScoreRequest),
    "/v1/score": ("Scores of the next token in SGLang's form", ScoreRequest),
    "/v1/completions": ("A text to continue", CompletionRequest),
    "/v1/chat/completions": ("A conversation to continue", ChatRequest),
}
_READS = {
    "/v1/models": "The backbone and the prompts",
    "/v1/models/{name}": "The card of a prompt",
    "/v1/prompts": "All versions of all prompts",
    "/livez": "Whether the process answers",
    "/readyz": "Whether to send requests here",
    "/metrics": "Counters for Prometheus",
    "/openapi.json": "This description",
}


def make_openapi() -> dict[str, Any]:
    """The description of all routes by OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {
        path: {"post": _describe_route(text, path, body=body)}
        for path, (text, body) in _BODIES.items()
    }
    paths |= {path: {"get": _describe_route(text, path)} for path, text in _READS.items()}
    prompt, pin = "/v1/prompts/{name}", "/v1/prompts/{name}/pin"
    paths[prompt] = {
        "get": _describe_route("The card of a prompt", prompt),
        "put": _describe_route("Publish an artifact or an ensemble", prompt, body=UploadRequest),
        "delete": _describe_route("Withdraw a version, or all of them", prompt),
    }
    about = "Say which version a name means"
    paths[pin] = {"put": _describe_route(about, pin, body=PinRequest)}
    kinds = {body for _, body in _BODIES.values()} | {UploadRequest, PinRequest}
    return {
        "openapi": "3.1.0",
        "info": {"title": "softprompt", "version": version_of("softprompt")},
        "paths": paths,
        "components": {
            "schemas": make_schemas(*sorted(kinds, key=lambda kind: kind.__name__)),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _describe_route(summary: str, path: str, *, body: type | None = None) -> dict[str, Any]:
    """One operation of the description."""
    fault, good = {"description": "An error in OpenAI's form."}, {"description": "The answer."}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": good, "201": good, "4XX": fault, "503": fault, "504": fault},
    }
    if "{name}" in path:
        named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [named]
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
