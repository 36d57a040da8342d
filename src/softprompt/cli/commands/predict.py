"""``softprompt predict``: predictions for texts or rows, one JSON object a line, in order."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import ArtifactPath, BatchSize
from softprompt.cli.streaming import InputRow, group_rows, is_table, read_table_rows, read_text_rows

if TYPE_CHECKING:
    from softprompt.inference import PromptModel
    from softprompt.tasks import Prediction


def predict(
    artifact: ArtifactPath,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to predict.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE|-", help="A file of rows or lines; - is stdin."),
    ] = None,
    batch_size: BatchSize = 32,
    _as_json: Annotated[
        bool, typer.Option("--json", help="No effect: output is always JSON lines.")
    ] = False,
) -> None:
    """Predict texts or rows, and print one JSON object a line."""
    if bool(texts) == bool(source):
        msg = "give texts, or --input FILE (- for stdin), and not both"
        raise typer.BadParameter(msg)
    from softprompt.errors import DataError
    from softprompt.inference import PromptModel

    model = PromptModel.from_pretrained(artifact)
    fields = tuple(dict.fromkeys(model.task.columns))
    count = 0
    for group in _read_groups(texts or [], source, fields):
        for row, prediction in _predict(model, group, batch_size=batch_size):
            print(json.dumps(_to_dict(row, prediction, fields), ensure_ascii=False))
            count += 1
        print(end="", flush=True)
    if not count:
        msg = f"{'stdin' if source == '-' else source} has no lines. Give at least one text."
        raise DataError(msg)


def _read_groups(
    texts: list[str], source: str | None, fields: tuple[str, ...]
) -> Iterator[list[InputRow]]:
    """Groups of rows, from the arguments, a table, or lines."""
    if source is None:
        yield [InputRow(f"text {n}", text) for n, text in enumerate(texts, 1)]
    elif is_table(source):
        yield from read_table_rows(source, fields)
    else:
        yield from group_rows(read_text_rows(source))


def _predict(
    model: "PromptModel", group: list[InputRow], *, batch_size: int
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


def _to_dict(row: InputRow, prediction: "Prediction", fields: tuple[str, ...]) -> dict[str, object]:
    """A row and its prediction as plain data."""
    content = row.read_content()
    inputs = {"text": content} if isinstance(content, str) else {f: content[f] for f in fields}
    if not prediction.probabilities:
        return {**inputs, "answer": prediction.label}
    rounded = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    return {**inputs, "label": prediction.label, "probabilities": rounded}
