"""The manifest is strict and readable, and every fault in it has a message."""

import hashlib
import json
from dataclasses import fields
from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt._io import ErrorContext
from softprompt.artifact import SCHEMA, Manifest, load_artifact, save_artifact
from softprompt.artifact.manifest import dump_manifest, parse_manifest
from softprompt.errors import ArtifactError

REMEDY = "Restore the folder from a copy, or train again."
SOURCE = ErrorContext("mood", "Fix it.")


def refusal(stored) -> str:
    """The message of loading, without the folder before it and the remedy after it."""
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    said = str(error.value)
    assert said.startswith(f"{stored.folder}: ")
    assert said.endswith(REMEDY)
    return said.removeprefix(f"{stored.folder}: ").removesuffix(REMEDY).strip()


def test_it_is_json_that_people_can_read(stored):
    text = stored.manifest.read_text("utf-8")
    assert "\\u" not in text
    assert f'\n  "template": "{load_artifact(stored.folder).manifest.template}",\n' in text
    assert "schön" in text
    assert text.endswith("}\n")
    names = [field.name for field in fields(Manifest)]
    assert [*json.loads(text)] == [*names, "digest", "manifest_digest"]


def test_it_describes_the_tensors(stored, stored_prefix):
    assert stored_prefix.folder == stored.folder  # the prefix was saved over the other
    content = json.loads(stored_prefix.manifest.read_text("utf-8"))
    assert (
        content
        | {
            "schema": SCHEMA,
            "softprompt": version("softprompt"),
            "kind": "kv",
            "length": 3,
            "shapes": {"prompt.keys": [2, 4, 3, 5], "prompt.values": [2, 4, 3, 5]},
            "dtype": "float32",
            "layers": [1, 3],
            "shift_positions": True,
        }
        == content
    )


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(st.text(), values, max_size=3)
contents = st.fixed_dictionaries(
    {
        "schema": st.just(SCHEMA),
        "softprompt": st.text(),
        "kind": st.sampled_from(["input", "kv"]),
        "length": st.integers(),
        "shapes": st.dictionaries(st.text(), st.lists(st.integers(), max_size=4), max_size=3),
        "dtype": st.text(),
        "layers": st.none() | st.lists(st.integers(), max_size=4),
        "shift_positions": st.none() | st.booleans(),
        "template": st.text(),
        "max_length": st.none() | st.integers(),
        "task": tables,
        "labels": st.lists(st.text(), max_size=4),
        "backbone": st.fixed_dictionaries(
            {
                "name": st.text(),
                "revision": st.none() | st.text(),
                "fingerprint": st.text(),
                "model_type": st.text(),
            }
        ),
        "data": tables,
        "recipe": tables,
        "metrics": tables,
    }
)


@given(content=contents)
@settings(deadline=None, max_examples=100)
def test_what_is_written_is_read(content):
    manifest = Manifest(**content)
    assert parse_manifest(dump_manifest(manifest, "a" * 64, source=SOURCE), source=SOURCE) == (
        manifest,
        "a" * 64,
    )


def test_a_manifest_that_is_no_text_is_reported(stored):
    stored.manifest.write_bytes('{"schema": "ü"}'.encode("latin-1"))
    assert refusal(stored) == "its manifest.json is not UTF-8: byte 0xfc at offset 12."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)."),
        ('{"schema": 1,\n "kind": }', "is not JSON: Expecting value: line 2 column 10 (char 23)."),
        ("[1, 2]", "is a list, but a table of keys is needed."),
        ('{"schema": 1, "schema": 1}', "is not JSON: the key 'schema' appears twice."),
        ("[" * 100_000, "is not JSON: it is nested more than 100 levels deep"),
        ('{"schema": ' + "1" * 5000 + "}", "is not JSON: a number has 5,000 digits"),
    ],
)
def test_a_manifest_that_is_no_table_is_reported(stored, text, message):
    stored.manifest.write_text(text, "utf-8")
    assert message in refusal(stored)


def test_a_newer_schema_is_reported_with_the_way_to_update(stored):
    stored.edit(schema=SCHEMA + 1, softprompt="9.8.7", brand_new=True)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    assert str(error.value) == (
        f"{stored.folder}: softprompt 9.8.7 wrote it with schema {SCHEMA + 1}, but softprompt "
        f"{version('softprompt')} reads schema {SCHEMA}. Update: pip install -U softprompt"
    )


@pytest.mark.parametrize("schema", [0, -1, "1", None, [1]])
def test_a_schema_that_never_was_is_reported(stored, schema):
    stored.edit(schema=schema)
    assert (
        refusal(stored)
        == f"its manifest.json has schema {schema!r}, but softprompt reads schema 3."
    )


def test_the_schema_before_the_keys_were_renamed_is_reported_with_the_remedy(stored):
    stored.edit(schema=1)
    with pytest.raises(ArtifactError) as error:
        load_artifact(stored.folder)
    assert str(error.value) == (
        f"{stored.folder}: its manifest.json has schema 1, but softprompt reads schema 3, in "
        "which keys of task and recipe have other names. Train or import the prompt again."
    )


@pytest.mark.parametrize("schema", [2.0, 3.0])
def test_a_schema_that_is_no_whole_number_is_reported(stored, schema):
    stored.edit(schema=schema)
    assert f"schema in manifest.json is {schema}. Input should be a valid integer" in refusal(
        stored
    )


@pytest.mark.parametrize(
    "key", [field.name for field in fields(Manifest) if field.name != "schema"]
)
def test_every_missing_key_is_reported(stored, key):
    stored.drop(key)
    assert refusal(stored) == f"manifest.json lacks the key {key!r}."


def test_a_missing_key_of_the_backbone_is_reported(stored):
    stored.edit(backbone={"name": "x", "fingerprint": "a-b", "model_type": "bert"})
    assert refusal(stored) == "manifest.json lacks the key 'backbone.revision'."


def test_unknown_keys_are_reported_with_the_options(stored):
    stored.edit(lenght=3)
    said = refusal(stored)
    assert said.startswith(
        "manifest.json has an unknown key 'lenght'. Options: backbone, data, digest,"
    )
    assert said.endswith("Did you mean 'length'?")
    stored.drop("lenght")
    names = ("name", "revision", "fingerprint", "model_type", "revison")
    stored.edit(backbone=dict.fromkeys(names, "x"))
    assert refusal(stored) == (
        "manifest.json has an unknown key of backbone 'revison'. Options: fingerprint, model_type, "
        "name, revision. Did you mean 'revision'?"
    )


WRONG = {
    "softprompt": (1, "1. Input should be a valid string."),
    "kind": ("kvs", "'kvs'. Input should be 'input' or 'kv'."),
    "length": ("3", "'3'. Input should be a valid integer."),
    "shapes": ([3, 8], "[3, 8]. Input should be an object."),
    "dtype": (32, "32. Input should be a valid string."),
    "layers": ("all", "'all'. Input should be a valid array."),
    "shift_positions": (1, "1. Input should be a valid boolean."),
    "template": (None, "None. Input should be a valid string."),
    "max_length": (64.5, "64.5. Input should be a valid integer."),
    "task": ("classify", "'classify'. Input should be an object."),
    "labels": ("good", "'good'. Input should be a valid array."),
    "backbone": ("bert", "'bert'. Input should be an object."),
    "data": (None, "None. Input should be an object."),
    "recipe": (list(range(99)), f"{str(list(range(99)))[:60]}…. Input should be an object."),
    "metrics": (0.5, "0.5. Input should be an object."),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_of_a_wrong_type_is_reported(stored, key):
    value, message = WRONG[key]
    stored.edit(**{key: value})
    assert refusal(stored) == f"{key} in manifest.json is {message}"


def test_every_key_is_tried_with_a_wrong_type():
    assert {*WRONG} == {field.name for field in fields(Manifest)} - {"schema"}


def test_several_faults_are_reported_at_once(stored):
    stored.edit(length="3", dtype=32)
    assert refusal(stored) == (
        "2 faults:\n  - length in manifest.json is '3'. Input should be a valid integer.\n"
        "  - dtype in manifest.json is 32. Input should be a valid string."
    )


@pytest.mark.parametrize("digest", ["", "ab" * 31, "AB" * 32, "g" * 64, 7, None])
def test_a_digest_of_another_form_is_reported(stored, digest):
    stored.edit(digest=digest)
    assert refusal(stored) == (
        f"digest in manifest.json is {digest!r}, not 64 hexadecimal digits (SHA-256)."
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_reported(stored, number):
    text = stored.manifest.read_text("utf-8")
    stored.manifest.write_text(text.replace("0.875", number), "utf-8")
    fact = "overflows a float" if number == "1e999" else "is not a number in JSON"
    assert f"its manifest.json is not JSON: {number} {fact}." in refusal(stored)


def test_what_nests_too_deep_is_reported(stored):
    nested: list[object] = []
    for _ in range(500):
        nested = [nested]
    stored.edit(recipe={"x": nested})
    assert "manifest.json is not JSON: it is nested more than 100 levels deep" in refusal(stored)


# The digest of the manifest itself.


def rewrite(stored, text: str) -> None:
    assert text != stored.manifest.read_text("utf-8")
    stored.manifest.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"gut": "good"', '"gut": "bad"'),  # a word of the verbalizer
        ('"max_length": 64', '"max_length": 65'),
        ("war es schön", "war es schon"),
        ('"accuracy": 0.875', '"accuracy": 0.975'),
        ('"revision": "0123abc"', '"revision": null'),
        ('"name": "tiny/bert"', '"name": "tiny/best"'),
        ('"schema": 3', '"schema": 2'),
    ],
)
def test_a_changed_value_is_refused(stored, before, after):
    rewrite(stored, stored.manifest.read_text("utf-8").replace(before, after))
    said = refusal(stored)
    assert said.startswith("its manifest.json has the SHA-256 ")
    assert said.endswith("it was changed after it was written.")


def test_the_digest_is_that_of_the_values(stored):
    """Canonical JSON of all other keys, as anyone can compute it."""
    content = json.loads(stored.manifest.read_text("utf-8"))
    digest = content.pop("manifest_digest")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()
    # so that an editor that only formats the file does not spoil it
    reordered = dict(reversed(content.items())) | {"manifest_digest": digest}
    rewrite(stored, json.dumps(reordered, indent=1))
    assert load_artifact(stored.folder).manifest.length == 3


@pytest.mark.parametrize("digest", ["", "ab" * 32, None, 7])
def test_a_digest_that_does_not_fit_is_refused(stored, digest):
    content = json.loads(stored.manifest.read_text("utf-8"))
    rewrite(stored, json.dumps(content | {"manifest_digest": digest}))
    assert f"but says {digest!r}: it was changed after it was written." in refusal(stored)


def test_a_missing_digest_is_refused(stored):
    content = json.loads(stored.manifest.read_text("utf-8"))
    del content["manifest_digest"]
    rewrite(stored, json.dumps(content))
    assert "but says None: it was changed after it was written." in refusal(stored)


def test_an_artifact_of_the_schema_before_loads_and_is_saved_with_a_digest(stored, same, new):
    content = json.loads(stored.manifest.read_text("utf-8")) | {"schema": 2}
    del content["manifest_digest"]
    rewrite(stored, json.dumps(content))
    old = load_artifact(stored.folder)
    assert old.manifest.schema == 2
    save_artifact(old, stored.folder)
    assert json.loads(stored.manifest.read_text("utf-8"))["manifest_digest"]
    assert same(load_artifact(stored.folder), new())
