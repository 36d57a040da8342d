"""``softprompt show``: what a prompt is, how it was made, and what it looks like inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.facts import facts_of, said
from softprompt.cli.inside import (
    Look,
    as_data,
    attended_by,
    looks,
    model_for,
    names_of,
    pictures,
    said_of,
)
from softprompt.cli.options import Artifact, AsJson
from softprompt.cli.say import aligned, listed, note, print_json

if TYPE_CHECKING:
    from softprompt.artifact import Artifact as Loaded
    from softprompt.evaluate.look import Similarity

_FORMATS = (".png", ".svg", ".pdf")
_PICTURE = Path("similarity.png")


def show(
    artifact: Artifact,
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ARTIFACT", help="Others to compare it with."),
    ] = None,
    no_backbone: Annotated[
        bool, typer.Option("--no-backbone", help="Do not load the backbone; no nearest words.")
    ] = False,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Also how much attention rows pay to it, by layer."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Rows for --attention; its validation rows if left out."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A picture: .png, .svg or .pdf; of several, similarity.png."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a prompt is, how it was made and what is inside."""
    from softprompt.artifact import load

    paths = [artifact, *(more or [])]
    _check(len(paths), attention=attention, data=data, no_backbone=no_backbone, output=output)
    loaded = [load(path) for path in paths]
    similar = _similarity(loaded, paths) if len(paths) > 1 else None
    model = model_for(loaded, artifact, wanted=not no_backbone, needed=attention)
    found = looks(loaded, model)
    if attention and model is not None:
        found = attended_by(found, loaded, model=model, data=data)
    goal = output or (_PICTURE if similar else None)
    drawn = [] if goal is None else pictures(goal, found, names=names_of(paths), similar=similar)
    facts = [facts_of(one, path) for one, path in zip(loaded, paths, strict=True)]
    tell = _print if as_json else _say
    tell(facts, found, similar=similar, names=names_of(paths), drawn=drawn)


def _check(
    count: int, *, attention: bool, data: str | None, no_backbone: bool, output: Path | None
) -> None:
    """Refuse options that would do nothing."""
    if attention and no_backbone:
        msg = "--attention is the backbone's. Leave --no-backbone out."
        raise typer.BadParameter(msg)
    if data is not None and not attention:
        msg = f"--data {data} is for --attention, which was not asked for. Add it."
        raise typer.BadParameter(msg)
    if output is None:
        return
    if count == 1 and not attention:
        msg = f"there is nothing to draw in {output}. Name several artifacts, or add --attention."
        raise typer.BadParameter(msg)
    if output.suffix.lower() not in _FORMATS:
        msg = f"{output} is no picture's name. It must end in {', '.join(_FORMATS)}."
        raise typer.BadParameter(msg)


def _similarity(loaded: "list[Loaded]", paths: list[Path]) -> "Similarity":
    """How alike the prompts are.

    Raises:
        PromptError: they are of different kinds, or for different backbones.
    """
    from softprompt.backbone import same_model
    from softprompt.errors import PromptError
    from softprompt.evaluate.look import similarity

    first = loaded[0].manifest.backbone
    for one, path in zip(loaded[1:], paths[1:], strict=True):
        other = one.manifest.backbone
        if not same_model(first["fingerprint"], other["fingerprint"]):
            msg = (
                f"{paths[0]} is a prompt for {first['name']!r} and {path} one for "
                f"{other['name']!r}: vectors of different backbones have nothing in common. "
                "Compare prompts of one backbone."
            )
            raise PromptError(msg)
    return similarity([one.prompt for one in loaded])


def _matrices(found: "Similarity", names: list[str]) -> str:
    tables = {
        "similarity of the mean soft tokens (cosine)": found.pooled,
        "similarity of the best matching soft tokens (mean cosine)": found.matched,
    }
    said = ""
    for title, table in tables.items():
        rows = [[n, *(f"{x:.3f}" for x in row)] for n, row in zip(names, table, strict=True)]
        said += f"\n{title}\n{aligned([['', *names], *rows])}\n"
    return said.rstrip("\n")


def _say(
    facts: list[dict[str, Any]],
    found: list[Look],
    *,
    similar: "Similarity | None",
    names: list[str],
    drawn: list[Path],
) -> None:
    for number, (fact, look) in enumerate(zip(facts, found, strict=True)):
        print("\n" * bool(number) + listed(said(fact)) + said_of(look, fact))
    if similar is not None:
        print(_matrices(similar, names))
    for path in drawn:
        note(f"drawn: {path}")


def _print(
    facts: list[dict[str, Any]],
    found: list[Look],
    *,
    similar: "Similarity | None",
    names: list[str],
    drawn: list[Path],
) -> None:
    whole = [fact | as_data(look) for fact, look in zip(facts, found, strict=True)]
    pictures = {"pictures": [str(path) for path in drawn]} if drawn else {}
    if similar is None:
        print_json(whole[0] | pictures)
        return
    alike = {"names": names, "pooled": similar.pooled, "matched": similar.matched}
    print_json({"artifacts": whole, "similarity": alike, **pictures})
