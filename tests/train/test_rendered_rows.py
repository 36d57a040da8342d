"""Rendered rows from the cache are the rendered rows; what they depend on is part of its key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt._paths import cache_folder
from softprompt.data.disk_cache import open_user_cache
from softprompt.data.rendering import RenderedRow
from softprompt.tasks import Example
from softprompt.train import datasets as module
from softprompt.train.packing import pack_examples, unpack_examples

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
variants = st.tuples(ids, ids, ids, st.booleans(), ids)
drawn = st.tuples(st.lists(variants, min_size=1, max_size=3), st.integers(0, 99) | ids)


@given(st.lists(drawn, max_size=6))
def test_what_is_unpacked_is_what_was_packed(rows):
    # Built here, not in a strategy: the type checks of a constructor draw random numbers.
    examples = [
        Example(
            tuple(RenderedRow(*variant[:4]) for variant in several),
            tuple(variant[4] for variant in several),
            target,
        )
        for several, target in rows
    ]
    assert unpack_examples(pack_examples(examples)) == examples


@pytest.fixture(autouse=True)
def small_and_empty_cache(monkeypatch, tmp_path):
    """Cache few rows too, in an empty cache."""
    monkeypatch.setattr(module, "_MIN_CACHED_ROWS", 1)
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fresh(parts, new_backbone):
    """Setups that no other test has made."""

    def make(*args, **changes):
        own = changes.pop("own", None) or new_backbone(args[0])
        return parts(*args, own=own, **changes)

    return make


def rows_of(prepared):
    return {name: [*rows.examples] for name, rows in prepared.rows.items()}


@pytest.mark.parametrize(
    ("family", "method", "task"),
    [
        ("llama", "prompt-tuning", "words"),
        ("bert", "p-tuning-v2", "head"),
        ("t5", "p-tuning-v2", "words"),
        ("gpt2", "prompt-tuning", "generate"),
    ],
)
def test_a_second_run_finds_the_rows_of_the_first(fresh, monkeypatch, family, method, task):
    first = fresh(family, method, task=task)
    assert len([*cache_folder().rglob("*.safetensors")]) == 3

    def render_again(*_args, **_more):
        pytest.fail("the rows are in the cache")

    monkeypatch.setattr(type(first.task), "make_example", render_again)
    second = fresh(family, method, task=task)
    assert rows_of(second) == rows_of(first)
    assert [r.truth for r in second.rows.values()] == [r.truth for r in first.rows.values()]


def test_any_change_renders_anew(fresh, new_backbone, rows):
    def count() -> int:
        return len([*cache_folder().rglob("*.safetensors")])

    kind = ("llama", "prompt-tuning")
    fresh(*kind, sizes=(11,))
    assert count() == 1
    fresh(*kind, sizes=(11,), learning_rate=0.3, settings={"layers": "1:"})
    assert count() == 1, "rows do not depend on these"
    other = new_backbone("llama")
    other.tokenizer.add_tokens(["unheard-of"])
    swapped = rows(11, 0)
    swapped[3] = swapped[3] | {"text": swapped[3]["text"] + " film"}
    changes = [
        {"own": other},
        {"tables": {"train": swapped}},
        {"task": "head"},
        {"task": "generate"},
    ]
    for number, change in enumerate(changes):
        fresh(*kind, **({"sizes": (11,)} | change))
        assert count() == 2 + number


def test_without_a_cache_rows_are_rendered_every_time(fresh):
    first = fresh("llama", "prompt-tuning")
    (cache_folder() / "states").rename(cache_folder() / "elsewhere")
    (cache_folder() / "states").write_text("no folder")
    assert rows_of(fresh("llama", "prompt-tuning")) == rows_of(first)


def test_with_a_budget_of_0_nothing_is_cached(fresh, monkeypatch):
    monkeypatch.setattr(module, "open_user_cache", lambda _gigabytes: open_user_cache(0.0))
    fresh("llama", "prompt-tuning")
    assert not cache_folder().exists()


def test_a_damaged_file_is_written_again(fresh):
    first = fresh("llama", "prompt-tuning", sizes=(11,))
    [path] = cache_folder().rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"\1" + whole[-7:])
    assert rows_of(fresh("llama", "prompt-tuning", sizes=(11,))) == rows_of(first)
    assert path.read_bytes() == whole
