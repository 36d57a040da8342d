"""Ensembles are served like any prompt, and answer as `Ensemble.predict` does."""

import json
from pathlib import Path

import httpx
import pytest
import torch

from softprompt.errors import ArtifactError
from softprompt.inference import Ensemble
from softprompt.inference.mixed import PromptedRow, predict_mixed
from softprompt.serve.prompts import FolderSource, PromptStore, RegistrySource
from softprompt.serve.registry import Registry
from support.models import ROWS

TEXTS = [row["text"] for row in ROWS]


@pytest.fixture
def ensembles(model) -> dict[str, Ensemble]:
    """One of each vote and kind; the members' prompts differ in kind and values."""
    words = [
        model(("llama", "words", "input"), seed=1),
        model(("llama", "words", "kv"), seed=2),
    ]
    words.append(
        model(("llama", "words", "input"), prompt=words[0].prompt.map_tensors(torch.neg), seed=3)
    )
    text = model(("llama", "text", "input"), seed=1)
    other = model(("llama", "text", "input"), prompt=text.prompt.map_tensors(torch.neg), seed=2)
    return {
        "mean": Ensemble(words, vote="mean"),
        "majority": Ensemble(words, vote="majority"),
        "texts": Ensemble([text, other, other], vote="majority"),
    }


@pytest.fixture
def saved(ensembles, tmp_path: Path) -> dict[str, Path]:
    return {name: one.save(tmp_path / "saved" / name) for name, one in ensembles.items()}


@pytest.fixture
def live(serve, saved, folders):
    return serve(source=FolderSource([*saved.values(), folders["mood"]]))


def test_they_predict_as_offline(live, ensembles) -> None:
    for name, one in ensembles.items():
        answer = httpx.post(f"{live.url}/v1/predict", json={"model": name, "rows": TEXTS}).json()
        for given, expected in zip(answer["data"], one.predict(TEXTS), strict=True):
            assert given.get("label", given.get("text")) == expected.label
            if expected.probabilities:
                own = dict(expected.probabilities)
                assert given["probabilities"] == pytest.approx(own, abs=2e-6)
        members = [m.render(text) for text in TEXTS for m in one.members]
        prefixes = sum(
            m.prompt.length for m in one.members if m.prompt.__class__.__name__ == "KVPrefix"
        )
        tokens = sum(len(e.variants[0].input_ids) for e in members) + prefixes * len(TEXTS)
        assert answer["usage"]["prompt_tokens"] == tokens


def test_their_members_share_batches_with_other_prompts(live, ensembles, monkeypatch) -> None:
    engine, sizes = live.site.service.engine, []
    predict = engine._predict
    monkeypatch.setattr(engine, "_predict", lambda rows: sizes.append(len(rows)) or predict(rows))
    httpx.post(f"{live.url}/v1/predict", json={"model": "mean", "rows": TEXTS[:3]})
    assert sum(sizes) == 9
    assert max(sizes) > 3


def test_they_classify_and_complete(live, ensembles) -> None:
    url = live.url
    data = httpx.post(f"{url}/classify", json={"model": "mean", "input": TEXTS}).json()["data"]
    for given, expected in zip(data, ensembles["mean"].predict(TEXTS), strict=True):
        assert given["label"] == expected.label
        assert given["probs"] == pytest.approx([*expected.probabilities.values()], abs=2e-6)
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    expected = [one.label for one in ensembles["texts"].predict(TEXTS[:3])]
    done = client.completions.create(model="texts", prompt=TEXTS[:3])
    assert [one.text for one in done.choices] == expected
    said = ["", "", ""]
    for piece in client.completions.create(model="texts", prompt=TEXTS[:3], stream=True):
        said[piece.choices[0].index] += piece.choices[0].text
    assert said == expected
    label = client.completions.create(model="majority", prompt=TEXTS[0]).choices[0].text
    assert label == ensembles["majority"].predict(TEXTS[0])[0].label
    with pytest.raises(openai.BadRequestError, match="is an ensemble"):
        client.completions.create(model="texts", prompt="a", logprobs=1)


def test_a_bad_row_has_an_error_and_its_mates_an_answer(live, ensembles) -> None:
    rows = [TEXTS[0], {"txet": "a"}, TEXTS[1]]
    data = httpx.post(f"{live.url}/v1/predict", json={"model": "mean", "rows": rows}).json()["data"]
    assert data[1]["error"]["code"] == "invalid"
    labels = [one.label for one in ensembles["mean"].predict([TEXTS[0], TEXTS[1]])]
    assert [data[0]["label"], data[2]["label"]] == labels


def test_their_card_names_the_vote(live) -> None:
    card = httpx.get(f"{live.url}/v1/models/mean").json()
    assert (card["members"], card["vote"], card["task"]) == (3, "mean", "classify")


def test_they_are_published_whole(saved, ensembles, backbone, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    published = registry.publish(saved["mean"], "mood")
    assert (published.members, published.task, str(published.version)) == (3, "classify", "mood@1")
    assert registry.resolve(f"mood@sha256:{published.digest}") == published.version
    folder = registry.locate(published.version)
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    original = saved["mean"]
    assert files == {
        p.relative_to(original).as_posix(): p.read_bytes() for p in original.rglob("*.*")
    }
    store = PromptStore(backbone("llama"), RegistrySource(registry))
    with store.borrow("mood") as one:
        for member, own in zip(one.members, ensembles["mean"].members, strict=True):
            rows = [PromptedRow(member.task, own.render(t), member.prompt) for t in TEXTS]
            given = [found.label for found in predict_mixed(rows)]
            assert given == [found.label for found in own.predict(TEXTS)]
        assert one.vote == "mean"
        assert one.bytes >= sum(m.prompt.to_tensors().__len__() for m in one.members)
    # One member of another ensemble is noticed, by the digest in the description.
    manifest = folder / "member-2" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"metrics": {"a": 1}}))
    with pytest.raises(ArtifactError, match="member-2"):
        PromptStore(backbone("llama"), RegistrySource(registry)).acquire("mood")
    with pytest.raises(ArtifactError, match="member-2"):
        registry.publish(folder, "again")
    assert registry.read_state().numbers == {"mood": (1,)}
