"""What a comparison's report shows of the prompts themselves: words, ways, likeness, attention."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.artifact import Artifact, load
from softprompt.backbone.model import Backbone
from softprompt.cli.facts import facts_of, moves
from softprompt.cli.inside import MOST
from softprompt.compare import Outcome, Summary
from softprompt.compare.html import Extra, Grid, Paragraph, Part, Picture
from softprompt.compare.vector import styled, svg
from softprompt.errors import PromptError, SoftpromptError
from softprompt.evaluate import bring
from softprompt.evaluate.look import (
    draw_attention,
    draw_similarity,
    nearest,
    shares,
    similarity,
    sizes,
)
from softprompt.prompt import InputPrompt
from softprompt.train import RunFolder

if TYPE_CHECKING:
    from softprompt.data import Rows as Table

_WORDS = 3
_ROWS = 12
_ALIKE = 12


def insides(
    found: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[Extra]:
    """A section on the prompts of a comparison, of each arm the one with its first seed.

    Args:
        folder: of the comparison.
        backbone: of all of them.
        tables: rows by split; attention is looked at on validation rows.
    """
    try:
        parts = _parts(found, folder, backbone=backbone, tables=tables)
    except SoftpromptError as error:  # a run's folder was taken away
        parts = [Paragraph(f"The prompts could not be looked at: {error}")]
    return [Extra("Looking inside", parts)] if parts else []


def _parts(
    found: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[Part]:
    runs = {s.arm: _runs(s, folder) for s in found if not s.control}
    kept = {arm: load(paths[0]) for arm, paths in runs.items() if paths}
    if not kept:
        return []
    parts: list[Part] = []
    for arm, artifact in kept.items():
        parts += _grid(arm, artifact, runs[arm][0], backbone)
    parts += _alike(runs)
    parts += _attended(kept, backbone, tables["validation"])
    return parts


def _runs(summary: Summary, folder: Path) -> list[Path]:
    """The artifacts of an arm, the first seed's first."""
    outcomes = sorted((o for o in summary.outcomes if o.run), key=_seed)
    return [RunFolder(folder / outcome.run).artifact for outcome in outcomes]


def _seed(outcome: Outcome) -> int:
    return -1 if outcome.seed is None else outcome.seed


def _grid(arm: str, artifact: Artifact, path: Path, backbone: Backbone) -> Iterator[Part]:
    each = moves(facts_of(artifact, path))
    match artifact.prompt:
        case InputPrompt(layer=0) as prompt:
            head = ("soft token", "norm", "moved", "nearest words")
            seen = nearest(prompt, backbone, count=_WORDS)
            cells = [(f"{t.norm:.2f}", _said(t.words, t.cosines)) for t in seen]
            said = "norm relative to the table's words; nearest words with their cosines"
        case InputPrompt():
            return
        case prefix:
            head = ("layer", "keys", "moved", "values")
            cells = [(f"{s.keys:.2f}", f"{s.values:.2f}") for s in sizes(prefix)]
            said = "mean norms of keys and values"
    ways = [""] * len(cells) if each is None else [f"{way:.2f}" for way in each]
    numbered = enumerate(zip(cells, ways, strict=True))
    rows = [(str(at), first, way, last) for at, ((first, last), way) in numbered]
    each_of = ceil(len(rows) / _ROWS) if head[0] == "layer" else 1
    some = f", one layer in {each_of}" if each_of > 1 else ""
    yield Grid(head, rows[::each_of], f"{arm}: {said}; moved from the start, in norms of it{some}")


def _said(words: Sequence[str], cosines: Sequence[float]) -> str:
    return ", ".join(f"{word!r} {near:.2f}" for word, near in zip(words, cosines, strict=True))


def _alike(runs: Mapping[str, Sequence[Path]]) -> Iterator[Part]:
    """How alike the prompts of an arm's seeds are, and those of other arms of their kind."""
    named = {
        f"{arm} {path.parent.name.rpartition('-')[2]}": load(path).prompt
        for arm, paths in runs.items()
        for path in paths
    }
    alike = {n: p for n, p in named.items() if isinstance(p, InputPrompt) and not p.layer}
    chosen = dict([*alike.items()][:_ALIKE])
    if len(chosen) > 1:
        with styled():
            figure = draw_similarity(similarity([*chosen.values()]), [*chosen])
        said = "Cosine similarity between the prompts of arms and seeds"
        yield Picture(svg(figure, name="alike", said=said), said)


def _attended(kept: Mapping[str, Artifact], backbone: Backbone, table: "Table") -> Iterator[Part]:
    """How much attention the rows pay to each prompt, layer by layer."""
    rows = table.select(range(min(MOST, len(table)))).to_list()
    try:
        seen = {arm: shares(bring(one, backbone), rows) for arm, one in kept.items()}
    except PromptError as error:
        yield Paragraph(f"Attention was not looked at: {error}")
        return
    seen = {arm: sites for arm, sites in seen.items() if sites}
    if not seen:
        yield Paragraph(
            "Nothing in a row stands behind its soft tokens, so nothing attends to them."
        )
        return
    with styled():
        figure = draw_attention(seen)
    said = f"Share of attention that {len(rows)} validation rows pay to the prompt"
    yield Picture(svg(figure, name="attention", said=said), said)
