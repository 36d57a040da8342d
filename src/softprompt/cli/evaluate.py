"""``softprompt evaluate``: what a prompt is worth on rows whose right answers are known."""

from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import Artifact, AsJson, BatchSize
from softprompt.cli.say import note, print_json
from softprompt.cli.scores import scores

if TYPE_CHECKING:
    from softprompt.data import Rows
    from softprompt.evaluate import Model


def evaluate(
    artifact: Artifact,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="A file or data set; the recipe's own split if left out."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of the recipe's data (test if left out), or of a Hub data set."),
    ] = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Score a prompt: metrics and confusion matrix."""
    from softprompt.evaluate import load_model, task_settings
    from softprompt.train.rows import check_tables, render
    from softprompt.train.run import plain

    model = load_model(artifact)
    table, where = _table(model, data, split)
    check_tables({where: table}, task_settings(model.artifact.manifest), labels=model.labels)
    rows = render(model.task, table, where=f"the {where} data")
    if rows.cut:
        note(f"{rows.cut:,} of {len(rows.truth):,} rows are too long and were cut")
    found = plain(model.judge(rows.examples, rows.truth, batch_size=batch_size))
    if as_json:
        print_json({"artifact": str(artifact), "data": where, **found})
    else:
        print(scores(found))


def _table(model: "Model", data: str | None, split: str | None) -> tuple["Rows", str]:
    """The rows to score on, and what to call them."""
    from softprompt.data import read
    from softprompt.train.rows import read_source

    if data is not None:
        table = read_source(data) if split is None else read(data, split=split)
        return table, data if split is None else f"{data} {split}"
    name = split or "test"
    return _own_split(model, name), name


def _own_split(model: "Model", name: str) -> "Rows":
    """A split of the data that the prompt was trained with."""
    from softprompt.errors import ArtifactError, unknown
    from softprompt.recipe import make_recipe
    from softprompt.train.rows import digest, read_splits

    manifest = model.artifact.manifest
    if not manifest.recipe.get("data"):
        msg = "the artifact does not say which data it was trained on. Name a file to evaluate on."
        raise ArtifactError(msg)
    recipe = make_recipe(manifest.recipe)
    tables = read_splits(recipe.data, seed=recipe.seed)
    if name not in tables:
        msg = f"in the recipe's data: {unknown('split', name, options=tables)} Or name a file."
        raise ArtifactError(msg)
    columns = [*model.task.columns, model.task.target_column]
    match manifest.data.get(name):
        case {"sha256": str(known)} if known != digest(tables[name], columns):
            note(f"warning: the {name} data has changed since the prompt was trained")
    return tables[name]
