"""Multiple choice from rows to predictions: on every architecture, by tokens and by a head."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt import ChoicePrediction, Choose, Ensemble, TrainingConfig, fit
from softprompt.analysis import compute_attention_shares
from softprompt.artifact.checks import check_artifact
from softprompt.backbone.model import BatchInputs
from softprompt.errors import (
    ArtifactError,
    DataError,
    PromptError,
    RecipeError,
    TemplateError,
)
from softprompt.inference import PromptModel
from softprompt.inference.loops import predict_rows
from softprompt.injection.forward import forward
from softprompt.recipe import make_recipe
from softprompt.tasks import LengthBudget, build_task
from softprompt.train import run_recipe, setup_run
from softprompt.train.datasets import select_rendered
from softprompt.train.option_models import (
    choose_option_fold_readouts,
    choose_option_readout,
)
from softprompt.train.packing import pack_examples, unpack_examples
from softprompt.train.validation import check_recipe
from support.options import make_options
from support.recipes import check_resumed, make_recipe_data
from support.reviews import write_rows

HEAD = {"head": "linear", "pooling": "cls"}
LAST = {"head": "linear-normalized", "pooling": "last"}
CASES = {
    "llama-input": ("llama", "prompt-tuning", "{soft:3}{question} is", {}),
    "llama-later": ("llama", "prompt-tuning", "{question} is{soft:3}", {}),
    "llama-characters": (
        "llama", "p-tuning-v2", "{question} is", {"length_normalization": "characters"},
    ),
    "gpt2-tokens": ("gpt2", "prefix-tuning", "{question} is", {"length_normalization": "tokens"}),
    "t5-input": ("t5", "prompt-tuning", "{soft:3}{question}", {}),
    "t5-prefix": ("t5", "p-tuning-v2", "{question}", {"length_normalization": "tokens"}),
    "bert-prefix": ("bert", "p-tuning-v2", "{question}{sep}{option}", HEAD),
    "bert-mean": (
        "bert", "prompt-tuning", "{soft:3}{question}{sep}{option}", HEAD | {"pooling": "mean"},
    ),
    "llama-head": ("llama", "p-tuning-v2", "{question} is {option}", LAST),
}  # fmt: skip
TOKENS = [name for name, (*_, task) in CASES.items() if "head" not in task]
HEADS = [name for name in CASES if name not in TOKENS]


def make_data(name, *, task=(), **train):
    family, method, template, own = CASES[name]
    data = make_recipe_data(family, method, task="head", **train)
    data["task"] = {"kind": "choose", "template": template, **own, **dict(task)}
    return data


@pytest.fixture
def prepare(backbone):
    def make(name, *, rows=(13, 6, 5), form="text", **changes):
        tables = {
            split: Dataset.from_list(make_options(count, seed=seed, form=form))
            for seed, (split, count) in enumerate(
                zip(("train", "validation", "test"), rows, strict=True)
            )
        }
        recipe = make_recipe(make_data(name, **changes))
        return setup_run(recipe, backbone=backbone(CASES[name][0]), tables=tables)

    return make


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_saved_and_answers_alike_alone_and_in_a_batch(prepare, tmp_path, name):
    prepared = prepare(name)
    trained = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = make_options(9, seed=5)
    together = model.predict(rows)
    assert together == trained.predict(rows), "what is loaded is what was trained"
    asked = [{key: row[key] for key in ("question", "options")} for row in rows]
    assert model.predict(asked) == together, "no target is needed"
    for row, found in zip(rows, together, strict=True):
        assert isinstance(found, ChoicePrediction)
        assert [*found.probabilities] == row["options"]
        assert sum(found.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert row["options"][found.choice] == found.label
        assert found.probabilities[found.label] == max(found.probabilities.values())
        (alone,) = model.predict([row])
        assert alone.scores == pytest.approx(found.scores, abs=2e-4)
    report = model.evaluate(rows)
    assert {*report.metrics} == {"loss", *model.task.objective.metric_names}
    right = [row["target"] == found.label for row, found in zip(rows, together, strict=True)]
    assert report.right == tuple(right)
    assert report.metrics["accuracy"] == pytest.approx(np.mean(right))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]) >= {*model.task.objective.metric_names}


def score_by_loop(task, example, prompt):
    """The log-likelihood of each option, a token at a time, from whole rows and all logits."""
    backbone = task.backbone
    (source,) = {v.input_ids for v in example.variants} if task.is_decoder else (None,)
    scores = []
    for ids in example.option_ids:
        total = 0.0
        for at, token in enumerate(ids):
            if task.is_decoder:
                decoder = torch.tensor([[backbone.decoder_start_token_id, *ids[:at]]])
                row, inputs = source, {"decoder_input_ids": decoder}
            else:
                own = example.variants[0].input_ids[: example.read_positions[0][0] + 1]
                row, inputs = (*own, *ids[:at]), {}
            ones = torch.ones(1, len(row), dtype=torch.long)
            batch = BatchInputs(torch.tensor([row]), ones, **inputs)
            states = forward(backbone, batch, prompts=[prompt])
            logs = backbone.lm_head(states)[0, -1].float().log_softmax(dim=-1)
            total += float(logs[token])
        scores.append(total)
    return scores


@pytest.mark.parametrize("name", TOKENS)
def test_the_scores_are_those_of_a_loop_over_tokens(prepare, name) -> None:
    prepared = prepare(name)
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    with torch.no_grad():
        found = task.compute_scores(examples, [prompt])
        for example, of_row in zip(examples, found, strict=True):
            assert of_row.tolist() == pytest.approx(score_by_loop(task, example, prompt), abs=2e-4)


@pytest.mark.parametrize("name", TOKENS)
def test_without_a_prompt_the_scores_are_those_of_transformers(
    backbone, plain, tokenizer, name
) -> None:
    """The model itself on text and option, in one pass over both."""
    family, _, template, own = CASES[name]
    bare, model = backbone(family), plain(family)
    hard = template.replace("{soft:3}", "")
    task = build_task(Choose(hard, **own), bare, template=hard)
    rows = make_options(6, seed=3)
    words = bare.tokenizer
    for row, found in zip(rows, task.predict(task.make_examples(rows), [None]), strict=True):
        text = hard.replace("{question}", row["question"])
        expected = []
        for option in row["options"]:
            with torch.no_grad():
                if family == "t5":
                    source = words(text, return_tensors="pt")
                    labels = words(option, return_tensors="pt")["input_ids"]
                    logits = model(input_ids=source["input_ids"], labels=labels).logits[0]
                    scored = labels[0]
                else:
                    ids = words(f"{text} {option}", return_tensors="pt")["input_ids"]
                    begin = len(words(text)["input_ids"])
                    logits, scored = model(input_ids=ids).logits[0, begin - 1 : -1], ids[0, begin:]
            logs = logits.float().log_softmax(dim=-1)
            expected.append(float(logs.gather(1, scored[:, None]).sum()))
        assert found.scores == pytest.approx(expected, abs=2e-4)
        lengths = [len(option) for option in row["options"]]
        normalized = [a / b for a, b in zip(expected, lengths, strict=True)]
        if not own:
            assert found.choice == int(np.argmax(expected))
            assert found.twin_choice == int(np.argmax(normalized)), "acc_norm of lm-eval"
        elif own["length_normalization"] == "characters":
            assert found.choice == int(np.argmax(normalized))
            assert found.twin_choice == int(np.argmax(expected))


@pytest.mark.parametrize("name", HEADS)
def test_the_scores_of_a_head_are_those_of_its_layer(prepare, name) -> None:
    """As in AutoModelForMultipleChoice: a linear layer on one state of each row with an option."""
    prepared = prepare(name)
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    size = task.backbone.geometry.vocab_size
    with torch.no_grad():
        found = task.compute_scores(examples, [prompt])
        losses = []
        for example, of_row in zip(examples, found, strict=True):
            expected = []
            for variant in example.variants:
                ids = torch.tensor([variant.input_ids])
                types = torch.tensor([variant.token_type_ids])
                batch = BatchInputs(ids, torch.ones_like(ids), types)
                states = forward(task.backbone, batch, prompts=[prompt])[0]
                words = ids[0] < size
                state = {"cls": states[0], "last": states[-1], "mean": states[words].mean(dim=0)}
                expected.append(float(task.head(state[task.pooling][None])))
            assert of_row.tolist() == pytest.approx(expected, abs=1e-4)
            target = torch.tensor([example.target])
            losses.append(float(F.cross_entropy(torch.tensor([expected]), target)))
        loss = task.compute_loss(examples, [prompt])
    assert float(loss.total) == pytest.approx(sum(losses), abs=1e-3)
    assert loss.count == len(examples)


@pytest.mark.parametrize("name", TOKENS)
def test_the_loss_is_that_of_the_options_and_of_the_right_tokens(prepare, name) -> None:
    prepared = prepare(name, task={"likelihood_weight": 0.5})
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    rule = task.objective.normalization
    with torch.no_grad():
        scores = [of_row.double() for of_row in task.compute_scores(examples, [prompt])]
        whole, judged = task.compute_loss(examples, [prompt]), task.evaluate(examples, prompt)[0]
    expected, likelihood = 0.0, 0.0
    for example, of_row in zip(examples, scores, strict=True):
        tokens = [len(ids) for ids in example.option_ids]
        units = {"none": 1, "tokens": tokens, "characters": [len(x) for x in example.options]}
        logits = of_row / torch.tensor(units[rule])
        expected -= float(logits.log_softmax(dim=0)[example.target])
        likelihood -= float(of_row[example.target]) / tokens[example.target]
    assert float(judged.total) == pytest.approx(expected, rel=1e-4)
    assert float(whole.total) == pytest.approx(expected + 0.5 * likelihood, rel=1e-4)


@pytest.mark.parametrize("name", ["llama-characters", "t5-prefix", "bert-mean"])
def test_a_prompt_learns_to_choose(backbone, name) -> None:
    family, method, template, own = CASES[name]
    own = own if "head" in own else {"length_normalization": "tokens"}
    # Only questions for a good word: a random model does not connect it with the question.
    rows, others = (make_options(2 * n, seed=n, words=1)[::2] for n in (32, 16))
    model = fit(
        backbone(family), Choose(template, **own), rows, validation=others, method=method,
        config=TrainingConfig(epochs=12, learning_rate=0.1, batch_size=8), progress=False,
    )  # fmt: skip
    chance = np.mean([np.log(len(row["options"])) for row in rows])
    assert model.evaluate(rows).metrics["loss"] < chance - 0.1


@pytest.mark.parametrize("name", ["llama-input", "t5-prefix", "bert-prefix"])
def test_a_resumed_run_is_the_uninterrupted_one(prepare, tmp_path, name) -> None:
    check_resumed(lambda: prepare(name), tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_examples_survive_the_cache(prepare, name) -> None:
    examples = [*prepare(name).rows["train"].examples]
    examples[0] = replace(examples[0], options=("die Käse 日本", "👍🏽"))
    assert unpack_examples(pack_examples(examples)) == examples


@pytest.mark.parametrize("form", ["text", "index", "label"])
def test_targets_of_every_form_mean_the_same(prepare, tmp_path, form) -> None:
    prepared = prepare("llama-input", form=form, epochs=1)
    assert [e.target for e in prepared.rows["train"].examples] == [
        e.target for e in prepare("llama-input").rows["train"].examples
    ]
    rows = make_options(13, seed=0)
    assert [*prepared.rows["train"].truth] == [row["target"] for row in rows]
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    assert model.artifact.manifest.task["target_form"] == form
    report = model.evaluate(make_options(7, seed=9, form=form))
    assert report.truth == tuple(row["target"] for row in make_options(7, seed=9))


def test_options_of_one_token_need_one_run(prepare) -> None:
    """The row alone tells the next token, whatever the number of options."""
    task = prepare("llama-later").task
    row = {"question": "good", "options": ["good", "bad", "film"]}
    example = task.make_example(row, target=False)
    assert len(example.variants) == 1
    assert sum(map(len, example.read_positions)) == 1
    row["options"].append("good film")
    example = task.make_example(row, target=False)
    assert len(example.variants) == 1, "the others are its beginning, or end at once"
    row["options"].append("good film plot")
    row["options"].append("bad plot")
    assert len(task.make_example(row, target=False).variants) == 2


def test_a_long_row_leaves_room_for_its_longest_option(backbone) -> None:
    template = "{question} is{soft:3}"
    budget = LengthBudget(20)
    task = build_task(Choose(template), backbone("llama"), template=template, budget=budget)
    question = "the film was very good " * 9
    for words in (1, 2, 3):
        row = {"question": question, "options": ["bad", "plot " * (words - 1) + "good"]}
        example = task.make_example(row, target=False)
        assert 18 <= example.length <= 20, "cut between words"
        assert example.truncated
    with pytest.raises(DataError, match=r"an option has \d+ tokens, but .* there is room for \d+"):
        task.make_example({"question": "it", "options": ["bad", "plot " * 30]}, target=False)


def test_a_change_of_the_rule_of_length_is_that_of_training(prepare, tmp_path) -> None:
    prepared = prepare("llama-input", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    rows = make_options(12, seed=4)
    other = model.with_task(length_normalization="characters")
    for plain, normalized in zip(model.predict(rows), other.predict(rows), strict=True):
        assert plain.scores == normalized.scores
        assert (plain.choice, plain.twin_choice) == (normalized.twin_choice, normalized.choice)
    one, two = model.evaluate(rows).metrics, other.evaluate(rows).metrics
    assert one["accuracy_normalized"] == two["accuracy"]
    assert two["accuracy_unnormalized"] == one["accuracy"]
    with pytest.raises(PromptError, match=r"task.target_form is part .* length_normalization"):
        model.with_task(target_form="index")


@pytest.mark.parametrize("name", ["llama-input", "t5-input", "bert-prefix", "bert-mean"])
def test_seeds_are_averaged_and_each_has_its_own_head(prepare, tmp_path, name) -> None:
    models = []
    for seed in (1, 2, 3):
        prepared = prepare(name, epochs=1)
        recipe = prepared.recipe.model_copy(update={"seed": seed})
        parts = setup_run(recipe, backbone=prepared.backbone, tables=prepared.tables)
        models.append(run_recipe(recipe, tmp_path / str(seed), prepared=parts))
    ensemble = Ensemble(models, vote="mean")
    rows = make_options(7, seed=9)
    each = [model.predict(rows) for model in models]
    for at, found in enumerate(ensemble.predict(rows)):
        for option, share in found.probabilities.items():
            mean = np.mean([member[at].probabilities[option] for member in each])
            assert share == pytest.approx(mean, abs=1e-5)
        assert found.choice == np.argmax([*found.probabilities.values()])
        assert rows[at]["options"][found.choice] == found.label
    report = ensemble.evaluate(rows)
    assert {*report.metrics} == {"loss", *models[0].task.objective.metric_names}
    for at, found in enumerate(Ensemble(models, vote="majority").predict(rows)):
        labels = [member[at].label for member in each]
        assert labels.count(found.label) == max(map(labels.count, labels))


def test_the_readout_of_a_head_is_chosen_by_rows(prepare, tmp_path) -> None:
    prepared = prepare("bert-prefix", rows=(24, 12, 5), task={"pooling": "auto"}, epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    pooling = model.artifact.manifest.task["pooling"]
    assert pooling == model.task.pooling
    wanted = choose_option_readout(prepared.task, prepared.rows, template=prepared.template)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert metrics["readout"] == wanted.as_data()
    assert pooling == wanted.pooling
    again = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    assert again.predict(make_options(5, seed=8)) == model.predict(make_options(5, seed=8))


def test_the_readout_of_a_fold_is_chosen_without_its_rows(prepare) -> None:
    prepared = prepare("bert-prefix", rows=(24, 12, 5), task={"pooling": "auto"})
    task, rows, template = prepared.task, prepared.rows["train"], prepared.template
    folds = [range(n, 24, 3) for n in range(3)]
    found = choose_option_fold_readouts(task, rows, folds=folds, template=template)
    for fold, choice in zip(folds, found, strict=True):
        seen = select_rendered(rows, [at for at in range(24) if at not in fold])
        assert choice == choose_option_readout(task, {"train": seen}, template=template)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "plot"}, r"row 4 .*'plot' is not the text of one .*, or its"),
        ({"target": None}, "row 4 .*target has no value"),
        ({"options": ["good"]}, "row 4 .*: the row has 1 option .*a choice needs at least 2"),
        ({"options": ["good", "good"]}, "row 4 .*the option 'good' stands twice"),
        ({"options": ["good", " "]}, "row 4 .*an empty option"),
        ({"options": None}, "row 4 .*the row has 0 options, but"),
    ],
)
def test_faults_name_their_row(tmp_path, row, message) -> None:
    rows = make_options(6, seed=0)
    rows[4] |= {"options": ["good", "bad"], "target": "good"} | row
    path = write_rows(tmp_path / "train.jsonl", rows)
    data = make_data("llama-input")
    data["data"] = {"train": str(path), "split_sizes": {"train": 1.0, "validation": 0, "test": 0}}
    data["backbone"]["name"] = "./nowhere"
    faults = " ".join(check_recipe(data).faults)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(faults)


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("bert", {"template": "{soft:3}{question}"}, "an encoder, which does not continue .*head"),
        ("t5", HEAD | {"template": "{soft:3}{question}{option}"}, "so it has no head for options"),
        ("llama", {"template": "{soft:3}{question}{option}"}, "has {option}, but options continue"),
        ("bert", HEAD | {"template": "{soft:3}{question}"}, "has no {option}, but a head scores"),
        ("bert", HEAD | {"template": "{soft:3}{option}", "length_normalization": "tokens"},
         r"task.length_normalization is about the tokens"),
        ("bert", HEAD | {"template": "{soft:3}{option}", "likelihood_weight": 1.0},
         r"task.likelihood_weight is about the tokens"),
        ("llama", {"template": "{soft:3}{question} {plot}"}, "unknown field 'plot'"),
        ("bert", HEAD | {"template": "{soft:3}{option} {mask}"}, "has a {mask}"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(backbone, family, task, message) -> None:
    data = make_data("llama-input")
    data["backbone"]["name"], data["task"] = family, {"kind": "choose", **task}
    tables = {"train": Dataset.from_list(make_options(8, seed=0))}
    with pytest.raises(TemplateError, match=message):
        setup_run(make_recipe(data), backbone=backbone(family), tables=tables)


def test_what_options_have_not_is_refused(prepare, tmp_path) -> None:
    from softprompt.analysis.attribution import explain_prediction

    with pytest.raises(RecipeError, match=r"train.keep_plain_head: each row has its own options"):
        prepare("bert-prefix", keep_plain_head=True)
    prepared = prepare("bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    row = make_options(1, seed=0)[0]
    with pytest.raises(PromptError, match="each row has its own options"):
        explain_prediction(model, row)
    with pytest.raises(PromptError, match=r"an option of a row, .* no probabilities of labels"):
        model.predict_proba([row])
    for changes, message in [
        ({"target_form": "auto"}, r"task.target_form is 'auto'"),
        ({"pooling": "auto"}, r"task.pooling is 'auto'"),
        ({"head": "mlp-tanh"}, "for the score of an option has the tensors"),
        ({"length_normalization": "tokens"}, "task has a head, which scores no tokens"),
    ]:
        manifest = replace(model.artifact.manifest, task=model.artifact.manifest.task | changes)
        with pytest.raises(ArtifactError, match=message):
            check_artifact(replace(model.artifact, manifest=manifest))


def test_scores_that_are_not_numbers_are_refused(prepare) -> None:
    task = prepare("bert-prefix").task
    with torch.no_grad():
        task.head.output.weight.fill_(float("nan"))
    examples = task.make_examples(make_options(3, seed=0))
    with pytest.raises(PromptError):
        list(predict_rows(task, examples, prompt=None))


def test_options_with_the_same_tokens_are_refused(backbone) -> None:
    task = build_task(Choose("{question}"), backbone("llama"), template="{question}")
    with pytest.raises(DataError, match="have the same tokens"):
        task.make_example({"question": "it", "options": ["good", " good"]}, target=False)


@pytest.mark.parametrize("name", ["llama-input", "bert-mean"])
def test_the_attention_to_soft_tokens_is_shown(prepare, tmp_path, name) -> None:
    """Rows have lists, which no template has."""
    prepared = prepare(name, epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    shares = [*compute_attention_shares(model, make_options(3, seed=2))]
    assert len(shares) == model.backbone.geometry.num_layers
    alone = [*compute_attention_shares(model, make_options(1, seed=2))]
    for layer in (*shares, *alone):
        assert 0 < layer.share < 1
