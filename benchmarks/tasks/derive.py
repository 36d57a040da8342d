"""Data sets of several labels and of numbers, derived from those that install with softprompt.

No data set of these kinds installs from the package registry, so rows are put together from others:

* ``topics``: one to three headlines in a row, whose topics are its labels. No headline is in two
  splits.
* ``mood``: four reviews of one film in a row, and the share of positive ones among them. No film
  is in two splits.
* ``questions``: the beginning of an article, and a question for a sum of money, a percentage, a
  year, a month or a day, of which a pattern finds the answers; the articles of some have none. No
  article is in two splits.
* ``headlines``: the beginning of an article, and two to five headlines of its topic, of which one
  is its own. No article and no headline is in two splits.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from softprompt.data import read_data

ROWS = {"train": 960, "validation": 300, "test": 1000}
_PER_FILM = 4
_MOST_HEADLINES = 3
_MOST_WORDS = 50
_MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
_QUESTIONS = {
    "How much money?": r"[£$€]\d[\d,.]*\d(?:bn|m)?|[£$€]\d(?:bn|m)?",
    "What percentage?": r"\d[\d.]*%",
    "Which year?": r"\b(?:19|20)\d\d\b",
    "Which month?": rf"\b(?:{_MONTHS})\b",
    "Which day of the week?": r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
}
_UNANSWERABLE = 0.2
_MOST_OPTIONS = 5


def write_topics(folder: Path) -> None:
    """Write the splits of ``topics``.

    Args:
        folder: to write into.
    """
    random = Random(0)  # noqa: S311  # a draw, not a key
    rows = read_data("builtin:bbc-news").to_list()
    random.shuffle(rows)
    total = sum(ROWS.values())
    borders, start = {}, 0
    for name, count in ROWS.items():
        end = start + len(rows) * count // total
        borders[name], start = rows[start:end], end
    for name, count in ROWS.items():
        _write(folder / "topics" / f"{name}.jsonl", _join_headlines(borders[name], count, random))


def _join_headlines(
    rows: Sequence[Mapping[str, str]], count: int, random: Random
) -> Iterator[dict[str, object]]:
    for _ in range(count):
        chosen = random.sample(rows, random.randint(1, _MOST_HEADLINES))
        labels = sorted({row["label"] for row in chosen})
        yield {"text": ". ".join(row["text"] for row in chosen), "labels": labels}


def write_mood(folder: Path) -> None:
    """Write the splits of ``mood``.

    Args:
        folder: to write into.
    """
    random = Random(0)  # noqa: S311  # a draw, not a key
    by_film: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in read_data("builtin:rotten-tomatoes").to_list():
        by_film[row["film"]].append(row)
    films = sorted(film for film, rows in by_film.items() if len(rows) >= _PER_FILM)
    random.shuffle(films)
    total, start = sum(ROWS.values()), 0
    for name, count in ROWS.items():
        end = start + len(films) * count // total
        rows = _join_reviews([by_film[film] for film in films[start:end]], count, random)
        _write(folder / "mood" / f"{name}.jsonl", rows)
        start = end


def _join_reviews(
    films: Sequence[Sequence[Mapping[str, str]]], count: int, random: Random
) -> Iterator[dict[str, object]]:
    for number in range(count):
        chosen = random.sample(films[number % len(films)], _PER_FILM)
        share = sum(row["label"] == "fresh" for row in chosen) / _PER_FILM
        yield {"text": "\n".join(row["text"] for row in chosen), "share": share}


def write_questions(folder: Path) -> None:
    """Write the splits of ``questions``.

    Args:
        folder: to write into.
    """
    random = Random(0)  # noqa: S311  # a draw, not a key
    rows = read_data("builtin:bbc-news").to_list()
    random.shuffle(rows)
    total, start = sum(ROWS.values()), 0
    for name, count in ROWS.items():
        end = start + len(rows) * count // total
        found = [*_ask(rows[start:end], random)]
        _write(folder / "questions" / f"{name}.jsonl", iter(found[:count]))
        start = end


def _ask(rows: Sequence[Mapping[str, str]], random: Random) -> Iterator[dict[str, object]]:
    """One question for each article, some of them without an answer."""
    for row in rows:
        context = " ".join(row["article"].split()[:_MOST_WORDS])
        found = {asked: [*re.finditer(rule, context)] for asked, rule in _QUESTIONS.items()}
        wants_none = random.random() < _UNANSWERABLE
        fitting = [asked for asked, places in found.items() if bool(places) != wants_none]
        if not fitting:
            continue
        question = random.choice(fitting)
        answers = {
            "text": [place[0] for place in found[question]],
            "answer_start": [place.start() for place in found[question]],
        }
        yield {"question": question, "context": context, "answers": answers}


def write_headlines(folder: Path) -> None:
    """Write the splits of ``headlines``.

    Args:
        folder: to write into.
    """
    random = Random(0)  # noqa: S311  # a draw, not a key
    rows = [row for row in read_data("builtin:bbc-news").to_list() if row["text"].strip()]
    rows = [*{row["text"].strip(): row for row in rows}.values()]
    random.shuffle(rows)
    total, start = sum(ROWS.values()), 0
    for name, count in ROWS.items():
        end = start + len(rows) * count // total
        made = _offer_headlines(rows[start:end], count, random)
        _write(folder / "headlines" / f"{name}.jsonl", made)
        start = end


def _offer_headlines(
    rows: Sequence[Mapping[str, str]], count: int, random: Random
) -> Iterator[dict[str, object]]:
    """An article's beginning, with its headline among others of its topic."""
    by_topic: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_topic[row["label"]].append(row["text"].strip())
    for row in rows[:count]:
        own = row["text"].strip()
        others = [headline for headline in by_topic[row["label"]] if headline != own]
        wrong = random.sample(others, random.randint(1, _MOST_OPTIONS - 1))
        options = random.sample([own, *wrong], len(wrong) + 1)
        text = " ".join(row["article"].split()[:_MOST_WORDS])
        yield {"article": text, "options": options, "target": options.index(own)}


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
