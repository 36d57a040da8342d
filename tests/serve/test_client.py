"""The clients: typed answers, errors, and repetitions after the time that the server gave."""

import asyncio
import time

import httpx
import pytest

from softprompt.serve.client import AsyncClient, Client, ModelInfo
from softprompt.serve.faults import ServingError
from softprompt.serve.prompts import FolderSource
from softprompt.serve.site import respond_error
from softprompt.tasks import AnswerPrediction, ChoicePrediction, Choose, Extract, TagPrediction
from support.models import ROWS
from support.options import make_options
from support.questions import make_questions

TEXTS = [row["text"] for row in ROWS]


def test_answers_are_predictions(serve, models) -> None:
    url = serve().url

    async def ask(name: str) -> list:
        async with AsyncClient(url) as client:
            return await client.predict(name, TEXTS)

    with Client(url) as client:
        assert ModelInfo("mood", "llama") in client.list_models()
        for name, model in models.items():
            for answers in (client.predict(name, TEXTS), asyncio.run(ask(name))):
                for answer, expected in zip(answers, model.predict(TEXTS), strict=True):
                    assert answer.prediction.label == expected.label
                    own = dict(expected.probabilities)
                    assert dict(answer.prediction.probabilities) == pytest.approx(own, abs=2e-6)
                    if isinstance(expected, TagPrediction):
                        assert answer.prediction.words == expected.words
                        assert answer.prediction.scores == pytest.approx(expected.scores, abs=2e-6)
                        found = [span.text for span in answer.prediction.spans]
                        assert found == [span.text for span in expected.spans]
        (listed,) = client.predict("names", [{"text": ["the", "film"]}])
        assert listed.prediction.words == ("the", "film")
        first, second = client.predict("mood", [{"txet": "a"}, "dull"])
        assert (first.prediction, second.error) == (None, None)
        assert "text" in first.error
        with pytest.raises(ServingError, match="unknown prompt 'nobody'") as error:
            client.predict("nobody", "dull")
        assert (error.value.kind, error.value.param) == ("unknown", "model")


def test_answers_from_contexts_have_their_places(serve, model, tmp_path) -> None:
    task = Extract("{question}{soft:3}{context} is", null_threshold=0.0, n_best=3)
    own = model(("llama", "head", "input"), settings=task)
    url = serve(source=FolderSource([own.save(tmp_path / "asked")])).url
    rows = make_questions(4, seed=1)
    with Client(url) as client:
        answers = client.predict("asked", [{**row, "answers": "unused"} for row in rows])
    for answer, expected in zip(answers, own.predict(rows), strict=True):
        found = answer.prediction
        assert isinstance(found, AnswerPrediction)
        assert (found.text, found.start, found.end) == (
            expected.text, expected.start, expected.end,
        )  # fmt: skip
        assert found.score == pytest.approx(expected.score, abs=1e-5)
        places = [(span.start, span.end, span.text) for span in expected.candidates]
        assert [(span.start, span.end, span.text) for span in found.candidates] == places


@pytest.mark.parametrize("way", ["tokens", "head"])
def test_choices_have_the_scores_of_all_options(serve, model, tmp_path, way: str) -> None:
    own = {"template": "{question}{soft:3} is"}
    if way == "head":
        own = {"template": "{soft:3}{question} {option}", "head": "linear", "pooling": "last"}
    chooser = model(
        ("llama", "head", "input"), settings=Choose(target_form="index", **own), choices=()
    )
    url = serve(source=FolderSource([chooser.save(tmp_path / "chosen")])).url
    rows = [{n: row[n] for n in ("question", "options")} for row in make_options(6, seed=1)]
    with Client(url) as client:
        answers = client.predict("chosen", rows)
        written = [{**row, "options": "|".join(row["options"])} for row in rows]
        again = client.predict("chosen", written)
        faulty = [{"question": "good", "options": ["film"]}, {"question": "good"}, rows[0]]
        fault, lacking, right = client.predict("chosen", faulty)
    asked = {"model": "chosen", "rows": rows[:2], "explain": True}
    shown = httpx.post(f"{url}/v1/predict", json=asked).json()["data"]
    for row, one in zip(rows, shown, strict=False):  # as the playground asks
        assert [*one["probabilities"]] == row["options"]
        assert row["question"] in "".join(part.get("text", "") for part in one["rendered"])
    for found, same, expected in zip(answers, again, chooser.predict(rows), strict=True):
        assert isinstance(found.prediction, ChoicePrediction)
        assert found.prediction.label == same.prediction.label == expected.label
        assert found.prediction.choice == expected.choice
        assert found.prediction.twin_choice == expected.twin_choice
        assert found.prediction.scores == pytest.approx(expected.scores, abs=1e-4)
    assert "a choice needs at least 2" in fault.error
    assert "options" in lacking.error
    assert right.prediction.label == answers[0].prediction.label


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_full_server_is_asked_again_after_its_time(monkeypatch, kind: type) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(asyncio, "sleep", wait)
    full = respond_error(ServingError("the server is full.", kind="full", retry_after=7))
    content = {
        "data": [{"index": 0, "label": "a", "probabilities": {"a": 1.0}, "truncated": False}]
    }
    left = [2]

    def answer(_request: httpx.Request) -> httpx.Response:
        left[0] -= 1
        if left[0] >= 0:
            return httpx.Response(full.status_code, headers=dict(full.headers), content=full.body)
        return httpx.Response(200, json=content)

    def ask(retries: int):
        transport = httpx.MockTransport(answer)
        if kind is Client:
            return Client(retries=retries, transport=transport).predict("mood", "dull")

        async def run():
            async with AsyncClient(retries=retries, transport=transport) as client:
                return await client.predict("mood", "dull")

        return asyncio.run(run())

    [found] = ask(2)
    assert found.prediction.label == "a"
    assert len(waits) == 2
    assert all(7.0 <= seconds <= 8.75 for seconds in waits)
    left[0] = 2
    with pytest.raises(ServingError, match="the server is full") as error:
        ask(1)
    assert error.value.retry_after == 7.0


def test_another_server_is_noticed() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(502, text="<html>"))
    with pytest.raises(ServingError, match="status 502"):
        Client(transport=transport).list_models()
