"""Tests that run for each family, method, prompt or side of padding.

``@for_each("family")`` runs a test for each family; with several names, for each combination of
their values that is possible:

    @for_each("method", "family")
    def test_it_has_an_effect(backbone, method, family): ...
"""

from itertools import product

import pytest

from support.tiny_models import CAUSAL, ENCODERS, FAMILIES, KV, SEQ2SEQ, SETTINGS

# families whose input prompts can be converted to keys and values
BAKED = CAUSAL
# BART counts positions from the first column, padding included, and accepts no position ids.
LEFT = tuple(name for name in FAMILIES if name != "bart")
# "late" is an input prompt that enters at the second layer
OF_SHAPE = {"input": FAMILIES, "kv": KV, "late": KV}
# A cache with a sliding window does not keep the places of soft tokens that enter at a later layer.
OF_WRITER = OF_SHAPE | {"late": tuple(f for f in KV if f not in {"mistral", "gemma3"})}
OF_SIDE = {"none": FAMILIES, "right": FAMILIES, "left": LEFT}
PAIRS: dict[tuple[str, ...], list[tuple[str, str]]] = {
    ("method", "family"): [(m, f) for m, s in SETTINGS.items() for f in OF_SHAPE[s.prompt_kind]],
    ("shape", "family"): [(shape, f) for shape, names in OF_SHAPE.items() for f in names],
    ("shape", "writer"): [
        (shape, f) for shape, names in OF_WRITER.items() for f in names if f not in ENCODERS
    ],
    ("shape", "causal"): [
        (shape, f) for shape, names in OF_WRITER.items() for f in names if f in CAUSAL
    ],
    ("side", "family"): [(side, f) for side, names in OF_SIDE.items() for f in names],
}

VALUES = {
    "family": FAMILIES,
    "causal": CAUSAL,
    "encoder": ENCODERS,
    "seq2seq": SEQ2SEQ,
    "writer": (*CAUSAL, *SEQ2SEQ),
    "kv": KV,
    "baked": BAKED,
    "shape": tuple(OF_SHAPE),
    "side": tuple(OF_SIDE),
    "method": tuple(SETTINGS),
}


def combine_values(*names: str) -> list[tuple[str, ...]]:
    """All combinations of the values of some names; of a pair in ``PAIRS``, only those there."""
    remaining = list(names)
    columns: list[tuple[str, ...]] = []
    values: list[list[tuple[str, ...]]] = []
    for pair, combinations in PAIRS.items():
        if {*pair} <= {*remaining}:
            columns.append(pair)
            values.append([*combinations])
            remaining = [name for name in remaining if name not in pair]
    columns += [(name,) for name in remaining]
    values += [[(value,) for value in VALUES[name]] for name in remaining]
    flat = [name for column in columns for name in column]
    rows = []
    for combination in product(*values):
        row = dict(zip(flat, (value for part in combination for value in part), strict=True))
        rows.append(tuple(row[name] for name in names))
    return rows


def for_each(*names: str) -> pytest.MarkDecorator:
    """Run a test once for each value of the names: arguments of the test or of its fixtures.

    Args:
        names: of ``VALUES``.

    Returns:
        The decorator.
    """
    rows = combine_values(*names)
    return pytest.mark.parametrize(names, rows, ids=["-".join(row) for row in rows])
