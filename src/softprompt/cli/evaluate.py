"""``softprompt evaluate``: what a prompt is worth on rows whose right answers are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from softprompt.cli.options import Artifact, AsJson, BatchSize
from softprompt.cli.say import note, print_json
from softprompt.cli.scores import scores
from softprompt.cli.tables import table_of
from softprompt.cli.together import Asked, together


def evaluate(
    artifact: Artifact,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA|ARTIFACT",
            help="A file or data set, the recipe's own split if left out; with --ensemble, more "
            "artifacts.",
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Ask several artifacts together; each is scored too.")
    ] = False,
    vote: Annotated[
        Literal["majority", "mean"] | None,
        typer.Option(help="Of an ensemble: majority of labels, or the mean of probabilities."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="The file or data set, if not named behind."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of the recipe's data (test if left out), or of a Hub data set."),
    ] = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Score a prompt: metrics and confusion matrix."""
    others = more or []
    if ensemble:
        _check_artifacts(others)
        asked = Asked(data, split, vote or "majority", batch_size, as_json)
        together([artifact, *map(Path, others)], asked)
        return
    if vote is not None:
        msg = "one artifact alone cannot vote. Leave --vote out, or add --ensemble."
        raise typer.BadParameter(msg)
    source = _source(artifact, others, data)
    _alone(artifact, source, split=split, batch_size=batch_size, as_json=as_json)


def _alone(
    artifact: Path, source: str | None, *, split: str | None, batch_size: int, as_json: bool
) -> None:
    from softprompt.evaluate import load_model, task_settings
    from softprompt.train.result import plain
    from softprompt.train.rows import check_tables, render

    model = load_model(artifact)
    table, where = table_of(model, source, split=split, own="test")
    check_tables({where: table}, task_settings(model.artifact.manifest), labels=model.labels)
    rows = render(model.task, table, where=f"the {where} data")
    if rows.cut:
        note(f"{rows.cut:,} of {len(rows.truth):,} rows are too long and were cut")
    found = plain(model.judge(rows.examples, rows.truth, batch_size=batch_size))
    if as_json:
        print_json({"artifact": str(artifact), "data": where, **found})
    else:
        print(scores(found))


def _source(artifact: Path, others: Sequence[str], data: str | None) -> str | None:
    """The data to score on, if only one was named."""
    given = [*others, *([] if data is None else [data])]
    for path in given:
        if _is_artifact(path):
            msg = (
                f"{path} is an artifact, not data. To ask several artifacts together: softprompt "
                f"evaluate {artifact} {' '.join(others)} --ensemble"
            )
            raise typer.BadParameter(msg)
    if len(given) > 1:
        msg = (
            f"{len(given)} data sets were named ({', '.join(given)}), but a prompt is scored on "
            "one at a time. Name one."
        )
        raise typer.BadParameter(msg)
    return given[0] if given else None


def _check_artifacts(paths: Sequence[str]) -> None:
    """With ``--ensemble`` only artifacts are named by place."""
    rows = [path for path in paths if not Path(path).is_dir() and Path(path).suffix]
    if rows:
        msg = (
            f"{rows[0]} is no artifact's folder. With --ensemble the rows are named by --data "
            f"{rows[0]}."
        )
        raise typer.BadParameter(msg)


def _is_artifact(path: str) -> bool:
    """Whether it is an artifact's folder, or a run's that holds one."""
    from softprompt.artifact.files import MANIFEST, find

    return Path(path).is_dir() and (find(Path(path)) / MANIFEST).is_file()
