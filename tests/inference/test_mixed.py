"""Rows of many classifiers and prompts in one batch are answered as each of them alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.inference import PromptModel
from softprompt.inference import mixed as mixed_module
from softprompt.inference.mixed import (
    BakedPrompt,
    PromptedRow,
    bake_prompts,
    can_bake,
    find_head,
    predict_mixed,
)
from softprompt.prompt import InputPrompt
from softprompt.tasks import ChoicePrediction, Choose, Classify, Extract, Prediction, TagPrediction
from support.models import ROWS
from support.options import make_options
from support.questions import make_questions

ModelFactory = Callable[..., PromptModel]
TEXTS = [row["text"] for row in ROWS]
LONG = {"negative": " bad", "neutral": " old story", "positive": [" good", " great"]}


def make_models(family: str, model: ModelFactory, maker) -> list[PromptModel]:
    """Classifiers of every readout and kind of prompt that a family has."""
    mask = " {mask}" if family == "bert" else ""
    soft = [Classify(template=f"{{soft:{n}}}{{text}} is{mask}", verbalizer=LONG) for n in (2, 5)]
    plain = Classify(template=f"{{text}} seems{mask}", verbalizer=LONG)
    prompts = maker(family)
    made = [
        model((family, "words", "input")),
        model((family, "words", "kv")),
        model((family, "words", "input"), settings=soft[0], choices=tuple(LONG),
              prompt=prompts.input_prompt(2)),
        model((family, "words", "input"), settings=soft[1], choices=tuple(LONG),
              prompt=prompts.input_prompt(5)),
        model((family, "words", "kv"), settings=plain, choices=tuple(LONG)),
    ]  # fmt: skip
    if family != "t5":
        made.append(model((family, "head", "input")))
        made.append(model((family, "head", "kv")))
        made.append(model((family, "tag", "input")))
        made.append(model((family, "tag", "kv")))
        for pooling in ("mean", "max"):
            head = Classify(template="{soft:3}{text}", head="linear", pooling=pooling)
            made.append(model((family, "head", "input"), settings=head))
    return made


def bake(models: Sequence[PromptModel]) -> list[BakedPrompt | None]:
    """The baked prompt of each model that has one, all computed together."""
    heads = [find_head(one.task) if can_bake(one.prompt) else None for one in models]
    chosen = [n for n, head in enumerate(heads) if head is not None]
    own = models[0].backbone
    found = bake_prompts(own, [models[n].prompt for n in chosen], heads=[heads[n] for n in chosen])
    baked = dict(zip(chosen, found, strict=True))
    return [baked.get(n) for n in range(len(models))]


def assert_equal(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.label == two.label
        assert dict(one.probabilities) == pytest.approx(dict(two.probabilities), abs=2e-6)
        if isinstance(one, TagPrediction) and isinstance(two, TagPrediction):
            assert one.scores == pytest.approx(two.scores, abs=2e-6)
        if isinstance(one, ChoicePrediction) and isinstance(two, ChoicePrediction):
            assert one.scores == pytest.approx(two.scores, abs=1e-4)
            assert (one.choice, one.twin_choice) == (two.choice, two.twin_choice)


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "gpt2"])
def test_a_mixed_batch_is_each_row_alone(model: ModelFactory, maker, family: str) -> None:
    models = make_models(family, model, maker)
    baked = bake(models)

    @settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
    @given(st.data())
    def check(data) -> None:
        count = data.draw(st.integers(1, 12))
        pairs = [
            (data.draw(st.integers(0, len(models) - 1)), data.draw(st.sampled_from(TEXTS)))
            for _ in range(count)
        ]
        rows = []
        for number, text in pairs:
            one, short = models[number], baked[number]
            example, prompt = one.render(text), one.prompt
            cut = None if short is None or data.draw(st.booleans()) else short.cut(example)
            if short is not None and cut is not None:
                example, prompt = cut, short.prefix
            rows.append(PromptedRow(one.task, example, prompt))
        assert_equal(predict_mixed(rows), [models[n].predict(text)[0] for n, text in pairs])

    check()


def test_different_labels_share_one_pass(model: ModelFactory, maker, monkeypatch) -> None:
    """Label words, heads, soft tokens, prefixes: one forward pass reads them all."""
    passes = []
    forward = mixed_module.Classifier.run_rows
    monkeypatch.setattr(
        mixed_module.Classifier,
        "run_rows",
        lambda self, rows, *args, **more: (
            passes.append(len(rows)) or forward(self, rows, *args, **more)
        ),
    )
    models = [one for one in make_models("bert", model, maker) if not one.task.reads_whole_rows]
    rows = [PromptedRow(m.task, m.render("dull"), m.prompt) for m in models]
    predict_mixed(rows)
    assert passes == [sum(len(row.example.variants) for row in rows)]


def test_what_can_be_baked_is_baked(model: ModelFactory, maker) -> None:
    front = model(("llama", "words", "input"))
    [baked] = bake([front])
    assert baked is not None
    vocabulary = front.backbone.geometry.vocab_size
    assert [token for token in baked.head if token >= vocabulary] == [
        *range(vocabulary, vocabulary + 3)
    ]
    example = front.render("dull")
    cut = baked.cut(example)
    assert cut is not None
    assert baked.head + cut.variants[0].input_ids == example.variants[0].input_ids
    assert baked.cut(cut) is None  # a row that does not begin so is run as it is
    middle = Classify(template="{text}{soft:3} is", verbalizer={"a": " bad", "b": " good"})
    behind = model(("llama", "words", "input"), settings=middle, choices=("a", "b"))
    assert find_head(behind.task) is None
    late = InputPrompt(torch.zeros(3, front.backbone.geometry.layer_width), 1)
    assert not can_bake(late)
    assert find_head(model(("bert", "words", "input")).task) is None
    assert not can_bake(model(("llama", "words", "kv")).prompt)


def test_words_behind_the_soft_tokens_are_baked_too(model: ModelFactory) -> None:
    words = {"a": " bad", "b": " good"}
    settings = Classify(template="{soft:3}the film {text} is", verbalizer=words)
    front = model(("llama", "words", "input"), settings=settings, choices=("a", "b"))
    [baked] = bake([front])
    assert baked is not None
    assert len(baked.head) > 3
    assert baked.prefix.length == len(baked.head)
    rows = [front.render(text) for text in TEXTS]
    short = [PromptedRow(front.task, baked.cut(row), baked.prefix) for row in rows]
    assert_equal(predict_mixed(short), front.predict(TEXTS))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_answers_from_contexts_share_a_pass_with_labels(
    model: ModelFactory, monkeypatch, family: str
) -> None:
    question = "{question}{soft:3}{context} is" if family == "llama" else "{soft:3}{question}{sep}"
    template = question if family == "llama" else question + "{context}"
    task = Extract(template, null_threshold=0.0, stride=1)
    asked = model((family, "head", "input"), settings=task, max_length=14)
    labeled = model((family, "head", "kv"))
    questions = make_questions(5, seed=1, length=20)
    rows = [
        *(PromptedRow(asked.task, asked.render(row), asked.prompt) for row in questions),
        *(PromptedRow(labeled.task, labeled.render(row), labeled.prompt) for row in ROWS),
    ]
    assert any(len(row.example.variants) > 1 for row in rows)
    passes = []
    compute = mixed_module._compute_at_positions
    monkeypatch.setattr(
        mixed_module, "_compute_at_positions", lambda rows: passes.append(1) or compute(rows)
    )
    found = predict_mixed(rows)
    assert len(passes) == 1
    assert_equal(found[5:], labeled.predict(ROWS))
    for one, two in zip(found, asked.predict(questions), strict=False):
        assert one.label == two.label
        assert one.null_score == pytest.approx(two.null_score, abs=1e-5)
        assert one.score == pytest.approx(two.score, abs=1e-5)


CHOICES = {
    "llama": [
        ("input", {"template": "{soft:3}{question} is"}),
        ("kv", {"template": "{question} is", "length_normalization": "characters"}),
        ("input", {"template": "{question} is{soft:3}", "length_normalization": "tokens"}),
        ("kv", {"template": "{question} {option}", "head": "linear", "pooling": "last"}),
    ],
    "t5": [
        ("input", {"template": "{soft:3}{question}"}),
        ("kv", {"template": "{question}", "length_normalization": "tokens"}),
    ],
    "bert": [
        ("kv", {"template": "{question}{sep}{option}", "head": "linear", "pooling": "cls"}),
        ("input", {"template": "{soft:3}{question}{sep}{option}", "head": "mlp-tanh",
                   "pooling": "cls"}),
        ("kv", {"template": "{question}{option}", "head": "linear", "pooling": "mean"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("is_baked", [False, True])
@pytest.mark.parametrize("family", CHOICES)
def test_options_of_rows_are_scored_next_to_other_tasks(
    model: ModelFactory, monkeypatch, family: str, is_baked
) -> None:
    """Options, labels by words and by heads, in one batch: each row is answered as alone."""
    choosers = [
        model(
            (family, "head", shape),
            settings=Choose(target_form="text", **own),
            choices=(),
            seed=n,
        )
        for n, (shape, own) in enumerate(CHOICES[family])
    ]
    others = [model((family, "words", "kv"))]
    if family != "t5":
        others.append(model((family, "head", "input")))
    models = choosers + others
    short = bake(models) if is_baked else [None] * len(models)
    pairs = [(n, row) for row in make_options(5, seed=1) for n in range(len(choosers))]
    pairs += [(len(choosers) + n, row) for row in ROWS for n in range(len(others))]
    pairs = pairs[::2] + pairs[1::2]
    rows = []
    for n, row in pairs:
        example, prompt, baked = models[n].render(row), models[n].prompt, short[n]
        cut = None if baked is None else baked.cut(example)
        if baked is not None and cut is not None:
            example, prompt = cut, baked.prefix
        rows.append(PromptedRow(models[n].task, example, prompt))
    assert not is_baked or family != "llama" or any(b is not None for b in short[:4])
    passes = []
    for name in ("_compute_at_positions", "_compute_together"):
        compute = getattr(mixed_module, name)
        monkeypatch.setattr(
            mixed_module, name, lambda rows, of=compute: passes.append(len(rows)) or of(rows)
        )
    assert_equal(predict_mixed(rows), [models[n].predict([row])[0] for n, row in pairs])
    # Heads on the mean have a pass of their own; label words of a decoder too.
    assert len(passes) == {"llama": 1, "t5": 2, "bert": 2}[family]
