"""Scores of tokens that may come next, in vLLM's and in SGLang's form."""

from collections.abc import Mapping, Sequence
from math import exp, fsum

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from softprompt.inference.generated_row import GenerationEvent, ScoreOptions
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import ScoreRequest, make_header
from softprompt.serve.routes import count_usage, raise_first
from softprompt.serve.service import Service
from softprompt.serve.site import Site, read_body, record_facts, respond, wait_for
from softprompt.serve.targets import OnEvent, RowOrder, ServedRow, Target, TextOptions
from softprompt.tasks.generation import TextGenerator

_MAX_LABELS = 1024
_Logprobs = dict[int, Mapping[int, float]]


class ScoreRoutes:
    """The routes of a site that score tokens.

    Args:
        site: the shared state.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    async def score_first(self, http: HttpRequest) -> Response:
        """The score of the first label of each item, as vLLM's ``/generative_scoring``."""
        request = await read_body(http, ScoreRequest)
        target, rows, found = await self._score(http, request)
        is_share = request.apply_softmax is not False
        data = [
            {
                "index": index,
                "object": "score",
                "score": _list_scores(found[index], request.label_token_ids, is_share=is_share)[0],
            }
            for index in range(len(rows))
        ]
        header = make_header("list", request.model, prefix="generative-scoring")
        return respond({**header, "data": data, "usage": count_usage(target, rows)})

    async def score_all(self, http: HttpRequest) -> Response:
        """The scores of all labels of each item, as SGLang's ``/v1/score``."""
        request = await read_body(http, ScoreRequest)
        target, rows, found = await self._score(http, request)
        is_share = request.apply_softmax is True
        scores = [
            _list_scores(found[index], request.label_token_ids, is_share=is_share)
            for index in range(len(rows))
        ]
        header = make_header("scoring", request.model, prefix="score")
        return respond({**header, "scores": scores, "usage": count_usage(target, rows)})

    async def _score(
        self, http: HttpRequest, request: ScoreRequest
    ) -> tuple[Target, list[ServedRow], _Logprobs]:
        """The log-probabilities of the labels after each item."""
        service, found = self.site.service, _Logprobs()
        self.site.check_count(request.items, "items")
        if not 0 < len(request.label_token_ids) <= _MAX_LABELS:
            msg = (
                f"label_token_ids has {len(request.label_token_ids)} entries; 1 to {_MAX_LABELS} "
                "are scored. Give the ids of the tokens that may come next."
            )
            raise ServingError(msg, kind="invalid", param="label_token_ids")
        target = await self.site.open(request.model)
        try:
            rows = await self.site.run_rendering(http, lambda: _render(service, target, request))
            record_facts(http, prompt=target.name, version=target.version, rows=len(rows))
            scores = ScoreOptions(tokens=tuple(dict.fromkeys(request.label_token_ids)))
            options = TextOptions(max_tokens=1, temperature=0.0, scores=scores)
            orders = [
                RowOrder(row, options, _make_reader(found, index)) for index, row in enumerate(rows)
            ]
            deadline = self.site.get_deadline(request)
            tickets = service.submit(target, orders, deadline=deadline)
            answers = await wait_for(tickets, receive=http.receive, deadline=deadline)
        finally:
            service.close(target)
        raise_first([outcome for of_ticket in answers for outcome in of_ticket])
        return target, rows, found


def _make_reader(found: _Logprobs, index: int) -> OnEvent:
    """Takes the log-probabilities of the first step."""

    def read(event: GenerationEvent) -> None:
        if event.scores:
            found.setdefault(index, event.scores[0].also)

    return read


def _render(service: Service, target: Target, request: ScoreRequest) -> list[ServedRow]:
    if target.vote is not None or not isinstance(target.task, TextGenerator):
        why = "is an ensemble" if target.vote is not None else "classifies by its own labels"
        msg = (
            f"{target.name} {why}, so tokens are not scored with it. Ask it at /v1/classify, or "
            "name a prompt that generates text, or the backbone."
        )
        raise ServingError(msg, kind="invalid", param="model")
    query = request.query
    texts = [item + query if request.item_first else query + item for item in request.items]
    return [service.render(target, text) for text in texts]


def _list_scores(
    logprobs: Mapping[int, float], labels: Sequence[int], *, is_share: bool
) -> list[float]:
    """The scores of the labels: shares among them, or probabilities among all tokens."""
    own = [exp(logprobs[label]) for label in labels]
    if not is_share:
        return own
    best = max(logprobs.values())
    weights = [exp(logprobs[label] - best) for label in labels]
    return [weight / fsum(weights) for weight in weights]
