"""Prefixes that start from training rows: the start, leave-one-out, token dropout, folds."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers as tf
from datasets import Dataset
from torch.testing import assert_close

from softprompt import Classify, FromDemonstrations, PTuningV2, TrainingConfig, fit
from softprompt.artifact import load_artifact
from softprompt.backbone import Backbone, wrap_model
from softprompt.backbone.model import list_dropout_rates
from softprompt.data.tokenizer import make_text_encoder
from softprompt.errors import DataError, PromptError, RecipeError
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.recipe import make_recipe
from softprompt.train import Evaluation, Step, run_recipe, setup_run
from softprompt.train.accelerator import make_accelerator, use_gradient_checkpointing
from softprompt.train.demonstrations import Demonstrations, make_row_key
from softprompt.train.folds import _start_fold
from softprompt.train.gradients import accumulate_gradients, draw_visible_columns
from support.parametrize import for_each
from support.recipes import make_recipe_data, read_events
from support.reviews import make_reviews
from support.tiny_models import CAUSAL, CONFIGS, KV, draw_model, make_tokenizer

# Their windows are shorter than the demonstrations, which rows see in part.
WINDOWED = ("mistral", "gemma3")
SPLIT_FAMILIES = [family for family in KV if family in CAUSAL]


def recipe_of(family="llama", method="p-tuning-v2", *, rows=4, task="words", **changes):
    settings = {"init": {"from": "demonstrations", "rows": rows}} | changes.pop("settings", {})
    if rows is None:
        del settings["init"]["rows"]
    data = make_recipe_data(family, method, task=task, settings=settings, **changes)
    data["method"].pop("length", None)
    return data


def tables_of(*sizes: int) -> dict[str, Dataset]:
    names = ("train", "validation", "test")
    return {
        name: Dataset.from_list(make_reviews(count, seed=seed))
        for seed, (name, count) in enumerate(zip(names, sizes, strict=False))
    }


@pytest.fixture(scope="module")
def wide():
    """Causal backbones by family, with windows of 1,024 positions in which many rows fit."""

    @cache
    def get(family: str) -> Backbone:
        key = "n_positions" if family == "gpt2" else "max_position_embeddings"
        config = CONFIGS[family](**{} if family == "bloom" else {key: 1024})
        for name in list_dropout_rates(config):
            setattr(config, name, 0.0)
        model = draw_model(tf.AutoModelForCausalLM, config).eval()
        return wrap_model(family, model, tokenizer=make_tokenizer("causal"), kind="causal")

    return get


@pytest.fixture
def shown(wide):
    """The parts of a run that starts from demonstrations, new each time."""

    def make(
        family="llama", method="p-tuning-v2", *, sizes=(11, 5, 4), tables=None, own=None, **changes
    ):
        recipe = make_recipe(recipe_of(family, method, **changes))
        tables = tables or tables_of(*sizes)
        return setup_run(recipe, backbone=own or wide(family), tables=tables)

    return make


def scores(task, examples, prompt):
    with torch.no_grad():
        return task.compute_scores(examples, [prompt])


def can_start(own) -> bool:
    return explain_unsplittable(own.geometry) is None


@pytest.mark.parametrize("family", SPLIT_FAMILIES)
def test_the_start_is_the_hard_prompt_with_these_rows(wide, shown, family):
    """Rows behind the prefix have the scores of one text: the rows with answers, then the row."""
    own = wide(family)
    if not can_start(own):
        with pytest.raises(PromptError, match="cannot start from demonstrations: it "):
            shown(family)
        return
    prepared = shown(family)
    prompt = prepared.method()
    separator = make_text_encoder(own.tokenizer, vocab_size=own.geometry.vocab_size).encode("\n\n")
    table = prepared.rows["train"]
    context: tuple[int, ...] = ()
    for each in prepared.demonstrations.chosen:
        row = table.examples[each.row].variants[0].input_ids
        (word,) = prepared.task.words.tokens[prepared.task.labels.index(table.truth[each.row])]
        context += (*row, *word, *separator)
    assert prompt.length == len(context)
    rows = prepared.rows["validation"].examples
    whole = [
        replace(
            e,
            variants=tuple(
                replace(
                    v,
                    input_ids=(*context, *v.input_ids),
                    token_type_ids=(0,) * (len(context) + len(v.input_ids)),
                )
                for v in e.variants
            ),
            read_positions=tuple(tuple(p + len(context) for p in ps) for ps in e.read_positions),
        )
        for e in rows
    ]
    found = scores(prepared.task, rows, prompt)
    assert_close(found, scores(prepared.task, whole, None), rtol=1e-4, atol=1e-4)
    assert (found - scores(prepared.task, rows, None)).abs().max() > 1e-4


def test_generation_shows_whole_targets(shown):
    prepared = shown(task="generate")
    table, chosen = prepared.rows["train"], prepared.demonstrations.chosen
    for each in chosen:
        example = table.examples[each.row]
        row = example.variants[0].input_ids
        assert each.ids[: len(row)] == row
        assert each.ids[len(row) : len(row) + len(example.target)] == example.target


@pytest.mark.parametrize("rows", [4, 6, 10])
def test_rows_are_training_rows_balanced_by_label_by_the_seed(shown, rows):
    prepared = shown(rows=rows, sizes=(30, 5, 4))
    chosen = prepared.demonstrations.chosen
    truth = prepared.rows["train"].truth
    assert Counter(truth[each.row] for each in chosen) == {
        "negative": rows // 2,
        "positive": rows // 2,
    }
    assert [each.label for each in chosen] == [truth[each.row] for each in chosen]
    assert len({each.row for each in chosen}) == rows
    same, other = (
        [each.row for each in shown(rows=rows, sizes=(30, 5, 4)).demonstrations.chosen],
        [
            each.row
            for each in setup_run(
                make_recipe(recipe_of(rows=rows) | {"seed": 8}),
                backbone=prepared.backbone,
                tables=tables_of(30, 5, 4),
            ).demonstrations.chosen
        ],
    )
    assert same == [each.row for each in chosen]
    assert other != same


def test_rows_of_other_splits_change_nothing(shown):
    """A text that only the validation and test rows have is never shown."""
    tables = tables_of(12, 5, 4)
    marked = [row | {"text": "wonderful wonderful film"} for row in make_reviews(6, seed=3)]
    leaky = tables | {name: Dataset.from_list(marked) for name in ("validation", "test")}
    first, second = shown(tables=tables), shown(tables=leaky)
    assert first.demonstrations == second.demonstrations
    assert torch.equal(first.method().keys, second.method().keys)
    leaked = {make_row_key(e) for e in second.rows["test"].examples}
    assert leaked.isdisjoint(each.key for each in second.demonstrations.chosen)


def test_left_out_rows_are_sixteen_or_as_many_as_there_are(shown):
    assert len(shown(rows=None, sizes=(40, 4)).demonstrations.chosen) == 16
    few = shown(rows=None, sizes=(11, 4)).demonstrations
    assert len(few.chosen) == len({each.key for each in few.chosen}) <= 11


def test_the_same_text_is_shown_once(shown):
    rows = make_reviews(8, seed=0)
    tables = {"train": Dataset.from_list([*rows, *rows, *rows])}
    texts = {row["text"] for row in rows}
    found = shown(tables=tables, rows=None).demonstrations
    assert len(found.chosen) == len(texts)


# Leave-one-out


def gradients_of_row(prepared, example, *, visible):
    prompt = prepared.method()
    prompts = [prompt if visible is None else replace(prompt, visible=visible)]
    loss = prepared.task.compute_loss([example], prompts).total
    return torch.autograd.grad(loss, [prepared.method.keys, prepared.method.values])


@pytest.mark.parametrize("family", SPLIT_FAMILIES)
def test_a_row_has_no_gradient_in_its_own_columns_and_a_row_without_has_one_in_all(
    wide, shown, family
):
    own = wide(family)
    if not can_start(own):
        return
    prepared = shown(family)
    table, demonstrations = prepared.rows["train"], prepared.demonstrations
    places = {each.row: demonstrations.locate()[each.key] for each in demonstrations.chosen}
    length = prepared.method().length
    for row, (start, end) in places.items():
        example = table.examples[row]
        assert example.own_columns == (start, end)
        (visible,) = draw_visible_columns([example], length, dropout=0, seed=0, step=0)
        for gradient in gradients_of_row(prepared, example, visible=visible):
            assert torch.equal(
                gradient[:, :, start:end], torch.zeros_like(gradient[:, :, start:end])
            )
            others = torch.cat([gradient[:, :, :start], gradient[:, :, end:]], dim=2)
            if family not in WINDOWED:
                assert others.any(dim=-1).all()
    other = next(e for e in table.examples if e.own_columns is None)
    assert draw_visible_columns([other], length, dropout=0, seed=0, step=0) is None
    for gradient in gradients_of_row(prepared, other, visible=None):
        if family not in WINDOWED:
            assert gradient.any(dim=-1).all()


@pytest.mark.parametrize("family", SPLIT_FAMILIES)
def test_a_row_does_not_depend_on_its_own_columns(wide, shown, family):
    """In one batch with rows that see everything: each as if it were alone."""
    if not can_start(wide(family)):
        return
    prepared = shown(family)
    examples, prompt = prepared.rows["train"].examples, prepared.method()
    prompt = prompt.map_tensors(lambda tensor: tensor.detach())
    visible = draw_visible_columns(examples, prompt.length, dropout=0, seed=0, step=0)
    rows = torch.arange(len(examples))
    prompts = [replace(prompt, visible=row) for row in visible]
    with torch.no_grad():
        together = prepared.task.compute_scores(examples, prompts, rows=rows)
        plain = prepared.task.compute_scores(examples, [prompt])
        for at, example in enumerate(examples):
            if example.own_columns is None:
                assert_close(together[at], plain[at], rtol=1e-4, atol=1e-4)
                continue
            own = slice(*example.own_columns)
            noisy = prompt.map_tensors(torch.clone)
            for tensor in noisy.to_tensors().values():
                tensor[:, :, own] = 1e3
            alone = replace(noisy, visible=visible[at])
            found = prepared.task.compute_scores([example], [alone])[0]
            assert_close(found, together[at], rtol=1e-4, atol=1e-4)
            if family not in WINDOWED:
                assert (plain[at] - together[at]).abs().max() > 1e-6


def test_a_masked_prefix_is_one_without_these_columns(backbone, maker):
    """Keys and values that differ, of prompts with and without hidden columns, in one batch."""
    from softprompt.injection import forward

    own, make = backbone("llama"), maker("llama")
    long, short = make.prefix(6), make.prefix(4)
    visible = torch.tensor([True, False, True, True, False, True])
    masked = replace(long, visible=visible)
    cut = replace(long, keys=long.keys[:, :, visible], values=long.values[:, :, visible])
    batch = make.batch(make.words(5), make.words(7), make.words(6))
    rows = torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = forward(own, batch, prompts=[masked, short, None], rows=rows)
        wanted = forward(own, batch, prompts=[cut, short, None], rows=rows)
        real = batch.attention_mask.bool()
        assert_close(found[real], wanted[real], rtol=1e-5, atol=1e-5)
        alone = forward(own, batch, prompts=[masked])
    assert_close(alone[0][real[0]], found[0][real[0]], rtol=1e-5, atol=1e-5)


def test_a_row_with_the_text_of_a_demonstration_is_hidden_from_it_too(shown):
    rows = make_reviews(8, seed=0)
    copies = [dict(row) for row in rows]
    prepared = shown(tables={"train": Dataset.from_list([*rows, *copies])}, rows=4)
    examples = prepared.rows["train"].examples
    assert sum(e.own_columns is not None for e in examples) == 8
    for first, copy in zip(examples[:8], examples[8:], strict=True):
        assert first.own_columns == copy.own_columns


@pytest.mark.parametrize(("rows", "hidden"), [(2, False), (3, False), (4, True)])
def test_fewer_than_four_are_not_hidden_and_that_is_said(shown, rows, hidden):
    prepared = shown(rows=rows)
    marked = [e for e in prepared.rows["train"].examples if e.own_columns is not None]
    assert bool(marked) is hidden
    (note,) = (note for note in prepared.notes if "starts from" in note)
    assert ("is hidden from itself" in note) is hidden or not hidden
    wanted = "none is hidden from itself, as there are fewer than 4"
    assert note.endswith(wanted) is not hidden


def test_evaluation_hides_and_drops_nothing(shown, trainer_of):
    """The training rows, evaluated: the scores of the whole prefix, twice the same."""
    prepared = shown(eval_train_rows=11)
    trainer = trainer_of(prepared)
    reports = [trainer.evaluate(prepared.rows["train"]).metrics for _ in range(2)]
    assert reports[0] == reports[1]
    prompt = trainer.prompt()
    assert prompt.visible is None
    with torch.no_grad():
        loss = prepared.task.compute_loss(prepared.rows["train"].examples, [prompt])
    assert float(loss.total) / loss.count == pytest.approx(reports[0]["loss"], rel=1e-5)


# Token dropout


def test_token_dropout_is_drawn_by_row_and_step(shown):
    batch = shown().rows["train"].examples * 40
    plain = [replace(e, own_columns=None) for e in batch]
    first = draw_visible_columns(plain, 50, dropout=0.05, seed=7, step=3)
    assert (~first).float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert first.shape == (len(plain), 50)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(1)
    assert torch.equal(first, draw_visible_columns(plain, 50, dropout=0.05, seed=7, step=3))
    for seed, step in ((7, 4), (8, 3)):
        other = draw_visible_columns(plain, 50, dropout=0.05, seed=seed, step=step)
        assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, 0.05), ({"token_dropout": 0.0}, 0.0), ({"token_dropout": 0.3}, 0.3)],
)
@pytest.mark.parametrize("method", ["p-tuning-v2", "prefix-tuning"])
def test_its_rate(shown, method, settings, wanted):
    settings = settings | ({"encoder_hidden_size": 8} if method == "prefix-tuning" else {})
    assert shown(method=method, settings=settings).training.token_dropout == wanted


def test_without_demonstrations_nothing_is_dropped_unless_asked(parts):
    assert parts("llama", "p-tuning-v2").training.token_dropout == 0
    asked = parts("llama", "p-tuning-v2", settings={"token_dropout": 0.25})
    assert asked.training.token_dropout == 0.25


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_that_are_not_possible_are_faults(backbone, rate):
    from softprompt.methods import build_method
    from softprompt.methods.initializers import FromRandom

    settings = PTuningV2(token_dropout=rate)
    with pytest.raises(RecipeError) as error:
        build_method(backbone("llama"), settings, soft_length=0, init=FromRandom(), seed=0)
    assert error.value.faults == (f"token_dropout = {rate}: at least 0 and less than 1.",)


def test_parts_of_a_step_change_nothing(shown):
    """The same gradient in one part and in three: the masks are those of the whole step."""
    found = []
    for parts in (1, 3):
        prepared = shown()
        batch = prepared.rows["train"].examples[:6]
        visible = draw_visible_columns(batch, prepared.method().length, dropout=0.2, seed=1, step=0)
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        accumulate_gradients(
            prepared.task,
            prepared.method,
            batch=batch,
            parts=parts,
            accelerator=accelerator,
            visible=visible,
        )
        found.append(prepared.method.keys.grad)
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


# Runs


@pytest.mark.parametrize("method", ["p-tuning-v2", "prefix-tuning"])
def test_a_run_writes_an_ordinary_prefix_and_records_its_rows(shown, tmp_path, method):
    settings = {"encoder_hidden_size": 8} if method == "prefix-tuning" else {}
    prepared = shown(method=method, settings=settings, sizes=(11,))  # so the last step is kept
    start = prepared.method().keys.detach().clone()
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run" / "artifact")
    assert artifact.prompt.shift_positions
    assert artifact.prompt.visible is None
    assert artifact.prompt.length == len(prepared.demonstrations.ids)
    assert not torch.equal(artifact.prompt.keys, start)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    wanted = {
        "rows": [each.row for each in prepared.demonstrations.chosen],
        "labels": {"negative": 2, "positive": 2},
        "tokens": len(prepared.demonstrations.ids),
        "leave_one_out": True,
    }
    assert metrics["demonstrations"] == artifact.manifest.metrics["demonstrations"] == wanted


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_run_that_is_stopped_resumes_with_the_same_numbers(shown, tmp_path, stop):
    """The same rows, the same columns hidden and dropped."""

    def run(folder, *, interrupt=None, resume=False):
        prepared, seen = shown(sizes=(11, 5), settings={"token_dropout": 0.3}), []

        def watch(event):
            seen.append(event)
            if len([e for e in seen if isinstance(e, Step | Evaluation)]) == interrupt:
                raise KeyboardInterrupt

        args = {"callbacks": [watch], "resume": resume, "prepared": prepared}
        return run_recipe(prepared.recipe, folder, **args)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", interrupt=stop)
    resumed = run(tmp_path / "cut", resume=True)
    assert torch.equal(resumed.prompt.keys, whole.prompt.keys)
    assert torch.equal(resumed.prompt.values, whole.prompt.values)
    first, second = (
        [
            {k: v for k, v in event.items() if k != "seconds"}
            for event in read_events(folder, "step")
        ]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    )
    assert first == second


def test_layers_that_are_run_again_hide_the_same(shown):
    """With gradient checkpointing the gradient is that without."""
    found = []
    for again in (False, True):
        prepared = shown()
        batch = prepared.rows["train"].examples
        length = prepared.method().length
        visible = draw_visible_columns(batch, length, dropout=0.2, seed=1, step=0)
        accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
        args = {"batch": batch, "parts": 1, "accelerator": accelerator, "visible": visible}
        with use_gradient_checkpointing(prepared.backbone, wanted=again):
            prepared.backbone.model.train(again)
            accumulate_gradients(prepared.task, prepared.method, **args)
        prepared.backbone.model.eval()
        found.append(prepared.method.values.grad)
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_prefix_tuning_is_fitted_to_them(shown):
    wanted = shown().method().to_tensors()
    settings = {"encoder_hidden_size": 64}
    found = shown(method="prefix-tuning", settings=settings).method().to_tensors()
    for name, tensor in found.items():
        error = (tensor - wanted[name]).pow(2).mean().sqrt() / wanted[name].pow(2).mean().sqrt()
        assert error < 0.2


def test_the_paper_decides_the_rate(shown):
    training = shown(learning_rate=None, lr_scheduler=None).training
    assert (training.learning_rate, training.lr_scheduler) == (1e-3, "cosine")


def test_in_python(wide):
    rows = {name: [*table] for name, table in tables_of(11, 5).items()}
    recipe = make_recipe_data("llama", "p-tuning-v2")
    task = Classify(recipe["task"]["template"], verbalizer=recipe["task"]["verbalizer"])
    model = fit(
        wide("llama"),
        task,
        rows,
        method=PTuningV2(),
        init=FromDemonstrations(rows=6),
        config=TrainingConfig(epochs=1, batch_size=4),
        progress=False,
    )
    record = model.artifact.manifest.metrics["demonstrations"]
    assert record["labels"] == {"negative": 3, "positive": 3}
    assert model.prompt.length == record["tokens"]


# Folds


def test_a_fold_does_not_start_from_the_rows_that_it_validates_by(shown):
    prepared = shown(rows=6, sizes=(12,))
    table = prepared.rows["train"]
    held_out = [each.row for each in prepared.demonstrations.chosen[:2]]
    left = [row for row in range(12) if row not in held_out]
    rows = {
        name: replace(
            table,
            examples=[table.examples[i] for i in indices],
            truth=[table.truth[i] for i in indices],
        )
        for name, indices in (("train", left), ("validation", held_out))
    }
    fold = _start_fold(replace(prepared, rows=rows))
    chosen = prepared.demonstrations.chosen[2:]
    assert fold.demonstrations == Demonstrations(chosen)
    assert fold.method().length == sum(len(each.ids) for each in chosen)
    # Not the first prefix without some columns: its later columns have seen the held-out rows.
    whole = prepared.method().keys[:, :, -fold.method().length :]
    assert not torch.allclose(fold.method().keys, whole, atol=1e-4)
    places = fold.demonstrations.locate()
    for example in fold.rows["train"].examples:
        assert example.own_columns == places.get(make_row_key(example))


def test_all_demonstrations_in_one_fold_are_refused(shown):
    prepared = shown(rows=2, sizes=(12,))
    table = prepared.rows["train"]
    examples = [table.examples[each.row] for each in prepared.demonstrations.chosen]
    with pytest.raises(DataError) as error:
        prepared.demonstrations.drop_held_out(examples)
    assert str(error.value) == (
        "all 2 demonstrations are rows of one fold, which must not start from its own rows. Use "
        "more demonstrations (rows in method.init), or fewer folds."
    )


def test_a_run_with_folds(wide, tmp_path):
    data = recipe_of(rows=6)
    data["data"]["folds"] = 3
    recipe = make_recipe(data)
    prepared = setup_run(recipe, backbone=wide("llama"), tables=tables_of(12))
    model = run_recipe(recipe, tmp_path / "run", prepared=prepared)
    assert model.prompt.length == len(prepared.demonstrations.ids)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert metrics["cross_validation"]["folds"] == 3


# What is refused


def refuse(shown, error, **changes) -> str:
    with pytest.raises(error) as caught:
        shown(**changes)
    return str(caught.value)


def test_more_rows_than_there_are(shown):
    assert refuse(shown, DataError, rows=12) == (
        "12 demonstrations are wanted, but there are 11 training rows. Set rows to at most 11 (in "
        "method.init, or in FromDemonstrations)."
    )


def test_more_rows_than_fit(backbone, shown):
    """The remedy can be followed: so many rows fit."""
    own = backbone("gpt2")
    limit = own.geometry.max_positions // 2
    message = refuse(shown, DataError, own=own, rows=40, sizes=(60,))
    assert f"but {limit} positions are free for them: half of the backbone's window" in message
    fits = int(message.partition("Set rows to at most ")[2].partition(",")[0])
    prepared = shown(own=own, rows=fits, sizes=(60,))
    assert len(prepared.demonstrations.ids) <= limit
    assert "Set rows to at most" in refuse(shown, DataError, own=own, rows=fits + 1, sizes=(60,))


def test_an_encoder(backbone, shown):
    message = refuse(shown, PromptError, family="bert", own=backbone("bert"))
    assert message == (
        "a prompt for bert cannot start from demonstrations: its tokens see what comes after them, "
        "so the keys and values of the demonstrations depend on the row. Start from label words or "
        "a text instead, or choose another backbone."
    )


def test_a_trained_head(shown):
    message = refuse(shown, PromptError, task="head")
    assert message.endswith("Add a verbalizer to the task, or choose another initialization.")


@pytest.mark.parametrize(
    ("method", "settings", "fault"),
    [
        ("prompt-tuning", {}, "method.init.from: demonstrations are keys and values, but prompt-"),
        ("p-tuning-v2", {"length": 9}, 'method.length: means nothing with from = "demonstrations"'),
        ("p-tuning-v2", {"shift_positions": False}, "method.shift_positions: with demonstrations"),
    ],
)
def test_settings_that_do_not_go_with_it(method, settings, fault):
    data = recipe_of(method=method)
    data["method"] |= settings
    with pytest.raises(RecipeError) as error:
        make_recipe(data)
    (found,) = error.value.faults
    assert found.startswith(fault)


def test_rows_mean_nothing_elsewhere():
    data = make_recipe_data(settings={"init": {"from": "labels", "rows": 3}})
    with pytest.raises(RecipeError) as error:
        make_recipe(data)
    assert error.value.faults == (
        "method.init.rows: means nothing with from = 'labels'. Take it out.",
    )


@for_each("causal")
def test_the_prompt_and_a_row_have_different_positions(wide, shown, causal):
    """Rows have the positions after the demonstrations, and room in the window."""
    own = wide(causal)
    if causal not in KV or not can_start(own):
        return
    prompt = shown(causal).method()
    assert prompt.num_positions == prompt.length
    limit = own.geometry.max_positions
    rows = shown(causal).rows["validation"].examples
    assert limit is None or prompt.length + max(e.length for e in rows) <= limit
