"""Checkpoints of THUDM's P-tuning v2 predict as its code does, which is rewritten here."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers as tf
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.cache_utils import DynamicCache

from softprompt.errors import ArtifactError, BackboneError, TemplateError
from softprompt.inference import PromptModel
from softprompt.injection import load_backbone
from softprompt.interop.convert import export_prompt, import_prompts
from softprompt.tasks import Classify, Extract, Tag

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BODIES = {"bert": tf.BertModel, "roberta": tf.RobertaModel}
LENGTH, CLASSES, LAYERS, HEADS, SIZE = 3, 4, 2, 4, 8
WIDTH = HEADS * SIZE
# Rows of one length, and of many.
BATCHES = {
    "unpadded": ["the film was good", "the movie was bad"],
    "padded": ["good", "the film was great and it was fresh", "no movie"],
}


class PrefixEncoder(nn.Module):
    """``model/prefix_encoder.py``: rows of keys and values, or an MLP that makes them."""

    def __init__(self, *, projection: bool) -> None:
        super().__init__()
        whole = LAYERS * 2 * WIDTH
        self.embedding = nn.Embedding(LENGTH, WIDTH if projection else whole)
        if projection:
            self.trans = nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, whole))

    def forward(self, prefix: Tensor) -> Tensor:
        found = self.embedding(prefix)
        return self.trans(found) if hasattr(self, "trans") else found


class PrefixForSequenceClassification(nn.Module):
    """``model/sequence_classification.py``, without its dropout, which is off in evaluation."""

    def __init__(self, family: str, body: nn.Module, *, projection: bool) -> None:
        super().__init__()
        self.family = family
        self.add_module(family, body)  # its own name, as in their state dicts
        self.prefix_encoder = PrefixEncoder(projection=projection)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch = len(ids)
        tokens = torch.arange(LENGTH).expand(batch, -1)
        past = self.prefix_encoder(tokens).view(batch, LENGTH, LAYERS * 2, HEADS, SIZE)
        cache = DynamicCache()
        for layer, pair in enumerate(past.permute([2, 0, 3, 1, 4]).split(2)):
            cache.update(pair[0], pair[1], layer)
        whole = torch.cat([torch.ones(batch, LENGTH, dtype=torch.long), mask], dim=1)
        body = self.get_submodule(self.family)
        # With a cache of P, the positions of the row begin at P.
        output = body(input_ids=ids, attention_mask=whole, past_key_values=cache)
        return self.classifier(output.pooler_output)


class PrefixForQuestionAnswering(PrefixForSequenceClassification):
    """``model/question_answering.py``, in evaluation."""

    def __init__(self, family: str, body: nn.Module, *, projection: bool) -> None:
        super().__init__(family, body, projection=projection)
        del self.classifier
        self.qa_outputs = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.classifier = nn.Identity()
        states = []
        body = self.get_submodule(self.family)
        hook = body.encoder.register_forward_hook(lambda *found: states.append(found[-1]))
        super().forward(ids, mask)
        hook.remove()
        return self.qa_outputs(states[0].last_hidden_state)


@pytest.fixture
def theirs(plain):
    """A model of that code, on the tests' own backbone; its pooler is random."""

    def make(family: str, *, projection: bool = False) -> PrefixForSequenceClassification:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            body = BODIES[family](plain(family).config)
            model = PrefixForSequenceClassification(family, body, projection=projection)
            for parameter in [*model.prefix_encoder.parameters(), *body.pooler.parameters()]:
                nn.init.normal_(parameter, std=0.7)
            nn.init.normal_(model.classifier.weight)
            nn.init.normal_(model.classifier.bias)
        body.load_state_dict(plain(family).base_model.state_dict(), strict=False)
        return model.eval()

    return make


def store(model: nn.Module, path: Path, *, left_out: tuple[str, ...] = ()) -> Path:
    held = {k: v for k, v in model.state_dict().items() if not k.startswith(left_out)}
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in held.items()}, path)
    return path


def scores_of(model: nn.Module, own, texts: list[str]) -> Tensor:
    given = own.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(given["input_ids"], given["attention_mask"])


@pytest.mark.parametrize("texts", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", BODIES)
def test_a_whole_checkpoint_answers_as_their_code(
    desk, theirs, tmp_path, family, projection, texts
):
    own, model = desk.backbone(family), theirs(family, projection=projection)
    store(model, tmp_path / "model.safetensors")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own)[""]
    wanted = scores_of(model, own, texts)
    assert_close(desk.scores(found, texts), wanted, **CLOSE)
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert found.artifact.manifest.shift_positions
    again = PromptModel.from_pretrained(found.save(tmp_path / "mood"), backbone=own)
    assert torch.equal(desk.scores(again, texts), desk.scores(found, texts))
    # The prefix has an effect on the oracle.
    bare = found.task.compute_scores([found.render(text) for text in texts], [None])
    assert not torch.allclose(bare, wanted, atol=1e-2)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", BODIES)
def test_the_trained_part_alone_takes_the_pooler_from_the_backbone(
    theirs, desk, tokenizer, tmp_path, family, projection
):
    """Their pooler is frozen: it is that of the checkpoint, which RoBERTa's classifier lacks."""
    model = theirs(family, projection=projection)
    base = tmp_path / "base"
    model.get_submodule(family).save_pretrained(base)
    tokenizer("encoder").save_pretrained(base)
    own = load_backbone(str(base), dtype="float32", device="cpu")
    path = store(model, tmp_path / "mine.safetensors", left_out=(f"{family}.",))
    found = import_prompts("p-tuning-v2", path, backbone=own)[""]
    for texts in BATCHES.values():
        assert_close(desk.scores(found, texts), scores_of(model, own, texts), **CLOSE)


@pytest.mark.parametrize("family", BODIES)
def test_a_missing_pooler_is_refused(theirs, saved, tmp_path, family):
    path = store(theirs(family), tmp_path / "mine.safetensors", left_out=(f"{family}.",))
    own = load_backbone(str(saved(family)), dtype="float32", device="cpu")
    with pytest.raises(BackboneError) as caught:
        import_prompts("p-tuning-v2", path, backbone=own)
    assert str(caught.value) == (
        f"the checkpoint of backbone {own.name!r} has no pooler.dense.bias, which the trained head "
        "needs and does not include: where it was trained, it was random and frozen. Name the "
        "checkpoint that it was trained on, or train a new head."
    )


@pytest.mark.parametrize("family", BODIES)
def test_export_and_import(desk, theirs, tmp_path, family):
    own, model = desk.backbone(family), theirs(family)
    store(model, tmp_path / "model.safetensors")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own)[""]
    folder = export_prompt("p-tuning-v2", found, output=tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    held = safetensors.torch.load_file(folder / "model.safetensors")
    state = model.state_dict()
    pooler = {f"{family}.pooler.dense.{part}" for part in ("weight", "bias")}
    head = {"classifier.weight", "classifier.bias"}
    assert held.keys() == {"prefix_encoder.embedding.weight"} | pooler | head
    for name, tensor in held.items():
        assert torch.equal(tensor, state[name]), name
    # Their own code loads it beside the backbone, and nothing is left over.
    fresh = theirs(family)
    for parameter in [*fresh.prefix_encoder.parameters(), *fresh.classifier.parameters()]:
        parameter.data.zero_()
    assert not fresh.load_state_dict(held, strict=False).unexpected_keys
    texts = BATCHES["padded"]
    assert torch.equal(scores_of(fresh, own, texts), scores_of(model, own, texts))
    again = import_prompts("p-tuning-v2", folder, backbone=own)[""]
    assert torch.equal(desk.scores(again), desk.scores(found))
    assert again.artifact.manifest == found.artifact.manifest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_is_kept(desk, theirs, tmp_path, dtype):
    own = desk.backbone("bert")
    store(theirs("bert").to(dtype), tmp_path / "model.safetensors")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own)[""]
    assert {t.dtype for t in found.artifact.to_tensors().values()} == {dtype}
    folder = export_prompt("p-tuning-v2", found, output=tmp_path / "out")
    held = safetensors.torch.load_file(folder / "model.safetensors")
    whole = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in held.items())


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "llama"])
def test_a_prefix_alone_scores_label_words(desk, tmp_path, family):
    """Layer by layer: keys, values, ``[P, L, 2, N, D]``."""
    own = desk.backbone(family)
    prefix = desk.maker(family).prefix(shift_positions=True)
    model = desk.model(own, prefix, desk.asking(own, "{text} is"))
    folder = (
        export_prompt("p-tuning-v2", model, output=tmp_path / "out") if family in BODIES else None
    )
    rows = torch.stack([prefix.keys, prefix.values], dim=1).permute(3, 0, 1, 2, 4).flatten(1)
    held = {"prefix_encoder.embedding.weight": rows.contiguous()}
    if folder:
        written = safetensors.torch.load_file(folder / "model.safetensors")
        assert written.keys() == held.keys()
        assert all(torch.equal(written[name], held[name]) for name in held)
    safetensors.torch.save_file(held, tmp_path / "model.safetensors")
    task = desk.asking(own, "{text} is")
    again = import_prompts("p-tuning-v2", tmp_path, backbone=own, task=task)[""]
    assert torch.equal(again.artifact.prompt.keys, prefix.keys)
    assert torch.equal(again.artifact.prompt.values, prefix.values)
    assert torch.equal(desk.scores(again), desk.scores(model))
    (variant,) = again.render(" good" * 80).variants
    assert len(variant.input_ids) == own.geometry.max_positions - 3


def test_labels_are_in_the_heads_order(desk, theirs, tmp_path):
    own, model = desk.backbone("bert"), theirs("bert")
    store(model, tmp_path / "model.safetensors")
    names = ["bad", "fair", "good", "great"]
    texts = BATCHES["padded"]
    wanted = [names[at] for at in scores_of(model, own, texts).argmax(dim=1)]
    for given in ({"labels": names}, {"task": Classify(labels=names)}):
        found = import_prompts("p-tuning-v2", tmp_path, backbone=own, **given)[""]
        assert [answer.label for answer in found.predict(texts)] == wanted
        assert found.artifact.manifest.labels == names


def test_a_row_has_the_positions_that_the_prefix_leaves(desk, theirs, tmp_path):
    """P + T <= 64: the longest row, and one that is cut to it."""
    own, model = desk.backbone("bert"), theirs("bert")
    store(model, tmp_path / "model.safetensors")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own)[""]
    longest = " good" * 59
    assert_close(desk.scores(found, [longest]), scores_of(model, own, [longest]), **CLOSE)
    assert len(found.render(longest).variants[0].input_ids) == 61
    assert found.render(longest + " good").variants[0].truncated


def test_no_room_for_a_row_is_refused(desk, tmp_path):
    own = desk.backbone("bert")
    held = {"prefix_encoder.embedding.weight": torch.ones(64, LAYERS * 2 * WIDTH)}
    safetensors.torch.save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(TemplateError) as caught:
        import_prompts("p-tuning-v2", tmp_path, backbone=own, task=desk.asking(own, "{text}"))
    assert str(caught.value) == (
        "the prompt takes the first 64 positions, but 'bert' has 64, so none is left for a row. "
        "Make it shorter, leave method.shift_positions out, or name the backbone that it was "
        "trained for."
    )


class PrefixForTokenClassification(PrefixForSequenceClassification):
    """``model/token_classification.py``: the body has no pooler; the states behind the prefix."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch = len(ids)
        tokens = torch.arange(LENGTH).expand(batch, -1)
        past = self.prefix_encoder(tokens).view(batch, LENGTH, LAYERS * 2, HEADS, SIZE)
        cache = DynamicCache()
        for layer, pair in enumerate(past.permute([2, 0, 3, 1, 4]).split(2)):
            cache.update(pair[0], pair[1], layer)
        whole = torch.cat([torch.ones(batch, LENGTH, dtype=torch.long), mask], dim=1)
        body = self.get_submodule(self.family)
        output = body(input_ids=ids, attention_mask=whole, past_key_values=cache)
        return self.classifier(output.last_hidden_state)


@pytest.fixture
def tagger(plain):
    def make(family: str) -> PrefixForTokenClassification:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            body = BODIES[family](plain(family).config, add_pooling_layer=False)
            model = PrefixForTokenClassification(family, body, projection=False)
            for parameter in model.prefix_encoder.parameters():
                nn.init.normal_(parameter, std=0.7)
            nn.init.normal_(model.classifier.weight)
        body.load_state_dict(plain(family).base_model.state_dict(), strict=False)
        return model.eval()

    return make


def logits_of(model: PromptModel, text: str) -> Tensor:
    """The head's scores of the first token of each word."""
    with torch.no_grad():
        (states,) = model.task.compute_row_states([model.render(text)], [model.prompt])
        return model.task.head(states.float())


@pytest.mark.parametrize("family", BODIES)
@pytest.mark.parametrize("part", ["whole", "trained"])
def test_tags_of_words_have_the_logits_of_their_code(desk, tagger, tmp_path, family, part):
    own, model = desk.backbone(family), tagger(family)
    left_out = (f"{family}.",) if part == "trained" else ()
    store(model, tmp_path / "model.safetensors", left_out=left_out)
    labels = ["O", "B-A", "I-A", "X"] if part == "whole" else ["O", "B-A", "I-A", "B-C"]
    # Without the backbone's tensors only the task tells what the head is of.
    task = None if part == "whole" else Tag(scheme="BIO")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own, task=task, labels=labels)[""]
    text = "the film was great and it was fresh"
    given = own.tokenizer([text], return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        whole = model(given["input_ids"], given["attention_mask"])[0]
    starts = {0, *(at + 1 for at, letter in enumerate(text) if letter == " ")}
    offsets = [tuple(pair) for pair in given["offset_mapping"][0].tolist()]
    first = [
        at
        for at, (begin, end) in enumerate(offsets)
        if end > begin and begin + (text[begin] == " ") in starts
    ]
    assert_close(logits_of(found, text), whole[first], **CLOSE)
    assert found.labels == tuple(labels)
    assert found.artifact.manifest.task["scheme"] == ("none" if part == "whole" else "BIO")
    again = PromptModel.from_pretrained(found.save(tmp_path / "tags"), backbone=own)
    assert again.predict(text) == found.predict(text)
    folder = export_prompt("p-tuning-v2", found, output=tmp_path / "out")
    held = safetensors.torch.load_file(folder / "model.safetensors")
    names = {"prefix_encoder.embedding.weight", "classifier.weight", "classifier.bias"}
    assert held.keys() == names
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in held.items())


def test_a_head_of_tags_is_not_one_of_rows(desk, tagger, tmp_path) -> None:
    store(tagger("bert"), tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"has a head of tags, .* or give kind 'tag'"):
        import_prompts(
            "p-tuning-v2", tmp_path, backbone=desk.backbone("bert"), task=Classify("{text}")
        )


def test_a_prefix_without_a_head_gives_no_tags(desk, tagger, tmp_path) -> None:
    store(tagger("bert"), tmp_path / "model.safetensors", left_out=("bert.", "classifier."))
    with pytest.raises(ArtifactError, match="has no linear classifier"):
        import_prompts("p-tuning-v2", tmp_path, backbone=desk.backbone("bert"), task=Tag())


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", BODIES)
def test_a_head_of_starts_and_ends_scores_as_their_code(desk, plain, tmp_path, family, projection):
    own, body = desk.backbone(family), BODIES[family](plain(family).config)
    body.load_state_dict(plain(family).base_model.state_dict(), strict=False)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = PrefixForQuestionAnswering(family, body, projection=projection).eval()
        for parameter in [*model.prefix_encoder.parameters(), *model.qa_outputs.parameters()]:
            nn.init.normal_(parameter, std=0.7)
    store(model, tmp_path / "model.safetensors")
    found = import_prompts("p-tuning-v2", tmp_path, backbone=own)[""]
    assert found.artifact.manifest.template == "{question}{sep}{context}"
    row = {"question": "good movie", "context": "the film was great and it was fresh"}
    given = own.tokenizer(row["question"], row["context"], return_tensors="pt")
    if "token_type_ids" in given:  # their code has them too
        body.register_forward_pre_hook(
            lambda _module, _args, given_: (
                (),
                {**given_, "token_type_ids": given["token_type_ids"]},
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        wanted = model(given["input_ids"], given["attention_mask"])[0]
        example = found.render(row)
        (scores,) = found.task.compute_scores([example], [found.prompt])
    assert [*example.variants[0].input_ids] == given["input_ids"][0].tolist()
    places = list(example.read_positions[0])
    assert_close(scores.join(), wanted[places], **CLOSE)
    folder = export_prompt("p-tuning-v2", found, output=tmp_path / "out")
    held = safetensors.torch.load_file(folder / "model.safetensors")
    assert {*held} == {"prefix_encoder.embedding.weight", "qa_outputs.weight", "qa_outputs.bias"}
    again = import_prompts(
        "p-tuning-v2", folder, backbone=own, task=Extract(null_threshold=2.0, n_best=3)
    )[""]
    assert again.artifact.manifest.task["null_threshold"] == 2.0
    (same,) = again.task.compute_scores([example], [again.prompt])
    assert_close(same.join(), scores.join(), **CLOSE)
    with pytest.raises(ArtifactError, match="only a task of kind 'extract' uses"):
        import_prompts("p-tuning-v2", folder, backbone=own, task=Classify())
    with pytest.raises(ArtifactError, match="for which PEFT has QUESTION_ANS"):
        export_prompt("peft", found, output=tmp_path / "peft")
