"""``softprompt predict``: answer texts, one JSON line each, in their order."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.feed import Numbered, from_table, from_texts, is_table, windows
from softprompt.cli.options import Artifact, BatchSize

if TYPE_CHECKING:
    from softprompt.evaluate import Model
    from softprompt.tasks import Answer


def predict(
    artifact: Artifact,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to answer.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE|-", help="A file of rows or lines; - is stdin."),
    ] = None,
    batch_size: BatchSize = 32,
    _as_json: Annotated[bool, typer.Option("--json", help="As always: JSON lines.")] = False,
) -> None:
    """Answer texts, one JSON line each."""
    if bool(texts) == bool(source):
        msg = "give texts, or --input FILE (- for stdin), and not both"
        raise typer.BadParameter(msg)
    from softprompt.errors import DataError
    from softprompt.evaluate import load_model

    model = load_model(artifact)
    fields = tuple(dict.fromkeys(model.task.columns))
    count = 0
    for window in _windows(texts or [], source, fields):
        for row, answer in _answered(model, window, batch_size=batch_size):
            print(json.dumps(_line(row, answer, fields), ensure_ascii=False))
            count += 1
        _flush()
    if not count:
        msg = f"{'stdin' if source == '-' else source} has no lines. Give at least one text."
        raise DataError(msg)


def _windows(
    texts: list[str], source: str | None, fields: tuple[str, ...]
) -> Iterator[list[Numbered]]:
    """Some rows at a time, from wherever they are to come."""
    if source is None:
        yield [Numbered(f"text {n}", text) for n, text in enumerate(texts, 1)]
    elif is_table(source):
        yield from from_table(source, fields)
    else:
        yield from windows(from_texts(source))


def _answered(
    model: "Model", window: list[Numbered], *, batch_size: int
) -> Iterator[tuple[Numbered, "Answer"]]:
    """Answers to a window; a faulty row in it stops only what comes behind it.

    Raises:
        DataError: names the row.
    """
    from softprompt.errors import DataError, SoftpromptError

    try:
        answers = list(model.predict([row.content() for row in window], batch_size=batch_size))
    except SoftpromptError as error:
        if len(window) == 1:
            msg = f"{window[0].place}: {error}"
            raise DataError(msg) from error
        for row in window:
            yield from _answered(model, [row], batch_size=batch_size)
        return
    yield from zip(window, answers, strict=True)


def _line(row: Numbered, answer: "Answer", fields: tuple[str, ...]) -> dict[str, object]:
    """What is printed for one row."""
    content = row.content()
    own = {"text": content} if isinstance(content, str) else {f: content[f] for f in fields}
    if not answer.probabilities:
        return {**own, "answer": answer.label}
    rounded = {label: round(p, 6) for label, p in answer.probabilities.items()}
    return {**own, "label": answer.label, "probabilities": rounded}


def _flush() -> None:
    """Let a reader have what is ready."""
    print(end="", flush=True)
