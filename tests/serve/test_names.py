"""Names of prompts: what an unknown one is answered with, and what the card of a known one has."""

import httpx

from softprompt.analysis import find_nearest_words


def ask(url: str, name: str) -> str:
    answer = httpx.post(f"{url}/v1/predict", json={"model": name, "rows": ["a"]})
    assert answer.status_code == 404
    return answer.json()["error"]["message"]


def test_an_unknown_name_gets_near_ones_and_that_of_the_backbone(serve, backbone) -> None:
    url = serve().url
    base = backbone("llama").name.rpartition("/")[2]
    message = ask(url, "moood")
    assert "unknown prompt 'moood'. Near names: mood" in message
    assert "GET /v1/models lists all 6." in message
    assert f"The backbone itself is {base!r}." in message
    assert "Prompts: mood, names, pick, rating, reply." in ask(url, "zzzzzzzz")
    assert len(ask(url, "a" * 10_000)) < 500


def test_a_card_has_the_nearest_words(serve, models) -> None:
    url = serve().url
    card = httpx.get(f"{url}/v1/models/mood").json()
    expected = [list(one.words) for one in find_nearest_words(models["mood"], count=3)]
    assert card["nearest_words"] == expected
    assert len(expected) == models["mood"].prompt.length
    assert httpx.get(f"{url}/v1/models/tone").json()["nearest_words"] is None  # keys and values
