"""The verdict on a finished run: its accuracy, compared with the baselines that cost little."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from softprompt.data.few_rows import compute_wilson_interval, count_rows
from softprompt.hub.model_card import MEMORY
from softprompt.inference.model import PromptModel, attach
from softprompt.tasks.config import has_trained_head
from softprompt.train.datasets import RenderedRows
from softprompt.train.plain_head import (
    HeadDecision,
    decide,
    fit_plain_head,
    make_plain_artifact,
    render_plain_rows,
)
from softprompt.train.results import Outcome, to_dict
from softprompt.train.seeds import describe_seeds
from softprompt.train.setup import RunSetup, evaluate_hard_prompt


def judge_run(outcome: Outcome, *, prepared: RunSetup) -> Outcome:
    """Keep the prompt of a run or a plain head, and compare it with the baselines.

    Test rows only measure: the decision is made without them.

    Args:
        outcome: the prompt of the run, or the ensemble of its seeds, with its metrics, also on the
            test rows if these are evaluated.
        prepared: the parts of the run.

    Returns:
        The prompt or the plain head, and the metrics with those of the verdict.
    """
    name = "prompt" if isinstance(outcome.model, PromptModel) else "ensemble"
    head = fit_plain_head(prepared)
    decision = decide(prepared, outcome.metrics, head=head, name=name)
    plain = attach(make_plain_artifact(prepared, head, decision=decision), prepared.backbone)
    found = dict(outcome.metrics)
    tested: dict[str, float] = {}
    if "test" in found:
        test = prepared.rows["test"]
        rows, batch_size = render_plain_rows(prepared, "test"), prepared.training.batch_size
        report = to_dict(plain.evaluate_rendered(rows.examples, rows.truth, batch_size=batch_size))
        tested = _measure_baselines(test, prepared) | {"linear probe": report[head.measure]}
        found["test_of_prompt"] = found["test"]
        if not decision.keeps_prompt:
            found["test"] = report
    if not decision.keeps_prompt:
        found["validation"] = dict(decision.head) if "validation" in prepared.rows else {}
    found |= {
        "plain_head": decision.as_data() | {"readout": head.pooling} | dict(head.settings),
        "baselines": tested,
        "kept": name if decision.keeps_prompt else "plain head",
    }
    found["verdict"] = describe_verdict(found, decision)
    if decision.keeps_prompt:
        return replace(outcome, metrics=found)
    return Outcome(plain, found, outcome.steps)


def describe_verdict(metrics: Mapping[str, Any], decision: HeadDecision) -> str:
    """The verdict in a few sentences.

    Args:
        metrics: with the scores on the test rows, if there are any, and those of the baselines.
        decision: between the prompt and the plain head.
    """
    test, baselines = metrics.get("test"), metrics["baselines"]
    sentences = [f"{str(decision)[:1].upper()}{str(decision)[1:]}."]
    if "seeds" in metrics:
        sentences.insert(0, describe_seeds(metrics["seeds"]))
    if not test:
        return " ".join(sentences)
    name = decision.name if decision.keeps_prompt else "plain head"
    sentences.append(_describe_test(test, name, decision.measure))
    others = {n: v for n, v in baselines.items() if decision.keeps_prompt or n != "linear probe"}
    best = max(others, key=lambda other: others[other])
    is_share = decision.measure == "accuracy"
    listed = ", ".join(
        f"{other} {value:.1%}" if is_share else f"{other} {value:.3f}"
        for other, value in others.items()
    )
    gap = test[decision.measure] - others[best]
    distance = f"{100 * abs(gap):.1f} points" if is_share else f"{abs(gap):.3f}"
    place = "above" if gap >= 0 else "below"
    sentences.append(f"Baselines: {listed}; it is {distance} {place} the best of them, the {best}.")
    return " ".join(sentences)


def _describe_test(test: Mapping[str, Any], name: str, measure: str) -> str:
    """The score on the test rows in a sentence, with its interval where it is a share."""
    rows = count_rows(test["rows"], "test")
    if measure != "accuracy":
        return f"On {rows} the {name} has a {measure} of {test[measure]:.3f}."
    low, high = compute_wilson_interval(test["accuracy"], test["rows"])
    return (
        f"On {rows} the {name} is right in {test['accuracy']:.1%} (95 % interval {low:.1%} to "
        f"{high:.1%})."
    )


def _measure_baselines(test: RenderedRows, prepared: RunSetup) -> dict[str, float]:
    """The score of the best constant answer, and of the hard prompt where there is one."""
    objective = prepared.task.objective
    constant = objective.choose_constant(prepared.rows["train"].truth)
    scores = objective.score_rows(test.truth, [constant] * len(test.truth))
    name = "majority" if objective.labels else "mean"
    found = {name: sum(scores) / len(scores)}
    recipe = prepared.recipe
    if not has_trained_head(recipe.task_settings) and recipe.data.train != MEMORY:
        report = evaluate_hard_prompt(recipe, split="test", backbone=prepared.backbone)
        found["hard prompt"] = report.metrics[objective.measure]
    return found
