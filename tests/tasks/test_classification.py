"""Label words are scored whole: against one forward of the bare model for every word."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.tasks import Classify, build_task
from support.parametrize import for_each

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
VERBALIZERS = {
    "one token each": {"up": [" good"], "down": [" bad"]},
    "the same first token": {"up": [" wonderful"], "down": [" terrible"]},
    "several words": {"up": [" good", " wonderful"], "down": [" bad", " terrible", " boring"]},
    "different first tokens": {"up": [" wonderful"], "down": [" badly"], "so": [" was", " no"]},
}
TEMPLATES = {
    "causal": "{text}{soft:3} it was",
    "encoder": "{text}{soft:3} it was{mask} film",
    "encoder-decoder": "{text}{soft:3} it was",
}


def tokens(own, word: str) -> list[int]:
    return own.tokenizer(word, add_special_tokens=False)["input_ids"]


def forward(plain, **ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities at every position of one row of transformers' own model."""
    with torch.no_grad():
        logits = plain(**{name: row[None] for name, row in ids.items()}).logits[0]
    return logits.log_softmax(-1)


def brute(own, plain, spelled, word: list[int], text: str) -> float:
    """The log-probability of a word after, in, or as the answer to one row."""
    family, kind = own.name, own.geometry.architecture
    given = torch.tensor(word)
    if kind == "causal":
        row = spelled(family, text, "soft", " it was")
        said = forward(plain, input_ids=torch.cat([row, given]))[len(row) - 1 : -1]
    elif kind == "encoder":
        row = spelled(family, text, "soft", " it was", "mask", " film", masks=len(word))
        said = forward(plain, input_ids=row)[row == own.tokenizer.mask_token_id]
    else:
        row = spelled(family, text, "soft", " it was")
        decoder = torch.tensor([own.decoder_start_token_id, *word[:-1]])
        said = forward(plain, input_ids=row, decoder_input_ids=decoder)
    return said[range(len(word)), given].sum().item()


@pytest.fixture
def by_hand(backbone, plain, spelled, rows):
    """For each row the log of each label's probability, summed over its words."""

    def get(family: str, verbalizer: dict[str, list[str]], *, end: bool) -> torch.Tensor:
        own, model = backbone(family), plain(family)
        ending = [2] if end else []
        scores = [
            [
                [brute(own, model, spelled, tokens(own, w) + ending, row["text"]) for w in words]
                for words in verbalizer.values()
            ]
            for row in rows
        ]
        return torch.tensor([[torch.tensor(s).logsumexp(0) for s in row] for row in scores])

    return get


@pytest.mark.parametrize("which", VERBALIZERS)
@for_each("family")
def test_scores_are_the_words_probabilities(bound, words, by_hand, rows, family, which):
    verbalizer = VERBALIZERS[which]
    task = bound(family, Classify(verbalizer=verbalizer), TEMPLATES)
    examples = [task.make_example(row, target=False) for row in rows]
    end = task.backbone.geometry.architecture == "encoder-decoder"
    wanted = by_hand(family, verbalizer, end=end)
    scores = task.compute_scores(examples, [words(family)])
    # One token each: without the vocabulary's normalizer, which is the same for all labels.
    assert_close(scores.log_softmax(-1), wanted.log_softmax(-1), **CLOSE)
    if which != "one token each":
        assert_close(scores, wanted, **CLOSE)
    answers = task.predict(examples, [words(family)])
    for answer, chances in zip(answers, wanted.softmax(-1), strict=True):
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert list(answer.probabilities) == list(verbalizer)
        assert list(answer.probabilities.values()) == pytest.approx(chances.tolist(), abs=1e-5)
        assert answer.label == list(verbalizer)[chances.argmax()]


@for_each("causal")
def test_a_single_token_is_a_row_of_the_logits(backbone, plain, bound, spelled, rows, causal):
    """The scores are the two logits at the last token."""
    own = backbone(causal)
    settings = Classify(verbalizer={"up": " good", "down": " bad"})
    task = bound(causal, settings, "{text} it was")
    examples = [task.make_example(row) for row in rows]
    columns = [tokens(own, word)[0] for word in (" good", " bad")]
    for row, found in zip(rows, task.compute_scores(examples, [None]), strict=True):
        ids = spelled(causal, row["text"], " it was")
        with torch.no_grad():
            logits = plain(causal)(input_ids=ids[None]).logits[0, -1, columns]
        assert_close(found, logits, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "t5", "bart"])
def test_a_word_that_begins_another_ends_with_the_end(bound, words, by_hand, rows, family):
    verbalizer = {"up": [" great"], "down": [" greatly"], "so": [" good"]}
    task = bound(family, Classify(verbalizer=verbalizer), "{text}{soft:3} it was")
    assert all(word[-1] == 2 for word in task.words.all)
    examples = [task.make_example(row, target=False) for row in rows]
    wanted = by_hand(family, verbalizer, end=True)
    assert_close(task.compute_scores(examples, [words(family)]), wanted, **CLOSE)


@pytest.mark.parametrize(
    ("which", "runs"),
    [
        ("one token each", 1),
        ("the same first token", 1),
        ("several words", 1),
        ("different first tokens", 2),
    ],
)
def test_no_more_runs_than_continuations(bound, rows, which, runs):
    task = bound("llama", Classify(verbalizer=VERBALIZERS[which]), "{text} it was")
    assert len(task.make_example(rows[0]).variants) == runs


def test_a_masked_word_is_scored_in_as_many_passes_as_there_are_lengths(bound, rows):
    settings = Classify(verbalizer=VERBALIZERS["several words"])
    example = bound("bert", settings, TEMPLATES["encoder"]).make_example(rows[0])
    assert [len(variant.mask_positions) for variant in example.variants] == [1, 2]
    assert example.read_positions == tuple(variant.mask_positions for variant in example.variants)


@pytest.mark.parametrize("which", VERBALIZERS)
@for_each("family")
def test_batch_mates_do_not_matter(backbone, bound, maker, rows, family, which):
    """Each row with a prompt of its own kind, together and alone."""
    own, make = backbone(family), maker(family)
    settings = Classify(verbalizer=VERBALIZERS[which])
    task = bound(family, settings, TEMPLATES)
    bare = TEMPLATES[own.geometry.architecture].replace("{soft:3}", "")
    hard = bound(family, settings, bare)
    prompts = [
        make.input_prompt(3),
        make.prefix(2) if own.geometry.num_attention_sites else None,
        None,
    ]
    examples = [
        task.make_example(rows[0]),
        *(hard.make_example(row, target=False) for row in rows[1:]),
    ]
    together = task.compute_scores(examples, prompts, rows=torch.tensor([0, 1, 2]))
    for example, prompt, scores in zip(examples, prompts, together, strict=True):
        assert_close(task.compute_scores([example], [prompt])[0], scores, **CLOSE)


@for_each("family")
def test_the_loss_is_a_sum_whatever_the_split(bound, words, rows, family):
    task = bound(family, Classify(verbalizer=VERBALIZERS["several words"]), TEMPLATES)
    examples = [task.make_example(row) for row in rows]
    whole = task.compute_loss(examples, [words(family)])
    parts = [task.compute_loss(part, [words(family)]) for part in (examples[:1], examples[1:])]
    assert whole.count == 3 == sum(part.count for part in parts)
    assert_close(whole.total, sum(part.total for part in parts), **CLOSE)
    scores = task.compute_scores(examples, [words(family)]).log_softmax(-1)
    assert_close(whole.total, -(scores[0, 0] + scores[1, 1] + scores[2, 0]), **CLOSE)


@for_each("family")
def test_the_loss_has_a_gradient(bound, maker, rows, family):
    task = bound(family, Classify(verbalizer=VERBALIZERS["several words"]), TEMPLATES)
    prompt = maker(family).input_prompt(3)
    prompt.vectors.requires_grad_()
    task.compute_loss([task.make_example(row) for row in rows], [prompt]).total.backward()
    assert prompt.vectors.grad.any(dim=1).all()


def test_a_backbone_in_bf16_says_about_the_same(backbone, bound, words, rows):
    settings = Classify(verbalizer=VERBALIZERS["several words"])
    task = bound("llama", settings, TEMPLATES["causal"])
    low = build_task(settings, backbone("llama", torch.bfloat16), template=TEMPLATES["causal"])
    examples = [task.make_example(row) for row in rows]
    high, rough = (t.compute_scores(examples, [words("llama")]) for t in (task, low))
    assert rough.dtype == torch.float32
    assert_close(rough.softmax(-1), high.softmax(-1), rtol=0.1, atol=0.05)


def test_pairs_have_their_types(backbone, bound, plain):
    """A pair in BERT: types 0 and 1, as its tokenizer gives them."""
    own = backbone("bert")
    settings = Classify(verbalizer={"up": " good", "down": " bad"})
    task = bound("bert", settings, "{a} it was{mask}{sep}{b}")
    row = {"a": "the movie", "b": "a film was great"}
    example = task.make_example(row, target=False)
    pair = own.tokenizer("the movie it was<mask>", "a film was great", return_token_type_ids=True)
    assert [*example.variants[0].input_ids] == pair["input_ids"]
    assert [*example.variants[0].token_type_ids] == pair["token_type_ids"]
    with torch.no_grad():
        logits = plain("bert")(
            input_ids=torch.tensor([pair["input_ids"]]),
            token_type_ids=torch.tensor([pair["token_type_ids"]]),
        ).logits[0]
    at = pair["input_ids"].index(own.tokenizer.mask_token_id)
    columns = [tokens(own, word)[0] for word in (" good", " bad")]
    assert_close(task.compute_scores([example], [None])[0], logits[at, columns], **CLOSE)
