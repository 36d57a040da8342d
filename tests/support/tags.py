"""Sentences made of the tiny tokenizer's words, with tags that follow from the words."""

from collections.abc import Sequence
from random import Random
from typing import Any

from support.reviews import BAD, GOOD, PLAIN


def tag_words(words: Sequence[str]) -> list[str]:
    """Spans of good words and of bad ones in BIO; all others are outside."""
    tags: list[str] = []
    for word in words:
        kind = "POS" if word in GOOD else "NEG" if word in BAD else None
        before = tags[-1][2:] if tags and tags[-1] != "O" else None
        tags.append("O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}")
    return tags


def make_sentences(count: int, *, seed: int, longest: int = 9) -> list[dict[str, Any]]:
    """Rows of words and their tags."""
    random = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for _ in range(count):
        length = random.randint(2, longest)
        words = [random.choice((*GOOD[:4], *BAD[:4], *PLAIN)) for _ in range(length)]
        rows.append({"words": words, "tags": tag_words(words)})
    return rows


def make_spans(count: int, *, seed: int) -> list[dict[str, Any]]:
    """The same as texts with spans of characters."""
    rows = []
    for row in make_sentences(count, seed=seed):
        text, spans, at = " ".join(row["words"]), [], 0
        for word, tag in zip(row["words"], row["tags"], strict=True):
            if tag.startswith("B"):
                spans.append({"start": at, "end": at + len(word), "label": tag[2:]})
            elif tag.startswith("I"):
                spans[-1]["end"] = at + len(word)
            at += len(word) + 1
        rows.append({"text": text, "spans": spans})
    return rows
