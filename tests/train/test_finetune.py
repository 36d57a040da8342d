"""Training the backbone itself: the same steps as plain torch on transformers' model."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt.backbone.finetuning import add_lora
from softprompt.errors import BackboneError, MissingPackageError, TrainingError
from softprompt.inference import evaluate_rows
from softprompt.recipe import make_recipe
from softprompt.train import Evaluation, RunDir, Step, TrainingWarning, make_run_artifact
from softprompt.train.accelerator import make_accelerator
from softprompt.train.checkpoint import load_state, save_state
from softprompt.train.datasets import sample_rows
from softprompt.train.finetune import (
    finetune,
    load_best_weights,
    make_finetune_trainer,
    setup_finetune,
)

KINDS = ("fine-tuning", "lora")
# Family and task.
CASES = [("llama", "words"), ("gpt2", "head"), ("bert", "head"), ("bert", "words"), ("t5", "words")]


@pytest.fixture
def tuned(data, rows, new_backbone):
    def make(family, task, kind="fine-tuning", *, validation=None, own=None, **train):
        table = data(
            family,
            task=task,
            **({"optimizer": "sgd", "weight_decay": 0.0, "max_grad_norm": 0} | train),
        )
        table["task"]["template"] = table["task"]["template"].replace("{soft:3}", "")
        if task == "head":  # the readout of `reference_loss`
            table["task"]["pooling"] = "cls" if family == "bert" else "last"
        recipe = make_recipe(table)
        tables = {
            name: Dataset.from_list(rows(count, seed))
            for seed, (name, count) in enumerate((("train", 11), ("validation", 5)))
        }
        if validation is not None:
            tables["validation"] = Dataset.from_list(validation)
        own = own or new_backbone(family)
        return recipe, setup_finetune(recipe, kind, backbone=own, tables=tables)

    return make


def trainer_over(recipe, parts):
    return make_finetune_trainer(parts, make_accelerator(recipe.train, cpu=True, folder=None))


def reference_loss(model, parts, batch, task, *, head=None):
    """The mean loss of a batch in plain torch: one row at a time, all logits."""
    losses, kind = [], parts.task.backbone.geometry.architecture
    head = head or parts.task.head
    for example in batch:
        (variant,) = example.variants
        ids = torch.tensor([variant.input_ids])
        if task == "head":
            states = model.base_model(input_ids=ids).last_hidden_state
            point = 0 if kind == "encoder" else -1
            scores = head(states[:, point])
        elif kind == "encoder-decoder":
            losses.append(_answer_loss(model, parts, ids, example.target))
            continue
        else:
            at = variant.mask_positions[0] if kind == "encoder" else -1
            words = [of_label[0][0] for of_label in parts.task.words.tokens]
            scores = model(input_ids=ids).logits[:, at][:, words]
        losses.append(F.cross_entropy(scores, torch.tensor([example.target])))
    return torch.stack(losses).mean()


def _answer_loss(model, parts, ids, target):
    start, scores = parts.task.backbone.decoder_start_token_id, []
    for (word,) in parts.task.words.tokens:
        fed = torch.tensor([[start, *word[:-1]]])
        logits = model(input_ids=ids, decoder_input_ids=fed).logits.log_softmax(-1)
        scores.append(logits[0, range(len(word)), list(word)].sum())
    return F.cross_entropy(torch.stack(scores)[None], torch.tensor([target]))


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_step_of_fine_tuning_is_that_of_transformers(tuned, plain, family, task):
    recipe, parts = tuned(
        family, task, learning_rate=0.1, lr_scheduler="constant", warmup_ratio=0.0
    )
    model, trainer = deepcopy(plain(family)), trainer_over(recipe, parts)
    batch = [parts.rows.examples[i] for i in trainer.sampler.draw_batches(0)[0]]
    loss = reference_loss(model, parts, batch, task)
    loss.backward()
    steps = trainer.run()
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
    start = next(trainer_over(recipe, bare).run())
    first, *_ = events = [*trainer_over(recipe, parts).run()]
    assert first.metrics["loss"] == pytest.approx(start.metrics["loss"], abs=1e-6)
    changed = {n for n, t in own.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    count = sum(t.numel() for name, t in before.items() if "lora_" in name)
    assert sum(p.numel() for p in parts.weights) == count
    assert parts.parameters == bare.parameters == bare.task.parameters
    assert events[-1].step == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [("llama", "words"), ("bert", "head")])
def test_a_prompt_that_was_trained_before_changes_nothing(
    tuned, parts, trainer_of, new_backbone, case, kind
):
    """A backbone that was frozen for a prompt trains afterwards as a new one does."""
    family, task = case
    used, endings = new_backbone(family), []
    list(trainer_of(parts(family, "prompt-tuning", task=task, own=used)).run())
    for own in (used, None):
        recipe, made = tuned(family, task, kind, own=own, learning_rate=0.3)
        events = [*trainer_over(recipe, made).run()]
        losses = [event.loss for event in events if isinstance(event, Step)]
        endings.append((losses, [parameter.detach().clone() for parameter in made.trained]))
    (losses, weights), (as_new, expected) = endings
    assert losses == as_new
    assert all(map(torch.equal, weights, expected))


def test_lora_has_a_pair_of_factors_for_every_linear_layer_of_the_body(new_backbone):
    backbone = new_backbone("llama")
    layers = [m for m in backbone.model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    expected = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    added = add_lora(backbone, rank=4, alpha=8, seed=3)
    assert sum(p.numel() for p in added) == expected
    again = add_lora(new_backbone("llama"), rank=4, alpha=8, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(added, again, strict=True)), "the seed decides"


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_by_validation_predict(tuned, tmp_path, kind, rows):
    recipe, parts = tuned("llama", "words", kind, learning_rate=0.3, epochs=4, best_metric="loss")
    seen = []
    answer = finetune(recipe, tmp_path / "run", parts=parts, callback=seen.append)
    losses = [e.metrics["loss"] for e in seen if type(e).__name__ == "Evaluation"]
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["validation"]["loss"] == min(losses) < losses[0]
    validation = rows(5, 1)
    pairs = zip(answer(validation), validation, strict=True)
    accuracy = sum(label == row["label"] for label, row in pairs) / 5
    assert accuracy == pytest.approx(numbers["validation"]["accuracy"])
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert len(lines) == len(seen)


def test_the_same_seed_gives_the_same_numbers(tuned):
    losses = []
    for _ in range(2):
        recipe, parts = tuned("bert", "head", learning_rate=0.05)
        losses.append(
            [e.loss for e in trainer_over(recipe, parts).run() if type(e).__name__ == "Step"]
        )
    assert losses[0] == losses[1]


def test_patience_ends_a_run(tuned):
    recipe, parts = tuned(
        "llama", "words", learning_rate=1e-9, epochs=50, early_stopping_patience=2
    )
    *_, last = trainer_over(recipe, parts).run()
    assert last.step < 50 * 3


def test_a_loss_that_is_not_finite_stops_the_run(tuned):
    trainer = trainer_over(*tuned("llama", "words", epochs=3))
    events = trainer.run()
    next(events)
    with torch.no_grad():
        next(trainer.method.parameters()).fill_(torch.inf)
    with pytest.raises(TrainingError, match="try a third of the rate"):
        next(events)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_whole_run_is_a_plain_torch_loop(tuned, plain, family, task, kind):
    """Order, accumulation, clipping, decay, schedule, validation and selection, written out."""
    rate, decay, max_norm, total, warmup = 0.05, 0.01, 0.5, 9, 3
    recipe, parts = tuned(
        family, task, kind, learning_rate=rate, head_learning_rate=2 * rate, weight_decay=decay,
        max_grad_norm=max_norm, lr_scheduler="linear", warmup_ratio=warmup / total, epochs=3,
        gradient_accumulation_steps=2, optimizer_args={"momentum": 0.9},
    )  # fmt: skip
    trainer = trainer_over(recipe, parts)
    fresh, head = plain(family), deepcopy(parts.task.head)
    model = deepcopy(fresh if kind == "fine-tuning" else parts.task.backbone.model)
    weights = [p for n, p in model.named_parameters() if kind == "fine-tuning" or "lora_" in n]
    groups = [{"params": weights, "weight_decay": decay}]
    groups += [] if head is None else [{"params": [*head.parameters()], "weight_decay": 0.0}]
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    steps, validations = [], []

    def validate():
        with torch.no_grad():
            loss = reference_loss(model, parts, parts.validation.examples, task, head=head).item()
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        validations.append((len(steps), loss, weights))

    validate()
    for epoch in range(3):
        for batch in trainer.sampler.draw_batches(epoch):
            done = len(steps)
            factor = done / warmup if done < warmup else (total - done) / (total - warmup)
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = rate * factor * (number + 1)
            examples = [parts.rows.examples[i] for i in batch]
            loss = reference_loss(model, parts, examples, task, head=head)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
            optimizer.step()
            steps.append((loss.item(), norm.item(), rate * factor))
        validate()
    events = [*trainer.run()]
    found = [(e.loss, e.norm, e.learning_rate) for e in events if isinstance(e, Step)]
    assert found == [pytest.approx(step, rel=1e-3, abs=1e-5) for step in steps]
    evaluated = [(e.step, e.metrics["loss"]) for e in events if isinstance(e, Evaluation)]
    assert evaluated == [(at, pytest.approx(loss, abs=1e-4)) for at, loss, _ in validations]
    best = min(validations, key=lambda validation: validation[1])
    assert load_best_weights(trainer).step == best[0]
    for name, parameter in parts.task.backbone.model.named_parameters():
        torch.testing.assert_close(parameter, best[2][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_are_put_back_bit_for_bit(tuned, monkeypatch, kind):
    monkeypatch.setattr(
        "softprompt.train.trainer.compute_selection_score",
        lambda _metrics, *, step, **_: -abs(step - 3),
    )
    recipe, parts = tuned("gpt2", "head", kind, learning_rate=0.3)
    trainer = trainer_over(recipe, parts)
    copies, metrics = {}, {}
    for event in trainer.run():
        if isinstance(event, Evaluation):
            copies[event.step] = [p.detach().clone() for p in parts.trained]
            metrics[event.step] = event.metrics
    assert [*copies] == [0, 3, 6]
    assert not all(map(torch.equal, parts.trained, copies[3]))
    assert load_best_weights(trainer).step == 3
    assert all(map(torch.equal, parts.trained, copies[3]))
    assert trainer.evaluate(parts.validation).metrics == metrics[3] != metrics[6]


def test_before_the_first_validation_the_best_weights_are_the_current_ones(tuned):
    recipe, parts = tuned("llama", "words")
    before = [p.detach().clone() for p in parts.trained]
    best = load_best_weights(trainer_over(recipe, parts))
    assert (best.prompt, best.step, dict(best.metrics)) == (None, 0, {})
    assert all(map(torch.equal, parts.trained, before))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_loop_continues_in_another(tuned, tmp_path, kind):
    """State saved and loaded after a validation, within an epoch, at its end; bit for bit."""

    def fresh():
        recipe, parts = tuned(
            "bert",
            "head",
            kind,
            optimizer="adamw",
            learning_rate=0.01,
            backbone={"keep_dropout": True},
        )
        return trainer_over(recipe, parts)

    first = fresh()
    whole = [*first.run()]
    for stop in (1, 3, 5, len(whole) - 2):
        stopped = fresh()
        events = stopped.run()
        seen = [next(events) for _ in range(stop)]
        save_state(stopped.state_dict(), tmp_path / "state")
        second = fresh()
        second.load_state_dict(load_state(tmp_path / "state"))
        assert [*seen, *second.run()] == whole
        assert second.get_best().step == first.get_best().step
        for name, tensor in first.get_best().weights.items():
            assert torch.equal(second.get_best().weights[name], tensor), name


def test_constant_predictions_warn(tuned, tmp_path):
    row = {"text": "a film", "label": "positive"}
    validation = [row, row | {"label": "negative"}, row]
    recipe, parts = tuned("llama", "words", learning_rate=1e-9, validation=validation)
    seen = []
    finetune(recipe, tmp_path / "run", parts=parts, callback=seen.append)
    [warning] = [event for event in seen if isinstance(event, TrainingWarning)]
    assert warning.step == 3
    assert "the backbone has learned nothing yet" in warning.message
    listed = [*RunDir(tmp_path / "run").read_events()]
    assert [event["event"] for event in listed].count("training_warning") == 1
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["best_step"] in {0, 3, 6}


def test_training_rows_are_evaluated_too_and_change_no_step(tuned):
    plain, evaluated = ([], [])
    for events, more in ((plain, {}), (evaluated, {"eval_train_rows": 6})):
        recipe, parts = tuned("bert", "head", learning_rate=0.05, **more)
        trainer = trainer_over(recipe, parts)
        events.extend(trainer.run())
    *_, last = (event for event in evaluated if isinstance(event, Evaluation))
    assert last.train.rows == 6
    assert last.train == trainer.evaluate(sample_rows(parts.rows, 6))
    assert [replace(e, train=None) if isinstance(e, Evaluation) else e for e in evaluated] == plain


def test_weights_trained_with_autocast_are_evaluated_with_it(tuned):
    recipe, parts = tuned("llama", "words", learning_rate=0.05, mixed_precision="bf16")
    found = next(trainer_over(recipe, parts).run()).metrics["loss"]
    rows, task = parts.validation, parts.task
    exact = evaluate_rows(task, rows.examples, truth=rows.truth, prompt=None, batch_size=4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = evaluate_rows(task, rows.examples, truth=rows.truth, prompt=None, batch_size=4)
    assert found == rounded.total / rounded.count != exact.total / exact.count


def test_trained_backbone_weights_make_no_artifact(tuned, parts):
    recipe, own = tuned("llama", "words")
    trainer = trainer_over(recipe, own)
    with pytest.raises(TrainingError) as caught:
        make_run_artifact(parts(), trainer.get_best(), start=trainer.start)
    assert str(caught.value) == (
        "an artifact holds a prompt, but this run trained the backbone's own weights. Save those "
        "with the backbone (backbone.model.save_pretrained), or train a prompt."
    )


def test_quantized_weights_cannot_be_fine_tuned(tuned):
    recipe, parts = tuned("llama", "words")
    backbone = parts.task.backbone
    layer = backbone.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    labelled = [{"text": "a", "label": label} for label in ("negative", "positive")]
    tables = {"train": Dataset.from_list(labelled)}
    with pytest.raises(BackboneError, match="are quantized, and cannot be fine-tuned"):
        setup_finetune(recipe, "fine-tuning", backbone=backbone, tables=tables)


def test_without_peft_lora_says_what_to_install(new_backbone, monkeypatch):
    monkeypatch.setattr("softprompt.backbone.finetuning.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'softprompt\[peft\]'"):
        add_lora(new_backbone("llama"), rank=2, alpha=2, seed=0)
