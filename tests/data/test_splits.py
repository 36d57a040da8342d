import itertools
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.splits import DEFAULT_SPLIT, sample, split_rows
from softprompt.errors import DataError


def numbered(count, **columns):
    return datasets.Dataset.from_dict({"id": list(range(count)), **columns})


def ids(rows):
    return list(rows["id"])


@given(st.integers(10, 300), st.integers(0, 9))
def test_each_row_is_in_one_split_of_the_right_size(count, seed):
    parts = split_rows(numbered(count), seed=seed)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(itertools.chain(*map(ids, parts.values()))) == list(range(count))
    for name, rows in parts.items():
        assert abs(len(rows) - DEFAULT_SPLIT[name] * count) <= 1
        assert ids(rows) == sorted(ids(rows))


def test_the_split_is_the_same_on_every_machine():
    """These numbers must not change with a library or platform."""
    parts = split_rows(numbered(20), seed=1)
    assert ids(parts["validation"]) == [1, 4]
    assert ids(parts["test"]) == [12, 16]


def test_another_seed_is_another_split():
    first, second = (split_rows(numbered(100), seed=seed) for seed in (0, 1))
    assert ids(first["test"]) != ids(second["test"])


@given(
    st.lists(st.integers(0, 40), min_size=30, max_size=200).filter(lambda g: len(set(g)) > 3),
    st.integers(0, 5),
)
def test_no_group_is_in_two_splits(groups, seed):
    parts = split_rows(numbered(len(groups), film=groups), seed=seed, group="film")
    films = [set(rows["film"]) for rows in parts.values()]
    assert sum(map(len, films)) == len(set(groups))
    assert sum(map(len, parts.values())) == len(groups)


def test_shares_are_nearly_exact_with_many_groups():
    groups = [f"film {i // 7}" for i in range(7000)]
    parts = split_rows(numbered(7000, film=groups), seed=3, group="film")
    for name, rows in parts.items():
        assert len(rows) / 7000 == pytest.approx(DEFAULT_SPLIT[name], abs=0.005)


def test_as_many_groups_as_splits_is_enough():
    parts = split_rows(numbered(9, film=list("aaabbbccc")), seed=0, group="film")
    assert [len(rows) for rows in parts.values()] == [3, 3, 3]


def test_groups_do_not_depend_on_the_order_of_rows():
    films = [f"f{i % 10}" for i in range(100)]
    straight = split_rows(numbered(100, film=films), seed=0, group="film")
    turned = split_rows(numbered(100, film=films[::-1]), seed=0, group="film")
    for name in DEFAULT_SPLIT:
        assert set(straight[name]["film"]) == set(turned[name]["film"])


def test_stratified_splits_have_the_same_shares_of_each_label():
    labels = ["rare" if i % 10 == 0 else "common" for i in range(500)]
    parts = split_rows(numbered(500, label=labels), seed=0, stratify="label")
    for name, rows in parts.items():
        counts = Counter(rows["label"])
        assert counts == {"rare": 50 * DEFAULT_SPLIT[name], "common": 450 * DEFAULT_SPLIT[name]}
    assert sorted(itertools.chain(*map(ids, parts.values()))) == list(range(500))


@given(st.lists(st.sampled_from("aabc"), min_size=10, max_size=120), st.integers(0, 5))
def test_stratified_splits_have_the_right_sizes_and_shares(labels, seed):
    """The sizes of the splits are as exact as without labels; each label's are to two rows."""
    parts = split_rows(numbered(len(labels), label=labels), seed=seed, stratify="label")
    assert sorted(itertools.chain(*map(ids, parts.values()))) == list(range(len(labels)))
    whole = Counter(labels)
    for name, rows in parts.items():
        assert abs(len(rows) - DEFAULT_SPLIT[name] * len(labels)) <= 1
        for label, count in Counter(rows["label"]).items():
            assert abs(count - DEFAULT_SPLIT[name] * whole[label]) < 2.5
    assert {*parts["train"]["label"]} == {*labels}


@pytest.mark.parametrize(("count", "labels"), [(12, 2), (12, 3), (200, 100), (30, 24)])
def test_the_first_split_has_a_row_of_every_label(count, labels):
    """Also where most labels have too few rows for a share of a tenth."""
    column = [f"label {i % labels}" for i in range(count)]
    for seed in range(10):
        parts = split_rows(numbered(count, label=column), seed=seed, stratify="label")
        assert len({*parts["train"]["label"]}) == labels
        assert min(map(len, parts.values())) >= 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            numbered(100),
            {"shares": {"train": 0.8, "test": 0.1}},
            r"the shares of the splits \(train 0.8, test 0.1\) sum to 0.9, but must sum to 1",
        ),
        (
            numbered(100),
            {"shares": {"train": 1.0, "test": 0.0}},
            r"\(train 1, test 0\) must all be above 0. Leave out what is unused",
        ),
        (
            numbered(3),
            {},
            r"the split 'test' \(a share of 0.1 of 3 rows\) would be empty. Give more rows",
        ),
        (
            numbered(6, film=list("aaabbb")),
            {"group": "film"},
            r"the split 'test' \(a share of 0.1 of 6 rows grouped by 'film'\) would be empty",
        ),
        (
            numbered(30, film=["a"] * 30),
            {"group": "flim"},
            r"the data to split has no column 'flim'. It has: film, id. Did you mean 'film'",
        ),
        (
            numbered(30, film=["a"] * 30),
            {"group": "film", "stratify": "id"},
            r"be grouped by 'film' and stratified by 'id' at once. Choose group or stratify",
        ),
    ],
)
def test_impossible_splits_are_refused(rows, options, message):
    with pytest.raises(DataError, match=message):
        split_rows(rows, seed=0, **options)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 3))
def test_a_subset_is_drawn_without_replacement(count, wanted, seed):
    drawn = ids(sample(numbered(count), wanted, seed=seed))
    assert len(drawn) == len(set(drawn)) == min(count, wanted)
    assert set(drawn) <= set(range(count))
    assert drawn == ids(sample(numbered(count), wanted, seed=seed))


def test_a_smaller_subset_is_the_beginning_of_a_larger():
    rows = numbered(200)
    small, large = (ids(sample(rows, count, seed=4)) for count in (20, 100))
    assert large[:20] == small
    assert large != sorted(large)
    assert large != ids(sample(rows, 100, seed=5))


def test_every_row_is_as_likely_to_be_drawn():
    """Over 400 seeds each of 10 rows is drawn 5 times in 10: within five standard deviations."""
    counts = Counter(i for seed in range(400) for i in ids(sample(numbered(10), 5, seed=seed)))
    assert all(abs(counts[i] - 200) < 50 for i in range(10))


def test_an_empty_sample_is_refused():
    with pytest.raises(DataError, match="a sample of 0 rows is not possible"):
        sample(numbered(3), 0, seed=0)
