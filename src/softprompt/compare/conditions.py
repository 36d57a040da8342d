"""How a comparison was measured, in words with its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softprompt.compare.outcome import Searched
from softprompt.compare.protocol import Protocol
from softprompt.compare.statistics import Summary
from softprompt.recipe import Recipe


@dataclass(frozen=True)
class Conditions:
    """What all arms of a comparison have in common.

    Args:
        protocol: seeds, search and test rows.
        base: the recipe that all arms begin with.
        recipe: the same as its file has it.
        rows: how many there are of each split.
        versions: of the software, by name.
    """

    protocol: Protocol
    base: Recipe
    recipe: str
    rows: Mapping[str, int]
    versions: Mapping[str, str]


def told(
    conditions: Conditions, *, found: Sequence[Summary], searched: Sequence[Searched]
) -> list[tuple[str, str]]:
    """Topics, and what is to be said of each."""
    protocol = conditions.protocol
    parts = [
        ("Backbone", conditions.base.backbone.name),
        ("Rows", _rows(conditions.rows)),
        ("Seeds", _seeds(conditions.base.seed, protocol.seeds)),
        ("Budget", " ".join(_budget(conditions, found))),
        ("Learning rates", _search(protocol)),
        ("Rates chosen", _chosen(searched)),
        ("Choice", _choice(conditions.base)),
        ("Test", "The test rows are answered once by what each training chose by validation."),
        ("Intervals", _intervals(found)),
        ("Seconds", _SECONDS),
        ("Versions", ", ".join(f"{name} {number}" for name, number in conditions.versions.items())),
    ]
    return [(topic, text) for topic, text in parts if text]


_SECONDS = (
    "Of training with its validations, by the clock; without the search, and without what is "
    "computed once for all runs on the same rows."
)


def _rows(rows: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    return f"{counts}: drawn once, the same for all arms and seeds."


def _seeds(first: int, count: int) -> str:
    if count == 1:
        return f"One, {first}: nothing here says how much the seed decides."
    last = first + count - 1
    return f"{count}, from {first} to {last}: what a prompt starts from, and the order of rows."


def _budget(conditions: Conditions, found: Sequence[Summary]) -> Iterator[str]:
    seconds, train = conditions.protocol.seconds, conditions.base.train
    if seconds is not None:
        yield f"As many steps as {seconds:g} seconds have room for."
    elif train.steps is not None:
        yield f"{train.steps:,} steps of {train.batch_size} rows."
    else:
        times = "pass" if train.epochs == 1 else "passes"
        yield f"{train.epochs} {times} over the training rows, {train.batch_size} at a time."
    steps = {o.cost.steps for s in found for o in s.outcomes if o.cost is not None and o.cost.steps}
    if steps:
        least, most = min(steps), max(steps)
        many = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"That came to {many} steps a run."
    if train.patience is not None:
        yield f"A run ends early after {train.patience} validations without a better one."


def _search(protocol: Protocol) -> str:
    if len(protocol.factors) < 2:  # noqa: PLR2004  # nothing to choose from
        return f"Not searched: each arm's own, times {protocol.factors[0]:g}."
    tried = ", ".join(f"{factor:g}" for factor in sorted(protocol.factors))
    return (
        f"For each arm its own rate times {tried}, each tried for {protocol.share:.0%} of the "
        "steps with the first seed; the best by validation is used for all seeds."
    )


def _chosen(searched: Sequence[Searched]) -> str:
    tried = [one for one in searched if len(one.scores) > 1]
    return ", ".join(f"{one.arm} times {one.factor:g}" for one in tried)


def _choice(base: Recipe) -> str:
    select = base.train.select
    most = "least loss" if select == "loss" else f"highest {select}"
    return f"Of each run, what has the {most} on the validation rows."


def _intervals(found: Sequence[Summary]) -> str:
    if not any(summary.difference for summary in found):
        return ""
    return (
        "95 %, by a paired bootstrap over test rows of the mean over seeds. They cover the choice "
        "of rows; ± covers the seeds."
    )
