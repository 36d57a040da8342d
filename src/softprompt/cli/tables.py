"""The rows that evaluate and show work on: a file's, or a split of the artifact's own data."""

from typing import TYPE_CHECKING

from softprompt.cli.say import note

if TYPE_CHECKING:
    from softprompt.data import Rows
    from softprompt.evaluate import Model


def table_of(
    model: "Model", data: str | None, *, split: str | None, own: str
) -> "tuple[Rows, str]":
    """The rows, and what to call them.

    Args:
        data: a file or data set; None for the data that the prompt was trained with.
        split: as the user named it.
        own: which split of the artifact's data it is if the user named none.
    """
    from softprompt.data import read
    from softprompt.train.rows import read_source

    if data is not None:
        table = read_source(data) if split is None else read(data, split=split)
        return table, data if split is None else f"{data} {split}"
    name = split or own
    return _own_split(model, name), name


def _own_split(model: "Model", name: str) -> "Rows":
    """A split of the data that the prompt was trained with."""
    from softprompt.errors import ArtifactError, unknown
    from softprompt.recipe import make_recipe
    from softprompt.train.rows import digest, read_splits

    manifest = model.artifact.manifest
    if not manifest.recipe.get("data"):
        msg = "the artifact does not say which data it was trained on. Name a file."
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
