"""What `show` looks at inside prompts: nearest words, norms, ways, attention; and its pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.cli.facts import moves
from softprompt.cli.say import aligned, note
from softprompt.cli.tables import table_of

if TYPE_CHECKING:
    from softprompt.artifact import Artifact
    from softprompt.evaluate import Model
    from softprompt.evaluate.look import Attended, Similarity, Site, SoftToken

MOST = 64


@dataclass(frozen=True)
class Look:
    """What was seen of a prompt.

    Args:
        tokens: the nearest words of each soft token; empty where they were not looked for.
        sites: the norms of a prefix by layer.
        attention: by layer; None where it was not looked for.
        rows: on which rows attention was looked for.
    """

    tokens: "tuple[SoftToken, ...]" = ()
    sites: "tuple[Site, ...]" = ()
    attention: "tuple[Attended, ...] | None" = None
    rows: str = ""


def model_for(
    loaded: "Sequence[Artifact]", path: Path, *, wanted: bool, needed: bool
) -> "Model | None":
    """The first artifact at work; None where its backbone tells nothing or cannot be had.

    Args:
        wanted: whether the backbone may be loaded.
        needed: whether it is an error that it cannot be had, and not a note.
    """
    from softprompt.errors import BackboneError, MissingPackageError
    from softprompt.evaluate import load_model
    from softprompt.prompt import InputPrompt

    if needed:
        return load_model(path)
    prompts = [one.prompt for one in loaded]
    if not wanted or not any(isinstance(p, InputPrompt) and not p.layer for p in prompts):
        return None
    try:
        return load_model(path)
    except (BackboneError, MissingPackageError) as error:
        note(f"no nearest words: {error}")
        return None


def looks(loaded: "Sequence[Artifact]", model: "Model | None") -> list[Look]:
    """Nearest words and norms of prompts of one backbone.

    Args:
        model: one on that backbone, if it is loaded.
    """
    from softprompt.evaluate.look import nearest, sizes
    from softprompt.prompt import InputPrompt, KVPrefix

    found = []
    for one in loaded:
        match one.prompt:
            case KVPrefix() as prefix:
                found.append(Look(sites=tuple(sizes(prefix))))
            case InputPrompt(layer=0) as prompt if model is not None:
                found.append(Look(tokens=tuple(nearest(prompt, model.backbone))))
            case _:
                found.append(Look())
    return found


def attended_by(
    found: Sequence[Look], loaded: "Sequence[Artifact]", *, model: "Model", data: str | None
) -> list[Look]:
    """The same looks, and the attention that rows pay to each prompt.

    Args:
        model: the first of the prompts at work.
        data: the rows; None for each one's own validation rows.

    Raises:
        SoftpromptError: the backbone has an attention of its own, or the rows do not fit.
    """
    from softprompt.data import check_columns
    from softprompt.evaluate import bring
    from softprompt.evaluate.look import shares

    models = [model, *(bring(one, model.backbone) for one in loaded[1:])]
    seen = []
    for look, one in zip(found, models, strict=True):
        table, where = table_of(one, data, split=None, own="validation")
        check_columns(table, [*one.task.columns], where=f"the {where} data")
        table = table.select(range(min(MOST, len(table))))
        rows = table.select_columns([*{*one.task.columns}]).to_list()
        given = tuple(shares(one, rows))
        seen.append(replace(look, attention=given, rows=f"{len(rows)} rows of {where}"))
    return seen


def pictures(
    goal: Path,
    found: Sequence[Look],
    *,
    names: Sequence[str],
    similar: "Similarity | None",
) -> list[Path]:
    """Draw the similarity of several prompts, and the attention to them if it was looked for.

    Returns:
        What was written: ``goal``, or with both ``goal`` and ``…-attention`` beside it.
    """
    from softprompt.evaluate.look import draw_attention, draw_similarity

    figures = {}
    if similar is not None:
        figures[goal] = draw_similarity(similar, names)
    given = {n: look.attention for n, look in zip(names, found, strict=True) if look.attention}
    if given:
        path = goal if similar is None else goal.with_stem(f"{goal.stem}-attention")
        figures[path] = draw_attention(given)
    for path, figure in figures.items():
        figure.savefig(path, dpi=120)
    return [*figures]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each artifact: its run's folder, or the whole path where that is taken."""
    short = [p.resolve().parent.name if p.name == "artifact" else p.resolve().name for p in paths]
    return short if len({*short}) == len(short) else [str(path) for path in paths]


def as_data(look: Look) -> dict[str, Any]:
    """What was seen, for programs."""
    found: dict[str, Any] = {}
    if look.tokens:
        found["soft_tokens"] = [asdict(token) for token in look.tokens]
    if look.sites:
        found["sites"] = [asdict(site) for site in look.sites]
    if look.attention is not None:
        found["attention"] = [asdict(one) for one in look.attention]
    return found


def said_of(look: Look, facts: dict[str, Any]) -> str:
    """What was seen, for people."""
    parts = [_tokens(look, facts), _sites(look, facts), _attention(look)]
    return "".join(f"\n\n{part}" for part in parts if part)


def _tokens(look: Look, facts: dict[str, Any]) -> str:
    """A line for each soft token of an input prompt: number, norm, way, words."""
    each = moves(facts)
    if facts["kind"] != "input" or not (look.tokens or each):
        return ""
    ways = ["-"] * facts["length"] if each is None else [f"{way:.3f}" for way in each]
    width = len(str(facts["length"]))
    if not look.tokens:
        lines = [f"{n:>{width}}  {way:>7}" for n, way in enumerate(ways)]
        return "soft tokens (moved from the start, in norms of it)\n" + "\n".join(lines)
    lines = [
        f"{n:>{width}}  {token.norm:>6.2f}  {way:>7}  {_words(token)}"
        for n, (token, way) in enumerate(zip(look.tokens, ways, strict=True))
    ]
    title = "soft tokens (norm relative to the table's; moved from the start, in norms of it; "
    return f"{title}nearest words by cosine)\n" + "\n".join(lines)


def _words(token: "SoftToken") -> str:
    pairs = zip(token.words, token.cosines, strict=True)
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in pairs)


def _sites(look: Look, facts: dict[str, Any]) -> str:
    if not look.sites:
        return ""
    each = moves(facts)
    ways = ["-"] * len(look.sites) if each is None else [f"{way:.3f}" for way in each]
    rows = [
        [str(site.layer), f"{site.keys:.3f}", f"{site.values:.3f}", way]
        for site, way in zip(look.sites, ways, strict=True)
    ]
    title = "mean norms; moved from the start, in norms of it"
    return f"{title}\n{aligned([['layer', 'keys', 'values', 'moved'], *rows])}"


def _attention(look: Look) -> str:
    if look.attention is None:
        return ""
    rows = [
        [
            f"{one.site}" if one.part == "row" else f"{one.site} ({one.part})",
            f"{one.share:.1%}",
            "-" if one.scored is None else f"{one.scored:.1%}",
            f"{one.even:.1%}",
        ]
        for one in look.attention
    ]
    title = (
        f"attention to the prompt, {look.rows} (answer: where it is read; even: if all got alike)"
    )
    return f"{title}\n{aligned([['site', 'share', 'answer', 'even'], *rows])}"
