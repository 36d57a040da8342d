"""``softprompt evaluate A B C --ensemble``: each prompt alone, and all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.cli.say import aligned, note, print_json
from softprompt.cli.scores import scores
from softprompt.cli.tables import table_of

if TYPE_CHECKING:
    from softprompt.evaluate import Ensemble, Vote


@dataclass(frozen=True)
class Asked:
    """What an ensemble is scored on.

    Args:
        data: a file or data set; None for the first artifact's own data.
        split: as the user named it.
        vote: how answers are made one.
        batch_size: rows run at once.
        as_json: whether programs read it.
    """

    data: str | None
    split: str | None
    vote: "Vote"
    batch_size: int
    as_json: bool


def together(paths: Sequence[Path], asked: Asked) -> None:
    """Load the artifacts on one copy of their backbone, score and say it."""
    from softprompt.artifact import load
    from softprompt.evaluate import Ensemble, bring, load_model, task_settings
    from softprompt.train.result import plain
    from softprompt.train.rows import check_tables, render

    first = load_model(paths[0])
    others = [bring(load(path), first.backbone) for path in paths[1:]]
    ensemble = Ensemble([first, *others], vote=asked.vote)
    table, where = table_of(first, asked.data, split=asked.split, own="test")
    if asked.data is None:
        _warn(ensemble, paths, where)
    check_tables({where: table}, task_settings(first.artifact.manifest), labels=first.labels)
    parts = [render(m.task, table, where=f"the {where} data") for m in ensemble.members]
    for path, rows in zip(paths, parts, strict=True):
        if rows.cut:
            note(f"{path}: {rows.cut:,} of {len(rows.truth):,} rows are too long and were cut")
    ballots = [*zip(*(rows.examples for rows in parts), strict=True)]
    verdict = ensemble.judge(ballots, parts[0].truth, batch_size=asked.batch_size)
    alone = [{"artifact": str(p), **plain(r)} for p, r in zip(paths, verdict.members, strict=True)]
    found = {"data": where, "vote": asked.vote, **plain(verdict.ensemble), **_spread(alone)}
    if asked.as_json:
        print_json({**found, "members": alone})
    else:
        _say(found, alone)


def _spread(alone: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The members' mean and best by the metric that the task is known by."""
    metric = "accuracy" if "accuracy" in alone[0] else "exact_match"
    values = [float(one[metric]) for one in alone]
    return {"metric": metric, "mean": sum(values) / len(values), "best": max(values)}


def _say(found: dict[str, Any], alone: Sequence[dict[str, Any]]) -> None:
    metric = found["metric"]
    rows = [[one["artifact"], one[metric], one["loss"]] for one in alone]
    losses = [one["loss"] for one in alone]
    rows += [
        ["mean of the members", found["mean"], sum(losses) / len(losses)],
        ["best of the members", found["best"], min(losses)],
        [f"ensemble ({found['vote']})", found[metric], found["loss"]],
    ]
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in rows]
    print(aligned([["", metric, "loss"], *cells]))
    own = {k: v for k, v in found.items() if k not in {"data", "vote", "metric", "mean", "best"}}
    print(f"\nensemble\n{scores(own)}")


def _warn(ensemble: "Ensemble", paths: Sequence[Path], split: str) -> None:
    """A member that held other rows back may have been trained on these."""
    wanted, *others = [m.artifact.manifest.data.get(split) for m in ensemble.members]
    for path, own in zip(paths[1:], others, strict=True):
        if own != wanted:
            note(
                f"warning: {path} was not trained with the same {split} rows as {paths[0]} (or "
                "reads other columns of them), so it may have been trained on these"
            )
