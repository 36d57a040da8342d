"""Reviews made of the tiny tokenizer's words, with labels that follow from the words."""

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
    """Rows of one to nine words, both labels in turn, and answers of different lengths."""
    random = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        label_words = random.choices(GOOD if label == "positive" else BAD, k=random.randint(1, 3))
        words = [*label_words, *random.choices(PLAIN, k=random.randint(0, 6))]
        random.shuffle(words)
        answer = " ".join(label_words)
        rows.append({"text": " ".join(words), "label": label, "answer": answer})
    return rows


def make_plain_reviews(count: int, *, seed: int) -> list[Row]:
    """Reviews of six words each, without answers, both labels in turn."""
    random = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        label_words = GOOD[:7] if number % 2 else BAD[:7]
        words = [
            random.choice(label_words if random.random() < 0.6 else SUBJECTS) for _ in range(6)
        ]
        rows.append({"text": " ".join(words), "label": LABELS[number % 2]})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
