"""JSON and TOML beyond reason are a ValueError in plain words, whatever the parser does."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt._io import load_strict_json
from softprompt._parsing import make_json_decoder, parse_json, parse_toml

DEEP = 500


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' appears twice"),
        ('[{"x": {"b": 2, "a": 1, "b": 2}}]', "the key 'b' appears twice"),
        ("[1" + "0" * 5000 + "]", "a number has 5,001 digits"),
        ("[1e999]", "1e999 overflows a float"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("[" * DEEP + "]" * DEEP, "it is nested more than 100 levels deep"),
        ("[" * 100_000, "it is nested more than 100 levels deep"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "it is nested more than 100 levels deep"),
        ("[1,]", "Expecting value: line 1 column 4 (char 3)"),
    ],
)
def test_json_beyond_reason_is_a_value_error(text, fault):
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse_json(text)
    with pytest.raises(ValueError, match=re.escape(fault)):
        load_strict_json(text.encode())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = " + "[" * DEEP + "]" * DEEP, "it is nested more than 100 levels deep"),
        (".".join("a" * DEEP) + " = 1", "it is nested more than 100 levels deep"),
        ("a = " + "{ a = " * DEEP + "1" + "}" * DEEP, "it is nested more than 100 levels deep"),
        ("a = " + "[" * 100_000, "it is nested more than 100 levels deep"),
        ("a = 1" + "0" * 5000, "digits"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
    ],
)
def test_toml_beyond_reason_is_a_value_error(text, fault):
    with pytest.raises(ValueError, match=fault):
        parse_toml(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_json_writes_is_read_as_it_was(value):
    assert parse_json(json.dumps(value)) == value


def test_depth_is_counted_exactly():
    parse_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="100 levels"):
        parse_json("[" * 101 + "]" * 101)


def test_constants_are_read_where_a_format_has_them():
    assert parse_json("[NaN, 1]", decoder=make_json_decoder({"NaN": None})) == [None, 1]


def test_the_check_for_duplicate_keys_is_linear():
    """It compared every key with every other one: so many would take hours."""
    names = [*range(300_000), 299_999]
    with pytest.raises(ValueError, match="'299999' appears twice"):
        parse_json("{" + ",".join(f'"{name}":0' for name in names) + "}")
