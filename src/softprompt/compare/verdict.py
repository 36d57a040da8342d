"""What a comparison says, in a paragraph made of its numbers."""

from collections.abc import Iterator, Sequence

from softprompt.compare.outcome import Failed
from softprompt.compare.report import best_first
from softprompt.compare.statistics import Difference, Summary


def verdict(found: Sequence[Summary], *, failed: Sequence[Failed], measure: str) -> str:
    """Which prompt is best, by how much over which control, and whether that is certain.

    Args:
        measure: what a score is called.
    """
    return " ".join(_sentences(best_first(found), failed, measure))


def _sentences(ordered: Sequence[Summary], failed: Sequence[Failed], measure: str) -> Iterator[str]:
    prompts = [summary for summary in ordered if not summary.control]
    controls = [summary for summary in ordered if summary.control]
    if prompts:
        yield from _best(prompts, measure)
        yield from _over(prompts, controls)
    elif controls:
        yield "No prompt was trained to its end, so there is nothing to compare the controls with."
        yield f"The best of them is {controls[0].arm}: {_scored(controls[0], measure)}."
    else:
        yield "Nothing came to its end, so there is nothing to compare."
    names = list(dict.fromkeys(one.arm for one in failed))
    if names:
        verb = "failed and is" if len(names) == 1 else "failed and are"
        yield f"{_listed(names)} {verb} told of below."


def _best(prompts: Sequence[Summary], measure: str) -> Iterator[str]:
    best, *others = prompts
    if not others:
        yield f"{best.arm} is the only prompt: {_scored(best, measure)}."
        return
    level = [other.arm for other in others if other.mean == best.mean]
    if level:
        yield f"{_listed([best.arm, *level])} are level: {_scored(best, measure)}."
    else:
        known = f"{best.arm} is the best of {len(prompts)} prompts: {_scored(best, measure)}"
        yield f"{known}; next comes {others[0].arm} with {_percent(others[0])}."


def _over(prompts: Sequence[Summary], controls: Sequence[Summary]) -> Iterator[str]:
    best = prompts[0]
    lead = best.difference
    if lead is None:
        yield "There was no control, so nothing says what these numbers are worth."
        return
    control = next(summary for summary in controls if summary.arm == lead.control)
    points = f"{abs(100 * lead.mean):.1f} points"
    where = "above" if lead.mean > 0 else "below"
    said = f"{points} {where}" if points != "0.0 points" else "level with"
    yield f"That is {said} the best control, {control.arm} ({_percent(control)})."
    yield _certainty(lead)
    for constant in controls:
        if constant.arm == "majority" != lead.control and constant.mean >= best.mean:
            yield f"Even majority, the same answer to every row, has {_percent(constant)}."
    own, theirs = best.outcomes[-1].cost, control.outcomes[-1].cost
    if own is not None and theirs is not None:
        share = f"{own.trainable / own.parameters:.3%} of the backbone's"
        yield f"It trains {own.trainable:,} parameters ({share}), the control {theirs.trainable:,}."


def _certainty(lead: Difference) -> str:
    interval = f"The 95 % interval of the difference, {interval_said(lead)}"
    if lead.low <= 0 <= lead.high:
        return f"{interval}, holds 0: these test rows do not tell the two apart."
    better = "better" if lead.mean > 0 else "worse"
    return f"{interval}, does not hold 0: on such rows the prompt is {better} than the control."


def interval_said(lead: Difference) -> str:
    """The ends of an interval in points."""
    return f"{100 * lead.low:+.1f} to {100 * lead.high:+.1f}"


def _scored(summary: Summary, measure: str) -> str:
    rows = len(summary.outcomes[0].scores)
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    over = f" over {summary.seeds} seeds" if summary.seeds > 1 else ""
    plural = "" if rows == 1 else "s"
    return f"{100 * summary.mean:.1f}{spread} % {measure} on {rows:,} test row{plural}{over}"


def _percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f} %"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
