"""A stand-in for vLLM: a plain transformers model answers requests with vectors as vLLM does."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor


class StandIn:
    """The server's state.

    Args:
        plain: a causal model of transformers.
        name: of the model.

    Attributes:
        bodies: of the requests that came.
        vectors: that they had, decoded.
        left: the number of requests whose client went away before their answer was whole.
        fault: is called with each body, and may answer in place of the model.
        pause: in seconds, before each token of a stream.
        is_held: whether answers that are not streams wait.
    """

    def __init__(self, plain: Any, name: str = "org/base") -> None:
        self.plain, self.name = plain, name
        self.bodies: list[dict[str, Any]] = []
        self.vectors: list[Tensor] = []
        self.left = 0
        self.fault: Any = lambda _: None
        self.pause = 0.0
        self.is_held = False
        self.headers: list[dict[str, str]] = []

    async def list_models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if (answer := self.fault(body)) is not None:
            return await answer if asyncio.iscoroutine(answer) else answer
        if body["model"] != self.name:
            return JSONResponse({"error": {"message": "no such model"}}, status_code=404)
        steps = self._generate(body)
        if body.get("stream"):
            return StreamingResponse(self._stream(steps), media_type="text/event-stream")
        while self.is_held:
            if await request.is_disconnected():
                self.left += 1
                break
            await asyncio.sleep(0.01)
        *_, last = list(steps)
        return JSONResponse({"choices": [last]})

    async def _stream(self, steps: Iterator[dict[str, Any]]) -> AsyncIterator[str]:
        is_whole = False
        try:
            for step in steps:
                await asyncio.sleep(self.pause)
                yield f"data: {json.dumps({'choices': [step]})}\n\n"
            yield "data: [DONE]\n\n"
            is_whole = True
        finally:
            self.left += not is_whole

    def _embed(self, body: dict[str, Any]) -> Tensor:
        table = self.plain.get_input_embeddings()
        if "prompt_embeds" not in body:
            return table(torch.tensor(body["prompt"]))
        raw = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
        self.vectors.append(torch.load(raw, weights_only=True))
        return self.vectors[-1]

    @torch.no_grad()
    def _generate(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One choice for each token, greedily; sampling takes the token at random by the seed."""
        rows = self._embed(body)[None]
        dice = torch.Generator().manual_seed(body.get("seed", 0))
        for step in range(body["max_tokens"]):
            logits = self.plain(inputs_embeds=rows, use_cache=False).logits[0, -1].float()
            scores = logits.log_softmax(0)
            allowed = torch.tensor(body.get("allowed_token_ids") or range(len(scores)))
            if body["temperature"]:
                shares = (logits[allowed] / body["temperature"]).softmax(0)
                token = int(allowed[torch.multinomial(shares, 1, generator=dice)])
            else:
                token = int(allowed[scores[allowed].argmax()])
            is_end = token in body["stop_token_ids"]
            is_last = is_end or step + 1 == body["max_tokens"]
            reason = ("stop" if is_end else "length") if is_last else None
            choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}
            if "logprobs" in body:
                best = scores.topk(body["logprobs"]).indices.tolist()
                names = [token, *best, *body.get("logprob_token_ids", [])]
                choice["logprobs"] = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [scores[token].item()],
                    "top_logprobs": [{f"token_id:{t}": scores[t].item() for t in names}],
                }
            yield choice
            if is_last:
                return
            new = self.plain.get_input_embeddings()(torch.tensor([[token]]))
            rows = torch.cat([rows, new], dim=1)


@contextmanager
def run_stand_in(stand_in: StandIn) -> Iterator[str]:
    """Run it on a port of this machine.

    Args:
        stand_in: to run.

    Yields:
        The address of its root.
    """
    ports: Queue[int] = Queue()
    routes = [
        Route("/v1/models", stand_in.list_models, methods=["GET"]),
        Route("/v1/completions", stand_in.complete, methods=["POST"]),
    ]

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ports.put(self.servers[0].sockets[0].getsockname()[1])

    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_config=None, timeout_graceful_shutdown=1
    )
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{ports.get(timeout=30)}"
    finally:
        server.should_exit = True
        thread.join(30)
