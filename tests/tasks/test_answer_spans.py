"""The best spans of a context, against all of them tried one by one."""

import numpy as np
import pytest

from softprompt.errors import DataError
from softprompt.tasks.answer_spans import WindowScores, find_best_spans, get_null_score

CONTEXT = "In 1889  the\ttower, of course, was new — 映画 😀 was not."


def cut_tokens(generator: np.random.Generator) -> list[tuple[int, int]]:
    """Tokens of one to four characters; some share theirs, some are white space, some are empty."""
    tokens, at = [], 0
    while at < len(CONTEXT):
        end = min(len(CONTEXT), at + int(generator.integers(1, 5)))
        tokens += [(at, end)] * (1 + int(generator.random() < 0.15))
        if generator.random() < 0.1:
            tokens.append((end, end))
        at = end
    return tokens


def draw_windows(seed: int) -> list[WindowScores]:
    generator = np.random.default_rng(seed)
    tokens, windows, begin = cut_tokens(generator), [], 0
    size, step = int(generator.integers(3, 14)), int(generator.integers(1, 4))
    while True:
        part = tokens[begin : begin + size]
        # Whole numbers, so that many spans have the same score.
        scores = generator.integers(-6, 6, size=(2, len(part))).astype(float)
        if seed % 2:
            scores = generator.normal(size=(2, len(part)))
        windows.append(WindowScores(*scores, part, null=float(generator.normal())))
        if begin + size >= len(tokens):
            return windows
        begin += min(step, size)


def try_all(windows: list[WindowScores], most: int) -> dict[tuple[int, int], float]:
    """The best score of every span that is not empty."""
    best: dict[tuple[int, int], float] = {}
    for window in windows:
        for first in range(len(window.characters)):
            for last in range(first, min(len(window.characters), first + most)):
                start, end = window.characters[first][0], window.characters[last][1]
                inside = [at for at in range(start, end) if not CONTEXT[at].isspace()]
                if inside:
                    place = inside[0], inside[-1] + 1
                    score = float(window.starts[first] + window.ends[last])
                    best[place] = max(score, best.get(place, -np.inf))
    return best


@pytest.mark.parametrize("most", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [1, 3, 20, 10_000])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_are_found(seed: int, count: int, most: int) -> None:
    windows = draw_windows(seed)
    wanted = try_all(windows, most)
    ranked = sorted(wanted, key=lambda place: (-wanted[place], place))[:count]
    found = find_best_spans(windows, CONTEXT, count=count, max_tokens=most)
    assert [(span.start, span.end) for span in found] == ranked
    for span in found:
        assert span.score == pytest.approx(wanted[span.start, span.end])
        assert span.text == CONTEXT[span.start : span.end] == span.text.strip() != ""
    assert get_null_score(windows) == min(window.null for window in windows)


def test_overlapping_windows_give_one_span() -> None:
    """With the best score that a window gives it."""
    tokens = [(0, 2), (2, 7)]
    low = WindowScores(np.array([0.0, 1.0]), np.array([0.0, 1.0]), tokens, null=3.0)
    high = WindowScores(np.array([5.0]), np.array([2.0]), tokens[1:], null=-1.0)
    found = find_best_spans([low, high], "In Rome", count=5, max_tokens=9)
    assert [(span.text, span.score) for span in found] == [
        ("Rome", 7.0),
        ("In Rome", 1.0),
        ("In", 0.0),
    ]


def test_a_span_does_not_end_before_it_begins() -> None:
    scores = WindowScores(np.array([0.0, 9.0]), np.array([9.0, 0.0]), [(0, 2), (3, 7)], null=0.0)
    (best, *_) = find_best_spans([scores], "In Rome", count=3, max_tokens=2)
    assert best.score == 9.0
    assert best.text in ("In", "Rome")


def test_without_any_token_there_is_no_span() -> None:
    nothing = WindowScores(np.empty(0), np.empty(0), [], null=0.0)
    assert find_best_spans([nothing], "", count=3, max_tokens=2) == []
    assert find_best_spans([], "", count=3, max_tokens=2) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_null_score([]), "Give at least one window"),
        (lambda: find_best_spans([], "", count=0, max_tokens=1), "count = 0 are not possible"),
        (lambda: find_best_spans([], "", count=1, max_tokens=0), "max_tokens = 0 are not"),
        (lambda: WindowScores(np.zeros(2), np.zeros(2), [(0, 1)], null=0.0), "and 1 tokens"),
    ],
)
def test_mistakes(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
