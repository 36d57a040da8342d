"""Rows that are too long lose text of their fields, never literals, soft tokens or labels."""

from collections.abc import Iterable, Sequence

from softprompt.data.plan import Spanned


def shortened(values: Sequence[str], runs: Iterable[Spanned], *, excess: int) -> list[str]:
    """Cut texts at token borders so that about ``excess`` tokens go.

    A cut text may tokenise otherwise than before: measure again, and cut again if need be.

    Args:
        values: the text of every field.
        runs: the tokens that they became.
        excess: how many tokens are too many.

    Returns:
        The texts; at least one of those that are not empty is shorter.
    """
    starts: list[list[int]] = [[] for _ in values]
    for run in runs:
        for field, (begin, end) in run.spans.items():
            inside = (token for token in run.tokens if token.start < end and token.end > begin)
            starts[field] = [max(0, token.start - begin) for token in inside]
    if not any(starts):  # the tokens say of no character that it is theirs
        return [""] * len(values)
    kept = longest_first([len(places) for places in starts], excess)
    return [
        value if keep == len(places) else value[: places[keep]].rstrip()
        for value, places, keep in zip(values, starts, kept, strict=True)
    ]


def longest_first(counts: Sequence[int], excess: int) -> list[int]:
    """Take ``excess`` away one by one, each from what is longest then (of equals, the last).

    >>> longest_first([9, 3, 5], 7)
    [4, 3, 3]
    """
    kept = list(counts)
    for _ in range(min(excess, sum(counts))):
        longest = max(range(len(kept)), key=lambda i: (kept[i], i))
        kept[longest] -= 1
    return kept
