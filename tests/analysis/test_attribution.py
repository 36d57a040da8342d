"""Explanations: integrated gradients are complete and exact, leave-one-out is what it says."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from softprompt.analysis import attribution, explain_prediction, explanation
from softprompt.errors import DataError, PromptError
from softprompt.inference import Ensemble, PromptModel
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, Generate
from softprompt.tasks.base import Example
from softprompt.tasks.heads import HeadClassifier
from support.models import LABELS, WAYS
from support.parametrize import for_each

WORDS = {"negative": " bad", "positive": [" good", " great"]}
TEXT = "a dull story, wonderful greatly boring film"
# Each word of the text, and the text without it.
WITHOUT = {
    "a": "dull story, wonderful greatly boring film",
    "dull": "a story, wonderful greatly boring film",
    "story": "a dull, wonderful greatly boring film",
    ",": "a dull story wonderful greatly boring film",
    "wonderful": "a dull story, greatly boring film",
    "greatly": "a dull story, wonderful boring film",
    "boring": "a dull story, wonderful greatly film",
    "film": "a dull story, wonderful greatly boring",
}
SCORED = [way for way, (_, kind, _) in WAYS.items() if kind in ("words", "head")]
WRITTEN = [way for way, (_, kind, _) in WAYS.items() if kind in ("text", "choice")]


def log_probability(model: PromptModel | Ensemble, row, label: str) -> float:
    """By the model itself, in a batch of its own."""
    return float(np.log(model.predict_proba([row])[0, model.labels.index(label)]))


# ── The words ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["integrated-gradients", "leave-one-out"])
@pytest.mark.parametrize("way", [*SCORED, *WRITTEN])
def test_the_words_and_their_places(model, way: str, method: str) -> None:
    found = explain_prediction(model(way), {"text": TEXT, "year": 3}, method=method)
    assert [word.text for word in found.words] == [*WITHOUT]
    assert all(TEXT[word.start : word.end] == word.text for word in found.words)
    assert found.fields == {"text": TEXT}
    assert not found.truncated
    assert found.total == pytest.approx(sum(word.score for word in found.words))
    assert found.gap == pytest.approx(found.score - found.baseline_score - found.total)
    assert found.to_dict()["words"][1]["text"] == "dull"


@pytest.mark.parametrize("way", SCORED)
def test_by_default_the_prediction_is_explained(model, way: str) -> None:
    own = model(way)
    found = explain_prediction(own, TEXT)
    assert found.label == own.predict(TEXT)[0].label
    assert found.score == pytest.approx(log_probability(own, TEXT, found.label), abs=1e-5)
    for label in LABELS:
        other = explain_prediction(own, TEXT, label=label)
        assert other.label == label
        assert other.score == pytest.approx(log_probability(own, TEXT, label), abs=1e-5)


# ── Leave one out ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", SCORED)
def test_leaving_a_word_out_is_running_the_row_without_it(model, way: str) -> None:
    own = model(way)
    for label in LABELS:
        found = explain_prediction(own, TEXT, method="leave-one-out", label=label)
        for word in found.words:
            other = log_probability(own, WITHOUT[word.text], label)
            assert word.score == pytest.approx(found.score - other, abs=1e-5), word
        assert found.baseline_score == pytest.approx(log_probability(own, "", label), abs=1e-5)


@pytest.mark.parametrize("way", WRITTEN)
def test_of_a_text_leaving_out_is_its_loss_without_the_word(model, way: str) -> None:
    """Of a given text, and of the answer."""
    own = model(way)
    target = "good" if WAYS[way][1] == "text" else "positive"

    def score(text: str) -> float:
        row = {"text": text, own.task.target_column: target}
        with torch.no_grad():
            return -float(own.task.compute_loss([own.task.make_example(row)], [own.prompt]).total)

    found = explain_prediction(own, TEXT, method="leave-one-out", label=target)
    assert found.score == pytest.approx(score(TEXT), abs=1e-4)
    assert found.baseline_score == pytest.approx(score(""), abs=1e-4)
    for word in found.words:
        wanted = score(TEXT) - score(WITHOUT[word.text])
        assert word.score == pytest.approx(wanted, abs=1e-4)
    answer = own.predict(TEXT)[0]
    said = explain_prediction(own, TEXT)
    assert said.label == answer.label
    is_cut = len(answer.token_ids) == own.task.decoding.max_new_tokens
    tokens = (*answer.token_ids, *([] if is_cut else own.backbone.eos_token_ids[:1]))
    example = replace(own.render(TEXT), target=tokens)
    with torch.no_grad():
        total = own.task.compute_loss([example], [own.prompt]).total
    assert said.score == pytest.approx(-float(total), abs=1e-4)


# ── Integrated gradients ─────────────────────────────────────────────────────


@for_each("shape", "family")
def test_the_scores_sum_to_the_difference(model, backbone, maker, shape: str, family: str) -> None:
    """Of soft tokens at the input and at a later layer, and of keys and values."""
    own = backbone(family)
    mask = " {mask}" if own.geometry.architecture == "encoder" else ""
    soft = "" if shape == "kv" else "{soft:3}"
    settings = Classify(f"so{soft} {{text}} is{mask}", verbalizer=WORDS)
    prompt = maker(family).prompt(shape)
    made = model((family, "words", ""), settings=settings, prompt=prompt)
    found = explain_prediction(made, "a dull story", label="positive", steps=512)
    assert found.is_complete, (found.gap, found.steps)
    difference = found.score - found.baseline_score
    assert found.total == pytest.approx(difference, rel=0.01, abs=0.005)
    assert found.score == pytest.approx(log_probability(made, "a dull story", "positive"), abs=1e-4)


@pytest.mark.parametrize("way", [*SCORED, *WRITTEN])
def test_more_steps_come_closer(model, monkeypatch, way: str) -> None:
    """Far beyond the tolerance, so that no part of a word is forgotten or counted twice."""
    monkeypatch.setattr(explanation, "_RELATIVE_GAP", 0.0)
    monkeypatch.setattr(explanation, "_ABSOLUTE_GAP", 0.0)
    one, many = (explain_prediction(model(way), TEXT, steps=count) for count in (1, 300))
    assert (one.steps, many.steps) == (1, 300)
    assert abs(many.gap) < max(1e-3, 0.02 * abs(many.score - many.baseline_score))
    assert abs(many.gap) < abs(one.gap) or abs(one.gap) < 1e-3


class BagOfEmbeddings(HeadClassifier):
    """Scores that are linear in the sum of the embeddings; no layer is run."""

    def compute_scores(
        self, examples: Sequence[Example], _prompts: object, **_options: object
    ) -> Tensor:
        table = self.backbone.input_embeddings
        sums = [table(torch.tensor(e.variants[0].input_ids)).sum(dim=0) for e in examples]
        return torch.stack(sums) @ self.weights


def test_of_a_bag_of_embeddings_each_word_has_its_share(model) -> None:
    """Log-probabilities depend on a sum of the words' shares alone, and are divided like it."""
    own = model(("bert", "head", "kv"))
    task = own.task
    bag = BagOfEmbeddings(
        task.backbone,
        task.head,
        objective=task.objective,
        renderer=task.renderers[0],
        target_column="label",
    )
    bag.weights = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    own = replace(own, task=bag)
    found = explain_prediction(own, TEXT, label="positive")
    assert found.baseline == "<mask> for every word"
    mask = own.backbone.embed(torch.tensor(own.backbone.tokenizer.mask_token_id))
    (ids,) = (variant.input_ids for variant in own.render(TEXT).variants)
    margins = (own.backbone.embed(torch.tensor(ids)) - mask) @ (
        bag.weights[:, 1] - bag.weights[:, 0]
    )
    of_words = own.backbone.tokenizer(TEXT, return_offsets_mapping=True)
    shares = [0.0] * len(found.words)
    for margin, (start, end) in zip(margins.tolist(), of_words["offset_mapping"], strict=True):
        if end:  # a space alone is part of the word behind it
            shares[next(at for at, word in enumerate(found.words) if start < word.end)] += margin
    difference = found.score - found.baseline_score
    assert abs(difference) > 0.1
    for word, share in zip(found.words, shares, strict=True):
        wanted = difference * share / sum(shares)
        assert word.score == pytest.approx(wanted, abs=2e-3 * max(map(abs, shares)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_one_step_is_the_gradient_half_way(model, backbone, maker, family: str) -> None:
    """As that of an input prompt whose soft tokens are the words, half way from the baseline."""
    own, make = backbone(family), maker(family)
    mask = " {mask}" if own.geometry.architecture == "encoder" else ""
    settings = Classify(f"so{{soft:3}} {{text}} is{mask}", verbalizer={"n": " bad", "p": " good"})
    made = model((family, "words", ""), settings=settings, prompt=make.input_prompt(3))
    found = explain_prediction(made, "good film no", label="p", steps=1)
    example = made.render("good film no")
    (variant,) = example.variants
    tokens = own.tokenizer(" good film no", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 3
    ids = [*variant.input_ids]
    at = next(i for i in range(len(ids)) if ids[i : i + 3] == tokens)
    ids[at : at + 3] = (make.soft(3) + 3).tolist()
    if own.geometry.architecture == "encoder":
        begin = own.embed(torch.tensor(own.tokenizer.mask_token_id))
    else:
        begin = own.embed(torch.arange(len(own.tokenizer))).mean(dim=0)
    way = own.embed(torch.tensor(tokens)) - begin
    vectors = torch.cat([made.prompt.vectors, begin + way / 2]).requires_grad_()
    changed = replace(example, variants=(replace(variant, input_ids=tuple(ids)),))
    scores = made.task.compute_scores([changed], [InputPrompt(vectors)])
    (gradient,) = torch.autograd.grad(scores.log_softmax(dim=-1)[0, 1], vectors)
    wanted = (gradient[3:] * way).sum(dim=1).tolist()
    assert [word.score for word in found.words] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["integrated-gradients", "leave-one-out"])
@pytest.mark.parametrize("way", ["causal words", "masked words", "answer words", "text"])
def test_batches_change_nothing(model, monkeypatch, way: str, method: str) -> None:
    found = []
    for size in (1, 5):
        monkeypatch.setattr(attribution, "_ROWS_AT_ONCE", size)
        found.append(explain_prediction(model(way), TEXT, method=method))
    for word, other in zip(*(one.words for one in found), strict=True):
        assert word.score == pytest.approx(other.score, abs=1e-4)


# ── Rows of every shape ──────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["integrated-gradients", "leave-one-out"])
def test_two_fields_one_of_them_twice(model, method: str) -> None:
    settings = Classify("{one}{soft:3} and {one} {sep} {two}", head="linear")
    own = model(("bert", "head", "input"), settings=settings)
    row = {"one": "good film", "two": 12}
    found = explain_prediction(own, row, method=method)
    assert [(w.field, w.text) for w in found.words] == [
        ("one", "good"), ("one", "film"), ("two", "12"),
    ]  # fmt: skip
    if method == "integrated-gradients":
        assert found.is_complete
    else:
        score = log_probability(own, row, found.label)
        gone = {"one": "film", "two": 12}
        wanted = score - log_probability(own, gone, found.label)
        assert found.words[0].score == pytest.approx(wanted, abs=1e-5)


def test_a_script_without_spaces(model) -> None:
    """A character of several tokens is one word."""
    found = explain_prediction(model("causal words"), "映画 good")
    assert [word.text for word in found.words] == ["映", "画", "good"]
    assert found.is_complete


def test_a_truncated_row_has_the_words_that_are_read(model) -> None:
    own = model("causal words")
    text = "good bad " * 60
    found = explain_prediction(own, text)
    assert found.truncated
    assert found.is_complete
    assert 10 < len(found.words) < 120
    assert found.fields == {"text": text}


@pytest.mark.parametrize("vote", ["mean", "majority"])
def test_an_ensemble_has_the_mean_of_probabilities(model, maker, vote: str) -> None:
    """Its members may have other templates, so that words have other tokens."""
    settings = Classify("so {text} is{soft:2}", verbalizer=WORDS)
    other = Classify("{text}{soft:3}", verbalizer=WORDS)
    own = Ensemble(
        [
            model(("llama", "words", ""), settings=settings, prompt=maker("llama").input_prompt(2)),
            model(("llama", "words", ""), settings=other, prompt=maker("llama").input_prompt(3)),
        ],
        vote=vote,
    )
    mean = Ensemble(own.members, vote="mean")
    found = explain_prediction(own, TEXT, method="leave-one-out")
    assert found.label == own.predict(TEXT)[0].label
    for word in found.words:
        wanted = log_probability(mean, TEXT, found.label)
        wanted -= log_probability(mean, WITHOUT[word.text], found.label)
        assert word.score == pytest.approx(wanted, abs=1e-5)
    complete = explain_prediction(own, TEXT)
    assert complete.is_complete
    assert complete.score == pytest.approx(found.score, abs=1e-6)


def test_under_no_grad_it_works_too(model) -> None:
    own = model("causal words")
    with torch.no_grad():
        inside = explain_prediction(own, TEXT)
    assert inside == explain_prediction(own, TEXT)
    assert not any(p.grad is not None for p in own.backbone.model.parameters())


# ── What cannot be explained ─────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "leave-one-in"}, r"unknown method 'leave-one-in'.*'leave-one-out'\?"),
        ({"label": "postive"}, r"unknown label 'postive'.*'positive'\?"),
        ({"steps": 0}, r"with steps = 0 are not possible. Give at least 1\."),
    ],
)
def test_mistakes(model, options, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        explain_prediction(model("causal words"), TEXT, **options)


@pytest.mark.parametrize("row", ["", " \n", {"text": ""}])
def test_a_row_without_words(model, row) -> None:
    with pytest.raises(DataError, match="has no words, so there is nothing to explain"):
        explain_prediction(model("causal words"), row)


def test_a_row_that_would_have_no_token(model, new_backbone) -> None:
    own = new_backbone("gpt2")
    own.tokenizer.backend_tokenizer.post_processor = None
    settings = Classify("{text}", head="linear")
    made = model(("gpt2", "head", "kv"), settings=settings, own=own)
    with pytest.raises(DataError, match='use the method "integrated-gradients"'):
        explain_prediction(made, "good", method="leave-one-out")
    assert explain_prediction(made, "good").is_complete


def test_an_ensemble_that_writes_text(model) -> None:
    settings = Generate("{text} is", max_new_tokens=4)
    own = model("text", settings=settings)
    with pytest.raises(PromptError, match=r"Explain that of a member, such as ensemble.members"):
        explain_prediction(Ensemble([own, own]), TEXT)


def test_in_a_notebook_it_is_a_page(model) -> None:
    found = explain_prediction(model("causal words"), "a <b>good</b> film")
    page = found._repr_html_()
    assert "&lt;" in page
    assert "<b>" not in page
