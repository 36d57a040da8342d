"""Cutting rows changes no number: loss and gradient are those of the rows run whole."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.injection import segments
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, Generate, base

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WHOLE = ("movie", "film", "yes", "no", "fresh", "great")
TEMPLATES = {
    "front": "{soft:3}{text} it was",
    "front, with words": "the film{soft:3} was {text} it was",
    "behind": "{text} it was{soft:3}",
    "middle": "{text}{soft:3} it was",
    "front and behind": "{soft:1}{text}{soft:2}",
}
TASKS = {
    "one token": Classify(verbalizer={"up": " good", "down": " bad"}),
    "several tokens": Classify(verbalizer={"up": " wonderful", "down": " terrible boring"}),
    "head": Classify(),
    "text": Generate(target_column="label", max_new_tokens=8),
}


@pytest.fixture
def passes(monkeypatch):
    """How many tokens each pass through a backbone's body has, padding included."""

    def count(own) -> list[int]:
        found: list[int] = []
        hidden = type(own).hidden

        def counting(self, inputs, **more):
            found.append(inputs.ids.numel())
            return hidden(self, inputs, **more)

        monkeypatch.setattr(type(own), "hidden", counting)
        return found

    return count


def loss_and_gradient(task, rows, start: torch.Tensor):
    vectors = start.clone().requires_grad_()
    found = task.loss([task.example(row) for row in rows], [InputPrompt(vectors)])
    (found.total / found.count).backward()
    return found.total.detach(), vectors.grad


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("settings", TASKS.values(), ids=TASKS)
def test_loss_and_gradient_are_those_of_whole_rows(  # noqa: PLR0917  # fixtures
    causal, settings, template, bound, words, rows, monkeypatch
):
    task = bound(causal, settings, template, labels=("down", "up"))
    start = words(causal).vectors * 1.5
    loss, gradient = loss_and_gradient(task, rows, start)
    monkeypatch.setattr(base, "cut", lambda *_args, **_more: None)
    whole, expected = loss_and_gradient(task, rows, start)
    assert_close(loss, whole, **CLOSE)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    assert expected.abs().max() > 1e-3


def test_a_shared_beginning_is_run_once(bound, words, rows, passes):
    task = bound("llama", TASKS["one token"], TEMPLATES["front, with words"])
    examples = [task.example(row) for row in rows]
    seen = passes(task.backbone)
    task.scores(examples, [words("llama")])
    head, rest = seen
    longest = max(e.length for e in examples)
    assert head >= 3
    assert rest == len(rows) * (longest - head)


def test_text_before_the_prompt_has_no_graph(bound, words, rows, monkeypatch):
    task = bound("llama", TASKS["one token"], TEMPLATES["behind"])
    graphs = []
    before = segments._before

    def watched(*args, **more):
        found = before(*args, **more)
        graphs.extend(site.keys.requires_grad for site in found.values())
        return found

    monkeypatch.setattr(segments, "_before", watched)
    loss_and_gradient(task, rows, words("llama").vectors)
    assert graphs == [False] * task.backbone.geometry.sites


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_what_cannot_be_cut_is_run_whole(family, backbone):
    own = backbone(family)
    soft = own.geometry.vocabulary
    prompt = InputPrompt(torch.randn(2, own.geometry.embedding_size))
    rows = [[soft, soft + 1, 7, 8], [soft, soft + 1, 9]]
    assert segments.cut(own, rows, prompt=prompt, needed=[2, 2]) is None


def test_a_cut_never_takes_what_is_asked_for(backbone):
    """Two continuations of one row have its last token in common, and it is scored."""
    own = backbone("llama")
    soft = own.geometry.vocabulary
    prompt = InputPrompt(torch.randn(1, own.geometry.embedding_size))
    rows = [[soft, 7, 8, 9], [soft, 7, 8, 10]]
    where = segments.cut(own, rows, prompt=prompt, needed=[2, 2])
    assert where is not None
    assert where.at == (2, 2)


@pytest.mark.parametrize("settings", TASKS.values(), ids=TASKS)
def test_what_many_rows_begin_with_is_run_once_for_all(causal, settings, bound, words, passes):
    task = bound(causal, settings, "the film{soft:3} was {text} it was", labels=("down", "up"))
    prompt = words(causal)
    texts = [f"{a} {b} {c}" for a in ("a", "the", "it") for b in ("good", "bad") for c in WHOLE]
    examples = [task.example({"text": text, "label": "up"}) for text in texts]
    many = task.answering(examples, prompt)
    if not segments.can_be_cut(task.backbone):
        assert many is task
        return
    assert len(many.kept.ids) >= 3
    seen = passes(task.backbone)
    found = many.loss(examples[:40], [prompt])
    count = len(examples[0].variants) * 40
    own = max(e.length + len(e.target if isinstance(e.target, tuple) else ()) for e in examples)
    assert len(seen) == 1
    assert sum(seen) <= count * (own - len(many.kept.ids))
    with torch.no_grad():
        whole = task.loss(examples[:40], [prompt])
    assert_close(found.total, whole.total, **CLOSE)
    other = InputPrompt(prompt.vectors * 2)
    with torch.no_grad():
        assert_close(
            many.loss(examples, [other]).total, task.loss(examples, [other]).total, **CLOSE
        )
