"""The protocols over HTTP: answers, errors, limits, keys, streams, administration, the drain."""

import base64
import gc
import json
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.errors import DataError
from softprompt.inference import Ensemble
from softprompt.serve.admission import EngineLimits
from softprompt.serve.faults import ServingError
from softprompt.serve.keys import ApiKey, KeyRing, load_keys, make_key
from softprompt.serve.prompts import FolderSource, RegistrySource
from softprompt.serve.registry import Registry
from softprompt.serve.server import (
    DrainingServer,
    ServerSettings,
    check_settings,
    make_site,
    run_server,
)
from support.models import ROWS

TEXTS = [row["text"] for row in ROWS]
SECRET, ADMIN = "a-secret-of-sixteen", "another-secret-of-sixteen"


def make_keys(**limits) -> list[ApiKey]:
    environment = {"SOFTPROMPT_ADMIN_KEY": ADMIN, "SOFTPROMPT_API_KEY": SECRET}
    admin, user = sorted(load_keys(None, environment), key=lambda key: -len(key.scopes))
    return [admin, ApiKey(user.name, user.sha256, user.scopes, **limits)]


def test_every_task_predicts_as_offline(serve, models) -> None:
    url = serve().url
    with httpx.Client(base_url=url) as client:
        for name, model in models.items():
            answer = client.post("/v1/predict", json={"model": name, "rows": TEXTS})
            assert answer.status_code == 200, answer.text
            data = answer.json()["data"]
            assert [one["index"] for one in data] == [*range(len(TEXTS))]
            for one, expected in zip(data, model.predict(TEXTS), strict=True):
                assert one.get("label", one.get("text")) == expected.label
                if expected.probabilities:
                    own = dict(expected.probabilities)
                    assert one["probabilities"] == pytest.approx(own, abs=2e-6)


def test_a_bad_row_has_an_error_and_its_mates_an_answer(serve, models) -> None:
    url = serve().url
    rows = ["dull", {"txet": "dull"}, {"text": "great music"}, {"text": None}]
    data = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": rows}).json()["data"]
    expected = models["mood"].predict(["dull", "great music"])
    assert [data[0]["label"], data[2]["label"]] == [one.label for one in expected]
    for index in (1, 3):
        assert data[index]["error"]["code"] == "invalid"
        assert "text" in data[index]["error"]["message"]
    alone = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": rows[1:2]})
    assert alone.status_code == 400


@pytest.mark.parametrize("bad", [(), (0,), (63, 64), (5, 70, 129)])
def test_rows_are_rendered_together_as_alone(backbone, folders, models, bad) -> None:
    """Also across the border of what is rendered at once; a bad row takes none with it."""
    settings = ServerSettings()
    site = make_site(
        backbone("llama"), FolderSource([*folders.values()]), keys=[], settings=settings
    )
    service = site.service
    rows = [{"txet": "x"} if n in bad else f"{n} {TEXTS[n % len(TEXTS)]}" for n in range(130)]
    target = service.open("mood")
    for n, (row, found) in enumerate(zip(rows, service.render_all(target, rows), strict=True)):
        if n in bad:
            assert isinstance(found, ServingError)
            with pytest.raises(ServingError) as alone:
                service.render(target, row)
            assert str(alone.value) == str(found)
        else:
            assert found.views == (models["mood"].render(row),)
    service.close(target)
    site.close()


def test_a_server_searches_no_cycles_among_what_was_there_before(
    backbone, folders, monkeypatch
) -> None:
    """A search of the libraries' half a million objects stops all threads."""
    gc.unfreeze()  # what the tests have frozen
    settings, during = ServerSettings(port=0), []
    source = FolderSource([*folders.values()])
    site = make_site(backbone("llama"), source, keys=[], settings=settings)
    kept = [[n] for n in range(1000)]

    def run(_server, sockets) -> None:
        during.append(gc.get_freeze_count())
        sockets[0].close()

    monkeypatch.setattr(DrainingServer, "run", run)
    run_server(site, settings)
    assert during[0] >= len(kept)
    assert gc.get_freeze_count() == 0
    site.close()
    gc.freeze()


def test_a_row_is_explained(serve, models) -> None:
    url = serve().url
    content = {"model": "mood", "rows": ["dull"], "explain": True}
    answer = httpx.post(f"{url}/v1/predict", json=content).json()
    parts = answer["data"][0]["rendered"]
    assert [part["soft"] for part in parts if "soft" in part] == [3]
    assert "dull is" in "".join(part.get("text", "") for part in parts)
    ids = models["mood"].render("dull").variants[0].input_ids
    assert answer["usage"] == {
        "prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids),
        "prompt_tokens_details": {"virtual_tokens": 3},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classification_has_the_form_of_vllm(serve, models, path: str) -> None:
    answer = httpx.post(f"{serve().url}{path}", json={"model": "tone", "input": TEXTS[:2]}).json()
    assert {*answer} == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "tone")
    for one, expected in zip(answer["data"], models["tone"].predict(TEXTS[:2]), strict=True):
        assert one["label"] == expected.label
        assert one["probs"] == pytest.approx([*expected.probabilities.values()], abs=2e-6)
        assert one["num_classes"] == 2


def test_the_official_client_works(serve, models) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{serve().url}/v1", api_key="none", max_retries=0)
    names = {model.id: model for model in client.models.list()}
    assert {*models} < {*names}
    base = next(name for name in names if name not in models)
    assert names["reply"].parent == base
    assert client.models.retrieve("mood").labels == ["negative", "positive"]
    expected = models["reply"].predict(TEXTS[0])[0]
    done = client.completions.create(model="reply", prompt=TEXTS[0])
    assert done.choices[0].text == expected.label
    assert done.usage.completion_tokens <= 4
    pieces = client.completions.create(
        model="reply", prompt=TEXTS[:3], stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", "", ""], None
    for piece in pieces:
        usage = piece.usage or usage
        for choice in piece.choices:
            texts[choice.index] += choice.text
    assert texts == [one.label for one in models["reply"].predict(TEXTS[:3])]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    chat = client.chat.completions.create(
        model="reply", messages=[{"role": "user", "content": TEXTS[0]}]
    )
    assert chat.choices[0].message.content == expected.label
    stream = client.chat.completions.create(
        model="mood", messages=[{"role": "user", "content": TEXTS[0]}], stream=True
    )
    said = [piece.choices[0].delta.content or "" for piece in stream]
    assert "".join(said) == models["mood"].predict(TEXTS[0])[0].label
    short = client.completions.create(model="reply", prompt=TEXTS[0], max_tokens=1)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 1
    with pytest.raises(openai.NotFoundError, match="unknown prompt 'nobody'"):
        client.completions.create(model="nobody", prompt="a")
    with pytest.raises(openai.BadRequestError, match="suffix = 'a' is not supported"):
        client.completions.create(model="reply", prompt="a", suffix="a")
    plain = client.completions.create(model=base, prompt="the film", max_tokens=3, temperature=0)
    assert plain.usage.completion_tokens <= 3


def test_sampling_has_a_seed_and_stop_strings_end(serve, models) -> None:
    url = serve().url

    def ask(**options) -> str:
        content = {"model": "reply", "prompt": TEXTS[0], "temperature": 1.5, **options}
        return httpx.post(f"{url}/v1/completions", json=content).json()["choices"][0]["text"]

    assert ask(seed=1, max_tokens=8) == ask(seed=1, max_tokens=8)
    assert len({ask(seed=seed, max_tokens=8) for seed in range(4)}) > 1
    whole = ask(seed=1, max_tokens=8)
    assert ask(seed=1, max_tokens=8, stop=whole[2:4]) == whole[: whole.index(whole[2:4])]


BAD_BODIES = {
    b"": "not a valid request",
    b"{": "not a valid request",
    b"[]": "not a valid request",
    b'{"model": "mood"}': "missing required field",
    b'{"model": "mood", "rows": "a"}': "Expected `array`",
    b'{"model": "mood", "rows": [], "x": 1}': "unknown field `x`",
    b'{"model": "mood", "rows": []}': "has 0 entries",
    b'{"model": "mood", "rows": [1]}': "rows[",
    b'{"model": "mood", "rows": ["a"], "timeout": -1}': "timeout = -1",
    b'{"model": "mood", "rows": ["a"], "timeout": NaN}': "not a valid request",
    b'{"model": 3, "rows": ["a"]}': "Expected `str`",
    b'{"model": "../mood", "rows": ["a"]}': "unknown prompt",
    b'{"model": "mood", "rows": ["\xff"]}': "not a valid request",
    b"[" * 100_000: "not a valid request",
}


def test_a_wrong_body_gets_an_error_in_openais_form(serve) -> None:
    url, headers = serve().url, {"content-type": "application/json"}
    for body, fact in BAD_BODIES.items():
        answer = httpx.post(f"{url}/v1/predict", content=body, headers=headers)
        assert answer.status_code in {400, 404}, body[:40]
        error = answer.json()["error"]
        assert {*error} == {"message", "type", "param", "code"}
        assert fact in error["message"], (body[:40], error["message"])
    text = httpx.post(f"{url}/v1/predict", content=b"{}", headers={"content-type": "text/plain"})
    assert "Send application/json" in text.json()["error"]["message"]
    assert httpx.get(f"{url}/nowhere").json()["error"]["code"] == "unknown"
    assert httpx.get(f"{url}/v1/predict").status_code == 405
    assert httpx.get(f"{url}/livez").status_code == 200


def test_a_body_is_bounded_before_it_is_read(serve) -> None:
    url = serve(max_body_bytes=1000).url
    large = {"model": "mood", "rows": ["a" * 2000]}
    assert httpx.post(f"{url}/v1/predict", json=large).status_code == 413

    def stream():
        for _ in range(10):
            yield b" " * 500

    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/predict", content=stream(), headers=headers)
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["error"]["message"]


def test_without_keys_other_hosts_are_refused(serve) -> None:
    url = serve().url
    answer = httpx.get(f"{url}/v1/models", headers={"host": "evil.example"})
    assert answer.status_code == 403
    with pytest.raises(DataError, match="without keys only this machine"):
        check_settings(ServerSettings(host="0.0.0.0"), [])  # noqa: S104  # it is refused
    check_settings(ServerSettings(host="0.0.0.0"), make_keys())  # noqa: S104
    with pytest.raises(DataError, match="TLS needs both files"):
        check_settings(ServerSettings(certificate=Path("a")), [])


def test_pages_of_other_origins_get_no_answers(serve) -> None:
    """CORS is off: a browser asks first, and is not told that it may."""
    url = serve().url
    origin = {"origin": "https://evil.example"}
    asks = {"access-control-request-method": "POST", **origin}
    before = httpx.options(f"{url}/v1/predict", headers=asks)
    assert before.status_code == 405
    after = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": ["a"]}, headers=origin)
    for answer in (before, after, httpx.get(f"{url}/v1/models", headers=origin)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    # A form of another origin can send text without asking first; it is refused.
    form = httpx.post(f"{url}/v1/predict", content=b"{}", headers={"content-type": "text/plain"})
    assert form.status_code == 400


ROUTES = [
    ("GET", "/"), ("GET", "/v1/models"), ("GET", "/v1/models/mood"), ("POST", "/v1/predict"),
    ("POST", "/classify"), ("POST", "/v1/classify"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/openapi.json"),
    ("GET", "/v1/prompts"), ("PUT", "/v1/prompts/a"), ("DELETE", "/v1/prompts/a"),
    ("PUT", "/v1/prompts/a/pin"), ("GET", "/nowhere"),
]  # fmt: skip


def test_every_route_but_health_needs_a_key(serve) -> None:
    url = serve(keys=make_keys()).url
    with httpx.Client(base_url=url) as client:
        for method, path in ROUTES:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert "www-authenticate" in answer.headers
        for path in ("/livez", "/readyz", "/health"):
            assert client.get(path).status_code == 200
        bearer = {"authorization": f"Bearer {SECRET}"}
        basic = {"authorization": "Basic " + base64.b64encode(f":{SECRET}".encode()).decode()}
        for headers in (bearer, basic):
            assert client.get("/v1/models", headers=headers).status_code == 200
            for path in ("/v1/prompts", "/metrics"):
                assert client.get(path, headers=headers).status_code == 403
        admin = {"authorization": f"Bearer {ADMIN}"}
        for path in ("/v1/prompts", "/metrics", "/v1/models"):
            assert client.get(path, headers=admin).status_code == 200


def test_keys_have_limits() -> None:
    now = [0.0]
    _, key = make_keys(requests_per_minute=2, max_requests=3)
    ring = KeyRing([key], clock=lambda: now[0])
    for _ in range(2):
        ring.enter(key)
    with pytest.raises(Exception, match="its 2 requests of this minute") as error:
        ring.enter(key)
    assert (error.value.status, error.value.retry_after) == (429, 30)
    now[0] = 30.0
    ring.enter(key)
    now[0] = 90.0
    with pytest.raises(Exception, match="has 3 requests open"):
        ring.enter(key)
    ring.leave(key)
    ring.enter(key)


def test_the_file_of_keys_is_strict(tmp_path: Path) -> None:
    secret, lines = make_key("team")
    path = tmp_path / "keys.toml"
    path.write_text(lines, "utf-8")
    [key] = load_keys(path, {})
    assert secret not in lines
    assert KeyRing([key]).authenticate(secret, scope="predict") == key
    for damage in (
        lines.replace("predict", "everything"),
        lines.replace('name = "team"', ""),
        lines.replace('sha256 = "', 'sha256 = "0'),
        lines + "requests_per_minute = 0\n",
        lines + "request_per_minute = 5\n",
        lines * 2,
        "[[key",
        "",
    ):
        path.write_text(damage, "utf-8")
        with pytest.raises(DataError):
            load_keys(path, {})
    with pytest.raises(DataError, match="at least 16"):
        load_keys(None, {"SOFTPROMPT_API_KEY": "short"})


def test_a_full_queue_says_when_to_come_back(serve, models, monkeypatch) -> None:
    live = serve(engine=EngineLimits(queued_rows=8, batch_rows=1))
    opened, entered = threading.Event(), threading.Event()
    engine = live.site.service.engine
    predict = engine._predict

    def wait(rows):
        entered.set()
        assert opened.wait(30)
        return predict(rows)

    monkeypatch.setattr(engine, "_predict", wait)
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{live.url}/v1/predict", json={"model": "mood", "rows": TEXTS}, timeout=60)
        )
    )
    first.start()
    assert entered.wait(30)
    limited = httpx.post(f"{live.url}/v1/predict", json={"model": "mood", "rows": ["a"]})
    full = httpx.post(f"{live.url}/v1/predict", json={"model": "tone", "rows": ["a", "b"]})
    assert (limited.status_code, full.status_code) == (429, 503)
    for answer in (limited, full):
        assert int(answer.headers["retry-after"]) >= 1
    opened.set()
    first.join()
    assert answers[0].status_code == 200


def test_a_client_that_leaves_cancels_its_rows(serve, monkeypatch) -> None:
    live = serve(engine=EngineLimits(batch_rows=1))
    engine = live.site.service.engine
    predict, done = engine._predict, []

    def slow(rows):
        time.sleep(0.2)
        done.append(len(rows))
        return predict(rows)

    monkeypatch.setattr(engine, "_predict", slow)
    content = {"model": "mood", "rows": TEXTS * 5}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/predict", json=content, timeout=0.5)
    end = time.monotonic() + 10
    while engine.queued_rows and time.monotonic() < end:
        time.sleep(0.02)
    assert engine.queued_rows == 0
    assert len(done) < 15
    assert engine.counts.cancelled > 0


def test_a_stream_that_is_left_is_cancelled(serve) -> None:
    live = serve()
    content = {"model": "reply", "prompt": TEXTS[0], "stream": True, "max_tokens": 30}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=content) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 10
    store, engine = live.site.service.store, live.site.service.engine
    while (engine.queued_rows or store._shelf.uses) and time.monotonic() < end:
        time.sleep(0.02)
    assert engine.queued_rows == 0
    assert store._shelf.uses == {}


def test_a_deadline_is_kept(serve, monkeypatch) -> None:
    live = serve(engine=EngineLimits(batch_rows=1))
    engine = live.site.service.engine
    predict = engine._predict
    monkeypatch.setattr(engine, "_predict", lambda rows: time.sleep(0.2) or predict(rows))
    content = {"model": "mood", "rows": TEXTS, "timeout": 0.3}
    answer = httpx.post(f"{live.url}/v1/predict", json=content, timeout=30)
    if answer.status_code == 200:  # the rows that were in time have their answer
        kinds = {one["error"]["code"] for one in answer.json()["data"] if "error" in one}
        assert kinds == {"expired"}
    else:
        assert answer.status_code == 504


def read_file(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def read_upload(folder: Path) -> dict[str, str]:
    names = {"manifest": "manifest.json", "tensors": "prompt.safetensors"}
    return {key: read_file(folder / name) for key, name in names.items()}


def test_an_ensemble_is_published_over_http(serve, folders, model, models, tmp_path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    live = serve(source=RegistrySource(registry), keys=make_keys(), can_publish=True)
    prompt = models["mood"].prompt.map_tensors(torch.neg)
    both = Ensemble([models["mood"], model(("llama", "words", "input"), prompt=prompt)])
    folder = both.save(tmp_path / "both")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    members = {name: read_upload(folder / name) for name in names}
    upload = {"ensemble": read_file(folder / "ensemble.json"), "members": members}
    first = members[names[0]]
    elsewhere = json.loads((folder / "ensemble.json").read_text())
    elsewhere["members"]["../../aside"] = "0" * 64
    outside = base64.b64encode(json.dumps(elsewhere).encode()).decode()
    wrong = {
        "Send one of the two pairs": {**upload, **first},
        "one of the two pairs": {"ensemble": upload["ensemble"]},
        "the upload has none": {**upload, "members": {}},
        f"the upload has {names[0]}, {names[1]}, more": (
            {**upload, "members": {**members, "more": first}}
        ),
        "was changed, or belongs to another": {**upload, "members": dict.fromkeys(names, first)},
        "not the name of a folder": {
            "ensemble": outside, "members": {**members, "../../aside": first},
        },
    }  # fmt: skip
    with httpx.Client(base_url=live.url, headers={"authorization": f"Bearer {ADMIN}"}) as client:
        for fact, content in wrong.items():
            refused = client.put("/v1/prompts/both", json=content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid")
            assert fact in refused.json()["error"]["message"]
            assert str(tmp_path) not in refused.text
        assert [*registry.read_state().numbers] == ["mood"]
        made = client.put("/v1/prompts/both", json=upload).json()
        assert (made["prompt"], made["members"]) == ("both@1", 2)
        # As the command publishes it, byte for byte.
        kept = registry.locate(registry.resolve("both"))
        assert {p.relative_to(kept): p.read_bytes() for p in kept.rglob("*.*")} == {
            p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")
        }
        answer = client.post("/v1/predict", json={"model": "both", "rows": TEXTS}).json()
    for one, expected in zip(answer["data"], both.predict(TEXTS), strict=True):
        assert one["probabilities"] == pytest.approx(dict(expected.probabilities), abs=2e-6)


def test_an_upload_that_is_too_large_names_the_command(serve, folders, tmp_path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    live = serve(
        source=RegistrySource(registry), keys=make_keys(), can_publish=True, max_body_bytes=2000
    )
    headers = {"authorization": f"Bearer {ADMIN}"}
    upload = read_upload(folders["mood"])
    refused = httpx.put(f"{live.url}/v1/prompts/mood", json=upload, headers=headers)
    assert refused.status_code == 413
    assert "softprompt publish" in refused.json()["error"]["message"]


def test_prompts_are_published_pinned_and_withdrawn_over_http(
    serve, folders, model, models, tmp_path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    url = serve(source=RegistrySource(registry), keys=make_keys(), can_publish=True).url
    prompt = models["mood"].prompt.map_tensors(torch.neg)
    other = model(("llama", "words", "input"), prompt=prompt)
    upload = read_upload(other.save(tmp_path / "other"))
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN}"}) as client:

        def ask(reference: str) -> httpx.Response:
            return client.post("/v1/predict", json={"model": reference, "rows": TEXTS})

        assert ask("mood").json()["version"] == "mood@1"
        made = client.put("/v1/prompts/mood", json=upload)
        assert (made.status_code, made.json()["prompt"]) == (201, "mood@2")
        answer = ask("mood").json()
        assert answer["version"] == "mood@2"
        for one, expected in zip(answer["data"], other.predict(TEXTS), strict=True):
            assert one["probabilities"] == pytest.approx(dict(expected.probabilities), abs=2e-6)
        assert ask("mood@sha256:" + made.json()["digest"]).json()["version"] == "mood@2"
        assert client.put("/v1/prompts/mood/pin", json={"version": 1}).json()["current"] == "mood@1"
        assert ask("mood").json()["version"] == "mood@1"
        listed = client.get("/v1/prompts").json()["data"]
        assert [(p["prompt"], p["is_current"]) for p in listed] == [
            ("mood@1", True),
            ("mood@2", False),
        ]
        assert client.delete("/v1/prompts/mood@1").status_code == 400  # it is pinned
        assert client.delete("/v1/prompts/mood@2").json() == {"unpublished": ["mood@2"]}
        assert ask("mood@2").status_code == 404
        assert client.put("/v1/prompts/a%2Fb", json=upload).status_code in {400, 404}
        damaged = {**upload, "tensors": base64.b64encode(b"\x80\x02pickle").decode()}
        refused = client.put("/v1/prompts/mood", json=damaged)
        assert refused.status_code == 400
        assert str(tmp_path) not in refused.text
        # Another writer's change is seen without a word.
        registry.publish(tmp_path / "other", "later")
        end = time.monotonic() + 5
        while ask("later").status_code != 200 and time.monotonic() < end:
            time.sleep(0.05)
        assert ask("later").status_code == 200


def test_metrics_count_and_bound_their_names(serve) -> None:
    live = serve()
    for number in range(3):
        httpx.get(f"{live.url}/nowhere/{number}")
    httpx.post(f"{live.url}/v1/predict", json={"model": "mood", "rows": TEXTS})
    for number in range(300):
        live.site.metrics.count_rows(f"p{number}", 1, seconds=0.1)
    text = httpx.get(f"{live.url}/metrics").text
    assert 'softprompt_requests_total{route="unknown",status="404"} 3.0' in text
    assert f'softprompt_rows_total{{prompt="mood"}} {len(TEXTS)}.0' in text
    assert 'softprompt_rows_total{prompt="other"}' in text
    assert text.count("softprompt_rows_total{") <= 201
    assert "softprompt_resident_prompts 1.0" in text


def test_the_description_lists_every_route(serve) -> None:
    content = httpx.get(f"{serve().url}/openapi.json").json()
    text = json.dumps(content)
    described = {(m.upper(), p) for p, of in content["paths"].items() for m in of}
    for method, path in ROUTES[1:-1]:
        named = path.replace("/models/mood", "/models/{name}").replace(
            "prompts/a", "prompts/{name}"
        )
        assert (method, named) in described, (method, named)
    assert {"PredictRequest", "ChatRequest"} <= {*content["components"]["schemas"]}
    assert "#/components/schemas/PredictRequest" in text


def test_a_drained_server_finishes_what_it_accepted(serve, models, monkeypatch) -> None:
    live = serve(engine=EngineLimits(batch_rows=1))
    engine = live.site.service.engine
    predict, entered = engine._predict, threading.Event()

    def slow(rows):
        entered.set()
        time.sleep(0.1)
        return predict(rows)

    monkeypatch.setattr(engine, "_predict", slow)
    answers = []
    content = {"model": "mood", "rows": TEXTS}
    asking = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{live.url}/v1/predict", json=content, timeout=60)
        )
    )
    asking.start()
    assert entered.wait(30)
    live.server.handle_exit(signal.SIGTERM, None)
    late = httpx.post(f"{live.url}/v1/predict", json=content)
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert httpx.get(f"{live.url}/readyz").status_code == 503
    asking.join(30)
    assert answers[0].status_code == 200
    labels = [one["label"] for one in answers[0].json()["data"]]
    assert labels == [one.label for one in models["mood"].predict(TEXTS)]


def test_what_is_not_finished_in_time_gets_a_clean_error(serve, monkeypatch) -> None:
    live = serve(drain_seconds=0.1, engine=EngineLimits(batch_rows=1))
    engine = live.site.service.engine
    predict, entered = engine._predict, threading.Event()
    monkeypatch.setattr(
        engine, "_predict", lambda rows: entered.set() or time.sleep(0.5) or predict(rows)
    )
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{live.url}/v1/predict", json={"model": "mood", "rows": TEXTS}, timeout=60)
        )
    )
    asking.start()
    assert entered.wait(30)
    live.server.handle_exit(signal.SIGTERM, None)
    asking.join(30)
    assert answers
    assert answers[0].status_code in {200, 503}
    assert "stopped" in answers[0].text


def test_a_swap_under_load_is_wholly_the_one_version_or_the_other(
    serve, folders, model, models, tmp_path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(folders["mood"], "mood")
    prompt = models["mood"].prompt.map_tensors(torch.neg)
    other = model(("llama", "words", "input"), prompt=prompt)
    other.save(tmp_path / "other")
    versions = {"mood@1": models["mood"].predict(TEXTS), "mood@2": other.predict(TEXTS)}
    url = serve(source=RegistrySource(registry), engine=EngineLimits(batch_rows=3)).url
    seen: list[str] = []
    with httpx.Client(base_url=url) as client:
        end = time.monotonic() + 10
        while "mood@2" not in seen[:-3] and time.monotonic() < end:
            answer = client.post("/v1/predict", json={"model": "mood", "rows": TEXTS}).json()
            for one, expected in zip(answer["data"], versions[answer["version"]], strict=True):
                assert one["probabilities"] == pytest.approx(dict(expected.probabilities), abs=2e-6)
            seen.append(answer["version"])
            if len(seen) == 3:
                registry.publish(tmp_path / "other", "mood")
    assert seen == sorted(seen)
    assert {*seen} == {*versions}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ["model", "rows", "input", "prompt", "messages", "stop", "n", "timeout", "seed", "stream",
          "max_tokens", "temperature", "top_p", "top_k"]  # fmt: skip
MODELS = ["mood", "reply", "pick", "nobody", "mood@1", "../mood", "llama"]
PATHS = ["/v1/predict", "/classify", "/v1/completions", "/v1/chat/completions"]


@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_no_body_makes_a_fault_of_the_server(fuzzed, data) -> None:
    path = data.draw(st.sampled_from(PATHS))
    body = data.draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
    good = {"rows": ["dull"], "input": "dull", "prompt": "dull",
            "messages": [{"role": "user", "content": "dull"}]}  # fmt: skip
    kept = {"/v1/predict": "rows", "/classify": "input", "/v1/completions": "prompt"}
    if data.draw(st.booleans()):
        name = kept.get(path, "messages")
        body |= {name: good[name]}
    if data.draw(st.booleans()):
        body |= {"model": data.draw(st.sampled_from(MODELS))}
    # Python writes infinity, which is no JSON, and httpx would refuse to.
    headers = {"Content-Type": "application/json"}
    answer = fuzzed.post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code < 500, (path, body, answer.text)
    if answer.status_code >= 400:
        assert {*answer.json()["error"]} == {"message", "type", "param", "code"}


@pytest.fixture
def fuzzed(serve):
    live = serve(timeout=20.0)
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client
        assert client.get("/readyz").status_code == 200
        after = client.post("/v1/predict", json={"model": "mood", "rows": ["dull"]})
        assert after.status_code == 200
