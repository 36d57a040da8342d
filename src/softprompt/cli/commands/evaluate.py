"""``softprompt evaluate``: metrics of a prompt, or of an ensemble, on labelled rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from softprompt.cli.console import format_columns, format_scores, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson, BatchSize

if TYPE_CHECKING:
    from softprompt.inference import Vote


@dataclass(frozen=True)
class EnsembleOptions:
    """The options of an ensemble's evaluation.

    Args:
        data: a file or data set; None for the first artifact's own data.
        split: of the data.
        vote: how predictions are combined.
        batch_size: rows per batch.
        as_json: whether to print JSON.
    """

    data: str | None
    split: str | None
    vote: "Vote"
    batch_size: int
    as_json: bool


def name_rows(source: str | None, split: str | None) -> str:
    """A name for the rows to evaluate on."""
    if source is None:
        return split or "test"
    return source if split is None else f"{source} {split}"


def evaluate_ensemble(paths: Sequence[Path], asked: EnsembleOptions) -> None:
    """Load the artifacts on one copy of their backbone, evaluate and print."""
    from softprompt.data import read_source
    from softprompt.inference import Ensemble, PromptModel
    from softprompt.train.api import to_dict

    first = PromptModel.from_pretrained(paths[0])
    others = [PromptModel.from_pretrained(path, backbone=first.backbone) for path in paths[1:]]
    rows = None if asked.data is None else read_source(asked.data, split=asked.split)
    name = name_rows(asked.data, asked.split)
    reports = Ensemble([first, *others], vote=asked.vote).evaluate_members(
        rows,
        split=asked.split if asked.data is None else None,
        batch_size=asked.batch_size,
        name=name,
    )
    for path, report in zip(paths, reports.members, strict=True):
        if report.truncated:
            print_status(
                f"{path}: {report.truncated:,} of {report.rows:,} rows are too long and were "
                "truncated"
            )
    members = [
        {"artifact": str(p), **to_dict(r)} for p, r in zip(paths, reports.members, strict=True)
    ]
    summary = _summarize_members(members)
    found = {"data": name, "vote": asked.vote, **to_dict(reports.ensemble), **summary}
    if asked.as_json:
        print_json({**found, "members": members})
    else:
        _print_ensemble(found, members)


def _summarize_members(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean and the best of the members by accuracy or exact match."""
    metric = "accuracy" if "accuracy" in members[0] else "exact_match"
    values = [float(one[metric]) for one in members]
    return {"metric": metric, "mean": sum(values) / len(values), "best": max(values)}


def _print_ensemble(found: dict[str, Any], members: Sequence[dict[str, Any]]) -> None:
    metric = found["metric"]
    rows = [[one["artifact"], one[metric], one["loss"]] for one in members]
    losses = [one["loss"] for one in members]
    rows += [
        ["mean of the members", found["mean"], sum(losses) / len(losses)],
        ["best of the members", found["best"], min(losses)],
        [f"ensemble ({found['vote']})", found[metric], found["loss"]],
    ]
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in rows]
    print(format_columns([["", metric, "loss"], *cells]))
    own = {k: v for k, v in found.items() if k not in {"data", "vote", "metric", "mean", "best"}}
    print(f"\nensemble\n{format_scores(own)}")


def evaluate(
    artifact: ArtifactPath,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA|ARTIFACT",
            help="A file or data set (default: the recipe's test split); with --ensemble, more "
            "artifacts.",
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Evaluate several artifacts as an ensemble.")
    ] = False,
    vote: Annotated[
        Literal["majority", "mean"] | None,
        typer.Option(help="With --ensemble: majority of labels, or mean of probabilities."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Data to evaluate on (instead of the DATA argument)."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the recipe's data (default test), or of a Hub data set."),
    ] = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Evaluate a prompt: metrics and confusion matrix."""
    options = EnsembleOptions(data, split, vote or "majority", batch_size, as_json)
    if ensemble:
        _check_artifacts(more or [])
        evaluate_ensemble([artifact, *map(Path, more or [])], options)
        return
    _check_vote(vote)
    source = _choose_source(artifact, more or [], data)
    _evaluate_one(artifact, source, split=split, batch_size=batch_size, as_json=as_json)


def _check_vote(vote: str | None) -> None:
    if vote is not None:
        msg = "--vote is for an ensemble. Leave it out, or add --ensemble."
        raise typer.BadParameter(msg)


def _evaluate_one(
    artifact: Path, source: str | None, *, split: str | None, batch_size: int, as_json: bool
) -> None:
    from softprompt.data import read_source
    from softprompt.inference import PromptModel
    from softprompt.train.api import to_dict

    model = PromptModel.from_pretrained(artifact)
    rows = None if source is None else read_source(source, split=split)
    name = name_rows(source, split)
    own = split if source is None else None
    report = model.evaluate(rows, split=own, batch_size=batch_size, name=name)
    if report.truncated:
        print_status(
            f"{report.truncated:,} of {report.rows:,} rows are too long and were truncated"
        )
    found = to_dict(report)
    if as_json:
        print_json({"artifact": str(artifact), "data": name, **found})
    else:
        print(format_scores(found))


def _choose_source(artifact: Path, others: Sequence[str], data: str | None) -> str | None:
    """The data to evaluate on; None if none is given."""
    given = [*others, *([] if data is None else [data])]
    for path in given:
        if _is_artifact(path):
            msg = (
                f"{path} is an artifact, not data. To evaluate an ensemble: softprompt "
                f"evaluate {artifact} {' '.join(others)} --ensemble"
            )
            raise typer.BadParameter(msg)
    if len(given) > 1:
        msg = (
            f"{len(given)} data sets are given ({', '.join(given)}), but a prompt is evaluated on "
            "one at a time. Give one."
        )
        raise typer.BadParameter(msg)
    return given[0] if given else None


def _check_artifacts(paths: Sequence[str]) -> None:
    """With ``--ensemble`` all arguments are artifacts."""
    rows = [path for path in paths if not Path(path).is_dir() and Path(path).suffix]
    if rows:
        msg = (
            f"{rows[0]} is not the folder of an artifact. With --ensemble, give data by --data "
            f"{rows[0]}."
        )
        raise typer.BadParameter(msg)


def _is_artifact(path: str) -> bool:
    """Whether it is the folder of an artifact, or of a run with one."""
    from softprompt.artifact.store import MANIFEST, find_artifact

    return Path(path).is_dir() and (find_artifact(Path(path)) / MANIFEST).is_file()
