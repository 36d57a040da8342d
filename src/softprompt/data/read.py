"""Where rows come from: a file, a data set that needs no hub, or the Hub."""

from pathlib import Path

from softprompt.data.builtin import PREFIX, read_builtin
from softprompt.data.files import FORMATS, format_of, read_file
from softprompt.data.hub import read_hub
from softprompt.data.rows import Rows, check_columns
from softprompt.errors import DataError

__all__ = ["Rows", "check_columns", "read"]


def read(source: str, *, split: str | None = None) -> Rows:
    """Read a table.

    Args:
        source: a file (csv, tsv, json, jsonl, ndjson or parquet; all but parquet also with .gz,
            .bz2 or .xz), ``builtin:rotten-tomatoes``, or a Hub name (``name``, ``name:config``,
            ``name@revision:config``).
        split: which part of a Hub data set; a file has one part only, ``train``.

    Returns:
        The rows, read anew at every call.

    Raises:
        DataError: the source does not exist, cannot be read, or has no rows.
        MissingPackageError: the package that carries a builtin data set is not installed.
    """
    if source.startswith(PREFIX):
        _check_whole(source, split)
        return read_builtin(source.removeprefix(PREFIX))
    path = Path(source).expanduser()
    if _is_local(source, path):
        _check_whole(source, split)
        return read_file(path)
    return read_hub(source, split=split)


def _check_whole(source: str, split: str | None) -> None:
    if split not in (None, "train"):
        msg = (
            f"{source} is one table and has no split {split!r}. Leave the split out, or give the "
            f"{split!r} rows a file of their own."
        )
        raise DataError(msg)


def _is_local(source: str, path: Path) -> bool:
    """Whether a source means a file: it exists, or no Hub name looks like that."""
    return (
        path.exists()
        or format_of(path) in FORMATS
        or source.startswith((".", "/", "~"))
        or source.partition("@")[0].count("/") > 1
        or "\\" in source
        or ("/" not in source and bool(path.suffix))
        or (path.parent != Path() and path.parent.is_dir())
    )
