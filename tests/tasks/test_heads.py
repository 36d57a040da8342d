"""Heads are those of transformers' own classifiers, and {bos} and pooling select what they read."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt.backbone import Backbone, wrap_model
from softprompt.errors import ArtifactError
from softprompt.interop.classifier_heads import get_head_layout
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify, build_task
from softprompt.tasks.heads import HeadClassifier
from support import tiny_models

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LABELS = ("a", "b", "c")
TEXTS = ["the movie was great", "it was a bad film and boring", "good"]
# Families that users of PEFT have, and that the other tests do not cover.
MORE = {
    "xlm-roberta": tf.XLMRobertaConfig,
    "camembert": tf.CamembertConfig,
    "mpnet": tf.MPNetConfig,
}
ENCODERS = [*tiny_models.ENCODERS, *MORE]


@dataclass
class Pair:
    """Our task with a head, and transformers' classifier with the same weights."""

    task: HeadClassifier
    theirs: nn.Module

    def wanted(self, ids: Tensor) -> Tensor:
        """The logits of one row without padding."""
        with torch.no_grad():
            return self.theirs(input_ids=ids[None]).logits[0]


@pytest.fixture
def pair(plain, backbone, tokenizer) -> Callable[..., Pair]:
    def own_of(family: str) -> tuple[Backbone, tf.PreTrainedModel]:
        if family not in MORE:
            return backbone(family), plain(family)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        more = {"intermediate_size": 48, "max_position_embeddings": 64, "vocab_size": 366}
        config = MORE[family](**sizes, **more, pad_token_id=1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = tf.AutoModelForMaskedLM.from_config(config).eval()
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.2)
        bare = copy.deepcopy(model)
        return wrap_model(family, model, tokenizer=tokenizer("encoder"), kind="encoder"), bare

    def make(family: str, template: str = "{text}", *, pool: str = "cls") -> Pair:
        own, bare = own_of(family)
        config = copy.deepcopy(bare.config)
        config.num_labels, config.pad_token_id = len(LABELS), own.pad_token_id
        for key in [key for key in vars(config) if "drop" in key and vars(config)[key]]:
            setattr(config, key, 0.0)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            theirs = tf.AutoModelForSequenceClassification.from_config(config).eval()
            for parameter in theirs.parameters():  # its norms and biases too
                nn.init.normal_(parameter, std=0.3)
        theirs.base_model.load_state_dict(bare.base_model.state_dict(), strict=False)
        form = get_head_layout(
            own.geometry.model_type, causal=own.geometry.architecture == "causal"
        )
        task = build_task(
            Classify(head=form.kind, pooling=pool), own, template=template, labels=LABELS
        )
        state = {form.from_foreign(name): tensor for name, tensor in theirs.state_dict().items()}
        state.pop(None, None)
        task.head.load_state_dict(state)
        return Pair(task, theirs)

    return make


@pytest.mark.parametrize("family", [*ENCODERS, *tiny_models.CAUSAL])
def test_the_head_is_transformers_own(pair, family):
    """Rows of different lengths in one batch of ours; each alone in theirs."""
    made = pair(family)
    examples = [made.task.make_example({"text": text}, target=False) for text in TEXTS]
    with torch.no_grad():
        found = made.task.compute_scores(examples, [None])
    wanted = [made.wanted(torch.tensor(e.variants[0].input_ids)) for e in examples]
    assert_close(found, torch.stack(wanted), **CLOSE)
    assert found.std() > 0.01


@pytest.mark.parametrize("family", [*ENCODERS, *tiny_models.CAUSAL])
def test_names_lead_there_and_back(pair, family):
    made = pair(family)
    form = get_head_layout(
        made.task.backbone.geometry.model_type, causal=family in tiny_models.CAUSAL
    )
    ours = made.task.head.state_dict()
    theirs = made.theirs.state_dict()
    for name, tensor in ours.items():
        assert form.from_foreign(form.to_foreign(name)) == name
        assert torch.equal(theirs[form.to_foreign(name)], tensor)
    outer = {name for name, _ in made.theirs.named_modules()}
    for module in form.outer:  # every module that PEFT is configured to train exists
        assert any(name == module or name.endswith(f".{module}") for name in outer), module


@pytest.mark.parametrize("family", [*MORE])
def test_positions_of_the_longest_row(pair, family):
    """Their tables begin with two rows for padding: of 64 there are 62 for a row."""
    made = pair(family)
    assert made.task.backbone.geometry.max_positions == 62
    (example,) = [made.task.make_example({"text": " good" * 70}, target=False)]
    assert len(example.variants[0].input_ids) == 62
    with torch.no_grad():
        found = made.task.compute_scores([example], [None])[0]
    assert_close(found, made.wanted(torch.tensor(example.variants[0].input_ids)), **CLOSE)


@pytest.mark.parametrize("family", [*ENCODERS, *tiny_models.CAUSAL])
@pytest.mark.parametrize("pool", ["cls", "first"])
def test_what_is_read_behind_soft_tokens_that_are_words(pair, family, pool):
    """``[soft, CLS, text, SEP]``: the head reads [CLS], or the first word as transformers' does.

    A causal backbone's reads the last token, whatever the pool.
    """
    made = pair(family, "{soft:3}{bos}{text}", pool=pool)
    own, tokenizer = made.task.backbone, made.task.backbone.tokenizer
    soft = torch.tensor(tokenizer("a film fresh", add_special_tokens=False)["input_ids"])
    prompt = InputPrompt(own.embed(soft))
    examples = [made.task.make_example({"text": text}, target=False) for text in TEXTS]
    with torch.no_grad():
        found = made.task.compute_scores(examples, [prompt])
        for example, text, scores in zip(examples, TEXTS, found, strict=True):
            row = torch.cat([soft, torch.tensor(tokenizer(text)["input_ids"])])
            assert [*example.variants[0].input_ids[3:]] == row[3:].tolist()
            if pool == "first" or family in tiny_models.CAUSAL:
                assert_close(scores, made.wanted(row), **CLOSE)
                continue
            states = made.theirs.base_model(input_ids=row[None])[0][:, 3]
            assert_close(scores, made.task.head(states)[0], **CLOSE)


@pytest.mark.parametrize("shape", ["input", "kv"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gpt2", "llama", "opt"])
def test_company_in_the_batch_does_not_matter(pair, maker, family, shape):
    template = "{soft:3}{bos}{text}" if shape == "input" else "{text}"
    made = pair(family, template, pool="first")
    prompt = maker(family).prompt(shape)
    examples = [made.task.make_example({"text": text}, target=False) for text in TEXTS]
    with torch.no_grad():
        together = made.task.compute_scores(examples, [prompt])
        for example, scores in zip(examples, together, strict=True):
            assert_close(made.task.compute_scores([example], [prompt])[0], scores, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "llama", "bert"])
def test_label_words_behind_soft_tokens_before_everything(backbone, maker, family):
    """Prompts made of words, in a batch with rows of other lengths."""
    own = backbone(family)
    mask = " {mask}" if own.geometry.architecture == "encoder" else ""
    settings = Classify(verbalizer={"up": " good", "down": " bad"})
    hard = build_task(settings, own, template=f"{{text}} was{mask}")
    soft = build_task(settings, own, template=f"{{soft:3}}{{bos}}{{text}} was{mask}")
    prompt = maker(family).input_prompt()
    rows = [{"text": text} for text in TEXTS]
    examples = [soft.make_example(row, target=False) for row in rows]
    alone = [soft.compute_scores([example], [prompt])[0] for example in examples]
    assert_close(soft.compute_scores(examples, [prompt]), torch.stack(alone), **CLOSE)
    bare = [hard.make_example(row, target=False) for row in rows]
    for example, plain in zip(examples, bare, strict=True):
        assert example.variants[0].input_ids[3:] == plain.variants[0].input_ids
        at = [[point - 3 for point in points] for points in example.read_positions]
        assert (
            at == [[*points] for points in plain.read_positions]
            or own.geometry.architecture == "encoder-decoder"
        )


def test_a_family_whose_head_is_not_known():
    with pytest.raises(ArtifactError) as caught:
        get_head_layout("funnel", causal=False)
    assert str(caught.value).startswith(
        "the head of funnel's sequence classifier is unknown. Known"
    )
    assert str(caught.value).endswith("and of causal families. Label words need no head.")
