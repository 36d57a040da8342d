# A message is easiest to check on one line.
# ruff: noqa: E501

import re
import string
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.data import builtin
from softprompt.data.builtin import BUILTIN_DATA
from softprompt.data.sources import read_source
from softprompt.errors import DataError, MissingPackageError

SOURCES = [
    f"builtin:{name}{f'[{split}]' if split else ''}"
    for name, data in BUILTIN_DATA.items()
    for split in data.splits or ("",)
]
COUNTS = {
    "builtin:bbc-news": {
        "business": 500,
        "sports": 500,
        "politics": 397,
        "entertainment": 365,
        "tech": 333,
    },
    "builtin:election-tweets": {"realDonaldTrump": 2982, "HillaryClinton": 2613},
    "builtin:rotten-tomatoes": {"fresh": 7403, "rotten": 5405},
    "builtin:sms-spam": {"ham": 3958, "spam": 513},
    "builtin:tweet-sentiment": {"negative": 13_032, "neutral": 9038, "positive": 3259},
}


def is_installed(source):
    name = re.sub(r"^builtin:|\[.*", "", source)
    try:
        distribution(BUILTIN_DATA[name].distribution.partition("==")[0])
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("source", SOURCES)
def test_the_sets_as_their_packages_hold_them(source):
    if not is_installed(source):
        pytest.skip("scripts/setup does not install its package")
    rows = read_source(source)
    assert {"text", "label"} <= {*rows.column_names}
    assert all(value.strip() for name in rows.column_names for value in rows[name])
    if "newsgroups" in source:
        assert len(rows) == (11_262 if "train" in source else 7521)
        assert len({*rows["label"]}) == 20
    else:
        assert Counter(rows["label"]) == COUNTS[source]
    if source != "builtin:rotten-tomatoes":  # split by film instead
        folded = [" ".join(text.casefold().split()) for text in rows["text"]]
        assert len(folded) == len({*folded})


class Package:
    """An installed distribution whose files are in a folder."""

    version = "0.0.1"

    def __init__(self, folder):
        self.folder = folder

    def locate_file(self, path):
        return self.folder / path


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Write the file of a data set, and install its package."""
    monkeypatch.setattr(builtin, "distribution", lambda _: Package(tmp_path))

    def write(name, content, *, split="", file=""):
        path = tmp_path / BUILTIN_DATA[name].path.format(split=split) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def pairs(source):
    return [(row["text"], row["label"]) for row in read_source(source)]


def test_messages_keep_quotes_and_separators_and_lose_copies(plant):
    text = (
        'ham\tHe said "no\tnever"\nspam\tCall 0800 now!\nspam\tcall  0801 NOW\nham\tI&lt;3 u\n\n'
        "ham\tok\nspam\tOK.\n"
    )
    plant("sms-spam", text.encode())
    assert pairs("builtin:sms-spam") == [
        ('He said "no never"', "ham"),
        ("Call 0800 now!", "spam"),
        ("I<3 u", "ham"),  # "ok" is both ham and spam
    ]


def test_tweets_are_clear_whole_and_distinct(plant):
    lines = [
        "sentiment,confidence,text",
        'negative,0.6,"@Air you lost, my bag http://t.co/a"',
        "negative,1,@Sea you lost my bag http://t.co/b",
        "neutral,0.59,nobody agrees",
        "neutral,,nobody was asked",
        "positive,1,great caf\u00e9",
        "positive,0.9,great &amp; cheap",
    ]
    plant("tweet-sentiment", ("\n".join(lines) + "\n\x8d,").encode("latin-1"))
    assert pairs("builtin:tweet-sentiment") == [
        ("@Air you lost, my bag http://t.co/a", "negative"),
        ("great & cheap", "positive"),
    ]


def test_headlines_are_the_text_and_articles_stay_beside_them(plant):
    plant("bbc-news", "Shares £5 up\n\nThe shares\n rose.".encode(), file="business/1.txt")
    plant("bbc-news", "Shares £6 up\n\nThe shares rose.".encode(), file="business/2.txt")
    plant("bbc-news", "A goal\n\nIt cost £9.".encode("cp1252"), file="sports/1.txt")
    assert [*read_source("builtin:bbc-news")] == [
        {"text": "Shares £5 up", "label": "business", "article": "The shares rose."},
        {"text": "A goal", "label": "sports", "article": "It cost £9."},
    ]


def test_election_tweets_are_the_candidates_own(plant):
    head = "Is retweet\tAuthor\tContent\nd\td\ts\n\tclass\t\n"
    rows = 'False\tA\t"Vote ""now"""\nTrue\tA\tOf another\nFalse\tB\tNo.\n'
    plant("election-tweets", (head + rows).encode())
    assert pairs("builtin:election-tweets") == [('Vote "now"', "A"), ("No.", "B")]


def test_newsgroups_come_in_two_splits(plant):
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    plant("newsgroups", f"{head}sci.space\tthe moon\nsci.med\ta Car 2\n".encode(), split="train")
    plant("newsgroups", f"{head}rec.autos\ta car\n".encode(), split="test")
    assert pairs("builtin:newsgroups[train]") == [("the moon", "sci.space")]
    assert pairs("builtin:newsgroups[test]") == [("a car", "rec.autos")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("builtin:newsgroups", "builtin:newsgroups has the splits train and test. Name one of them: builtin:newsgroups[train]."),
        ("builtin:newsgroups[tets]", "unknown split of builtin:newsgroups 'tets'. Options: test, train. Did you mean 'test'?"),
        ("builtin:sms-spam[test]", "builtin:sms-spam is one table and has no split 'test'. Leave the split out; data.split_sizes splits validation and test rows off the training rows."),
        ("builtin:sms-ham", "unknown builtin data set 'sms-ham'. Options: bbc-news, election-tweets, newsgroups, rotten-tomatoes, sms-spam, tweet-sentiment. Did you mean 'sms-spam'?"),
    ],
)  # fmt: skip
def test_names_and_splits_that_do_not_exist(source, said):
    with pytest.raises(DataError) as caught:
        read_source(source)
    assert str(caught.value) == said


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_package_comes_with_its_command(source, monkeypatch):
    def find(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(builtin, "distribution", find)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps [\w-]+==[\d.]+$"):
        read_source(source)


@pytest.mark.parametrize("source", SOURCES)
def test_a_package_of_another_version_without_the_file(source, monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "distribution", lambda _: Package(tmp_path))
    with pytest.raises(DataError, match=r"but version 0\.0\.1 is installed, without it\. Install"):
        read_source(source)


WORDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from("ab")), max_size=12), st.randoms())
def test_no_copy_of_a_text_is_left_and_no_label_is_in_doubt(rows, source):
    """The oracle is a table of labels by the words in lower case."""
    spelled = [
        {"text": source.choice([" ", ", ", " 7 ", " @ab ", " http://t.co/x "]).join(words), "label": label}
        for words, label in rows
    ]  # fmt: skip
    labels = {}
    for words, label in rows:
        labels.setdefault(" ".join(words).lower(), []).append(label)
    kept = [*builtin._drop_copies(spelled)]
    seen = Counter(" ".join(re.findall("[a-z]+", re.sub("@ab|http://t.co/x", "", row["text"].lower()))) for row in kept)  # fmt: skip
    assert seen == Counter({key: 1 for key, found in labels.items() if len({*found}) == 1})
