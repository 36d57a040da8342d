"""Questions on contexts made of the tiny tokenizer's words, with answers that follow from them."""

from random import Random
from typing import Any

from support.reviews import BAD, GOOD, PLAIN


def make_questions(
    count: int, *, seed: int, length: int = 8, unanswerable: bool = True
) -> list[dict[str, Any]]:
    """Rows that ask for the good or the bad word of a context, which every third may lack."""
    random = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        kind = ("good", "bad")[number % 2]
        words = [random.choice(PLAIN) for _ in range(random.randint(3, length))]
        marked = {"good": random.choice(GOOD[1:]), "bad": random.choice(BAD[1:])}
        if unanswerable and number % 3 == 2:
            del marked[kind]
        for word in marked.values():
            words.insert(random.randint(0, len(words)), word)
        context = " ".join(words)
        texts = [marked[kind]] if kind in marked else []
        starts = [f" {context} ".index(f" {text} ") for text in texts]
        rows.append({
            "id": str(number), "question": kind, "context": context,
            "answers": {"text": texts, "answer_start": starts},
        })  # fmt: skip
    return rows
