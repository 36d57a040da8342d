"""``softprompt init``: a commented recipe for a file of labelled text."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.say import note

if TYPE_CHECKING:
    from softprompt.cli.draft import Speaker

DEFAULT = "builtin:smollm2-135m-instruct"


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or data set to learn from.")],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.toml"),
    backbone: Annotated[
        str, typer.Option(help="Hub id, folder, .gguf file or builtin: name.")
    ] = DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
) -> None:
    """Write a commented recipe for a file of labelled text."""
    from softprompt.cli.draft import draft
    from softprompt.cli.guess import guess
    from softprompt.cli.held import hold
    from softprompt.errors import DataError
    from softprompt.train.rows import read_source

    if output.exists() and not force:
        msg = f"{output} is there already. Give another --output, or --force to replace it."
        raise DataError(msg)
    table = read_source(data)
    guessed = guess(table, data)
    held = hold(table, data, guessed)
    for remark in held.remarks:
        note(remark)
    home = output.resolve().parent
    text = draft(
        guessed,
        held,
        source=_seen_from(home, data),
        beside={name: _seen_from(home, path) for name, path in held.files.items()},
        speaker=_speaker(home, backbone),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    texts = " and ".join(map(repr, guessed.texts))
    print(f"wrote {output}: {texts} classified by {guessed.label!r} ({len(guessed.labels)} labels)")
    if guessed.group is not None and "validation" not in held.files:
        note(f"rows may belong together by {guessed.group!r}: see group in the recipe")
    note(f"\nNext:\n  softprompt check {output}\n  softprompt train {output}")


def _seen_from(home: Path, source: str) -> str:
    """How a recipe in ``home`` names a file; a data set's or model's name stays as it is."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    try:
        return Path(os.path.relpath(path.resolve(), home)).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())


def _speaker(home: Path, name: str) -> "Speaker":
    """What a recipe must know of its backbone."""
    from softprompt.cli.draft import Speaker
    from softprompt.errors import SoftpromptError

    seen = _seen_from(home, name)
    if name == DEFAULT:  # known, and slow to load
        return Speaker(seen, "causal", has_head=True)
    from softprompt.backbone import open_backbone

    try:
        found = open_backbone(name)
    except SoftpromptError as error:
        note(f"not looked at, and taken for a causal language model: {error}")
        return Speaker(seen, "causal", has_head=True)
    return Speaker(seen, found.geometry.kind, has_head=found.head is not None)
