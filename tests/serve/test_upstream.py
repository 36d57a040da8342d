"""A gateway to vLLM: what is sent is compared bit for bit, and answers with those of `predict`."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from starlette.responses import JSONResponse, PlainTextResponse

from softprompt.errors import DataError
from softprompt.inference import Ensemble
from softprompt.serve.admission import EngineLimits
from softprompt.serve.prompts import FolderSource
from softprompt.serve.server import ServerSettings, check_prompts, make_site
from softprompt.serve.upstream import UpstreamSettings
from support.models import ROWS
from support.servers import LiveServer, run_in_thread
from support.stand_in import StandIn, run_stand_in

TEXTS = [row["text"] for row in ROWS]


@pytest.fixture
def stand_in(backbone) -> StandIn:
    return StandIn(backbone("llama").model)


@pytest.fixture
def vllm(stand_in):
    with run_stand_in(stand_in) as url:
        yield url


@pytest.fixture
def gateway(backbone, folders, vllm):
    """Starts gateways to the stand-in."""
    started = []

    def start(*, timeout=10.0, key=None, folders=folders, url=vllm, **limits) -> LiveServer:
        settings = ServerSettings(
            upstream=UpstreamSettings(url, timeout=timeout, key=key),
            engine=EngineLimits(**{"batch_rows": 16, **limits}),
        )
        source = FolderSource([*folders.values()])
        site = make_site(backbone("llama"), source, keys=[], settings=settings)
        started.append(run_in_thread(site))
        return started[-1][0]

    yield start
    for live, thread in started:
        live.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def test_the_vectors_are_those_of_the_words_and_of_the_prompt(gateway, models, stand_in) -> None:
    url = gateway().url
    for name in ("mood", "reply"):
        stand_in.vectors.clear()
        answer = httpx.post(
            f"{url}/v1/predict", json={"model": name, "rows": TEXTS[:1]}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        model = models[name]
        own = model.backbone
        vocabulary = own.geometry.vocab_size
        table = own.model.get_input_embeddings().weight.detach()
        expected = torch.stack([
            table[i] if i < vocabulary else model.prompt.vectors[i - vocabulary]
            for i in model.render(TEXTS[0]).variants[0].input_ids
        ])  # fmt: skip
        [sent] = stand_in.vectors
        assert sent.dtype == own.dtype
        assert torch.equal(sent, expected.to(own.dtype))
        assert "prompt" not in stand_in.bodies[-1]
        assert stand_in.bodies[-1]["model"] == "org/base"


def test_answers_are_those_of_predict(gateway, models) -> None:
    url = gateway().url
    for name in ("mood", "reply"):
        answer = httpx.post(f"{url}/v1/predict", json={"model": name, "rows": TEXTS}, timeout=30)
        for one, expected in zip(answer.json()["data"], models[name].predict(TEXTS), strict=True):
            assert one.get("label", one.get("text")) == expected.label
            if expected.probabilities:
                own = dict(expected.probabilities)
                assert one["probabilities"] == pytest.approx(own, abs=1e-5)
    data = httpx.post(f"{url}/classify", json={"model": "mood", "input": TEXTS[0]}).json()["data"]
    assert data[0]["label"] == models["mood"].predict(TEXTS[0])[0].label


def test_the_official_client_works_through_it(gateway, models, backbone, stand_in) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{gateway().url}/v1", api_key="none", max_retries=0)
    expected = models["reply"].predict(TEXTS[0])[0]
    assert (
        client.completions.create(model="reply", prompt=TEXTS[0]).choices[0].text == expected.label
    )
    streamed = client.completions.create(model="reply", prompt=TEXTS[0], stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == expected.label
    chat = client.chat.completions.create(
        model="reply", messages=[{"role": "user", "content": TEXTS[0]}], logprobs=True,
        top_logprobs=2,
    )  # fmt: skip
    assert chat.choices[0].message.content == expected.label
    assert len(chat.choices[0].logprobs.content) == len(expected.token_ids)
    assert all(len(one.top_logprobs) == 2 for one in chat.choices[0].logprobs.content)
    base = backbone("llama").name.rpartition("/")[2]
    plain = client.completions.create(model=base, prompt="the film", max_tokens=3, temperature=0)
    ids = backbone("llama").tokenizer("the film")["input_ids"]
    assert stand_in.bodies[-1]["prompt"] == ids
    assert plain.usage.completion_tokens <= 3
    several = client.completions.create(
        model="reply", prompt=TEXTS[0], temperature=1.5, n=4, seed=3, max_tokens=6,
        extra_body={"min_p": 0.01, "top_k": 50},
    )  # fmt: skip
    assert len({one.text for one in several.choices}) > 1
    sent = stand_in.bodies[-4:]
    assert len({body["seed"] for body in sent}) == 4
    assert {body["min_p"] for body in sent} == {0.01}
    whole = several.choices[0].text
    stopped = client.completions.create(
        model="reply", prompt=TEXTS[0], temperature=1.5, seed=3, max_tokens=6, stop=whole[2:4],
        extra_body={"min_p": 0.01, "top_k": 50},
    )  # fmt: skip
    assert stopped.choices[0].text == whole[: whole.index(whole[2:4])]


def test_a_stream_passes_through_as_it_comes(gateway, stand_in) -> None:
    stand_in.pause = 0.15
    url = gateway().url
    body = {"model": "reply", "prompt": TEXTS[0], "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
        came = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
    assert came[-1] - came[0] > 0.15


# Requests whose answer takes until the stand-in lets it go.
SLOW = {
    "a stream": ("/v1/completions", {"model": "reply", "prompt": TEXTS[0], "stream": True}),
    "a text": ("/v1/completions", {"model": "reply", "prompt": TEXTS[0]}),
    "a chat": ("/v1/chat/completions",
               {"model": "reply", "messages": [{"role": "user", "content": TEXTS[0]}]}),
    "texts of rows": ("/v1/predict", {"model": "reply", "rows": TEXTS[:1]}),
    "a label": ("/v1/predict", {"model": "mood", "rows": TEXTS[:1]}),
    "a class": ("/classify", {"model": "mood", "input": TEXTS[0]}),
    "a label as text": ("/v1/completions", {"model": "mood", "prompt": TEXTS[0], "stream": True}),
}  # fmt: skip


def wait_until(has_happened, *, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not has_happened() and time.monotonic() < end:
        time.sleep(0.01)
    return has_happened()


def ask_and_leave(url: str, way: str, has_arrived) -> None:
    """Send a request, and leave when it is there."""
    path, body = SLOW[way]

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.create_task(client.post(f"{url}{path}", json=body))
            assert await asyncio.to_thread(wait_until, has_arrived)
            assert not asking.done()
            asking.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("way", SLOW)
def test_a_client_that_leaves_ends_the_upstream_request(gateway, stand_in, way: str) -> None:
    live = gateway(timeout=60)
    stand_in.is_held, stand_in.pause = True, 0.3
    ask_and_leave(live.url, way, lambda: len(stand_in.bodies) > 0)
    assert wait_until(lambda: stand_in.left == 1)
    assert wait_until(lambda: live.site.service.engine.queued_rows == 0)
    assert live.site.service.store._shelf.uses == {}
    assert live.site.service.engine.counts.cancelled == 1
    stand_in.is_held = False


def test_others_are_answered_when_a_client_leaves(gateway, models, stand_in) -> None:
    """And texts are written while a label is awaited."""
    live = gateway(timeout=60)
    stand_in.is_held = True
    with ThreadPoolExecutor() as pool:
        body = {"model": "mood", "rows": TEXTS[:2]}
        staying = pool.submit(httpx.post, f"{live.url}/v1/predict", json=body, timeout=60)
        assert wait_until(lambda: len(stand_in.bodies) == 2)
        ask_and_leave(live.url, "a label", lambda: len(stand_in.bodies) == 3)
        assert wait_until(lambda: stand_in.left == 1)
        written = httpx.post(f"{live.url}/v1/predict", json=SLOW["texts of rows"][1], timeout=30)
        [expected] = models["reply"].predict(TEXTS[:1])
        assert written.json()["data"][0]["text"] == expected.label
        assert not staying.done()
        stand_in.is_held = False
        data = staying.result().json()["data"]
    assert [one["label"] for one in data] == [
        one.label for one in models["mood"].predict(TEXTS[:2])
    ]
    assert stand_in.left == 1


def test_what_a_stopping_server_has_sent_is_refused(gateway, stand_in) -> None:
    live = gateway(timeout=60)
    stand_in.is_held = True
    with ThreadPoolExecutor() as pool:
        path, body = SLOW["a label"]
        asking = pool.submit(httpx.post, f"{live.url}{path}", json=body, timeout=30)
        assert wait_until(lambda: len(stand_in.bodies) == 1)
        live.site.service.engine.stop(timeout=0.0)
        assert asking.result().json()["error"]["code"] == "stopping"
    stand_in.is_held = False


def test_scores_of_tokens_pass_through(gateway, models) -> None:
    body = {"model": "reply", "query": TEXTS[0], "items": [""], "label_token_ids": [3, 4]}
    answer = httpx.post(f"{gateway().url}/v1/score", json=body, timeout=30).json()
    model = models["reply"]
    ids = list(model.render(TEXTS[0]).variants[0].input_ids)
    own, vocabulary = model.backbone.model, model.backbone.geometry.vocab_size
    table = own.get_input_embeddings().weight
    rows = torch.stack([
        table[i] if i < vocabulary else model.prompt.vectors[i - vocabulary] for i in ids
    ])  # fmt: skip
    with torch.no_grad():
        expected = own(inputs_embeds=rows[None]).logits[0, -1].float().softmax(-1)[[3, 4]]
    assert answer["scores"][0] == pytest.approx(expected.tolist(), abs=1e-5)


def test_what_cannot_go_there_is_named(gateway) -> None:
    live = gateway()
    faults = check_prompts(live.site.service.store)
    assert {*faults} == {"names", "tone", "rating", "pick"}
    assert "keys and values" in faults["tone"]
    assert "trained head" in faults["rating"]
    answer = httpx.post(f"{live.url}/v1/predict", json={"model": "tone", "rows": ["a"]})
    assert answer.status_code == 503
    assert "vLLM takes vectors at the input alone" in answer.json()["error"]["message"]
    echo = {"model": "reply", "prompt": "a", "echo": True, "logprobs": 1}
    refused = httpx.post(f"{live.url}/v1/completions", json=echo)
    assert refused.status_code == 400
    assert "echo with logprobs" in refused.json()["error"]["message"]


def test_ensembles_go_there_member_by_member(gateway, model, stand_in, tmp_path: Path) -> None:
    first = model(("llama", "words", "input"), seed=1)
    other = model(("llama", "words", "input"), prompt=first.prompt.map_tensors(torch.neg), seed=2)
    both = Ensemble([first, other], vote="mean")
    live = gateway(folders={"both": both.save(tmp_path / "both")})
    answer = httpx.post(f"{live.url}/v1/predict", json={"model": "both", "rows": TEXTS}, timeout=30)
    for one, expected in zip(answer.json()["data"], both.predict(TEXTS), strict=True):
        assert one["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)
    assert len(stand_in.vectors) == 2 * len(TEXTS)


FAULTS = {
    "busy": (lambda _: JSONResponse({"error": {"message": "queue"}}, 429, {"retry-after": "7"}),
             503, "full", "is busy: queue"),
    "refused": (lambda _: JSONResponse({"error": {"message": "too long."}}, 400),
                400, "invalid", "too long. It must serve the prompt's backbone"),
    "broken": (lambda _: JSONResponse({"detail": "oops"}, 500), 502, "upstream", "oops"),
    "not JSON": (lambda _: PlainTextResponse("<html>"), 502, "upstream", "Look at its log"),
    "no tokens": (lambda _: JSONResponse({"choices": [{"text": "a"}]}), 502, "upstream", ""),
    "no choices": (lambda _: JSONResponse({"choices": []}), 502, "upstream", ""),
    "unknown model": (lambda _: JSONResponse({"error": {"message": "gone"}}, 404), 502, "upstream",
                      "answered 404: gone"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", ["mood", "reply"])
def test_a_failure_upstream_is_an_error_of_its_kind(gateway, stand_in, kind, name) -> None:
    fault, status, code, fact = FAULTS[kind]
    url = gateway().url
    stand_in.fault = fault
    answer = httpx.post(f"{url}/v1/predict", json={"model": name, "rows": TEXTS[:3]}, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert fact in error["message"]
    if kind == "busy":
        assert answer.headers["retry-after"] == "7"
    stand_in.fault = lambda _: None
    good = httpx.post(f"{url}/v1/predict", json={"model": name, "rows": TEXTS[:1]}, timeout=30)
    assert good.status_code == 200


def test_a_row_that_fails_leaves_its_mates_alone(gateway, models, stand_in) -> None:
    url = gateway().url
    seen = iter(range(100))
    stand_in.fault = lambda _: (
        JSONResponse({"error": {"message": "no"}}, 400) if next(seen) == 1 else None
    )
    answer = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": TEXTS}, timeout=30)
    data = answer.json()["data"]
    assert sum("error" in one for one in data) == 1
    for one, expected in zip(data, models["mood"].predict(TEXTS), strict=True):
        assert "error" in one or one["label"] == expected.label


def test_silence_upstream_is_a_timeout(gateway, stand_in) -> None:
    async def wait() -> None:
        await asyncio.sleep(3)

    url = gateway(timeout=0.3).url
    stand_in.fault = lambda _: wait()
    for name in ("mood", "reply"):
        answer = httpx.post(f"{url}/v1/predict", json={"model": name, "rows": ["a"]}, timeout=30)
        assert answer.status_code == 504
        assert "sent nothing for 0.3 s" in answer.json()["error"]["message"]


def test_a_server_that_is_gone_is_named(gateway, backbone, folders, stand_in) -> None:
    with run_stand_in(stand_in) as url:
        live = gateway(url=url)
    for name in ("mood", "reply"):
        answer = httpx.post(f"{live.url}/v1/predict", json={"model": name, "rows": ["a"]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "cannot be reached" in answer.json()["error"]["message"]
    source = FolderSource([folders["mood"]])
    for settings, fact in (
        (UpstreamSettings(url), "cannot be reached"),
        (UpstreamSettings("ftp://nowhere"), "cannot be reached"),
    ):
        with pytest.raises(DataError, match=fact):
            make_site(
                backbone("llama"), source, keys=[], settings=ServerSettings(upstream=settings)
            )


def test_the_model_and_the_key_are_passed_on(backbone, folders, vllm, stand_in, gateway) -> None:
    url = gateway(key="sk-upstream").url
    httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": ["a"]}, timeout=30)
    assert stand_in.headers[-1]["authorization"] == "Bearer sk-upstream"
    settings = ServerSettings(upstream=UpstreamSettings(vllm, model="other"))
    with pytest.raises(DataError, match="has the models org/base, not 'other'"):
        make_site(backbone("llama"), FolderSource([folders["mood"]]), keys=[], settings=settings)
