"""Rows rendered together are those rendered one by one; of a huge text only its beginning is read.

No test measures time: what is counted is how much is read and tokenised.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.data import tokenizer as module
from softprompt.data.duplicates import find_shared_rows
from softprompt.data.loading import digest_rows
from softprompt.data.rendering import RenderedRow, Renderer, make_renderer
from softprompt.data.shortening import CHARS_PER_TOKEN
from softprompt.data.splits import split_rows
from softprompt.data.table import iterate_groups, take_rows
from softprompt.data.template import parse_template
from softprompt.data.tokenizer import make_text_encoder
from softprompt.errors import DataError
from softprompt.recipe.drafting import draft_recipe

SPECIAL = ["[MASK]", "</s>", "<s>", "<bos>", "<|im_start|>", "<extra_id_0>", "<|user|>"]
PIECES = st.sampled_from(
    [*SPECIAL, "{mask}", "😀", "👨‍👩‍👧", " ", "\n", "good film ", "naïve", "e\u0301", "日本"]
)
TEXTS = st.lists(PIECES | st.text(max_size=9), max_size=9).map("".join)
TEMPLATES = ["{soft:2}{a}", "{a} and {soft:1} {b}{soft:2}", "{bos}{soft:1}{a}{b}"]
MIXED = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(template: str, tokenizer, *, max_length: int) -> Renderer:
    return make_renderer(
        parse_template(template), tokenizer, vocab_size=len(tokenizer), max_length=max_length
    )


def render_carefully(renderer: Renderer, row: dict[str, str]) -> RenderedRow:
    """A row whose tokens are looked at one by one, as those of a row that is shortened are."""
    return renderer._render_alone(row)


@pytest.mark.parametrize("template", TEMPLATES)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=5), max_length=st.sampled_from([12, 512]))
@MIXED
def test_rows_together_are_the_rows_one_by_one(any_tokenizer, template, max_length, rows):
    renderer = make(template, any_tokenizer, max_length=max_length)
    table = [{"a": first, "b": second} for first, second in rows]
    expected = [render_carefully(renderer, row) for row in table]
    assert renderer.render_all(table) == [renderer.render(row) for row in table] == expected


@pytest.mark.parametrize("forbid", [False, True])
@given(text=TEXTS)
@MIXED
def test_a_text_from_outside_has_the_ids_of_its_tokens(any_tokenizer, forbid, text):
    encoder = make_text_encoder(any_tokenizer, vocab_size=len(any_tokenizer))
    safe = encoder.tokenizer
    if forbid:  # as where a model's vocabulary has the special tokens
        common = safe.encode("good film", first=True)[0].id
        safe = replace(safe, forbidden=safe.forbidden | {common})
        encoder = replace(encoder, tokenizer=safe)
    tokens = safe.encode(text, first=True, continues=True)
    assert encoder.encode(text) == tuple(token.id for token in tokens)


def test_a_tokenizer_is_used_in_two_threads_at_once(any_tokenizer):
    """Setting it up in one while it runs in another raises an error or changes its tokens."""
    renderer = make("{a}{soft:1}", any_tokenizer, max_length=40)
    rows = [{"a": "fine film " * (1 + n % 30)} for n in range(300)]
    expected = [render_carefully(renderer, row) for row in rows]
    with ThreadPoolExecutor(2) as threads:
        together = threads.submit(lambda: [renderer.render_all(rows) for _ in range(20)])
        alone = threads.submit(lambda: [render_carefully(renderer, row) for row in rows])
    assert alone.result() == expected
    assert all(found == expected for found in together.result())


@pytest.mark.parametrize("template", ["{a} and {soft:1} {b}{sep}{b}", "{a}{mask}{soft:2}"])
def test_rows_are_the_same_whichever_layouts_are_remembered(bert, monkeypatch, template):
    rows = [{"a": "fine " * n, "b": "film " * (n % 3)} for n in range(1, 12)] * 2
    alone = [make(template, bert, max_length=60).render(row) for row in rows]
    monkeypatch.setattr("softprompt.data.rendering._MOST_LAYOUTS", 2)
    renderer = make(template, bert, max_length=60)
    assert renderer.render_all(rows) == alone
    assert 1 <= len(renderer.layouts) <= 2
    for row in alone:
        assert len(row.input_ids) == len(row.token_type_ids)
        masks = [at for at, token in enumerate(row.input_ids) if token == bert.mask_token_id]
        assert [*row.mask_positions] == masks
        separators = row.input_ids[:-1].count(bert.sep_token_id)
        assert row.token_type_ids[-1] == separators


@pytest.mark.parametrize("row", [{"b": "x"}, {"a": None, "b": "x"}, {"a": [], "b": "x"}])
def test_a_row_that_cannot_be_rendered_is_refused_among_others_too(bert, row):
    renderer = make("{a}{b}{soft:1}", bert, max_length=20)
    with pytest.raises(DataError) as alone:
        renderer.render(row)
    with pytest.raises(DataError) as together:
        renderer.render_all([{"a": "x", "b": "y"}, row])
    assert str(together.value) == str(alone.value)


LONG = {
    "words": "the film is unbelievably good and bad ",
    "no spaces": "thefilmisunbelievablygood",
    "spaces": "film" + " " * 300,
    "lines": "\n\n\t",
    "one letter": "a",
    "Chinese": "日本語の映画は",
    "emoji": "👍🏽👨‍👩‍👧",
    "accents": "e\u0301u\u0308",
    "special": "</s><s>[SEP]",
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("template", ["{soft:2}{a}", "{a} and {soft:1} {b}"])
def test_a_huge_text_is_truncated_as_if_all_of_it_were_read(
    any_tokenizer, monkeypatch, template, kind
):
    renderer = make(template, any_tokenizer, max_length=16)
    # Before white space at its end, a text loses one token more than it has to.
    long = (LONG[kind] * (3000 // len(LONG[kind]))).rstrip()
    rows = [
        {"a": long, "b": "a short one"},
        {"a": long, "b": "fine film " * 300 + "end"},
        {"a": "it", "b": long},
    ]
    clipped = [renderer.render(row) for row in rows]
    assert renderer.render_all(rows) == clipped
    monkeypatch.setattr("softprompt.data.shortening.CHARS_PER_TOKEN", 10**9)
    assert [renderer.render(row) for row in rows] == clipped


def test_of_a_huge_text_only_the_beginning_is_tokenised(any_tokenizer, monkeypatch):
    """A text of 200 MB took 16 GB and ended in an abort, though 64 tokens were wanted."""
    renderer, sizes, tokenize = (
        make("{soft:2}{a}", any_tokenizer, max_length=16),
        [],
        module._tokenize,
    )

    def record(tokenizer, text: str | Sequence[str], **options):
        sizes.append(len(text) if isinstance(text, str) else max(map(len, text)))
        return tokenize(tokenizer, text, **options)

    monkeypatch.setattr(module, "_tokenize", record)
    row = {"a": "a fine film " * 1_000_000}
    assert renderer.render(row).truncated
    assert renderer.render_all([row])[0].truncated
    assert max(sizes) <= 8 * CHARS_PER_TOKEN * 16


@pytest.fixture
def no_single_rows(monkeypatch):
    """Reading a table row by row takes 30 times as long as reading groups or columns."""

    def refuse(*_args):
        msg = "a table is read row by row"
        raise AssertionError(msg)

    monkeypatch.setattr(datasets.Dataset, "__iter__", refuse)


def make_table(rows: int, *, labels: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "text": [f"a film of {n} hours and more" for n in range(rows)],
            "label": [f"label {n % labels}" for n in range(rows)],
        }
    )


@pytest.mark.parametrize("labels", [3, 400])
def test_no_step_before_training_reads_rows_one_by_one(no_single_rows, tmp_path, labels):
    table = make_table(2000, labels=labels)
    parts = split_rows(table, seed=1, stratify="label")
    assert len(digest_rows(parts["train"], ["text", "label"])) == 64
    assert find_shared_rows(parts, ["text"]) == ()
    table.to_csv(tmp_path / "t.csv", index=False)
    draft = draft_recipe(tmp_path / "t.csv", backbone="builtin:minilm", directory=tmp_path)
    assert len(draft.columns.labels) == labels


def test_a_digest_is_that_of_the_rows_one_by_one():
    """Checkpoints hold it, so it must not change."""
    table = make_table(2500, labels=3).add_column("stars", [*range(2500)])
    table = table.add_column("price", [n / 4 if n % 3 else None for n in range(2500)])
    assert digest_rows(table, ["stars", "text", "price", "label"]) == (
        "4fd49968a5a0db074e8327ce287019455e91e8fe35a3ec058cf22d07e2fd441f"
    )


@pytest.mark.parametrize("most_copied", [2**30, 0], ids=["copied", "through the indices"])
def test_groups_are_the_rows(monkeypatch, most_copied):
    monkeypatch.setattr("softprompt.data.table._MOST_COPIED", most_copied)
    table = make_table(2500, labels=3)
    chosen = take_rows(table, [*range(2499, 0, -2)])
    again = take_rows(chosen.select([5, 3, 9]), [2, 0])
    assert again.to_list() == [table[2499 - 18], table[2499 - 10]]
    assert again.features == table.features
    for rows in (table, chosen):
        groups = [*iterate_groups(rows, ["text", "label"])]
        assert [row for group in groups for row in group] == rows.to_list()
        assert max(map(len, groups)) == 1000
    assert chosen["text"][0] == "a film of 2499 hours and more"
