"""Tags of words from rows to answers, on encoders and causal backbones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from softprompt import Ensemble, Tag, TrainingConfig, fit
from softprompt.artifact import load_artifact
from softprompt.artifact.checks import check_artifact
from softprompt.errors import ArtifactError, DataError, PromptError, RecipeError, TemplateError
from softprompt.inference import PromptModel
from softprompt.recipe import make_recipe
from softprompt.tasks import TagPrediction
from softprompt.train import run_recipe, setup_run
from softprompt.train.heads import fit_tag_head
from softprompt.train.packing import pack_examples, unpack_examples
from softprompt.train.validation import check_best_metric, check_recipe
from support.recipes import check_resumed, make_recipe_data
from support.reviews import write_rows
from support.tags import make_sentences, make_spans, tag_words

SPANS = {"words_column": "text", "target_column": "spans"}
CASES = {
    "bert-prefix": ("bert", "p-tuning-v2", {}),
    "roberta-input": ("roberta", "prompt-tuning", {}),
    "bert-spans": ("bert", "prefix-tuning", SPANS),
    "bert-average": ("bert", "p-tuning-v2", {"aggregation": "average"}),
    "bert-simple": ("bert", "p-tuning-v2", {"aggregation": "simple"}),
    "bert-bioes": ("bert", "prompt-tuning", {"output_scheme": "BIOES"}),
    "distilbert-mlp": ("distilbert", "prompt-tuning", {"head": "mlp-gelu"}),
    "llama-twice": ("llama", "prompt-tuning", {"template": "{soft:3}{words} is {words}"}),
    "gpt2-prefix": ("gpt2", "p-tuning-v2", {}),
}


def make_rows(name, count, *, seed=0):
    return (make_spans if "spans" in name else make_sentences)(count, seed=seed)


def make_data(name, **train):
    family, method, settings = CASES[name]
    data = make_recipe_data(family, method, task="head", **train)
    soft = "{soft:3}" if "soft" in data["task"]["template"] else ""
    field = "{text}" if "spans" in name else "{words}"
    return data | {"task": {"kind": "tag", "template": soft + field} | settings}


@pytest.fixture
def prepare(backbone):
    def make(name, *, rows=(13, 6, 5), data=None, tables=None, **train):
        splits = zip(("train", "validation", "test"), rows, strict=True)
        tables = tables or {
            split: make_rows(name, count, seed=seed) for seed, (split, count) in enumerate(splits)
        }
        return setup_run(
            make_recipe(data or make_data(name, **train)),
            backbone=backbone(CASES[name][0]),
            tables={split: Dataset.from_list(part) for split, part in tables.items()},
        )

    return make


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_saved_and_answers_alike_alone_and_in_a_batch(prepare, tmp_path, name):
    prepared = prepare(name)
    trained = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = make_rows(name, 9, seed=5)
    together = model.predict(rows)
    assert together == trained.predict(rows), "what is loaded is what was trained"
    for row, prediction in zip(rows, together, strict=True):
        (alone,) = model.predict([row])
        assert isinstance(prediction, TagPrediction)
        assert alone.scores == pytest.approx(prediction.scores, abs=2e-5)
        assert len(prediction.tags) == len(prediction.words) == len(prediction.scores)
        assert json.loads(prediction.label) == [*prediction.tags]
        text = row.get("text") or " ".join(row["words"])
        assert all(text[span.start : span.end] == span.text for span in prediction.spans)
    report = model.evaluate(rows)
    assert {*report.metrics} == {"loss", *model.task.objective.metric_names}
    assert len(report.right) == 9
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {*metrics["test"]} >= {*model.task.objective.metric_names}
    assert model.artifact.manifest.task["scheme"] == "BIO"


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_first_tokens(prepare, name) -> None:
    prepared = prepare(name)
    task, prompt = prepared.task, prepared.method()
    examples = prepared.rows["train"].examples
    with torch.no_grad():
        states = task.compute_row_states(examples, [prompt])
        found = task.compute_loss(examples, [prompt])
        total, words = 0.0, 0
        for example, of_row in zip(examples, states, strict=True):
            for pieces, target in zip(example.words.pieces, example.target, strict=True):
                scores = task.head(of_row[pieces[0]][None].float())
                total += float(F.cross_entropy(scores, torch.tensor([target])))
                words += 1
    assert found.count == words
    assert float(found.total) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ["bert-prefix", "bert-spans", "llama-twice"])
def test_a_resumed_run_is_the_uninterrupted_one(prepare, tmp_path, name) -> None:
    check_resumed(lambda: prepare(name), tmp_path)


@pytest.mark.parametrize("name", ["bert-prefix", "bert-spans", "bert-simple", "bert-average"])
def test_the_words_of_examples_survive_the_cache(prepare, name) -> None:
    examples = prepare(name).rows["train"].examples
    again = unpack_examples(pack_examples(examples))
    assert [example.words for example in again] == [example.words for example in examples]
    assert again == [*examples]


def test_texts_with_spans_are_the_same_task_as_words_with_tags(prepare) -> None:
    words, spans = (prepare(name).rows["train"] for name in ("bert-prefix", "bert-spans"))
    assert words.truth == spans.truth
    pairs = zip(words.examples, spans.examples, strict=True)
    assert all(a.variants == b.variants and a.target == b.target for a, b in pairs)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_no_label_is_dropped_however_long_a_row_is(backbone, tmp_path, family) -> None:
    """Rows of many windows: one tag a word, and the same ones as in a window that has them all."""
    rows = make_sentences(3, seed=3, longest=150)
    rows[0] = make_sentences(1, seed=4, longest=2)[0]
    words = [word for row in make_sentences(40, seed=6) for word in row["words"]]
    rows.append({"words": words, "tags": tag_words(words)})
    data = make_recipe_data(family, "prompt-tuning", task="head")
    data["data"]["max_length"] = 24
    data["task"] = {"kind": "tag", "template": "{soft:3}{words}"}
    prepared = setup_run(
        make_recipe(data), backbone=backbone(family), tables={"train": Dataset.from_list(rows)}
    )
    examples, task = prepared.rows["train"].examples, prepared.task
    assert max(len(example.variants) for example in examples) > 5
    assert max(len(v.input_ids) for e in examples for v in e.variants) <= 24
    with torch.no_grad():
        prompt = prepared.method()
        predictions = task.predict(examples, [prompt])
        loss = task.compute_loss(examples, [prompt])
    assert loss.count == sum(len(row["words"]) for row in rows)
    for row, example, prediction in zip(rows, examples, predictions, strict=True):
        assert prediction.words == tuple(row["words"])
        assert len(prediction.tags) == len(example.target) == len(row["words"])
        assert [task.labels[index] for index in example.target] == row["tags"]
        assert sum(map(len, example.read_positions)) == len(row["words"])
    (again,) = task.predict(examples[-1:], [prompt])
    assert again.tags == predictions[-1].tags, "a row's windows do not depend on the others"
    assert not any(example.truncated for example in examples)


def test_tags_of_a_causal_backbone_see_the_whole_text_where_it_is_repeated(prepare) -> None:
    """A change of the last word changes the score of the first one only if the text is repeated."""

    def measure(name):
        prepared = prepare(name)
        rows = [{"words": ["good", "film", last]} for last in ("bad", "story")]
        examples = [prepared.task.make_example(row, target=False) for row in rows]
        with torch.no_grad():
            states = prepared.task.compute_row_states(examples, [prepared.method()])
        return float((states[0][0] - states[1][0]).abs().max())

    assert measure("gpt2-prefix") < 1e-5
    assert measure("llama-twice") > 1e-3


def test_that_tags_of_a_causal_backbone_look_left_is_said(prepare) -> None:
    (slip,) = [text for text in prepare("gpt2-prefix").slips if "causal" in text]
    assert "Choose an encoder, or write the words twice in task.template" in slip
    assert not [text for text in prepare("llama-twice").slips if "causal" in text]
    assert not [text for text in prepare("bert-prefix").slips if "causal" in text]


def test_an_ensemble_is_the_mean_of_its_members(prepare, tmp_path) -> None:
    models = []
    for seed in (1, 2):
        prepared = prepare("bert-prefix", epochs=1)
        prepared = replace(prepared, recipe=prepared.recipe.model_copy(update={"seed": seed}))
        models.append(run_recipe(prepared.recipe, tmp_path / str(seed), prepared=prepared))
    with pytest.raises(PromptError, match="tags of words are averaged"):
        Ensemble(models, vote="majority")
    ensemble, rows = Ensemble(models, vote="mean"), make_sentences(7, seed=9)
    task = models[0].task
    examples = [task.make_example(row) for row in rows]
    with torch.no_grad():
        shares = [
            [
                m.task.head(states.float()).softmax(-1).double().numpy()
                for states in m.task.compute_row_states(examples, [m.prompt])
            ]
            for m in models
        ]
    for row, prediction in enumerate(ensemble.predict(rows)):
        mean = np.mean([member[row] for member in shares], axis=0)
        expected = task.objective.describe(mean, examples[row].words)
        assert prediction.tags == expected.tags
        assert prediction.scores == pytest.approx(expected.scores, abs=1e-5)
        assert [span.text for span in prediction.spans] == [span.text for span in expected.spans]
    members = [model.evaluate(rows) for model in models]
    report = ensemble.evaluate_members(rows)
    assert [m.metrics["span_f1"] for m in report.members] == [m.metrics["span_f1"] for m in members]
    assert report.ensemble.metrics["loss"] == pytest.approx(
        np.mean([m.metrics["loss"] for m in members]), rel=1e-5
    )


def test_how_answers_are_read_can_be_changed_and_nothing_else(prepare, tmp_path) -> None:
    prepared = prepare("bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    rows = make_sentences(20, seed=4)
    loose = model.with_task(constrained_decoding=False)
    scores = [score for found in loose.predict(rows) for score in found.scores]
    kept = [score for found in model.predict(rows) for score in found.scores]
    assert all(a >= b for a, b in zip(scores, kept, strict=True)), "each word's likeliest tag"
    simple = model.with_task(aggregation="simple")
    saved = PromptModel.from_pretrained(simple.save(tmp_path / "s"), backbone=model.backbone)
    assert saved.predict(rows) == simple.predict(rows)
    with pytest.raises(PromptError, match=r"task.scheme is part .* aggregation, constrained_dec"):
        model.with_task(scheme="none")


@pytest.mark.parametrize("shape", ["mapping", "list", "json", "python", "text"])
def test_words_may_be_given_in_any_shape(prepare, tmp_path, shape) -> None:
    prepared = prepare("bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    words = ["good", "film", "bad"]
    (expected,) = model.predict([{"words": words}])
    given = {
        "mapping": {"words": words},
        "list": [words],
        "json": [{"words": json.dumps(words)}],
        "python": [str(words)],
        "text": "good film bad",
    }
    (found,) = model.predict(given[shape])
    assert found == expected


def test_a_row_without_words_has_no_tags(prepare, tmp_path) -> None:
    prepared = prepare("bert-prefix", epochs=1)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    for rows in ([{"words": []}], [{"words": " "}], [{"words": []}, {"words": ["good"]}]):
        first = model.predict(rows)[0]
        assert (first.tags, first.words, first.spans, first.label) == ((), (), (), "[]")


FAULTS = {
    "words": ({"tags": ["O"]}, r"row 2 \(counted from 0\) of the train data: there are 1 tags for"),
    "blank": ({"words": ["a", " "], "tags": ["O", "O"]}, r"word 1 \(counted from 0\) of the field"),
    "form": ({"tags": ["O", "B-POS", "I-NEG"], "words": ["a"] * 3}, r"task.repair_tags = true"),
    "none": ({"words": [], "tags": []}, r"row 2 .* has no words in 'words'"),
    "mixed": ({"words": ["a", "b"], "tags": ["O", "POS"]}, r"The key is task.scheme"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_are_not_possible_are_named(prepare, fault) -> None:
    rows = make_sentences(6, seed=1)
    change, message = FAULTS[fault]
    rows[2] = rows[2] | change
    with pytest.raises(DataError, match=message):
        prepare("bert-prefix", tables={"train": rows})


def test_the_tags_can_be_listed(prepare) -> None:
    data = make_data("bert-prefix")
    listed = ["B-NEW", "I-NEW", "O", "B-NEG", "I-NEG", "B-POS", "I-POS"]
    data["task"]["labels"] = listed
    assert prepare("bert-prefix", data=data).task.labels == tuple(listed)
    data["task"]["labels"] = listed[:-1]
    with pytest.raises(DataError, match=r"needs each of 'O', .* List these"):
        prepare("bert-prefix", data=data)


def test_a_span_inside_of_a_word_is_refused_or_widened(prepare) -> None:
    rows = make_spans(6, seed=1)
    rows[1] = {"text": "the story", "spans": [{"start": 4, "end": 6, "label": "POS"}]}
    with pytest.raises(DataError, match=r"row 1 .* ends inside .* task.widen_spans = true"):
        prepare("bert-spans", tables={"train": rows})
    data = make_data("bert-spans")
    data["task"]["widen_spans"] = True
    prepared = prepare("bert-spans", tables={"train": rows}, data=data)
    assert prepared.rows["train"].truth[1] == '["O", "B-POS"]'


def test_tags_that_are_not_possible_can_be_repaired(prepare) -> None:
    rows = make_sentences(6, seed=1)
    rows[0] = {"words": ["good", "good"], "tags": ["I-POS", "I-POS"]}
    data = make_data("bert-prefix")
    data["task"] |= {"repair_tags": True, "scheme": "BIO"}
    prepared = prepare("bert-prefix", tables={"train": rows}, data=data)
    labels, target = prepared.task.labels, prepared.rows["train"].examples[0].target
    assert [labels[index] for index in target] == ["B-POS", "I-POS"]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert-prefix", {"widen_spans": True}, r"task.widen_spans: means nothing for lists"),
        ("bert-spans", {"repair_tags": True}, r"task.repair_tags: means nothing for spans of char"),
        ("plain", {"constrained_decoding": False}, r'with task.scheme = "none": any tag may follo'),
    ],
)
def test_a_setting_for_other_rows_is_refused(prepare, kind, settings, message) -> None:
    """That tags are plain is recognized by the rows."""
    rows = make_spans(6, seed=1) if kind == "bert-spans" else make_sentences(6, seed=1)
    if kind == "plain":
        rows = [row | {"tags": ["X" if tag == "O" else "Y" for tag in row["tags"]]} for row in rows]
        kind = "bert-prefix"
    data = make_data(kind)
    data["task"] |= settings
    with pytest.raises(DataError, match=message):
        prepare(kind, tables={"train": rows}, data=data)


def test_a_tag_that_no_training_row_has_counts_as_an_error(prepare) -> None:
    rows = make_sentences(8, seed=1)
    odd = [{"words": ["good", "film"], "tags": ["B-NEW", "O"]}]
    prepared = prepare("bert-prefix", tables={"train": rows, "validation": odd})
    (example,) = prepared.rows["validation"].examples
    assert example.target == (-1, 0)
    with torch.no_grad():
        loss, (found,) = prepared.task.evaluate([example], prepared.method())
    assert loss.count == 1
    metrics = prepared.task.objective.score(prepared.rows["validation"].truth, [found]).metrics
    assert metrics["span_recall"] == 0
    (warning,) = [text for text in prepared.warnings if "that no training row has" in text]
    assert "1 of 2 words" in warning


@pytest.mark.parametrize("name", ["bert-prefix", "bert-bioes", "llama-twice", "bert-average"])
def test_weights_and_smoothing_are_in_the_loss_of_words(prepare, name) -> None:
    """Of each word w_y ((1 - ε) (-log p_y)) + ε mean_c(w_c (-log p_c)); w as in scikit-learn."""
    data = make_data(name)
    data["task"] |= {"class_weights": "balanced", "label_smoothing": 0.2}
    prepared = prepare(name, data=data)
    task, prompt, rows = prepared.task, prepared.method(), prepared.rows["train"]
    words = [task.labels[index] for example in rows.examples for index in example.target]
    known = sorted({*words})
    wanted = compute_class_weight("balanced", classes=np.array(known), y=words)
    by_tag = dict(zip(known, wanted, strict=True))
    weights = {tag: task.class_weights[tag] for tag in known}
    assert weights == pytest.approx(by_tag)
    assert np.mean([task.class_weights[tag] for tag in words]) == pytest.approx(1)
    assert all(task.class_weights[tag] == 1 for tag in {*task.labels} - {*known})
    weight = torch.tensor([task.class_weights[tag] for tag in task.labels]).double()
    with torch.no_grad():
        states = task.compute_row_states(rows.examples, [prompt])
        plain = spread = 0.0
        for example, of_row in zip(rows.examples, states, strict=True):
            for pieces, target in zip(example.words.pieces, example.target, strict=True):
                logs = task.head(of_row[pieces[0]][None].float()).double().log_softmax(-1)[0]
                plain -= float(logs[target] * weight[target])
                spread -= float((logs * weight).mean())
        found = task.compute_loss(rows.examples, [prompt])
        report, _ = task.evaluate(rows.examples, prompt)
    assert found.count == report.count == len(words)
    assert float(found.total) == pytest.approx(0.8 * plain + 0.2 * spread, rel=1e-4)
    assert float(report.total) == pytest.approx(plain, rel=1e-4), "not smoothed"


def test_weights_of_tags_are_kept_and_checked(prepare, tmp_path) -> None:
    weights = {"O": 1.0, "B-POS": 3.0, "I-POS": 3.0, "B-NEG": 2.0, "I-NEG": 2.0}
    data = make_data("bert-prefix", epochs=1)
    data["task"] |= {"class_weights": weights}
    prepared = prepare("bert-prefix", data=data)
    model = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run" / "artifact")
    kept = artifact.manifest.task["class_weights"]
    assert kept["B-POS"] / kept["O"] == pytest.approx(3)
    rows = make_sentences(9, seed=5)
    again = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    assert again.evaluate(rows).metrics["loss"] == model.evaluate(rows).metrics["loss"]
    for other, message in (
        ("balanced", "an artifact has a number for each label"),
        ({"O": 1.0}, "task.class_weights has O, but labels is"),
    ):
        manifest = artifact.manifest
        manifest = replace(manifest, task=manifest.task | {"class_weights": other})
        with pytest.raises(ArtifactError, match=message):
            check_artifact(replace(artifact, manifest=manifest))
    data["task"]["class_weights"] = {"O": 1.0, "B-PSO": 2.0}
    with pytest.raises(DataError, match=r"no number for .*'B-POS'.* and the unknown 'B-PSO'"):
        prepare("bert-prefix", data=data)
    data["task"]["class_weights"] = {"O": 0.0}
    with pytest.raises(RecipeError, match=r"task.class_weights"):
        make_recipe(data)


def test_heavier_words_draw_the_regression_of_the_head(prepare) -> None:
    """That starts the head, and that is the linear probe."""
    counts = {}
    for weight in (1.0, 1000.0):
        data = make_data("bert-prefix")
        tags = ("O", "B-POS", "I-POS", "B-NEG", "I-NEG")
        data["task"] |= {"class_weights": dict.fromkeys(tags, 1.0) | {"B-POS": weight}}
        prepared = prepare("bert-prefix", rows=(20, 6, 5), data=data)
        head = fit_tag_head(prepared.task, prepared.rows["train"], prompt=None)
        assert head is not None
        found = prepared.task.with_head(head).predict(prepared.rows["validation"].examples, [None])
        counts[weight] = sum(tag == "B-POS" for one in found for tag in one.tags)
    assert counts[1000.0] >= counts[1.0]
    assert counts[1000.0] > 0


def test_the_head_starts_as_a_regression_on_words(prepare) -> None:
    prepared = prepare("bert-prefix", rows=(60, 6, 5))
    task, rows = prepared.task, prepared.rows["train"]
    head = fit_tag_head(task, rows, prompt=None)
    found = task.with_head(head).predict(rows.examples, [None])
    chance = task.predict(rows.examples, [None])

    def score(predictions):
        return task.objective.score(rows.truth, predictions).metrics["tag_accuracy"]

    outside = sum(text.count('"O"') for text in rows.truth) / sum(
        len(example.target) for example in rows.examples
    )
    assert score(found) > max(outside, score(chance)) + 0.05


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("bert-prefix", {"template": "{tags}"}, TemplateError, "It is task.words_column"),
        ("bert-prefix", {"stride": 600}, TemplateError, "Choose a stride from 0 to"),
        ("bert-prefix", {"template": "{words} {mask}"}, TemplateError, "Take {mask} out"),
        ("bert-prefix", {"words_column": "text"}, DataError, "has no column 'text'"),
    ],
)
def test_what_does_not_fit_is_refused(prepare, name, changes, error, message) -> None:
    data = make_data(name)
    data["task"] |= changes
    with pytest.raises(error, match=message):
        prepare(name, data=data)


def test_an_encoder_decoder_has_no_head_for_tags(backbone) -> None:
    data = make_recipe_data("t5", "prompt-tuning", task="head")
    data["task"] = {"kind": "tag", "template": "{soft:3}{words}"}
    tables = {"train": Dataset.from_list(make_sentences(8, seed=0))}
    with pytest.raises(TemplateError, match=r"has no head for tags\. Choose an encoder"):
        setup_run(make_recipe(data), backbone=backbone("t5"), tables=tables)


def test_a_plain_head_is_refused(prepare) -> None:
    with pytest.raises(RecipeError, match=r"keep_plain_head: it is not compared .* for tags"):
        prepare("bert-prefix", keep_plain_head=True)


def test_the_metric_that_selects_must_be_one_of_the_tasks(prepare) -> None:
    check_best_metric(prepare("bert-prefix", best_metric="span_f1"))
    with pytest.raises(RecipeError, match="unknown metric 'accuracy'"):
        check_best_metric(prepare("bert-prefix", best_metric="accuracy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "auto"}, "task.scheme is 'auto', but an artifact names the scheme"),
        ({"scheme": "BIOES"}, "labels: .* is not a tag of BIOES|head of the kind"),
        ({"output_scheme": "none"}, "whose tags cannot be written as 'none'"),
    ],
)
def test_an_artifact_that_contradicts_itself_is_refused(
    prepare, tmp_path, changes, message
) -> None:
    prepared = prepare("bert-prefix", epochs=1)
    artifact = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared).artifact
    labels = ["O", "X-POS", "I-POS", "B-NEG", "I-NEG"] if "BIOES" in changes.values() else None
    manifest = replace(artifact.manifest, task=artifact.manifest.task | changes)
    manifest = replace(manifest, labels=labels or manifest.labels)
    with pytest.raises(ArtifactError, match=message):
        check_artifact(replace(artifact, manifest=manifest))


def test_a_run_may_start_from_another_prompt_and_its_head(backbone, tmp_path) -> None:
    rows, options = make_sentences(10, seed=0), {"validation": 0, "progress": False}
    config = TrainingConfig(epochs=1, learning_rate=0.01)
    task = Tag("{soft:3}{words}")
    first = fit(backbone("bert"), task, rows, method="prompt-tuning", config=config, **options)
    again = fit(
        backbone("bert"), task, rows, method="prompt-tuning", init=first.artifact,
        config=TrainingConfig(epochs=1, learning_rate=1e-30, head_learning_rate=1e-30), **options,
    )  # fmt: skip
    for name, tensor in first.artifact.head.items():
        torch.testing.assert_close(tensor, again.artifact.head[name])


def test_check_reads_a_recipe_with_files(tmp_path, saved) -> None:
    from support.tiny_models import make_model

    write_rows(tmp_path / "train.jsonl", make_sentences(8, seed=0))
    data = make_data("bert-prefix")
    data["backbone"]["name"] = str(saved("bert", make_model("bert")))
    data["data"] = {
        "train": str(tmp_path / "train.jsonl"),
        "split_sizes": {"train": 1.0, "validation": 0, "test": 0},
    }
    assert not check_recipe(data).faults
    data["task"]["scheme"] = "BILOU"
    assert "task.scheme" in " ".join(check_recipe(data).faults)
