"""Questions with options made of the tiny tokenizer's words, of which one follows from the text."""

from random import Random
from typing import Any

from support.reviews import BAD, GOOD, PLAIN


def make_options(
    count: int, *, seed: int, most: int = 4, form: str = "text", words: int = 3
) -> list[dict[str, Any]]:
    """Rows that ask for the option with a good or a bad word, among two to ``most``."""
    random = Random(seed)  # noqa: S311  # words, not keys
    rows = []
    for number in range(count):
        kind = ("good", "bad")[number % 2]
        right, wrong = (GOOD, BAD) if kind == "good" else (BAD, GOOD)
        texts = [_write(random, right, words)]
        while len(texts) < random.randint(2, most):
            text = _write(random, wrong, words)
            texts += [text] if text not in texts else []
        while len(texts) < 2:
            texts.append(_write(random, wrong, words))
        place = random.randrange(len(texts))
        texts[0], texts[place] = texts[place], texts[0]
        targets = {"text": texts[place], "index": place, "label": "ABCD"[place]}
        rows.append({"question": f"{kind} film", "options": texts, "target": targets[form]})
    return rows


def _write(random: Random, kinds: tuple[str, ...], words: int) -> str:
    """One to so many words, of which the first is of a kind."""
    rest = random.choices(PLAIN, k=random.randint(0, words - 1))
    return " ".join([random.choice(kinds[:8]), *rest])
