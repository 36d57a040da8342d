"""Splitting rows changes no number: loss and gradient are those of the rows run whole."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.injection import prefix_sharing
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, Generate, base
from support.parametrize import for_each

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
    """The number of tokens, padding included, of each pass through a backbone's body."""

    def count(own) -> list[int]:
        found: list[int] = []
        hidden = type(own).compute_hidden_states

        def counting(self, inputs, **more):
            found.append(inputs.input_ids.numel())
            return hidden(self, inputs, **more)

        monkeypatch.setattr(type(own), "compute_hidden_states", counting)
        return found

    return count


def loss_and_gradient(task, rows, start: torch.Tensor):
    vectors = start.clone().requires_grad_()
    found = task.compute_loss([task.make_example(row) for row in rows], [InputPrompt(vectors)])
    (found.total / found.count).backward()
    return found.total.detach(), vectors.grad


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("settings", TASKS.values(), ids=TASKS)
@for_each("causal")
def test_loss_and_gradient_are_those_of_whole_rows(  # noqa: PLR0917  # fixtures
    causal, settings, template, bound, words, rows, monkeypatch
):
    task = bound(causal, settings, template, labels=("down", "up"))
    start = words(causal).vectors * 1.5
    loss, gradient = loss_and_gradient(task, rows, start)
    monkeypatch.setattr(base, "plan_split", lambda *_args, **_more: None)
    whole, expected = loss_and_gradient(task, rows, start)
    assert_close(loss, whole, **CLOSE)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    assert expected.abs().max() > 1e-3


def test_a_shared_beginning_is_run_once(bound, words, rows, passes):
    task = bound("llama", TASKS["one token"], TEMPLATES["front, with words"])
    examples = [task.make_example(row) for row in rows]
    seen = passes(task.backbone)
    task.compute_scores(examples, [words("llama")])
    head, rest = seen
    longest = max(e.length for e in examples)
    assert head >= 3
    assert rest == len(rows) * (longest - head)


def test_text_before_the_prompt_has_no_graph(bound, words, rows, monkeypatch):
    task = bound("llama", TASKS["one token"], TEMPLATES["behind"])
    graphs = []
    before = prefix_sharing._compute_first_parts

    def watched(*args, **more):
        found = before(*args, **more)
        graphs.extend(site.keys.requires_grad for site in found.values())
        return found

    monkeypatch.setattr(prefix_sharing, "_compute_first_parts", watched)
    loss_and_gradient(task, rows, words("llama").vectors)
    assert graphs == [False] * task.backbone.geometry.num_attention_sites


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_rows_that_cannot_be_split_are_run_whole(family, backbone):
    own = backbone(family)
    soft = own.geometry.vocab_size
    prompt = InputPrompt(torch.randn(2, own.geometry.embedding_size))
    rows = [[soft, soft + 1, 7, 8], [soft, soft + 1, 9]]
    assert prefix_sharing.plan_split(own, rows, prompt=prompt, needed=[2, 2]) is None


def test_a_split_is_never_after_a_needed_position(backbone):
    """Two continuations of one row have its last token in common, and it is scored."""
    own = backbone("llama")
    soft = own.geometry.vocab_size
    prompt = InputPrompt(torch.randn(1, own.geometry.embedding_size))
    rows = [[soft, 7, 8, 9], [soft, 7, 8, 10]]
    split = prefix_sharing.plan_split(own, rows, prompt=prompt, needed=[2, 2])
    assert split is not None
    assert split.lengths == (2, 2)


@pytest.mark.parametrize("settings", TASKS.values(), ids=TASKS)
@for_each("causal")
def test_a_common_prefix_of_many_rows_is_run_once_for_all(causal, settings, bound, words, passes):
    task = bound(causal, settings, "the film{soft:3} was {text} it was", labels=("down", "up"))
    prompt = words(causal)
    texts = [f"{a} {b} {c}" for a in ("a", "the", "it") for b in ("good", "bad") for c in WHOLE]
    examples = [task.make_example({"text": text, "label": "up"}) for text in texts]
    many = task.with_shared_prefix(examples, prompt)
    if not prefix_sharing.can_split(task.backbone):
        assert many is task
        return
    assert len(many.cached.ids) >= 3
    seen = passes(task.backbone)
    found = many.compute_loss(examples[:40], [prompt])
    count = len(examples[0].variants) * 40
    own = max(e.length + len(e.target if isinstance(e.target, tuple) else ()) for e in examples)
    assert len(seen) == 1
    assert sum(seen) <= count * (own - len(many.cached.ids))
    with torch.no_grad():
        whole = task.compute_loss(examples[:40], [prompt])
    assert_close(found.total, whole.total, **CLOSE)
    other = InputPrompt(prompt.vectors * 2)
    with torch.no_grad():
        assert_close(
            many.compute_loss(examples, [other]).total,
            task.compute_loss(examples, [other]).total,
            **CLOSE,
        )
