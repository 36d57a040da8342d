"""Data sets of the Hugging Face Hub."""

from typing import Never

from softprompt.data.rows import Rows
from softprompt.errors import DataError, UnreachableError


def read_hub(source: str, *, split: str | None) -> Rows:
    """Load a data set by its Hub name, from the network or from what is cached.

    Args:
        source: ``name`` or ``name:config``; ``name@revision`` is that branch, tag or commit.
        split: which part; may be left out where there is only one.

    Returns:
        Its rows; columns of numbered classes hold the classes' names.

    Raises:
        DataError: the name, configuration or split does not exist.
        UnreachableError: the Hub cannot be reached, and the data set is not cached.
    """
    import datasets

    place, _, config = source.partition(":")
    name, _, revision = place.partition("@")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # noqa: BLE001, every fault on the way is told
        _explain(source, error)
    if isinstance(loaded, datasets.Dataset):
        return _with_names(loaded)
    parts = sorted(loaded)
    if len(parts) > 1:
        msg = f"data set {source!r} has the splits {', '.join(parts)}. Say which one is meant."
        raise DataError(msg)
    return _with_names(loaded[parts[0]])


def _explain(source: str, error: Exception) -> Never:
    import datasets

    match error:
        case datasets.exceptions.DatasetNotFoundError():
            msg = (
                f"there is no data set {source!r} on the Hub, or it is private. Check the name on "
                "the Hub's pages, log in with `hf auth login`, or name a local file."
            )
        case ConnectionError():
            msg = (
                f"data set {source!r} cannot be loaded: the Hub cannot be reached and nothing is "
                "cached on this machine. Connect once, or use a local file "
                "(csv, tsv, json, jsonl, parquet)."
            )
            raise UnreachableError(msg) from error
        case _:
            msg = (
                f"data set {source!r} cannot be loaded: {error}. "
                "Check name, configuration (name:config) and split, or use a local file."
            )
    raise DataError(msg) from error


def _with_names(rows: Rows) -> Rows:
    """The same rows with class numbers replaced by names (-1: no class is known)."""
    import datasets

    for column, feature in list(rows.features.items()):
        if isinstance(feature, datasets.ClassLabel):
            numbers = rows[column]
            words = [feature.names[n] if n is not None and n >= 0 else None for n in numbers]
            rows = rows.remove_columns(column).add_column(column, words)
    return rows
