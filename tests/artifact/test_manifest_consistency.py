"""A manifest that contradicts itself is refused before any tensor is checked."""

from dataclasses import replace

import pytest

from softprompt.artifact import load_artifact, save_artifact
from softprompt.artifact.checks import check_artifact, read_task_settings
from softprompt.artifact.manifest import check_manifest
from softprompt.errors import ArtifactError
from softprompt.inference import attach
from softprompt.tasks import Generate
from support.artifacts import Stored

INPUT = {
    "layer 0": (
        {"layers": [0]},
        "layers is [0]; an input prompt needs null or one layer, from 1 up.",
    ),
    "two layers": ({"layers": [1, 2]}, "layers is [1, 2]; an input prompt needs null or one layer"),
    "shifted": (
        {"shift_positions": False},
        "shift_positions is False; an input prompt does not shift positions",
    ),
    "length": (
        {"length": 4},
        "shapes has [3, 8] for prompt.vectors, but it must be [4, at least 1].",
    ),
    "no tokens": (
        {"length": 0, "shapes": {"prompt.vectors": [0, 8]}},
        "length is 0; it must be at least 1 (or 0, with a trained head).",
    ),
    "no width": (
        {"shapes": {"prompt.vectors": [3, 0]}},
        "shapes has [3, 0] for prompt.vectors, but it must be [3, at least 1].",
    ),
    "axes": ({"shapes": {"prompt.vectors": [3, 8, 1]}}, "but it must be [3, at least 1]."),
    "no tensors": (
        {"shapes": {}},
        "shapes has nothing; kind 'input' needs prompt.vectors, and all other names must begin",
    ),
    "a head of no size": (
        {"shapes": {"prompt.vectors": [3, 8], "head.w": [2, -1]}},
        "shapes has [2, -1] for head.w, but it must be [at least 1, at least 1].",
    ),
    "limit": ({"max_length": 0}, "max_length is 0; it must be null or at least 1."),
    "dtype": ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16."),
}
PREFIX = {
    "no layers": (
        {"layers": None},
        "kind is 'kv', so neither layers nor shift_positions may be",
    ),
    "no shift": (
        {"shift_positions": None},
        "kind is 'kv', so neither layers nor shift_positions may be",
    ),
    "empty": (
        {"layers": []},
        "layers is []; it needs at least one layer, each from 0 up and once.",
    ),
    "twice": ({"layers": [1, 1]}, "layers is [1, 1]; it needs at least one layer"),
    "negative": ({"layers": [-1, 1]}, "layers is [-1, 1]; it needs at least one layer"),
    "count": ({"layers": [1, 2, 3]}, "but it must be [3, at least 1, 3, at least 1]."),
    "only keys": (
        {"shapes": {"prompt.keys": [2, 4, 3, 5]}},
        "shapes has prompt.keys; kind 'kv' needs prompt.keys, prompt.values, and all other names",
    ),
    "unlike": (
        {"shapes": {"prompt.keys": [2, 4, 3, 5], "prompt.values": [2, 4, 3, 6]}},
        "shapes of keys and values differ; they must be the same.",
    ),
    "kind": (
        {"kind": "input", "layers": None, "shift_positions": None},
        "kind 'input' needs prompt.vectors",
    ),
}


@pytest.mark.parametrize("name", INPUT)
def test_an_input_prompt_that_cannot_be_is_refused(stored, name):
    changes, message = INPUT[name]
    stored.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    assert message in str(error.value)


@pytest.mark.parametrize("name", PREFIX)
def test_a_prefix_that_cannot_be_is_refused(stored_prefix, name):
    changes, message = PREFIX[name]
    stored_prefix.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored_prefix.folder)
    assert message in str(error.value)


def test_artifacts_of_every_sort_agree(artifact):
    assert check_manifest(artifact.manifest) == []


def test_layers_may_stand_in_any_order(stored_prefix):
    stored_prefix.edit(layers=[3, 1])
    assert load_artifact(stored_prefix.folder).prompt.sites == (3, 1)


WORDS = {"gut": "good", "schlecht": ["bad", "awful"]}
TASKS = {
    "too many soft tokens": (
        {"template": "{soft:4} {text}"},
        "the template '{soft:4} {text}' has 4 soft tokens, but the prompt has 3.",
    ),
    "no soft tokens": ({"template": "{text}"}, "has 0 soft tokens, but the prompt has 3."),
    "no field": ({"template": "{soft:3}"}, "has no field"),
    "half a brace": ({"template": "{soft:3} {text} {"}, "without its partner"),
    "two templates": (
        {"task": {"kind": "classify", "verbalizer": WORDS, "template": "{text}"}},
        "task.template is '{text}', but template is another one.",
    ),
    "labels twice": ({"labels": ["gut", "gut"]}, "labels has 'gut' more than once."),
    "other labels": (
        {"labels": ["x"]},
        "labels is ['x'], but the labels of task.verbalizer are ['gut', 'schlecht'].",
    ),
    "swapped labels": ({"labels": ["schlecht", "gut"]}, "but the labels of task.verbalizer are"),
    "a changed label": ({"labels": ["gut", "schlechT"]}, "but the labels of task.verbalizer are"),
    "one label": (
        {"task": {"kind": "classify", "verbalizer": {"gut": "good"}}, "labels": ["gut"]},
        "task.verbalizer has 1 labels, but needs at least 2",
    ),
    "no words": (
        {"task": {"kind": "classify", "verbalizer": {"gut": [], "schlecht": "bad"}}},
        "task.verbalizer has no word, or an empty one, for the label 'gut'.",
    ),
    "labels with words": (
        {"task": {"kind": "classify", "verbalizer": WORDS, "labels": ["gut", "schlecht"]}},
        "task.labels has no effect with task.verbalizer",
    ),
    "a task without its head": (
        {"task": {"kind": "classify"}},
        ("a head of the kind 'linear' for 2 labels has the tensors head.output.bias [2], "
        "head.output.weight [2, 1], but shapes has none."),
    ),
    "a verbalizer that is a number": (
        {"task": {"kind": "classify", "verbalizer": 1}},
        "task.verbalizer in manifest.json is 1. Input should be",
    ),
    "words that are numbers": (
        {"task": {"kind": "classify", "verbalizer": {"a": 1, "b": 2}}},
        "task.verbalizer.a.str in manifest.json is 1.",
    ),
    "words that are null": (
        {"task": {"kind": "classify", "verbalizer": {"a": [None], "b": "c"}}},
        "task.verbalizer.a.",
    ),
    "head": ({"task": {"kind": "classify", "head": None}}, "task.head in manifest.json is None."),
    "pooling": (
        {"task": {"kind": "classify", "pooling": "zzz"}},
        (
            "task.pooling in manifest.json is 'zzz'. Input should be 'auto', 'cls', 'first', "
            "'mean', 'max' or 'last'."
        ),
    ),
    "an unknown setting": (
        {"task": {"kind": "classify", "pool": "cls"}},
        "manifest.json has the unknown key 'task.pool'.",
    ),
    "an unknown task": (
        {"task": {"kind": "classfy"}},
        (
            "task.kind in manifest.json is an unknown task 'classfy'. Options: choose, classify, "
            "extract, generate, regress, tag. Did you mean 'classify'? A newer softprompt may know "
            "it: pip install -U softprompt."
        ),
    ),
    "no task": ({"task": {}}, "is an unknown task 'None'"),
    "quantization": (
        {"recipe": {"backbone": {"quantization_config": [5]}}},
        "recipe.backbone.quantization_config is [5], but must be a table.",
    ),
} | {
    f"{key} of generation": (
        {"task": {"kind": "generate", key: value}, "labels": []},
        message,
    )
    for key, value, message in [
        ("num_beams", "x", "task.num_beams in manifest.json is 'x'. Input should be a valid int"),
        ("num_beams", 0, "task: num_beams = 0: at least 1"),
        ("num_beams", 10**9, "task: num_beams = 1000000000: at most 1024"),
        ("max_new_tokens", 1.5, "task.max_new_tokens in manifest.json is 1.5."),
        ("temperature", "hot", "task.temperature in manifest.json is 'hot'."),
        ("temperature", 0, "task: temperature = 0.0: more than 0."),
        ("top_k", None, "task.top_k in manifest.json is None."),
        ("top_p", 2, "task: top_p = 2.0: more than 0 and at most 1."),
        ("choices", ["a"], "labels is [], but task.choices is ['a']."),
        ("choices", "from-data", "labels is empty, but task.choices is 'from-data'"),
        ("choices", "any", "task.choices."),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_no_recipe_could_have_is_refused_at_every_door(stored, name, backbone):
    changes, message = TASKS[name]
    good = load_artifact(stored.folder)
    stored.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    assert message in str(error.value)
    bad = replace(good, manifest=replace(good.manifest, **changes))
    for door in (
        lambda: check_artifact(bad),
        lambda: save_artifact(bad, stored.folder.with_name("other")),
        lambda: attach(bad, backbone("bert")),
    ):
        with pytest.raises(ArtifactError) as error:
            door()
        assert message in str(error.value)


def test_a_prefix_needs_a_template_without_soft_tokens(stored_prefix):
    stored_prefix.edit(template="{soft:3}{text}")
    with pytest.raises(ArtifactError, match="has 3 soft tokens, but a prefix needs 0"):
        load_artifact(stored_prefix.folder)


HEADS = {
    "labels": ({"labels": ["gut", "schlecht", "so la la"]}, "for 3 labels has the tensors"),
    "kind": (
        {"task": {"kind": "classify", "head": "mlp-tanh"}},
        "has the tensors head.dense.bias [8], head.dense.weight [8, 8], head.output.bias [2]",
    ),
    "order": (
        {"task": {"kind": "classify", "labels": ["schlecht", "gut"]}},
        "labels is ['gut', 'schlecht'], but task.labels is ['schlecht', 'gut'].",
    ),
    "none": ({"labels": []}, "labels has 0, but a trained head needs at least 2"),
    "another task": (
        {"task": {"kind": "classify", "verbalizer": WORDS}},
        "its task has no trained head, but shapes has head.output.bias, head.output.weight.",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_its_task_does_not_have_is_refused(new, tmp_path, name):
    changes, message = HEADS[name]
    stored = Stored(save_artifact(new(head=True), tmp_path / "a"))
    stored.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ({"kind": "generate"}, []),
        ({"kind": "generate", "choices": ["a", "b"]}, ["a", "b"]),
        ({"kind": "generate", "choices": "from-data"}, ["b", "a"]),
        ({"kind": "generate", "num_beams": 4, "template": None}, []),
    ],
)
def test_generation_with_and_without_choices_is_accepted(stored, task, labels):
    stored.edit(task=task, labels=labels)
    assert read_task_settings(load_artifact(stored.folder).manifest) == Generate(
        **{key: value for key, value in task.items() if key != "kind"}
    )
