"""``softprompt init``: a commented recipe for a file of labelled text."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import print_status
from softprompt.cli.options import CellSeparator, HasHeader, TextEncoding

if TYPE_CHECKING:
    from softprompt.recipe.column_roles import ColumnRoles


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or data set to learn from.")],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.toml"),
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder, .gguf file or builtin: name (default "
            "builtin:smollm2-135m-instruct)."
        ),
    ] = None,
    separator: CellSeparator = None,
    encoding: TextEncoding = None,
    header: HasHeader = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented recipe for a file of labelled text."""
    from softprompt._io import replace_file
    from softprompt.data import TextFormat
    from softprompt.errors import DataError
    from softprompt.recipe.drafting import draft_recipe

    if output.exists() and not force:
        msg = f"{output} exists already. Choose another --output, or add --force to replace it."
        raise DataError(msg)
    draft = draft_recipe(
        data,
        backbone=backbone,
        directory=output.parent,
        text_format=TextFormat(separator, encoding, header),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as fresh:
        fresh.write_text(draft.text, encoding="utf-8")
    print(f"wrote {output}: {describe_columns(draft.columns)}")
    for note in draft.notes:
        print_status(note)
    path = shlex.quote(str(output))
    print_status(f"\nNext:\n  softprompt check {path}\n  softprompt train {path}")


def describe_columns(columns: "ColumnRoles") -> str:
    """The columns of text and labels, in a few words."""
    texts = " and ".join(map(repr, columns.texts))
    if columns.labels:
        return f"{texts} classified by {columns.label!r} ({len(columns.labels)} labels)"
    if columns.multi_label:
        return f"{texts} with the labels in {columns.label!r}, any number for a row"
    if columns.kind == "tag":
        return f"the words of {texts} with the tags in {columns.label!r}"
    if columns.is_chat:
        return f"the conversations in {texts}, whose last answer is to be written"
    verbs = {"regress": "predict", "extract": "find", "choose": "choose"}
    verb = verbs.get(columns.kind, "write")
    return f"{texts} to {verb} {columns.label!r}"
