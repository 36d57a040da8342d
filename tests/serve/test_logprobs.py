"""Choices and log-probabilities in OpenAI's forms; the oracle is a forward pass of transformers."""

import httpx
import pytest
import torch

from softprompt.inference.generated_row import GenerationEvent
from softprompt.inference.token_scores import TokenScores
from softprompt.serve.orders import Choice, ChoiceOptions
from support.models import ROWS

TEXTS = [row["text"] for row in ROWS]


@pytest.fixture
def url(serve) -> str:
    return serve().url


@pytest.fixture
def client(url):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def base(backbone) -> str:
    return backbone("llama").name.rpartition("/")[2]


@torch.no_grad()
def compute_logprobs(model, ids: list[int]) -> torch.Tensor:
    """A plain forward pass of transformers over the words' and the prompt's own vectors."""
    own = model.backbone
    vocabulary = own.geometry.vocab_size
    table = own.model.get_input_embeddings().weight
    vectors = [
        table[i] if i < vocabulary else model.prompt.vectors[i - vocabulary].to(table) for i in ids
    ]
    logits = own.model(inputs_embeds=torch.stack(vectors)[None]).logits[0]
    return logits.float().log_softmax(-1)


def test_completions_have_the_logprobs_of_a_forward_pass(client, models) -> None:
    model = models["reply"]
    row = list(model.render(TEXTS[0]).variants[0].input_ids)
    answer = client.completions.create(
        model="reply", prompt=TEXTS[0], logprobs=3,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    given = answer.choices[0].logprobs
    ids = [int(name.removeprefix("token_id:")) for name in given.tokens]
    assert tuple(ids) == model.predict(TEXTS[0])[0].token_ids
    expected = compute_logprobs(model, row + ids)
    for step, token in enumerate(ids):
        of_step = expected[len(row) + step - 1]
        assert given.token_logprobs[step] == pytest.approx(of_step[token].item(), abs=1e-4)
        top = of_step.topk(3)
        assert {int(n.removeprefix("token_id:")) for n in given.top_logprobs[step]} == {
            *top.indices.tolist(), token,
        }  # fmt: skip
        for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            named = given.top_logprobs[step][f"token_id:{index}"]
            assert named == pytest.approx(value, abs=1e-4)


def test_tokens_are_spelt_as_the_text_is(client) -> None:
    answer = client.completions.create(model="reply", prompt=TEXTS[0], logprobs=0)
    choice = answer.choices[0]
    whole = "".join(choice.logprobs.tokens)
    assert whole.strip() == choice.text
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert whole[offset:].startswith(token)
    streamed, pieces = [], client.completions.create(
        model="reply", prompt=TEXTS[0], logprobs=0, stream=True
    )  # fmt: skip
    for piece in pieces:
        if piece.choices[0].logprobs:
            streamed += piece.choices[0].logprobs.tokens
    assert streamed == choice.logprobs.tokens


def test_chat_has_the_same_logprobs(client) -> None:
    asked = [{"role": "user", "content": TEXTS[0]}]
    chat = client.chat.completions.create(
        model="reply", messages=asked, logprobs=True, top_logprobs=2
    )
    plain = client.completions.create(model="reply", prompt=TEXTS[0], logprobs=2)
    content = chat.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(
        plain.choices[0].logprobs.token_logprobs
    )
    assert [one.token for one in content] == plain.choices[0].logprobs.tokens
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert bytes(content[0].bytes).decode() == content[0].token


def test_echo_scores_the_row_itself(client, models) -> None:
    model = models["reply"]
    row = list(model.render(TEXTS[0]).variants[0].input_ids)
    vocabulary = model.backbone.geometry.vocab_size
    assert any(token >= vocabulary for token in row)
    answer = client.completions.create(
        model="reply", prompt=TEXTS[0], logprobs=1, echo=True, max_tokens=0,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    choice = answer.choices[0]
    assert answer.usage.completion_tokens == 0
    ids = [int(name.removeprefix("token_id:")) for name in choice.logprobs.tokens]
    assert ids == [token for token in row if token < vocabulary]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    expected = compute_logprobs(model, row)
    places = [at for at, token in enumerate(row) if token < vocabulary][1:]
    for given, at in zip(choice.logprobs.token_logprobs[1:], places, strict=True):
        assert given == pytest.approx(expected[at - 1, row[at]].item(), abs=1e-4)
    assert choice.text == model.task.spell([token for token in row if token < vocabulary])


def test_echo_stands_before_the_text(client, models) -> None:
    model = models["reply"]
    row = model.render(TEXTS[0]).variants[0].input_ids
    real = [token for token in row if token < model.backbone.geometry.vocab_size]
    written = model.predict(TEXTS[0])[0].token_ids
    both = client.completions.create(model="reply", prompt=TEXTS[0], echo=True)
    assert both.choices[0].text.startswith(f"{TEXTS[0]} is")
    assert both.choices[0].text == model.task.spell([*real, *written])
    streamed = client.completions.create(model="reply", prompt=TEXTS[0], echo=True, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == both.choices[0].text
    scored = client.completions.create(model="reply", prompt=TEXTS[0], echo=True, logprobs=0)
    assert "".join(scored.choices[0].logprobs.tokens) == both.choices[0].text


def test_the_bare_backbone_scores_too(client, backbone, base) -> None:
    own = backbone("llama")
    answer = client.completions.create(
        model=base, prompt="the film", logprobs=0, echo=True, max_tokens=1
    )
    ids = own.tokenizer("the film")["input_ids"]
    with torch.no_grad():
        logits = own.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = [logits[at - 1, ids[at]].item() for at in range(1, len(ids))]
    assert answer.choices[0].logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)


def test_choices_have_seeds_of_their_own(client) -> None:
    options = {"model": "reply", "temperature": 1.5, "max_tokens": 6, "seed": 5}
    alone = client.completions.create(prompt=TEXTS[0], **options)
    several = client.completions.create(prompt=TEXTS[:2], n=4, **options)
    assert [one.index for one in several.choices] == [*range(8)]
    texts = [one.text for one in several.choices]
    assert texts[0] == alone.choices[0].text
    assert len({*texts[:4]}) > 1
    assert texts == [
        one.text for one in client.completions.create(prompt=TEXTS[:2], n=4, **options).choices
    ]
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": TEXTS[0]}], n=4, stream=True, **options
    )
    said = [""] * 4
    for piece in chat:
        said[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert said == texts[:4]
    newer = client.chat.completions.create(
        model="reply", messages=[{"role": "user", "content": TEXTS[0]}], max_completion_tokens=1
    )
    assert newer.usage.completion_tokens == 1


def test_best_of_returns_the_likeliest(client) -> None:
    options = {"model": "reply", "prompt": TEXTS[0], "temperature": 1.5, "seed": 5}
    options["max_tokens"] = 3
    drafts = client.completions.create(n=6, logprobs=0, **options)
    # Of a text that ended by itself, the end token counts too, which OpenAI's form does not show.
    means = {
        one.text: sum(one.logprobs.token_logprobs) / len(one.logprobs.token_logprobs)
        for one in drafts.choices
        if one.finish_reason == "length"
    }
    assert len(means) == 6
    best = client.completions.create(n=2, best_of=6, **options)
    found = [means[one.text] for one in best.choices]
    assert found == pytest.approx(sorted(means.values(), reverse=True)[:2])
    assert best.usage.completion_tokens == drafts.usage.completion_tokens
    assert best.choices[0].logprobs is None


def test_a_text_that_ends_at_once_is_as_likely_as_the_end_token() -> None:
    """Its mean was 0, above that of every text with a word."""

    def make(*pieces: tuple[tuple[int, ...], tuple[float, ...]]) -> Choice:
        choice = Choice(ChoiceOptions(1, 1, None), None, task=None)
        for ids, logprobs in pieces:
            scores = tuple(TokenScores(7, each, {}) for each in logprobs)
            choice.add(GenerationEvent("a", "", ids, scores=scores))
        return choice

    assert make(((), (-5.0,))).mean_logprob == -5.0
    assert make(((1,), (-1.0,)), ((), (-2.0,))).mean_logprob == -1.5


def test_stop_tokens_and_min_p(client, models) -> None:
    ids = models["reply"].predict(TEXTS[0])[0].token_ids
    assert len(ids) > 1
    short = client.completions.create(
        model="reply", prompt=TEXTS[0], extra_body={"stop_token_ids": [ids[1]]}
    )
    assert short.usage.completion_tokens == ids.index(ids[1])
    assert short.choices[0].finish_reason == "stop"
    greedy = client.completions.create(model="reply", prompt=TEXTS[0], temperature=0)
    # Only the likeliest token has its own share.
    sure = client.completions.create(
        model="reply", prompt=TEXTS[0], temperature=1.5, extra_body={"min_p": 1.0}
    )
    assert sure.choices[0].text == greedy.choices[0].text


WRONG = [
    ({"model": "reply", "n": 0}, "n = 0"),
    ({"model": "reply", "n": 10**12}, "ask for 1,000,000,000,000 texts"),
    ({"model": "reply", "best_of": 2000}, "ask for 2,000 texts"),
    ({"model": "reply", "stop": ["a"] * 65}, "stop has 65 strings"),
    ({"model": "reply", "stop": "a" * 2000}, "a stop string has 2,000 characters"),
    ({"model": "reply", "n": 3, "best_of": 2}, "Raise best_of"),
    ({"model": "reply", "best_of": 2, "stream": True}, "cannot be streamed"),
    ({"model": "reply", "logprobs": 21}, "at most 20"),
    ({"model": "reply", "logprobs": -1}, "at least 0"),
    ({"model": "reply", "max_tokens": 0}, "generates nothing"),
    ({"model": "reply", "min_p": 1.5}, "min_p = 1.5"),
    ({"model": "reply", "stop_token_ids": [10**6]}, "is not the id of a token"),
    ({"model": "mood", "n": 2}, "there is no n"),
    ({"model": "mood", "logprobs": 1}, "/v1/classify"),
    ({"model": "mood", "echo": True}, "there is no echo"),
    ({"model": "reply", "suffix": "a"}, "suffix"),
    ({"model": "reply", "logit_bias": {"5": 1.0}}, "logit_bias"),
]


@pytest.mark.parametrize(("body", "fact"), WRONG, ids=[str(one) for one, _ in WRONG])
def test_what_cannot_be_is_named(url, body, fact) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": TEXTS[0], **body})
    assert answer.status_code == 400, answer.text
    assert fact in answer.json()["error"]["message"]


def test_chat_needs_logprobs_for_top_logprobs(url) -> None:
    body = {"model": "reply", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert "needs logprobs = true" in answer.json()["error"]["message"]


def test_beams_have_no_logprobs(serve, model, tmp_path) -> None:
    from softprompt.serve.prompts import FolderSource
    from softprompt.tasks import Generate

    settings = Generate("{text} is{soft:3}", max_new_tokens=3, num_beams=2)
    saved = model(("llama", "text", "input"), settings=settings).save(tmp_path / "beams")
    url = serve(source=FolderSource([saved])).url
    body = {"model": "beams", "prompt": TEXTS[0], "logprobs": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert "with beam search" in answer.json()["error"]["message"]


@torch.no_grad()
def test_tokens_are_scored_as_vllm_and_sglang_do(url, backbone, base) -> None:
    own, labels, items = backbone("llama"), [5, 9, 17], ["good", "bad film"]
    expected = []
    for item in items:
        ids = own.tokenizer(f"the {item}")["input_ids"]
        expected.append(own.model(torch.tensor([ids])).logits[0, -1].float().softmax(-1)[labels])
    body = {"model": base, "query": "the ", "items": items, "label_token_ids": labels}
    first = httpx.post(f"{url}/generative_scoring", json=body).json()
    assert first["object"] == "list"
    assert [(one["index"], one["object"]) for one in first["data"]] == [(0, "score"), (1, "score")]
    shares = [(one / one.sum())[0].item() for one in expected]
    assert [one["score"] for one in first["data"]] == pytest.approx(shares, abs=1e-5)
    body["apply_softmax"] = False
    raw = httpx.post(f"{url}/generative_scoring", json=body).json()
    assert [one["score"] for one in raw["data"]] == pytest.approx(
        [one[0].item() for one in expected], abs=1e-5
    )
    del body["apply_softmax"]
    every = httpx.post(f"{url}/v1/score", json=body).json()
    assert every["object"] == "scoring"
    for given, of_item in zip(every["scores"], expected, strict=True):
        assert given == pytest.approx(of_item.tolist(), abs=1e-5)
    turned = {**body, "query": " film", "items": ["the good"], "item_first": True}
    assert httpx.post(f"{url}/v1/score", json=turned).status_code == 200


def test_prompts_score_tokens_too(url, models) -> None:
    model = models["reply"]
    row = list(model.render(TEXTS[0]).variants[0].input_ids)
    labels = [3, 4]
    body = {"model": "reply", "query": TEXTS[0], "items": [""], "label_token_ids": labels}
    [given] = httpx.post(f"{url}/v1/score", json=body).json()["scores"]
    assert given == pytest.approx(compute_logprobs(model, row)[-1].exp()[labels].tolist(), abs=1e-5)
    refused = httpx.post(f"{url}/v1/score", json={**body, "model": "mood"})
    assert "/v1/classify" in refused.json()["error"]["message"]
    for change in ({"label_token_ids": []}, {"label_token_ids": [-1]}, {"items": []}):
        assert httpx.post(f"{url}/v1/score", json={**body, **change}).status_code == 400
