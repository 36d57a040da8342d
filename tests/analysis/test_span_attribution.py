"""Explanations of tags, spans and answers: complete, and what leaving out words by hand gives."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from softprompt.analysis import explain_prediction, explain_row, explanation
from softprompt.analysis.explanation import list_passages, make_explanation_page
from softprompt.data.row_words import remove_word
from softprompt.errors import DataError, PromptError
from softprompt.inference import Ensemble, PromptModel
from softprompt.tasks import Extract, Tag
from softprompt.tasks.tag_decoding import aggregate_pieces

WORDS = ["the", "bad", "film", "was", "wonderful", "but", "boring", "music", "greatly", "dull"]
QUESTION, CONTEXT = "good", "a dull story, wonderful greatly boring film"
ANSWER = "wonderful greatly"
TAGGERS = {
    "encoder": ("bert", {}),
    "encoder, tensors": ("roberta", {"template": "{soft:3}{text}"}),
    "encoder, average": ("bert", {"aggregation": "average"}),
    "encoder, max": ("bert", {"aggregation": "max"}),
    "encoder, simple": ("bert", {"aggregation": "simple"}),
    "encoder, windows": ("bert", {"max_length": 12}),
    "causal": ("llama", {"template": "{text} is{soft:3} {text}"}),
    "causal, prefix": ("gpt2", {}),
    "plain tags": ("bert", {"scheme": "none"}),
}
FINDERS = {
    "encoder": ("bert", "{question}{sep}{context}", None),
    "encoder, tensors": ("bert", "{soft:3}{question}{sep}{context}", None),
    "encoder, windows": ("bert", "{question}{sep}{context}", 14),
    "causal": ("llama", "{question}{soft:3} {context} is", None),
    "causal, windows": ("gpt2", "{question} is {context} is", 16),
}


@pytest.fixture
def tagger(model, maker):
    def make(way: str, **options) -> PromptModel:
        family, changes = TAGGERS[way]
        changes = {"template": "{text}", "scheme": "BIO", **changes}
        max_length = changes.pop("max_length", None)
        shape = "input" if "soft" in changes["template"] else "kv"
        settings = Tag(words_column="text", **changes)
        return model((family, "tag", shape), settings=settings, max_length=max_length, **options)

    return make


@pytest.fixture
def finder(model):
    def make(way: str, **options) -> PromptModel:
        family, template, max_length = FINDERS[way]
        shape = "input" if "soft" in template else "kv"
        settings = Extract(template, stride=2 if max_length else 0, null_threshold=0.0)
        options = {"settings": settings, "max_length": max_length, "choices": (), **options}
        return model((family, "extract", shape), **options)

    return make


def read_log(model: PromptModel, words: Sequence[str], number: int, tag: str) -> float:
    """The log-probability of a word's tag, as predictions join tokens."""
    example = model.task.make_example({"text": list(words)}, target=False)
    with torch.no_grad():
        states = model.task.compute_row_states([example], [model.prompt])
        [found] = model.task.read_rows([example], states)
    strategy = model.task.objective.aggregation
    strategy = "first" if strategy == "simple" else strategy
    rows = aggregate_pieces(found.shares, found.states.pieces, strategy=strategy)
    return float(np.log(rows[number, model.labels.index(tag)]))


def read_answer_log(model: PromptModel, context: str, start: int, answer: str) -> float:
    """Twice the loss of an answer: its first token as the start, its last as the end."""
    answers = {"text": [answer] if answer else [], "answer_start": [start] if answer else []}
    row = {"question": QUESTION, "context": context, "answers": answers}
    with torch.no_grad():
        loss = model.task.compute_loss([model.task.make_example(row)], [model.prompt])
    return -2 * float(loss.total)


# ── Tags ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", TAGGERS)
def test_leaving_a_word_out_changes_the_tag_of_another(tagger, way: str) -> None:
    model, number = tagger(way), 4
    tag = model.labels[2]
    options = {"method": "leave-one-out", "word": number, "label": tag}
    found = explain_prediction(model, WORDS, **options)
    assert (found.kind, found.label, found.baseline) == ("tag", tag, "the word alone")
    assert (
        found.fields[found.subject.field][found.subject.start : found.subject.end]
        == (WORDS[number])
    )
    assert found.score == pytest.approx(read_log(model, WORDS, number, tag), abs=1e-5)
    alone = read_log(model, WORDS[number : number + 1], 0, tag)
    assert found.baseline_score == pytest.approx(alone, abs=1e-5)
    others = [at for at in range(len(WORDS)) if at != number]
    assert [word.text for word in found.words] == [WORDS[at] for at in others]
    for at, word in zip(others, found.words, strict=True):
        rest = [*WORDS[:at], *WORDS[at + 1 :]]
        log = read_log(model, rest, number - (at < number), tag)
        assert word.score == pytest.approx(found.score - log, abs=1e-5), word


@pytest.mark.parametrize("method", ["integrated-gradients", "leave-one-out"])
@pytest.mark.parametrize("way", [way for way in TAGGERS if way != "plain tags"])
def test_every_span_is_explained_by_the_sum_of_its_words(tagger, way: str, method: str) -> None:
    model = tagger(way)
    [predicted] = model.predict([WORDS])
    explained = explain_row(model, WORDS, method=method)
    if "simple" not in way:
        spans = [(span.label, span.start, span.end) for span in predicted.spans]
        assert spans
        assert [(one.label, *one.subject[1:]) for one in explained] == spans
    text, first = " ".join(WORDS), explain_prediction(model, WORDS, method=method)
    assert first == explained[0]
    for one in explained:
        begin = len(text[: one.subject.start].split())
        numbers = range(begin, begin + len(text[slice(*one.subject[1:])].split()))
        logs = [read_log(model, WORDS, at, predicted.tags[at]) for at in numbers]
        assert one.kind == "span"
        assert one.score == pytest.approx(sum(logs), abs=2e-5)
        if method == "integrated-gradients":
            assert [word.text for word in one.words] == WORDS
            assert one.is_complete, (one.gap, one.steps)
            continue
        gone = next(at for at in (len(WORDS) - 1, 0) if at not in numbers)
        rest = [word for at, word in enumerate(WORDS) if at != gone]
        moved = [read_log(model, rest, at - (gone < at), predicted.tags[at]) for at in numbers]
        score = one.words[-1 if gone else 0].score
        assert score == pytest.approx(one.score - sum(moved), abs=2e-5)


@pytest.mark.parametrize("way", TAGGERS)
def test_the_scores_sum_to_the_difference_of_a_tag(tagger, monkeypatch, way: str) -> None:
    """Far beyond the tolerance, in windows too, so that no token is forgotten or counted twice."""
    monkeypatch.setattr(explanation, "_RELATIVE_GAP", 0.0)
    monkeypatch.setattr(explanation, "_ABSOLUTE_GAP", 0.0)
    model = tagger(way)
    found = explain_prediction(model, WORDS, word=4, label=model.labels[1], steps=200)
    assert found.steps == 200
    assert found.score == pytest.approx(read_log(model, WORDS, 4, model.labels[1]), abs=1e-5)
    assert abs(found.gap) < max(1e-3, 0.01 * abs(found.score - found.baseline_score))
    assert [word.text for word in found.words] == WORDS


def test_windows_are_several(tagger, finder) -> None:
    """That the cases above have what their names promise."""
    assert len(tagger("encoder, windows").render(WORDS).variants) > 1
    for way in ("encoder, windows", "causal, windows"):
        row = {"question": QUESTION, "context": CONTEXT}
        assert len(finder(way).task.make_example(row, target=False).variants) > 1


def test_a_text_is_divided_into_words_as_its_prediction_is(tagger) -> None:
    model, text = tagger("encoder"), "good film, isn't it? no"
    [predicted] = model.predict([text])
    found = explain_prediction(model, text, word=2, method="leave-one-out")
    assert text[slice(*found.subject[1:])] == predicted.words[2] == ","
    assert [word.text for word in found.words] == [*predicted.words[:2], *predicted.words[3:]]
    assert np.exp(found.score) == pytest.approx(predicted.scores[2], abs=2e-6)


def test_a_word_without_a_token_has_no_score(tagger) -> None:
    """``*`` stands for it when the row is tagged."""
    words = ["good", "\u0301", "film"]
    found = explain_prediction(tagger("encoder"), words, word=0)
    assert found.is_complete
    assert {word.text for word in found.words} >= {"good", "film"}


def test_without_spans_the_first_word_is_explained(tagger) -> None:
    model = tagger("plain tags")
    [found] = explain_row(model, WORDS)
    assert (found.kind, found.label) == ("tag", model.predict([WORDS])[0].tags[0])
    assert found.fields["text"][slice(*found.subject[1:])] == WORDS[0]


def test_an_ensemble_of_taggers_has_the_mean_of_probabilities(tagger, maker) -> None:
    own = Ensemble(
        [tagger("encoder", seed=seed, prompt=maker("bert").prompt("kv")) for seed in (1, 2)],
        vote="mean",
    )
    tag = own.labels[3]
    found = explain_prediction(own, WORDS, word=4, label=tag, method="leave-one-out")

    def read_mean(words: Sequence[str], number: int) -> float:
        shares = [np.exp(read_log(member, words, number, tag)) for member in own.members]
        return float(np.log(np.mean(shares)))

    assert found.score == pytest.approx(read_mean(WORDS, 4), abs=1e-5)
    rest = [*WORDS[:1], *WORDS[2:]]
    assert found.words[1].score == pytest.approx(found.score - read_mean(rest, 3), abs=1e-5)
    complete = explain_prediction(own, WORDS, word=4, label=tag)
    assert complete.is_complete
    assert complete.score == pytest.approx(found.score, abs=1e-6)
    [predicted] = own.predict([WORDS])
    spans = [(span.label, span.start, span.end) for span in predicted.spans]
    assert [(one.label, *one.subject[1:]) for one in explain_row(own, WORDS)] == spans


# ── Answers ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [ANSWER, "film", ""])
@pytest.mark.parametrize("way", FINDERS)
def test_leaving_a_word_out_changes_the_answer_s_score(finder, way: str, answer: str) -> None:
    model, row = finder(way), {"question": QUESTION, "context": CONTEXT}
    found = explain_prediction(model, row, method="leave-one-out", label=answer)
    start = CONTEXT.index(answer)
    assert (found.kind, found.label) == ("answer", answer)
    assert found.score == pytest.approx(read_answer_log(model, CONTEXT, start, answer), abs=1e-4)
    assert (found.subject is None) == (not answer)
    assert found.baseline == ("the answer alone" if answer else "a row without text")
    texts = [word.text for word in found.words if word.field == "context"]
    own = answer.split()
    assert texts == [w for w in ["a", "dull", "story", ",", *CONTEXT.split()[3:]] if w not in own]
    for word in found.words:
        if word.field == "question":
            continue
        rest = remove_word(CONTEXT, start=word.start, end=word.end)
        moved = rest.index(answer) if answer else 0
        log = read_answer_log(model, rest, moved, answer)
        assert word.score == pytest.approx(found.score - log, abs=1e-4), word


@pytest.mark.parametrize("way", FINDERS)
def test_by_default_the_predicted_answer_is_explained(finder, way: str) -> None:
    """Of a context without white space, which may be an answer's first or last token."""
    model, row = finder(way), {"question": QUESTION, "context": CONTEXT.replace(" ", ",")}
    always = model.with_task(null_threshold="never")
    never = model.with_task(null_threshold=-1000.0)
    [predicted] = always.predict([row])
    found = explain_prediction(always, row)
    assert found.label == predicted.text
    assert found.subject[1:] == (predicted.start, predicted.end)
    assert found.score == pytest.approx(predicted.score, abs=1e-4)
    assert found.is_complete, (found.gap, found.steps)
    [nothing] = never.predict([row])
    assert nothing.text == ""
    none = explain_prediction(never, row)
    assert (none.label, none.subject, none.title) == ("", None, "(no answer)")
    assert none.score == pytest.approx(nothing.null_score, abs=1e-4)
    assert none.is_complete, (none.gap, none.steps)


@pytest.mark.parametrize("way", FINDERS)
def test_the_scores_sum_to_the_difference_of_an_answer(finder, monkeypatch, way: str) -> None:
    monkeypatch.setattr(explanation, "_RELATIVE_GAP", 0.0)
    monkeypatch.setattr(explanation, "_ABSOLUTE_GAP", 0.0)
    row = {"question": QUESTION, "context": CONTEXT}
    found = explain_prediction(finder(way), row, label=ANSWER, steps=200)
    assert abs(found.gap) < max(1e-3, 0.01 * abs(found.score - found.baseline_score))
    assert {word.field for word in found.words} == {"question", "context"}


# ── What is shown, and what is refused ───────────────────────────────────────


def test_the_subject_is_marked(tagger, finder) -> None:
    row = {"question": QUESTION, "context": CONTEXT}
    found = explain_prediction(finder("encoder"), row, label=ANSWER, method="leave-one-out")
    parts = list_passages(found, "context")
    assert "".join(part.text for part in parts) == CONTEXT
    assert [part.text for part in parts if part.is_subject] == [ANSWER]
    assert not any(part.is_subject for part in list_passages(found, "question"))
    shown = found.to_dict()
    assert json.loads(json.dumps(shown))["subject"] == {
        "field": "context", "start": CONTEXT.index(ANSWER), "end": CONTEXT.index(ANSWER) + 17,
        "text": ANSWER,
    }  # fmt: skip
    page = make_explanation_page([found, *explain_row(tagger("encoder"), WORDS, steps=16)])
    assert f'<span class="subject">{ANSWER}</span>' in page
    assert "log p of start and end = " in page
    assert ">this span</span>" in page
    gradients = explain_prediction(finder("encoder"), row, label=ANSWER)
    own = [part for part in list_passages(gradients, "context") if part.is_subject]
    assert [part.text for part in own] == ["wonderful", " ", "greatly"]
    assert 'class="for subject"' in make_explanation_page([gradients]) or (
        'class="against subject"' in make_explanation_page([gradients])
    )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"word": 10}, DataError, r"the row has 10 words. Give a number from 0 to 9 \(--word\)"),
        ({"word": -1}, DataError, r"word = -1, but the row has 10 words"),
        ({"label": "B-FLIM"}, PromptError, r"unknown label 'B-FLIM'.*'B-FILM'\?"),
    ],
)
def test_mistakes_with_tags(tagger, options, kind, message: str) -> None:
    with pytest.raises(kind, match=message):
        explain_prediction(tagger("encoder"), WORDS, **options)


@pytest.mark.parametrize("row", ["", [], " \n"])
def test_a_row_without_words_has_no_tags(tagger, row) -> None:
    with pytest.raises(DataError, match="has no words, so there is nothing to explain"):
        explain_prediction(tagger("encoder"), row)


def test_nothing_can_be_left_out_of_a_single_word(tagger) -> None:
    with pytest.raises(DataError, match=r"no word of the row can be left out.* use the method"):
        explain_prediction(tagger("encoder"), ["good"], word=0, method="leave-one-out")
    assert explain_prediction(tagger("encoder"), ["good"], word=0).is_complete


def test_mistakes_with_answers(finder, model) -> None:
    own, row = finder("encoder"), {"question": QUESTION, "context": CONTEXT}
    with pytest.raises(PromptError, match=r"'greater' is not a part of the field 'context'.*''"):
        explain_prediction(own, row, label="greater")
    with pytest.raises(PromptError, match=r"that find answers has no log-probability of its own"):
        explain_prediction(Ensemble([own, own]), row)
    with pytest.raises(PromptError, match=r"word = 1 is for tags of words, but the task is"):
        explain_prediction(own, row, word=1)
    with pytest.raises(PromptError, match=r"the task is 'classify'. Leave it out."):
        explain_prediction(model("causal words"), "good film", word=0)


def test_batches_change_nothing(tagger, finder, monkeypatch) -> None:
    from softprompt.analysis import attribution

    found, row = [], {"question": QUESTION, "context": CONTEXT}
    for size in (1, 5):
        monkeypatch.setattr(attribution, "_ROWS_AT_ONCE", size)
        found.append([
            explain_prediction(tagger("encoder, windows"), WORDS, word=2),
            explain_prediction(finder("causal, windows"), row, label="film"),
            explain_prediction(tagger("causal"), WORDS, word=2, method="leave-one-out"),
        ])  # fmt: skip
    for one, other in zip(*found, strict=True):
        scores = [word.score for word in other.words]
        assert [word.score for word in one.words] == pytest.approx(scores, abs=1e-4)
        assert replace(one, words=()).fields == other.fields
