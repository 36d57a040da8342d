"""A manifest that contradicts itself is refused before any tensor is looked at."""

import pytest

from softprompt.artifact import load
from softprompt.artifact.agree import contradictions
from softprompt.errors import ArtifactError

INPUT = {
    "layer 0": ({"layers": [0]}, "layers are [0]; an input prompt enters at one, from 1 up, or at"),
    "two layers": ({"layers": [1, 2]}, "layers are [1, 2]; an input prompt enters at one"),
    "shifted": ({"shifted": False}, "shifted is False; positions of an input prompt are not"),
    "length": (
        {"length": 4},
        "shapes say [3, 8] for prompt.vectors, but it must be [4, at least 1].",
    ),
    "no tokens": (
        {"length": 0, "shapes": {"prompt.vectors": [0, 8]}},
        "length is 0; a prompt has one soft token or more.",
    ),
    "no width": (
        {"shapes": {"prompt.vectors": [3, 0]}},
        "shapes say [3, 0] for prompt.vectors, but it must be [3, at least 1].",
    ),
    "axes": ({"shapes": {"prompt.vectors": [3, 8, 1]}}, "but it must be [3, at least 1]."),
    "no tensors": (
        {"shapes": {}},
        "shapes name nothing; kind 'input' has prompt.vectors, and beside them only names in",
    ),
    "a head of no size": (
        {"shapes": {"prompt.vectors": [3, 8], "head.w": [2, -1]}},
        "shapes say [2, -1] for head.w, but it must be [at least 1, at least 1].",
    ),
    "limit": ({"max_length": 0}, "max_length is 0; it must be null or at least 1."),
    "dtype": ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16."),
}
PREFIX = {
    "no layers": ({"layers": None}, "kind is 'kv', which needs layers and shifted: neither may be"),
    "no shift": ({"shifted": None}, "kind is 'kv', which needs layers and shifted: neither may be"),
    "empty": (
        {"layers": []},
        "layers are []; there must be at least one, each from 0 up and once.",
    ),
    "twice": ({"layers": [1, 1]}, "layers are [1, 1]; there must be at least one"),
    "negative": ({"layers": [-1, 1]}, "layers are [-1, 1]; there must be at least one"),
    "count": ({"layers": [1, 2, 3]}, "but it must be [3, at least 1, 3, at least 1]."),
    "only keys": (
        {"shapes": {"prompt.keys": [2, 4, 3, 5]}},
        "shapes name prompt.keys; kind 'kv' has prompt.keys, prompt.values, and beside them only",
    ),
    "unlike": (
        {"shapes": {"prompt.keys": [2, 4, 3, 5], "prompt.values": [2, 4, 3, 6]}},
        "shapes of keys and values differ; they must be the same.",
    ),
    "kind": ({"kind": "input", "layers": None, "shifted": None}, "kind 'input' has prompt.vectors"),
}


@pytest.mark.parametrize("name", INPUT)
def test_an_input_prompt_that_cannot_be_is_refused(stored, name):
    changes, message = INPUT[name]
    stored.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load(stored.folder)
    assert message in str(error.value)


@pytest.mark.parametrize("name", PREFIX)
def test_a_prefix_that_cannot_be_is_refused(stored_prefix, name):
    changes, message = PREFIX[name]
    stored_prefix.edit(**changes)
    with pytest.raises(ArtifactError) as error:
        load(stored_prefix.folder)
    assert message in str(error.value)


def test_artifacts_of_every_sort_agree(artifact):
    assert contradictions(artifact.manifest) == []


def test_layers_may_stand_in_any_order(stored_prefix):
    stored_prefix.edit(layers=[3, 1])
    assert load(stored_prefix.folder).prompt.layers == (3, 1)
