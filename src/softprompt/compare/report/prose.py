"""The text of a report: its conclusion, and the conditions of measurement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softprompt.compare.protocol import Protocol
from softprompt.compare.report.table import sort_by_score
from softprompt.compare.results import Failed, SearchResult
from softprompt.compare.statistics import Difference, Summary
from softprompt.recipe import Recipe
from softprompt.tasks import Classify


def summarize(summaries: Sequence[Summary], *, failed: Sequence[Failed], measure: str) -> str:
    """State which prompt is best, its difference from the best baseline, and its significance.

    Args:
        summaries: of the variants and baselines.
        failed: variants and baselines that could not be run.
        measure: the name of the score.
    """
    return " ".join(_write_sentences(sort_by_score(summaries), failed, measure))


def _write_sentences(
    ordered: Sequence[Summary], failed: Sequence[Failed], measure: str
) -> Iterator[str]:
    prompts = [summary for summary in ordered if not summary.is_baseline]
    baselines = [summary for summary in ordered if summary.is_baseline]
    if prompts:
        yield from _rank_prompts(prompts, measure)
        yield from _compare_with_baselines(prompts[0], baselines)
    elif baselines:
        yield "No prompt finished, so there is nothing to compare the baselines with."
        yield f"The best of them is {baselines[0].variant}: {_format_score(baselines[0], measure)}."
    else:
        yield "No run finished, so there is nothing to compare."
    names = list(dict.fromkeys(failure.variant for failure in failed))
    if names:
        verb = "failed and is" if len(names) == 1 else "failed and are"
        yield f"{_join_names(names)} {verb} listed below."


def _rank_prompts(prompts: Sequence[Summary], measure: str) -> Iterator[str]:
    best, *others = prompts
    score = _format_score(best, measure)
    if not others:
        yield f"{best.variant} is the only prompt: {score}."
        return
    tied = [other.variant for other in others if other.mean == best.mean]
    if tied:
        yield f"{_join_names([best.variant, *tied])} are tied: {score}."
    else:
        first = f"{best.variant} is the best of {len(prompts)} prompts: {score}"
        yield f"{first}; the next is {others[0].variant} with {_format_percent(others[0])}."


def _compare_with_baselines(best: Summary, baselines: Sequence[Summary]) -> Iterator[str]:
    difference = best.difference
    if difference is None:
        yield "There was no baseline to compare these numbers with."
        return
    baseline = next(summary for summary in baselines if summary.variant == difference.baseline)
    points = f"{abs(100 * difference.mean):.1f} points"
    where = "above" if difference.mean > 0 else "below"
    distance = f"{points} {where}" if points != "0.0 points" else "tied with"
    yield f"That is {distance} the best baseline, {baseline.variant} ({_format_percent(baseline)})."
    yield _describe_significance(difference)
    for other in baselines:
        if other.variant == "majority" != difference.baseline and other.mean >= best.mean:
            yield f"Even majority, the same answer for every row, has {_format_percent(other)}."
    prompt_cost, baseline_cost = best.results[-1].cost, baseline.results[-1].cost
    if prompt_cost is not None and baseline_cost is not None:
        share = f"{prompt_cost.trainable / prompt_cost.parameters:.3%} of the backbone's"
        count = f"{prompt_cost.trainable:,} parameters ({share})"
        yield f"It trains {count}, the baseline {baseline_cost.trainable:,}."


def _describe_significance(difference: Difference) -> str:
    interval = f"The 95 % interval of the difference, {format_interval(difference)}"
    if difference.low <= 0 <= difference.high:
        return f"{interval}, contains 0: the difference is not significant."
    better = "better" if difference.mean > 0 else "worse"
    return f"{interval}, excludes 0: on such rows the prompt is {better} than the baseline."


def format_interval(difference: Difference) -> str:
    """The ends of an interval in points."""
    return f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"


def _format_score(summary: Summary, measure: str) -> str:
    rows = len(summary.results[0].scores)
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    seeds = f" over {summary.seeds} seeds" if summary.seeds > 1 else ""
    plural = "" if rows == 1 else "s"
    return f"{100 * summary.mean:.1f}{spread} % {measure} on {rows:,} test row{plural}{seeds}"


def _format_percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f} %"


def _join_names(names: Sequence[str]) -> str:
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
        warnings: about the rows.
    """

    protocol: Protocol
    base: Recipe
    recipe: str
    rows: Mapping[str, int]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def describe_conditions(
    conditions: Conditions, *, summaries: Sequence[Summary], searched: Sequence[SearchResult]
) -> list[tuple[str, str]]:
    """Describe the conditions of measurement.

    Args:
        conditions: that all variants share.
        summaries: of the variants and baselines.
        searched: the searches for learning rates.

    Returns:
        Topics, each with its text.
    """
    protocol = conditions.protocol
    parts = [
        ("Backbone", conditions.base.backbone.name),
        ("Rows", _describe_rows(conditions.rows)),
        ("Readout", _describe_readout(conditions.base)),
        ("Warnings", " ".join(conditions.warnings)),
        ("Seeds", _describe_seeds(conditions.base.seed, protocol.num_seeds)),
        ("Budget", " ".join(_describe_budget(conditions, summaries))),
        ("Learning rates", _describe_search(protocol)),
        ("Selected multiples", _list_multipliers(searched)),
        ("Selection", _describe_selection(conditions.base)),
        ("Test", "Each run predicts the test rows once, with its best state by validation."),
        ("Intervals", _describe_intervals(summaries)),
        ("Seconds", _SECONDS),
        ("Versions", ", ".join(f"{name} {number}" for name, number in conditions.versions.items())),
    ]
    return [(topic, text) for topic, text in parts if text]


_SECONDS = (
    "Wall-clock time of training with its validations, without the search, and without cached "
    "states that are computed once for all runs on the same rows."
)


def _describe_rows(rows: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    return f"{counts}: sampled once, the same for all variants and seeds."


def _describe_seeds(first: int, count: int) -> str:
    if count == 1:
        return f"One, {first}: the variation over seeds is unknown."
    last = first + count - 1
    return f"{count}, from {first} to {last}: of the initialization and the order of rows."


def _describe_budget(conditions: Conditions, summaries: Sequence[Summary]) -> Iterator[str]:
    seconds, train = conditions.protocol.time_budget_seconds, conditions.base.train
    if seconds is not None:
        yield f"As many steps as fit into {seconds:g} seconds."
    elif train.max_steps is not None:
        yield f"{train.max_steps:,} steps of {train.batch_size} rows."
    else:
        passes = "pass" if train.epochs == 1 else "passes"
        yield f"{train.epochs} {passes} over the training rows, {train.batch_size} at a time."
    costs = [result.cost for summary in summaries for result in summary.results]
    steps = {cost.steps for cost in costs if cost is not None and cost.steps}
    if steps:
        least, most = min(steps), max(steps)
        number = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"That is {number} steps per run."
    if train.early_stopping_patience is not None:
        count = train.early_stopping_patience
        yield f"A run ends early after {count} validations without a better one."


def _describe_search(protocol: Protocol) -> str:
    if len(protocol.lr_multipliers) < 2:  # noqa: PLR2004  # nothing to choose from
        return f"Not searched: that of each variant, times {protocol.lr_multipliers[0]:g}."
    tried = ", ".join(f"{multiplier:g}" for multiplier in sorted(protocol.lr_multipliers))
    return (
        f"That of each variant times {tried}, each tried for {protocol.search_fraction:.0%} of the "
        "steps with the first seed; the best by validation is used for all seeds."
    )


def _list_multipliers(searched: Sequence[SearchResult]) -> str:
    searches = [result for result in searched if len(result.scores) > 1]
    return ", ".join(f"{result.variant} {result.multiplier:g}" for result in searches)


def _describe_selection(base: Recipe) -> str:
    select = base.train.best_metric
    best = "lowest loss" if select == "loss" else f"highest {select}"
    return f"Of each run, the state with the {best} on the validation rows."


def _describe_intervals(summaries: Sequence[Summary]) -> str:
    if not any(summary.difference for summary in summaries):
        return ""
    return (
        "95 %, by a paired bootstrap over test rows of the mean over seeds. They cover the "
        "sampling of rows; ± covers the seeds."
    )


def _describe_readout(base: Recipe) -> str:
    """The states that trained heads and the linear probe read; empty without a head."""
    settings = base.task_settings
    if not isinstance(settings, Classify) or settings.verbalizer is not None:
        return ""
    return f"{settings.pooling}, of all trained heads and of the linear probe"
