"""The text of a report: its conclusion, and the conditions of measurement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softprompt.compare.protocol import Protocol
from softprompt.compare.report.table import sort_by_score
from softprompt.compare.results import Failed, SearchResult
from softprompt.compare.statistics import Difference, Summary
from softprompt.recipe import Recipe


def summarize(found: Sequence[Summary], *, failed: Sequence[Failed], measure: str) -> str:
    """State which prompt is best, its difference from the best baseline, and its significance.

    Args:
        measure: the name of the score.
    """
    return " ".join(_sentences(sort_by_score(found), failed, measure))


def _sentences(ordered: Sequence[Summary], failed: Sequence[Failed], measure: str) -> Iterator[str]:
    prompts = [summary for summary in ordered if not summary.is_baseline]
    baselines = [summary for summary in ordered if summary.is_baseline]
    if prompts:
        yield from _best(prompts, measure)
        yield from _over(prompts, baselines)
    elif baselines:
        yield "No prompt finished, so there is nothing to compare the baselines with."
        yield f"The best of them is {baselines[0].variant}: {_scored(baselines[0], measure)}."
    else:
        yield "No run finished, so there is nothing to compare."
    names = list(dict.fromkeys(one.variant for one in failed))
    if names:
        verb = "failed and is" if len(names) == 1 else "failed and are"
        yield f"{_listed(names)} {verb} listed below."


def _best(prompts: Sequence[Summary], measure: str) -> Iterator[str]:
    best, *others = prompts
    if not others:
        yield f"{best.variant} is the only prompt: {_scored(best, measure)}."
        return
    tied = [other.variant for other in others if other.mean == best.mean]
    if tied:
        yield f"{_listed([best.variant, *tied])} are tied: {_scored(best, measure)}."
    else:
        first = f"{best.variant} is the best of {len(prompts)} prompts: {_scored(best, measure)}"
        yield f"{first}; the next is {others[0].variant} with {_percent(others[0])}."


def _over(prompts: Sequence[Summary], baselines: Sequence[Summary]) -> Iterator[str]:
    best = prompts[0]
    lead = best.difference
    if lead is None:
        yield "There was no baseline to compare these numbers with."
        return
    baseline = next(summary for summary in baselines if summary.variant == lead.baseline)
    points = f"{abs(100 * lead.mean):.1f} points"
    where = "above" if lead.mean > 0 else "below"
    distance = f"{points} {where}" if points != "0.0 points" else "tied with"
    yield f"That is {distance} the best baseline, {baseline.variant} ({_percent(baseline)})."
    yield _certainty(lead)
    for constant in baselines:
        if constant.variant == "majority" != lead.baseline and constant.mean >= best.mean:
            yield f"Even majority, the same answer for every row, has {_percent(constant)}."
    own, theirs = best.results[-1].cost, baseline.results[-1].cost
    if own is not None and theirs is not None:
        share = f"{own.trainable / own.parameters:.3%} of the backbone's"
        count = f"{own.trainable:,} parameters ({share})"
        yield f"It trains {count}, the baseline {theirs.trainable:,}."


def _certainty(lead: Difference) -> str:
    interval = f"The 95 % interval of the difference, {format_interval(lead)}"
    if lead.low <= 0 <= lead.high:
        return f"{interval}, contains 0: the difference is not significant."
    better = "better" if lead.mean > 0 else "worse"
    return f"{interval}, excludes 0: on such rows the prompt is {better} than the baseline."


def format_interval(lead: Difference) -> str:
    """The ends of an interval in points."""
    return f"{100 * lead.low:+.1f} to {100 * lead.high:+.1f}"


def _scored(summary: Summary, measure: str) -> str:
    rows = len(summary.results[0].scores)
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    over = f" over {summary.seeds} seeds" if summary.seeds > 1 else ""
    plural = "" if rows == 1 else "s"
    return f"{100 * summary.mean:.1f}{spread} % {measure} on {rows:,} test row{plural}{over}"


def _percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f} %"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True)
class Conditions:
    """The conditions that all variants of a comparison share.

    Args:
        protocol: seeds, search and test rows.
        base: the recipe that all variants share.
        recipe: the text of its file.
        rows: the number of rows of each split.
        versions: of the software, by name.
    """

    protocol: Protocol
    base: Recipe
    recipe: str
    rows: Mapping[str, int]
    versions: Mapping[str, str]


def describe_conditions(
    conditions: Conditions, *, found: Sequence[Summary], searched: Sequence[SearchResult]
) -> list[tuple[str, str]]:
    """Topics, each with its text."""
    protocol = conditions.protocol
    parts = [
        ("Backbone", conditions.base.backbone.name),
        ("Rows", _rows(conditions.rows)),
        ("Seeds", _seeds(conditions.base.seed, protocol.num_seeds)),
        ("Budget", " ".join(_budget(conditions, found))),
        ("Learning rates", _search(protocol)),
        ("Selected rates", _list_rates(searched)),
        ("Selection", _selection(conditions.base)),
        ("Test", "Each run predicts the test rows once, with its best state by validation."),
        ("Intervals", _intervals(found)),
        ("Seconds", _SECONDS),
        ("Versions", ", ".join(f"{name} {number}" for name, number in conditions.versions.items())),
    ]
    return [(topic, text) for topic, text in parts if text]


_SECONDS = (
    "Wall-clock time of training with its validations, without the search, and without cached "
    "states that are computed once for all runs on the same rows."
)


def _rows(rows: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    return f"{counts}: sampled once, the same for all variants and seeds."


def _seeds(first: int, count: int) -> str:
    if count == 1:
        return f"One, {first}: the variation over seeds is unknown."
    last = first + count - 1
    return f"{count}, from {first} to {last}: of the initialization and the order of rows."


def _budget(conditions: Conditions, found: Sequence[Summary]) -> Iterator[str]:
    seconds, train = conditions.protocol.time_budget_seconds, conditions.base.train
    if seconds is not None:
        yield f"As many steps as fit into {seconds:g} seconds."
    elif train.max_steps is not None:
        yield f"{train.max_steps:,} steps of {train.batch_size} rows."
    else:
        times = "pass" if train.epochs == 1 else "passes"
        yield f"{train.epochs} {times} over the training rows, {train.batch_size} at a time."
    steps = {o.cost.steps for s in found for o in s.results if o.cost is not None and o.cost.steps}
    if steps:
        least, most = min(steps), max(steps)
        many = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"That is {many} steps per run."
    if train.early_stopping_patience is not None:
        count = train.early_stopping_patience
        yield f"A run ends early after {count} validations without a better one."


def _search(protocol: Protocol) -> str:
    if len(protocol.lr_multipliers) < 2:  # noqa: PLR2004  # nothing to choose from
        return f"Not searched: that of each variant, times {protocol.lr_multipliers[0]:g}."
    tried = ", ".join(f"{multiplier:g}" for multiplier in sorted(protocol.lr_multipliers))
    return (
        f"That of each variant times {tried}, each tried for {protocol.search_fraction:.0%} of the "
        "steps with the first seed; the best by validation is used for all seeds."
    )


def _list_rates(searched: Sequence[SearchResult]) -> str:
    tried = [one for one in searched if len(one.scores) > 1]
    return ", ".join(f"{one.variant} times {one.multiplier:g}" for one in tried)


def _selection(base: Recipe) -> str:
    select = base.train.best_metric
    best = "lowest loss" if select == "loss" else f"highest {select}"
    return f"Of each run, the state with the {best} on the validation rows."


def _intervals(found: Sequence[Summary]) -> str:
    if not any(summary.difference for summary in found):
        return ""
    return (
        "95 %, by a paired bootstrap over test rows of the mean over seeds. They cover the "
        "sampling of rows; ± covers the seeds."
    )
