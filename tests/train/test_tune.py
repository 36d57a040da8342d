"""Training the backbone itself: transformers' own steps on transformers' own model."""

import json
from copy import deepcopy

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt.backbone.thaw import add_lora
from softprompt.errors import BackboneError, MissingPackageError, TrainingError
from softprompt.recipe import make_recipe
from softprompt.train.launch import make_accelerator
from softprompt.train.tune import tune
from softprompt.train.tuner import Tuner
from softprompt.train.tuning import prepare_tuning

KINDS = ("fine-tuning", "lora")
# family and task; `words` needs a place for them
CASES = [("llama", "words"), ("gpt2", "head"), ("bert", "head"), ("bert", "words"), ("t5", "words")]


@pytest.fixture
def tuned(data, rows, new_backbone):
    def make(family, task, kind="fine-tuning", **train):
        table = data(family, task=task, optimizer="sgd", weight_decay=0.0, clip=0, **train)
        table["task"]["template"] = table["task"]["template"].replace("{soft:3}", "")
        recipe = make_recipe(table)
        tables = {
            name: Dataset.from_list(rows(count, seed))
            for seed, (name, count) in enumerate((("train", 11), ("validation", 5)))
        }
        made = new_backbone(family)
        return recipe, prepare_tuning(recipe, kind, backbone=made, tables=tables)

    return make


def tuner_of(recipe, parts):
    return Tuner(parts, make_accelerator(recipe.train, cpu=True, folder=None))


def theirs(model, parts, batch, family, task):
    """The mean loss of a batch as a textbook has it: one row at a time, whole logits."""
    losses, kind = [], parts.task.backbone.geometry.kind
    for example in batch:
        (variant,) = example.variants
        ids = torch.tensor([variant.ids])
        if task == "head":
            states = model.base_model(input_ids=ids).last_hidden_state
            point = 0 if kind == "encoder" else -1
            scores = parts.task.head(states[:, point])
        elif kind == "encoder-decoder":
            losses.append(_answer_loss(model, parts, ids, example.target))
            continue
        else:
            at = variant.masks[0] if kind == "encoder" else -1
            words = [of_label[0][0] for of_label in parts.task.words.tokens]
            scores = model(input_ids=ids).logits[:, at][:, words]
        losses.append(F.cross_entropy(scores, torch.tensor([example.target])))
    return torch.stack(losses).mean()


def _answer_loss(model, parts, ids, target):
    start, scores = parts.task.backbone.decoder_start, []
    for (word,) in parts.task.words.tokens:
        fed = torch.tensor([[start, *word[:-1]]])
        logits = model(input_ids=ids, decoder_input_ids=fed).logits.log_softmax(-1)
        scores.append(logits[0, range(len(word)), list(word)].sum())
    return F.cross_entropy(torch.stack(scores)[None], torch.tensor([target]))


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_step_of_fine_tuning_is_transformers_own(tuned, plain, family, task):
    recipe, parts = tuned(family, task, learning_rate=0.1, schedule="constant", warmup=0.0)
    model, tuner = deepcopy(plain(family)), tuner_of(recipe, parts)
    batch = [parts.rows.examples[i] for i in tuner.order.batches(0)[0]]
    loss = theirs(model, parts, batch, family, task)
    loss.backward()
    steps = tuner.run()
    next(steps)
    assert next(steps).loss == pytest.approx(loss.item(), abs=1e-5)
    own = dict(parts.task.backbone.model.named_parameters())
    moved = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            wanted = parameter - 0.1 * parameter.grad
            torch.testing.assert_close(own[name], wanted, atol=2e-5, rtol=1e-4)
            moved += bool(parameter.grad.any())
    assert moved > 10


@pytest.mark.parametrize(("family", "task"), CASES)
def test_lora_starts_as_the_bare_backbone_and_trains_nothing_else(tuned, family, task):
    recipe, parts = tuned(family, task, "lora", learning_rate=0.5, epochs=1)
    own = parts.task.backbone.model
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    _, bare = tuned(family, task)
    start = next(tuner_of(recipe, bare).run())
    tuner = tuner_of(recipe, parts)
    first, *_ = events = [*tuner.run()]
    assert first.metrics["loss"] == pytest.approx(start.metrics["loss"], abs=1e-6)
    changed = {n for n, t in own.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    count = sum(t.numel() for name, t in before.items() if "lora_" in name)
    assert sum(p.numel() for p in parts.weights) == count
    assert parts.parameters == bare.parameters == bare.task.parameters
    assert events[-1].step == 3


def test_lora_has_a_pair_of_factors_for_every_linear_layer_of_the_body(new_backbone):
    backbone = new_backbone("llama")
    layers = [m for m in backbone.model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    expected = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    added = add_lora(backbone, rank=4, alpha=8, seed=3)
    assert sum(p.numel() for p in added) == expected
    again = add_lora(new_backbone("llama"), rank=4, alpha=8, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(added, again, strict=True)), "the seed decides"


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_by_validation_answer(tuned, tmp_path, kind, rows):
    recipe, parts = tuned("llama", "words", kind, learning_rate=0.3, epochs=4, select="loss")
    seen = []
    answer = tune(recipe, tmp_path / "run", parts=parts, watch=seen.append)
    losses = [e.metrics["loss"] for e in seen if type(e).__name__ == "Evaluation"]
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["validation"]["loss"] == min(losses) < losses[0]
    held = rows(5, 1)
    share = sum(a == row["label"] for a, row in zip(answer(held), held, strict=True)) / 5
    assert share == pytest.approx(numbers["validation"]["accuracy"])
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert len(lines) == len(seen)


def test_the_same_seed_gives_the_same_numbers(tuned):
    losses = []
    for _ in range(2):
        recipe, parts = tuned("bert", "head", learning_rate=0.05)
        losses.append([e.loss for e in tuner_of(recipe, parts).run() if type(e).__name__ == "Step"])
    assert losses[0] == losses[1]


def test_patience_ends_a_run(tuned):
    recipe, parts = tuned("llama", "words", learning_rate=1e-9, epochs=50, patience=2)
    *_, last = tuner_of(recipe, parts).run()
    assert last.step < 50 * 3


def test_what_is_no_number_stops_the_run(tuned):
    recipe, parts = tuned("llama", "words", learning_rate=1e30, epochs=3)
    with pytest.raises(TrainingError, match="try a third of the rate"):
        [*tuner_of(recipe, parts).run()]


def test_nothing_is_chosen_before_a_run(tuned):
    recipe, parts = tuned("llama", "words")
    with pytest.raises(TrainingError, match="nothing was validated"):
        tuner_of(recipe, parts).take_best()


def test_quantised_weights_cannot_be_fine_tuned(tuned):
    recipe, parts = tuned("llama", "words")
    backbone = parts.task.backbone
    layer = backbone.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    labelled = [{"text": "a", "label": label} for label in ("negative", "positive")]
    tables = {"train": Dataset.from_list(labelled)}
    with pytest.raises(BackboneError, match="are quantised, and cannot be fine-tuned"):
        prepare_tuning(recipe, "fine-tuning", backbone=backbone, tables=tables)


def test_without_peft_lora_says_what_to_install(new_backbone, monkeypatch):
    monkeypatch.setattr("softprompt.backbone.thaw.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'softprompt\[peft\]'"):
        add_lora(new_backbone("llama"), rank=2, alpha=2, seed=0)
