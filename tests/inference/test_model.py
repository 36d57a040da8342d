"""A model predicts and evaluates rows; an artifact that does not fit its backbone is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from softprompt.artifact import describe_backbone, load_artifact, make_artifact
from softprompt.artifact.checks import read_task_settings
from softprompt.backbone import wrap_model
from softprompt.errors import ArtifactError, DataError
from softprompt.inference import PromptModel, attach, loops
from softprompt.injection import load_backbone
from softprompt.tasks import Classify, Generate

WAYS = ("causal words", "head on [CLS]", "head on the last token", "text", "answer words")


@pytest.mark.parametrize("way", WAYS)
def test_a_text_is_a_row_of_one_field(model, rows, way):
    trained = model(way)
    assert trained.predict([row["text"] for row in rows]) == trained.predict(rows)


def test_answers_come_in_the_rows_order_from_a_stream(model, rows, monkeypatch):
    """A window at a time: the stream is not read to its end before the first answer."""
    monkeypatch.setattr(loops, "_WINDOW", 3)
    trained = model("causal words")
    taken = 0

    def stream() -> Iterator[str]:
        nonlocal taken
        for row in rows:
            taken += 1
            yield row["text"]

    answers = trained.predict_stream(stream(), batch_size=2)
    first = list(islice(answers, 1))
    assert taken == 3
    found = [*first, *answers]
    assert taken == len(rows)
    alone = [answer for row in rows for answer in trained.predict([row])]
    assert [a.label for a in found] == [a.label for a in alone]


def test_nothing_in_nothing_out(model):
    assert model("causal words").predict([]) == []


def test_a_text_is_not_enough_for_two_fields(model):
    two = Classify(template="{text} {more}{soft:3}", verbalizer={"a": " a", "b": " film"})
    trained = model("causal words", settings=two)
    with pytest.raises(DataError) as caught:
        trained.predict(["x"])
    assert str(caught.value) == (
        "a row has the fields text, more, but a single text was given. Give all of them: "
        '{"text": …, "more": …}.'
    )
    (answer,) = trained.predict([{"text": "a", "more": "film"}])
    assert answer.label in {"a", "b"}


def test_a_field_that_stands_twice_is_one_field(model):
    twice = Classify(template="{text} and {text}{soft:3}", verbalizer={"a": " a", "b": " film"})
    trained = model("causal words", settings=twice)
    assert trained.predict(["yes"]) == trained.predict([{"text": "yes"}])


def test_a_missing_field_is_refused(model):
    with pytest.raises(DataError, match="the row has no field 'text'"):
        model("causal words").predict([{"txet": "a"}])


def test_rows_are_evaluated_as_rendered_rows_are(model, rows):
    trained = model("head on [CLS]")
    made = [trained.task.make_example(row) for row in rows]
    truth = [row["label"] for row in rows]
    assert trained.evaluate(rows, batch_size=3) == trained.evaluate_rendered(
        made, truth, batch_size=3
    )
    right = [a.label == row["label"] for a, row in zip(trained.predict(rows), rows, strict=True)]
    assert trained.evaluate(rows).metrics["accuracy"] == pytest.approx(sum(right) / len(rows))


def test_an_unlabelled_row_cannot_be_evaluated(model, rows):
    trained = model("head on [CLS]")
    with pytest.raises(DataError) as caught:
        trained.evaluate([rows[0], {"text": "a"}])
    assert str(caught.value) == (
        "1 row has no value in column 'label' of the given data (2 rows); the first is row 1 "
        "(counted from 0). Fill the cells or leave those rows out (in a "
        'recipe: data.drop_missing = ["label"]).'
    )


def test_an_unknown_label_cannot_be_evaluated(model, rows):
    with pytest.raises(DataError) as caught:
        model("head on [CLS]").evaluate([rows[0] | {"label": "positiv"}])
    assert str(caught.value) == (
        "column 'label' of the given data has labels that the training data does not have: "
        "'positiv' (1 row). Known labels: negative, positive. Correct them, leave those rows out, "
        "or split the data again."
    )


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded_it_answers_the_same_to_the_last_bit(model, rows, tmp_path, way):
    trained = model(way)
    again = PromptModel.from_pretrained(
        trained.save(tmp_path / "artifact"), backbone=trained.backbone
    )
    assert again.predict(rows) == trained.predict(rows)
    assert again.evaluate(rows) == trained.evaluate(rows)
    assert again.labels == trained.labels


FRESH = """
import json, sys
from softprompt.inference import PromptModel

model = PromptModel.from_pretrained(sys.argv[1])
rows = json.loads(sys.argv[2])
print(json.dumps([[p.hex() for p in a.probabilities.values()] for a in model.predict(rows)]))
"""


def test_a_fresh_process_answers_the_same_to_the_last_bit(saved, rows, tmp_path, maker):
    """Guarantee 6, from files alone: the backbone by its folder, as the artifact names it."""
    trained = load_backbone(str(saved("llama")), dtype="float32", device="cpu")
    settings = Classify(template="{soft:3}{text} is", verbalizer={"a": " bad", "b": " good"})
    artifact = make_artifact(
        maker("llama").prompt("input"),
        {},
        template="{soft:3}{text} is",
        max_length=None,
        task={
            "kind": "classify",
            "verbalizer": dict(settings.verbalizer),
            "template": settings.template,
        },
        labels=["a", "b"],
        backbone=describe_backbone(trained),
        data={},
        recipe={"backbone": {"name": trained.name, "dtype": "float32"}},
        metrics={},
    )
    here = attach(artifact, trained)
    here.save(tmp_path / "artifact")
    texts = [row["text"] for row in rows]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "artifact"), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    found = [[float.fromhex(p) for p in row] for row in json.loads(done.stdout)]
    assert found == [[*answer.probabilities.values()] for answer in here.predict(texts)]


def test_another_backbone_is_refused(model, backbone):
    trained = model("causal words")
    with pytest.raises(
        ArtifactError, match=r"the prompt was trained on 'llama'.*but the backbone is"
    ):
        attach(trained.artifact, backbone("qwen3"))


def test_a_tuned_copy_of_the_backbone_is_refused(model, new_model, tokenizer):
    tuned = new_model("llama")
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.neg_()
    other = wrap_model("tuned", tuned, tokenizer=tokenizer("causal"), kind="causal")
    with pytest.raises(ArtifactError, match="A prompt works only on its own backbone"):
        attach(model("causal words").artifact, other)


def test_a_head_for_other_labels_is_refused(model):
    trained = model("head on [CLS]")
    manifest = replace(trained.artifact.manifest, labels=["a", "b", "c"])
    with pytest.raises(ArtifactError) as caught:
        attach(replace(trained.artifact, manifest=manifest), trained.backbone)
    assert "a head of the kind 'mlp-tanh' for 3 labels has the tensors" in str(caught.value)


def test_a_head_that_is_missing_is_refused(model):
    trained = model("head on [CLS]")
    with pytest.raises(ArtifactError, match=r"the tensor 'head.output.weight' is missing"):
        attach(replace(trained.artifact, head={}), trained.backbone)


@pytest.mark.parametrize(
    "task", [{"kind": "classfy"}, {}, {"kind": "classify", "warmth": 1.0}, {"kind": ["x"]}]
)
def test_a_task_of_another_version_is_refused(model, task):
    manifest = replace(model("causal words").artifact.manifest, task=task)
    with pytest.raises(ArtifactError) as caught:
        read_task_settings(manifest)
    assert "A newer softprompt may know it: pip install -U softprompt." in str(caught.value)


def test_the_task_is_the_one_that_was_trained(model):
    assert read_task_settings(model("text").artifact.manifest) == Generate(
        template="{text} is", max_new_tokens=4
    )


@pytest.mark.parametrize(
    ("section", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": "float99", "device_map": 7}, None),
        ("nonsense", None),
    ],
)
def test_a_backbone_is_loaded_as_in_training(model, saved, tmp_path, section, dtype):
    """What a manifest says of the recipe is data: it may be wrong, and then it is left out."""
    trained = model("causal words")
    name = {**trained.artifact.manifest.backbone, "name": str(saved("llama"))}
    manifest = replace(trained.artifact.manifest, backbone=name, recipe={"backbone": section})
    replace(trained, artifact=replace(trained.artifact, manifest=manifest)).save(
        tmp_path / "artifact"
    )
    found = PromptModel.from_pretrained(tmp_path / "artifact")
    assert found.backbone.dtype in ({dtype} if dtype else {torch.float32, torch.bfloat16})
    assert load_artifact(tmp_path / "artifact").manifest.backbone["name"] == found.backbone.name
