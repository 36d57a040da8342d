"""A trained head reads the real [CLS] or the last real token, and nothing else in the batch."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from softprompt.errors import DataError
from softprompt.tasks import Classify, build_task
from softprompt.tasks.classifier_head import ClassifierHead

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TEMPLATES = {"front": "{soft:3}{text}", "end": "{text}{soft:3}", "middle": "{text}{soft:3} it was"}
READERS = [
    "bert", "roberta", "distilbert", "electra", "albert", "modernbert", "deberta_v2",
    "gpt2", "opt", "gpt_neox", "bloom", "llama", "mistral", "qwen3", "gemma3", "phi3",
]  # fmt: skip


@pytest.fixture
def reader(bound):
    def make(family: str, template: str = "{text}", **settings: object):
        return bound(family, Classify(**settings), template, labels=("down", "up"))

    return make


@pytest.fixture
def states(plain, spelled):
    """The last states of one row as transformers' own model has them."""

    def get(family: str, *parts: str) -> torch.Tensor:
        with torch.no_grad():
            return plain(family).base_model(input_ids=spelled(family, *parts)[None])[0][0]

    return get


@pytest.mark.parametrize("place", TEMPLATES)
@pytest.mark.parametrize("family", READERS)
def test_it_reads_the_real_token(reader, states, words, rows, family, place):
    task = reader(family, TEMPLATES[place])
    examples = [task.make_example(row) for row in rows]
    scores = task.compute_scores(examples, [words(family)])
    at = 0 if task.backbone.geometry.architecture == "encoder" else -1
    for row, found in zip(rows, scores, strict=True):
        parts = {
            "front": ["soft", row["text"]],
            "end": [row["text"], "soft"],
            "middle": [row["text"], "soft", " it was"],
        }[place]
        wanted = states(family, *parts)[at] @ task.head.output.weight.T
        assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("family", READERS)
def test_batch_mates_do_not_matter(backbone, reader, maker, rows, family):
    own, make = backbone(family), maker(family)
    hard, soft = reader(family), reader(family, "{text}{soft:3}")
    prompts = [
        make.input_prompt(3),
        make.prefix(2) if own.geometry.num_attention_sites else None,
        None,
    ]
    examples = [soft.make_example(rows[0]), *(hard.make_example(row) for row in rows[1:])]
    together = hard.compute_scores(examples, prompts, rows=torch.tensor([0, 1, 2]))
    for example, prompt, scores in zip(examples, prompts, together, strict=True):
        assert_close(hard.compute_scores([example], [prompt])[0], scores, **CLOSE)


def test_the_mlp_is_berts(reader, rows):
    """Dense, tanh, linear."""
    task = reader("bert", head="mlp-tanh")
    head = task.head
    states = torch.randn(4, 32)
    by_hand = (states @ head.dense.weight.T + head.dense.bias).tanh() @ head.output.weight.T
    assert_close(head(states), by_hand + head.output.bias)


@pytest.mark.parametrize("kind", ["linear", "mlp-tanh"])
def test_the_head_is_drawn_from_its_seed(kind):
    torch.manual_seed(1)
    first = ClassifierHead(200, 50, kind=kind, seed=3)
    torch.manual_seed(2)
    again = ClassifierHead(200, 50, kind=kind, seed=3)
    other = ClassifierHead(200, 50, kind=kind, seed=4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if parameter.ndim > 1:
            assert not torch.equal(parameter, other.get_parameter(name))
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert not parameter.any()
    if kind == "mlp-tanh":
        assert not torch.equal(first.dense.weight[:50], first.output.weight)


def test_the_loss_is_the_cross_entropy_of_the_labels(reader, rows):
    task = reader("llama")
    examples = [task.make_example(row) for row in rows]
    chances = task.compute_scores(examples, [None]).softmax(-1)
    loss = task.compute_loss(examples, [None])
    by_hand = -(chances[0, 1].log() + chances[1, 0].log() + chances[2, 1].log())
    assert_close(loss.total, by_hand)
    assert loss.count == 3
    # A new head gives about the same score to every class.
    assert loss.total.item() / 3 == pytest.approx(math.log(2), abs=0.3)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_head_and_the_prompt_are_trained_together(backbone, reader, maker, rows, family):
    task = reader(family, "{text}{soft:3}")
    prompt = maker(family).input_prompt(3)
    prompt.vectors.requires_grad_()
    task.compute_loss([task.make_example(row) for row in rows], [prompt]).total.backward()
    assert all(parameter.grad.any() for parameter in task.head.parameters())
    assert prompt.vectors.grad.any(dim=1).all()
    assert isinstance(task.head, nn.Module)


def test_the_head_is_fp32_on_a_backbone_in_bf16(backbone, rows):
    own = backbone("bert", torch.bfloat16)
    task = build_task(Classify(), own, template="{text}", labels=("down", "up"))
    scores = task.compute_scores([task.make_example(row) for row in rows], [None])
    assert scores.dtype == torch.float32
    assert {p.dtype for p in task.head.parameters()} == {torch.float32}


def test_answers(reader, rows):
    task = reader("llama")
    examples = [task.make_example(row, target=False) for row in rows]
    scores = task.compute_scores(examples, [None])
    for answer, row in zip(task.predict(examples, [None]), scores.tolist(), strict=True):
        weights = [math.exp(score) for score in row]
        assert answer.probabilities == pytest.approx(
            {"down": weights[0] / sum(weights), "up": weights[1] / sum(weights)}, abs=1e-6
        )
        assert answer.label == ("up" if row[1] > row[0] else "down")


def test_columns(reader):
    task = reader("bert", "{a} and {b}{a}", label_column="truth")
    assert task.columns == ("a", "b")
    assert task.target_column == "truth"
    assert task.labels == ("down", "up")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "x", "label": "upp"},
            "unknown label 'upp'. Options: down, up. Did you mean 'up'?",
        ),
        (
            {"text": "x", "lable": "up"},
            "unknown column 'label'. Options: lable, text. Did you mean 'lable'?",
        ),
    ],
)
@pytest.mark.parametrize("verbalizer", [None, {"up": " good", "down": " bad"}])
def test_a_label_that_cannot_be_learnt(bound, row, message, verbalizer):
    task = bound("llama", Classify(verbalizer=verbalizer), "{text}", labels=("down", "up"))
    with pytest.raises(DataError) as error:
        task.make_example(row)
    assert str(error.value) == message
    assert task.make_example(row, target=False).target is None


def test_a_label_may_be_a_number(bound):
    task = bound("llama", Classify(), "{text}", labels=("0", "1"))
    assert task.make_example({"text": "x", "label": 1}).target == 1
