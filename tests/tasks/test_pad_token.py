"""The token that pads rows may also stand in them: what is padding is known by position, not by id.

SmolLM2 and many others pad with their end token; where a tokenizer has no pad token, id 0 pads.
"""

from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.testing import assert_close

from softprompt.backbone import Backbone, BatchInputs, wrap_model
from softprompt.injection import Decoding, generate
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, Generate, build_task
from support.parametrize import for_each
from support.tiny_models import END, SPECIALS, make_model, make_tokenizer, tokenize

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# The token that pads, and the text of the token with the same id.
PADS = {"the end": (SPECIALS[END], SPECIALS[END]), "none": (None, SPECIALS[0])}
TEXTS = ("the movie was great", "bad", "it was a boring film and not good")
SOFT = "a film fresh"
Paired = tuple[Backbone, tf.PreTrainedModel, str]


@pytest.fixture
def padded() -> Callable[[str, str], Paired]:
    """A backbone that pads with this token, transformers' own model, and the token's text."""

    def make(family: str, which: str) -> Paired:
        pad, text = PADS[which]
        tokenizer, model = make_tokenizer("causal"), make_model(family)
        tokenizer.pad_token = pad
        model.config.pad_token_id = tokenizer.pad_token_id
        own = wrap_model(family, model, tokenizer=tokenizer, kind="causal")
        assert own.tokenizer.convert_tokens_to_ids(text) == own.pad_token_id
        return own, make_model(family), text

    return make


def spell(own: Backbone, text: str, *, token: str) -> Tensor:
    """The row of the template below with the words of the soft tokens, in plain ids."""
    begin, middle = torch.tensor([0]), torch.tensor([own.pad_token_id])
    assert own.tokenizer.convert_ids_to_tokens(own.pad_token_id) == token
    parts = [begin, tokenize(own, text), middle, tokenize(own, SOFT), tokenize(own, " it was")]
    return torch.cat(parts)


def prompt_of(own: Backbone) -> InputPrompt:
    return InputPrompt(own.embed(tokenize(own, SOFT)))


@pytest.mark.parametrize("which", PADS)
@for_each("causal")
def test_the_end_of_a_target_is_learnt(padded, causal, which):
    own, model, token = padded(causal, which)
    task = build_task(Generate(max_new_tokens=6), own, template=f"{{text}}{token}{{soft:3}} it was")
    targets = ("yes it was good", "no", "wonderful")
    total, count = 0.0, 0
    for text, target in zip(TEXTS, targets, strict=True):
        ids = spell(own, text, token=token)
        wanted = torch.tensor([*tokenize(own, f" {target}").tolist(), END])
        with torch.no_grad():
            logits = model(input_ids=torch.cat([ids, wanted])[None]).logits[0]
        said = logits.log_softmax(-1)[range(len(ids) - 1, len(ids) + len(wanted) - 1), wanted]
        total, count = total - said.sum(), count + len(wanted)
    rows = zip(TEXTS, targets, strict=True)
    examples = [task.make_example({"text": text, "target": target}) for text, target in rows]
    loss = task.compute_loss(examples, [prompt_of(own)])
    assert loss.count == count
    assert_close(loss.total, total, **CLOSE)


@pytest.mark.parametrize("which", PADS)
@for_each("causal")
def test_a_batch_writes_as_its_rows_alone(padded, maker, causal, which):
    own, _, token = padded(causal, which)
    task = build_task(Generate(max_new_tokens=5), own, template=f"{{text}}{token}{{soft:3}} it was")
    examples = [task.make_example({"text": text}, target=False) for text in TEXTS]
    prompt = prompt_of(own)
    together = task.predict(examples, [prompt])
    for text, example, answer in zip(TEXTS, examples, together, strict=True):
        assert task.predict([example], [prompt])[0].label == answer.label
        ids = spell(own, text, token=token)[None]
        inputs = BatchInputs(ids, torch.ones_like(ids))
        (words,) = generate(own, inputs, prompts=[None], decoding=Decoding(max_new_tokens=5))
        assert answer.label == own.tokenizer.decode(words, skip_special_tokens=True).strip()


@pytest.mark.parametrize("which", PADS)
@for_each("causal")
def test_label_words_are_scored_behind_it(padded, causal, which):
    own, model, token = padded(causal, which)
    settings = Classify(verbalizer={"up": " good", "down": " bad"})
    task = build_task(settings, own, template=f"{{text}}{token}{{soft:3}} it was")
    examples = [task.make_example({"text": text}, target=False) for text in TEXTS]
    columns = [int(tokenize(own, word)[0]) for word in (" good", " bad")]
    found = task.compute_scores(examples, [prompt_of(own)])
    for text, scores in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=spell(own, text, token=token)[None]).logits[0, -1, columns]
        assert_close(scores, logits, **CLOSE)


@pytest.mark.parametrize("which", PADS)
@for_each("causal")
def test_a_head_reads_it_where_it_is_the_last_token(padded, causal, which):
    own, model, token = padded(causal, which)
    labels = ("down", "up")
    task = build_task(Classify(), own, template=f"{{soft:3}}{{text}}{token}", labels=labels)
    examples = [task.make_example({"text": text}, target=False) for text in TEXTS]
    found = task.compute_scores(examples, [prompt_of(own)])
    for text, scores in zip(TEXTS, found, strict=True):
        parts = [torch.tensor([0]), tokenize(own, SOFT), tokenize(own, text)]
        ids = torch.cat([*parts, torch.tensor([own.pad_token_id])])
        with torch.no_grad():
            states = model.base_model(input_ids=ids[None])[0][0]
        assert_close(scores, states[-1] @ task.head.output.weight.T, **CLOSE)
