"""``softprompt predict``: predictions for texts or rows, in order, as JSON lines or in a file."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from softprompt.cli.console import print_progress, print_status
from softprompt.cli.options import (
    AnswerChanges,
    ArtifactPath,
    BatchSize,
    BestSoFar,
    CellSeparator,
    HasHeader,
    PromptBackbone,
    TextEncoding,
    load_prompt,
)
from softprompt.cli.streaming import InputRow, group_rows, is_table, read_table_rows, read_text_rows

if TYPE_CHECKING:
    from softprompt.data import TextFormat
    from softprompt.inference import Ensemble, PromptModel
    from softprompt.tasks import Prediction

    _Predicted: TypeAlias = Iterator[tuple[InputRow, Prediction]]


Texts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to predict.")]
InputFile = Annotated[
    str | None,
    typer.Option("--input", metavar="FILE|-", help="A file of rows or lines; - is stdin."),
]
AnswerFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write rows and predictions to a .csv, .tsv, .jsonl or .parquet."
    ),
]
AlwaysJson = Annotated[bool, typer.Option("--json", help="No effect: output is always JSON lines.")]


def predict(
    artifact: ArtifactPath,
    texts: Texts = None,
    source: InputFile = None,
    output: AnswerFile = None,
    backbone: PromptBackbone = None,
    best: BestSoFar = False,
    separator: CellSeparator = None,
    encoding: TextEncoding = None,
    header: HasHeader = None,
    changes: AnswerChanges = None,
    batch_size: BatchSize = 32,
    _as_json: AlwaysJson = False,
) -> None:
    """Predict texts or rows: JSON lines, or a file."""
    if bool(texts) == bool(source):
        msg = "give texts, or --input FILE (- for stdin), and not both"
        raise typer.BadParameter(msg)
    _check_text_options(source, separator=separator, encoding=encoding, header=header)
    print_progress(f"loading {artifact} and its backbone …")
    from softprompt.data import TextFormat
    from softprompt.data.writers import check_writable
    from softprompt.errors import DataError

    if output is not None:
        check_writable(output, sources=[source or ""])
    model = load_prompt(artifact, backbone=backbone, best=best, changes=changes or ())
    groups = _read_groups(
        texts or [],
        source,
        model.fields,
        text_format=TextFormat(separator, encoding, header),
    )
    predicted = (_predict(model, group, batch_size=batch_size) for group in groups)
    count = _print_rows(predicted) if output is None else _write_rows(predicted, model, output)
    if not count:
        msg = f"{'stdin' if source == '-' else source} has no lines. Give at least one text."
        raise DataError(msg)


def _check_text_options(
    source: str | None, *, separator: str | None, encoding: str | None, header: bool | None
) -> None:
    """Refuse options that would have no effect."""
    if source is not None and is_table(source):
        return
    given = {"--separator": separator, "--header": header}
    given |= {"--encoding": encoding} if source is None else {}
    for name, value in given.items():
        if value is not None:
            what = "texts" if source is None else "lines of text"
            msg = f"{name} is for files of rows, not for {what}. Leave it out."
            raise typer.BadParameter(msg)


def _print_rows(groups: "Iterator[_Predicted]") -> int:
    """Print a line for each row, group by group as they are predicted; return their number."""
    from softprompt.data.writers import dump_row

    count = 0
    for group in groups:
        for row, prediction in group:
            print(dump_row(_to_dict(row, prediction)))
            count += 1
        print(end="", flush=True)
    return count


def _write_rows(
    groups: "Iterator[_Predicted]", model: "PromptModel | Ensemble", output: Path
) -> int:
    """Write the rows to a file, also those before one that cannot be predicted."""
    from softprompt.data.writers import is_flat, write_rows
    from softprompt.inference.answers import check_own_columns, make_answer_row, name_answer_columns

    flat, rows = is_flat(output), list[dict[str, object]]()
    added = name_answer_columns(model.task, flat=flat, evaluated=False)
    try:
        for row, prediction in chain.from_iterable(groups):
            own = _get_columns(row)
            check_own_columns([*own], added, where=row.place)
            rows.append(make_answer_row(own, prediction, flat=flat))
    finally:
        if rows:
            write_rows(output, rows)
            print_status(f"{len(rows):,} rows are written to {output}")
    return len(rows)


def _read_groups(
    texts: list[str],
    source: str | None,
    fields: tuple[str, ...],
    *,
    text_format: "TextFormat",
) -> Iterator[list[InputRow]]:
    """Groups of rows, from the arguments, a table, or lines."""
    if source is None:
        yield [InputRow(f"text {n}", text) for n, text in enumerate(texts, 1)]
    elif is_table(source):
        yield from read_table_rows(source, fields, text_format=text_format)
    else:
        yield from group_rows(read_text_rows(source, text_format.encoding))


def _predict(
    model: "PromptModel | Ensemble", group: list[InputRow], *, batch_size: int
) -> Iterator[tuple[InputRow, "Prediction"]]:
    """Predict a group of rows; the rows before a faulty one are still predicted.

    Raises:
        DataError: a row cannot be predicted; the message names the row.
    """
    from softprompt.errors import DataError, SoftpromptError

    try:
        predictions = model.predict([row.read_content() for row in group], batch_size=batch_size)
    except SoftpromptError as error:
        if len(group) == 1:
            msg = f"{group[0].place}: {error}"
            raise DataError(msg) from error
        for row in group:
            yield from _predict(model, [row], batch_size=batch_size)
        return
    yield from zip(group, predictions, strict=True)


def _get_columns(row: InputRow) -> Mapping[str, object]:
    """The row's own columns."""
    content = row.read_content()
    return {"text": content} if isinstance(content, str) else content


def _to_dict(row: InputRow, prediction: "Prediction") -> dict[str, object]:
    """A row and its prediction as plain data; the prediction replaces columns of its names."""
    own = _get_columns(row)
    if not prediction.probabilities:
        return {**own, "answer": prediction.label, **prediction.details}
    rounded = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    return {**own, "label": prediction.label, **prediction.details, "probabilities": rounded}
