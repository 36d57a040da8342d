"""Reviews made of the tiny tokenizer's words, whose label their words tell."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

GOOD = ("good", "great", "wonderful", "love", "funny", "bright", "happy", "new", "fresh", "yes")
BAD = ("bad", "awful", "terrible", "hate", "boring", "dull", "sad", "old", "rotten", "no")
PLAIN = ("the", "a", "this", "film", "movie", "plot", "story", "actor", "was", "is", "very", "it")
SUBJECTS = ("the", "a", "film", "movie", "story", "actor", "scene", "music")
LABELS = ("negative", "positive")
Row = dict[str, str]


def make_reviews(count: int, *, seed: int) -> list[Row]:
    """Rows of one to nine words, whose label their words tell; the answers differ in length."""
    draw = Random(seed)  # noqa: S311  # no secret
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        telling = draw.choices(GOOD if label == "positive" else BAD, k=draw.randint(1, 3))
        words = [*telling, *draw.choices(PLAIN, k=draw.randint(0, 6))]
        draw.shuffle(words)
        answer = " ".join(telling)
        rows.append({"text": " ".join(words), "label": label, "answer": answer})
    return rows


def make_plain_reviews(count: int, *, seed: int) -> list[Row]:
    """Reviews of six words each, without answers, both labels in turn."""
    draw = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        telling = GOOD[:7] if number % 2 else BAD[:7]
        words = [draw.choice(telling if draw.random() < 0.6 else SUBJECTS) for _ in range(6)]
        rows.append({"text": " ".join(words), "label": "positive" if number % 2 else "negative"})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
