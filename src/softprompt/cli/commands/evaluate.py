"""``softprompt evaluate``: metrics of a prompt, or of an ensemble, on labelled rows."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from softprompt.cli.console import format_columns, format_scores, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson, BatchSize

if TYPE_CHECKING:
    from softprompt.data import Table
    from softprompt.inference import Vote


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
    if ensemble:
        _check_artifacts(more or [])
        paths, rows = [artifact, *map(Path, more or [])], _Rows(data, split)
        _evaluate_ensemble(
            paths, rows, vote=vote or "majority", batch_size=batch_size, as_json=as_json
        )
        return
    _check_vote(vote)
    rows = _Rows(_choose_source(artifact, more or [], data), split)
    _evaluate_one(artifact, rows, batch_size=batch_size, as_json=as_json)


@dataclass(frozen=True)
class _Rows:
    """The rows to evaluate on.

    Args:
        source: a file or data set; None for the data of the artifact's recipe.
        split: of that data; None for the default.
    """

    source: str | None
    split: str | None

    @property
    def name(self) -> str:
        """The name of the rows in the result."""
        if self.source is None:
            return self.split or "test"
        return self.source if self.split is None else f"{self.source} {self.split}"

    @property
    def recipe_split(self) -> str | None:
        """The split of the recipe's data; None if there is a source, or for the default."""
        return self.split if self.source is None else None

    def read(self) -> "Table | None":
        """Read the source; None without one."""
        from softprompt.data import read_source

        return None if self.source is None else read_source(self.source, split=self.split)


def _evaluate_one(artifact: Path, rows: _Rows, *, batch_size: int, as_json: bool) -> None:
    from softprompt.inference import PromptModel
    from softprompt.train.api import to_dict

    model = PromptModel.from_pretrained(artifact)
    report = model.evaluate(
        rows.read(), split=rows.recipe_split, batch_size=batch_size, name=rows.name
    )
    _report_truncated(report.truncated, report.rows)
    metrics = to_dict(report)
    if as_json:
        print_json({"artifact": str(artifact), "data": rows.name, **metrics})
    else:
        print(format_scores(metrics))


def _evaluate_ensemble(
    paths: Sequence[Path], rows: _Rows, *, vote: "Vote", batch_size: int, as_json: bool
) -> None:
    """Load the artifacts on one copy of their backbone, evaluate and print."""
    from softprompt.inference import Ensemble, PromptModel
    from softprompt.train.api import to_dict

    first = PromptModel.from_pretrained(paths[0])
    others = [PromptModel.from_pretrained(path, backbone=first.backbone) for path in paths[1:]]
    reports = Ensemble([first, *others], vote=vote).evaluate_members(
        rows.read(), split=rows.recipe_split, batch_size=batch_size, name=rows.name
    )
    members = []
    for path, report in zip(paths, reports.members, strict=True):
        _report_truncated(report.truncated, report.rows, prefix=f"{path}: ")
        members.append({"artifact": str(path), **to_dict(report)})
    metrics, summary = to_dict(reports.ensemble), _summarize_members(members)
    if as_json:
        result = {"data": rows.name, "vote": vote, **metrics, **summary, "members": members}
        print_json(result)
    else:
        _print_ensemble(metrics, summary, members=members, vote=vote)


def _report_truncated(truncated: int, rows: int, *, prefix: str = "") -> None:
    if truncated:
        print_status(f"{prefix}{truncated:,} of {rows:,} rows are too long and were truncated")


def _summarize_members(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean and the best of the members by accuracy or exact match."""
    metric = "accuracy" if "accuracy" in members[0] else "exact_match"
    values = [float(member[metric]) for member in members]
    return {"metric": metric, "mean": sum(values) / len(values), "best": max(values)}


def _print_ensemble(
    metrics: dict[str, Any],
    summary: dict[str, Any],
    *,
    members: Sequence[dict[str, Any]],
    vote: "Vote",
) -> None:
    metric = summary["metric"]
    losses = [member["loss"] for member in members]
    rows = [
        *([member["artifact"], member[metric], member["loss"]] for member in members),
        ["mean of the members", summary["mean"], sum(losses) / len(losses)],
        ["best of the members", summary["best"], min(losses)],
        [f"ensemble ({vote})", metrics[metric], metrics["loss"]],
    ]
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in rows]
    print(format_columns([["", metric, "loss"], *cells]))
    print(f"\nensemble\n{format_scores(metrics)}")


def _check_vote(vote: str | None) -> None:
    if vote is not None:
        msg = "--vote is for an ensemble. Leave it out, or add --ensemble."
        raise typer.BadParameter(msg)


def _choose_source(artifact: Path, others: Sequence[str], data: str | None) -> str | None:
    """The data to evaluate on; None for the data of the artifact's recipe."""
    sources = [*others, *([] if data is None else [data])]
    artifacts = [path for path in sources if _is_artifact(path)]
    if artifacts:
        files = [path for path in sources if path not in artifacts]
        command = ["softprompt", "evaluate", str(artifact), *artifacts, "--ensemble"]
        command += ["--data", files[0]] if files else []
        msg = (
            f"{artifacts[0]} is an artifact, not data. To evaluate an ensemble: "
            f"{shlex.join(command)}"
        )
        raise typer.BadParameter(msg)
    if len(sources) > 1:
        msg = (
            f"{len(sources)} data sets are given ({', '.join(sources)}), but a prompt is evaluated "
            "on one at a time. Give one."
        )
        raise typer.BadParameter(msg)
    return sources[0] if sources else None


def _check_artifacts(paths: Sequence[str]) -> None:
    """With ``--ensemble`` all arguments are artifacts."""
    files = [path for path in paths if not Path(path).is_dir() and Path(path).suffix]
    if files:
        msg = (
            f"{files[0]} is not the folder of an artifact. With --ensemble, give data by --data "
            f"{files[0]}."
        )
        raise typer.BadParameter(msg)


def _is_artifact(path: str) -> bool:
    """Whether it is the folder of an artifact, or of a run with one."""
    from softprompt.artifact.store import MANIFEST, find_artifact

    return Path(path).is_dir() and (find_artifact(Path(path)) / MANIFEST).is_file()
