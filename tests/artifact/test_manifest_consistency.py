"""A manifest that contradicts itself is refused before any tensor is checked."""

import pytest

from softprompt.artifact import load_artifact
from softprompt.artifact.manifest import check_manifest
from softprompt.errors import ArtifactError

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
        "length is 0; it must be at least 1.",
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
