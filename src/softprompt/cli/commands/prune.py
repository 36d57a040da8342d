"""``softprompt prune``: how short a trained prompt can be, and the shorter artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import format_columns, print_json, print_progress, print_status
from softprompt.cli.options import ArtifactPath, AsJson, BatchSize, PromptBackbone

if TYPE_CHECKING:
    from softprompt.analysis import PruningResult


def prune(
    artifact: ArtifactPath,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Soft tokens to keep (default: as few as are as good as all)."),
    ] = None,
    metric: Annotated[str, typer.Option(help="The metric that chooses the length.")] = "loss",
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled rows (default: its validation rows)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the shorter artifact here.")
    ] = None,
    backbone: PromptBackbone = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Tell how short a trained prompt can be, and shorten it."""
    from softprompt.analysis import prune as shorten
    from softprompt.data import read_data
    from softprompt.inference import PromptModel

    print_progress(f"loading {artifact} and its backbone …")
    model = PromptModel.from_pretrained(artifact, backbone=backbone)
    rows = None if data is None else read_data(data)
    result = shorten(model, rows, length=length, metric=metric, batch_size=batch_size)
    if output is not None:
        result.model.save(output)
    if as_json:
        _print_as_json(result, output)
        return
    _print_table(result)
    if output is not None:
        print_status(f"wrote {output}")


def _print_table(result: "PruningResult") -> None:
    names = [*result.lengths[0].metrics]
    table = [["length", *names]]
    table += [
        [str(each.length), *(f"{each.metrics[name]:.4f}" for name in names)]
        for each in result.lengths
    ]
    print(format_columns(table))
    kept, total = result.chosen, len(result.importance)
    print(f"{kept.length} of {total} soft tokens are kept: {', '.join(map(str, kept.kept))}")


def _print_as_json(result: "PruningResult", output: Path | None) -> None:
    print_json(
        {
            "rows": result.rows,
            "importance": [*result.importance],
            "lengths": [
                {"length": each.length, "kept": [*each.kept], **each.metrics}
                for each in result.lengths
            ],
            "metric": result.metric,
            "length": result.chosen.length,
            "output": None if output is None else str(output),
        }
    )
