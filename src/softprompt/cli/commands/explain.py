"""``softprompt explain``: which words of a row moved a prediction, as text, JSON or a page."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, assert_never, cast, get_args

import typer

from softprompt._parsing import parse_json
from softprompt.cli.console import (
    format_columns,
    print_progress,
    print_status,
    print_styled,
)
from softprompt.cli.options import ArtifactPath, BestSoFar, PromptBackbone, load_prompt
from softprompt.cli.streaming import InputRow, is_table, read_table_rows, read_text_rows

if TYPE_CHECKING:
    from softprompt.analysis import Explanation, ExplanationMethod
    from softprompt.inference import Ensemble, PromptModel


class _Options(TypedDict):
    """The options of `explain_row`."""

    method: "ExplanationMethod"
    label: str | None
    word: int | None
    steps: int


ExplanationFormat = Literal["text", "json", "html"]
# The format of a file by its suffix.
_FORMATS: dict[str, ExplanationFormat] = {
    ".html": "html",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
# The colours of the page: what made the label likelier, and less likely.
_FOR, _AGAINST = (0, 114, 178), (213, 94, 0)
# Less is not coloured.
_FAINTEST = 0.08
# The luminance from which black letters have more contrast than white ones (WCAG 2.1).
_BRIGHT = 0.179
_LUMINANCE, _GAMMA = (0.2126, 0.7152, 0.0722), 2.2
_BAR = 20


SingleText = Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The text.")]
JsonRow = Annotated[
    str | None, typer.Option("--row", metavar="JSON", help="A row of several fields, as JSON.")
]
RowsFile = Annotated[
    str | None, typer.Option("--input", metavar="FILE|-", help="Rows or lines; - is stdin.")
]
MethodName = Annotated[str, typer.Option("--method", help="integrated-gradients or leave-one-out.")]
LabelName = Annotated[
    str | None, typer.Option("--label", help="The label to explain (default: the prediction).")
]
WordNumber = Annotated[
    int | None,
    typer.Option("--word", min=0, help="Of tags: explain this word, from 0 (default: every span)."),
]
MostSteps = Annotated[int, typer.Option(min=1, help="The most steps of integrated gradients.")]
FormatName = Annotated[
    str | None, typer.Option("--format", help="text, json or html (default: by the file, or text).")
]
ResultFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a .html, .json, .jsonl or .txt.")
]


def explain(
    artifact: ArtifactPath,
    text: SingleText = None,
    row: JsonRow = None,
    source: RowsFile = None,
    method: MethodName = "integrated-gradients",
    label: LabelName = None,
    word: WordNumber = None,
    steps: MostSteps = 256,
    form: FormatName = None,
    output: ResultFile = None,
    backbone: PromptBackbone = None,
    best: BestSoFar = False,
) -> None:
    """Explain predictions: which words moved them, and how much."""
    if sum(given is not None for given in (text, row, source)) != 1:
        msg = "give a text, --row JSON or --input FILE (- for stdin), and one of them only"
        raise typer.BadParameter(msg)
    chosen = _choose_format(form, output)
    single = _read_single(text, row)
    from softprompt.data.writers import check_writable
    from softprompt.errors import DataError

    if output is not None:
        check_writable(output, sources=[source or ""], formats=[*_FORMATS])
    print_progress(f"loading {artifact} and its backbone …")
    model = load_prompt(artifact, backbone=backbone, best=best)
    rows = _read_rows(source or "", model) if single is None else [single]
    name = cast("ExplanationMethod", method)
    options = _Options(method=name, label=label, word=word, steps=steps)
    explained = _explain_rows(model, rows, options)
    count = _print(explained, chosen) if output is None else _write(explained, chosen, output)
    if not count:
        msg = f"{'stdin' if source == '-' else source} has no lines. Give at least one text."
        raise DataError(msg)


def _choose_format(name: str | None, output: Path | None) -> ExplanationFormat:
    """The format that is named, else that of the file, else text."""
    if name is None:
        return "text" if output is None else _FORMATS.get(output.suffix.lower(), "text")
    for known in get_args(ExplanationFormat):
        if name == known:
            return cast("ExplanationFormat", known)
    msg = f"--format {name!r} is not a format. Choose text, json or html."
    raise typer.BadParameter(msg)


def _read_single(text: str | None, row: str | None) -> InputRow | None:
    """The row of the arguments; None without one."""
    if row is None:
        return None if text is None else InputRow("the text", text)
    try:
        content = parse_json(row)
    except ValueError as error:
        msg = f'--row is not valid JSON: {error}. Write an object such as {{"text": "…"}}.'
        raise typer.BadParameter(msg) from error
    if not isinstance(content, dict):
        msg = f'--row is not an object. Write one such as {{"text": {json.dumps(content)}}}.'
        raise typer.BadParameter(msg)
    return InputRow("the row", content)


def _read_rows(source: str, model: "PromptModel | Ensemble") -> Iterator[InputRow]:
    """The rows of a table, or of lines."""
    if not is_table(source):
        yield from read_text_rows(source)
        return
    from softprompt.data import TextFormat

    flexible = model.task.flexible_columns
    form = TextFormat()
    for group in read_table_rows(source, model.fields, text_format=form, flexible=flexible):
        yield from group


def _explain_rows(
    model: "PromptModel | Ensemble", rows: Iterable[InputRow], options: _Options
) -> "Iterator[Explanation]":
    """Explain rows one by one; an error names the row."""
    from softprompt.analysis import explain_row
    from softprompt.errors import DataError

    for row in rows:
        try:
            yield from explain_row(model, row.read_content(), **options)
        except DataError as error:
            msg = f"{row.place}: {error}"
            raise DataError(msg) from error


def _print(explained: "Iterable[Explanation]", form: ExplanationFormat) -> int:
    """Print explanations, each when it is ready; return their number."""
    from softprompt.analysis import make_explanation_page

    if form == "html":
        explanations = [*explained]
        print(make_explanation_page(explanations) if explanations else "", end="")
        return len(explanations)
    count = 0
    for each in explained:
        count += 1
        if form == "json":
            print(_to_json(each), flush=True)
            continue
        print(_format_head(each) if count == 1 else f"\n{_format_head(each)}")
        if print_styled(_style_words(each)):
            print()
        print(_format_table(each), flush=True)
    return count


def _write(explained: "Iterable[Explanation]", form: ExplanationFormat, output: Path) -> int:
    """Write explanations to a file, when all are ready; return their number."""
    from softprompt._io import replace_file
    from softprompt.analysis import make_explanation_page

    explanations = [*explained]
    match form:
        case "text":
            content = "\n".join(f"{_format_head(e)}\n{_format_table(e)}\n" for e in explanations)
        case "json":
            content = "".join(f"{_to_json(e)}\n" for e in explanations)
        case "html":
            content = make_explanation_page(explanations) if explanations else ""
        case _:
            assert_never(form)
    if explanations:
        with replace_file(output) as fresh:
            fresh.write_text(content, encoding="utf-8")
        print_status(f"wrote {output}")
    return len(explanations)


def _to_json(explanation: "Explanation") -> str:
    return json.dumps(explanation.to_dict(), ensure_ascii=False)


def _format_head(explanation: "Explanation") -> str:
    steps = f", {explanation.steps} steps" if explanation.steps else ""
    return f"{explanation.title}  ({explanation.method.replace('-', ' ')}{steps})"


def _format_table(explanation: "Explanation") -> str:
    """The words, those that moved the score most first, and what they sum to."""
    from softprompt.analysis.explanation import describe_sum, sort_words

    words = sort_words(explanation)
    largest = abs(words[0].score) or 1.0
    several = len(explanation.fields) > 1
    table = [["word", *(["field"] if several else []), "score"]]
    table += [[w.text, *([w.field] if several else []), f"{w.score:+.4f}"] for w in words]
    bars = ["", *(_draw_bar(word.score / largest) for word in words)]
    lines = format_columns(table).split("\n")
    rows = (f"{line}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True))
    return "\n".join([*rows, describe_sum(explanation)])


def _draw_bar(share: float) -> str:
    return ("-" if share < 0 else "+") * round(abs(share) * _BAR)


def _style_words(explanation: "Explanation") -> Iterator[tuple[str, str]]:
    """The row's text with its words in colours, which are stronger for larger scores."""
    from softprompt.analysis.explanation import list_passages

    several = len(explanation.fields) > 1
    for number, field in enumerate(explanation.fields):
        yield "\n" if number else "", ""
        yield f"{field}: " if several else "", "bold"
        for part in list_passages(explanation, field):
            style = "dim" if part.is_unread else _choose_style(part.share)
            yield part.text, f"{style} underline".lstrip() if part.is_subject else style


def _choose_style(share: float) -> str:
    """Letters that can be read in light and dark terminals, on a colour as strong as the share."""
    if abs(share) < _FAINTEST:
        return ""
    strength = abs(share)
    colour = _AGAINST if share < 0 else _FOR
    parts = [round(255 - strength * (255 - part)) for part in colour]
    light = sum(w * (part / 255) ** _GAMMA for w, part in zip(_LUMINANCE, parts, strict=True))
    letters = "black" if light > _BRIGHT else "white"
    return f"{letters} on #{bytes(parts).hex()}"
