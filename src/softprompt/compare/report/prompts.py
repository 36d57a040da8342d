"""The section of a report on its prompts: nearest words, distances, similarity, attention."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.analysis import (
    compute_attention_shares,
    compute_layer_norms,
    compute_similarity,
    draw_attention,
    draw_similarity,
    find_nearest_words,
)
from softprompt.artifact import Artifact, load_artifact
from softprompt.artifact.describe import read_distances
from softprompt.backbone.model import Backbone
from softprompt.compare.report.html import Extra, Grid, Paragraph, Picture, ReportPart
from softprompt.compare.report.style import render_svg, use_style
from softprompt.compare.results import RunResult
from softprompt.compare.statistics import Summary
from softprompt.errors import PromptError, SoftpromptError
from softprompt.inference import attach
from softprompt.prompt import InputPrompt
from softprompt.train import RunDir

if TYPE_CHECKING:
    from softprompt.data import Table

# Limits: nearest words of a token, layers of a table, prompts of a picture, rows for attention.
_WORDS = 3
_LAYERS = 12
_PROMPTS = 12
_ROWS = 64


def describe_prompts(
    found: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[Extra]:
    """A section on the prompts of a comparison: for each variant, that of its first seed.

    Args:
        folder: of the comparison.
        backbone: of all of them.
        tables: rows by split; attention is measured on validation rows.
    """
    try:
        parts = _parts(found, folder, backbone=backbone, tables=tables)
    except SoftpromptError as error:  # a run's folder was removed
        parts = [Paragraph(f"The prompts could not be inspected: {error}")]
    return [Extra("The trained prompts", parts)] if parts else []


def _parts(
    found: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[ReportPart]:
    runs = {s.variant: _runs(s, folder) for s in found if not s.is_baseline}
    artifacts = {variant: load_artifact(paths[0]) for variant, paths in runs.items() if paths}
    if not artifacts:
        return []
    parts: list[ReportPart] = []
    for variant, artifact in artifacts.items():
        parts += _describe(variant, artifact, backbone)
    parts += _draw_similarity(runs)
    parts += _draw_attention(artifacts, backbone, tables["validation"])
    return parts


def _runs(summary: Summary, folder: Path) -> list[Path]:
    """The artifacts of a variant, the first seed's first."""
    results = sorted((o for o in summary.results if o.run), key=_seed)
    return [RunDir(folder / result.run).artifact for result in results]


def _seed(result: RunResult) -> int:
    return -1 if result.seed is None else result.seed


def _describe(variant: str, artifact: Artifact, backbone: Backbone) -> Iterator[ReportPart]:
    each = read_distances(asdict(artifact.manifest))
    match artifact.prompt:
        case InputPrompt(start_layer=0) as prompt:
            head = ("soft token", "norm", "distance", "nearest words")
            tokens = find_nearest_words(prompt, backbone, count=_WORDS)
            cells = [(f"{t.norm:.2f}", _list_words(t.words, t.cosines)) for t in tokens]
            caption = "norm relative to the table's; nearest words by cosine"
        case InputPrompt():
            return
        case prefix:
            head = ("layer", "keys", "distance", "values")
            cells = [(f"{s.keys:.2f}", f"{s.values:.2f}") for s in compute_layer_norms(prefix)]
            caption = "mean norms of keys and values"
    distances = [""] * len(cells) if each is None else [f"{distance:.2f}" for distance in each]
    numbered = enumerate(zip(cells, distances, strict=True))
    rows = [(str(at), first, distance, last) for at, ((first, last), distance) in numbered]
    step = ceil(len(rows) / _LAYERS) if head[0] == "layer" else 1
    selection = f"; every {step}th layer" if step > 1 else ""
    yield Grid(
        head,
        rows[::step],
        f"{variant}: {caption}; distance from initialization, relative to its norm{selection}",
    )


def _list_words(words: Sequence[str], cosines: Sequence[float]) -> str:
    return ", ".join(f"{word!r} {near:.2f}" for word, near in zip(words, cosines, strict=True))


def _draw_similarity(runs: Mapping[str, Sequence[Path]]) -> Iterator[ReportPart]:
    """The similarity of the input prompts of all seeds and variants."""
    named = {
        f"{variant} {path.parent.name.rpartition('-')[2]}": load_artifact(path).prompt
        for variant, paths in runs.items()
        for path in paths
    }
    comparable = {
        n: p for n, p in named.items() if isinstance(p, InputPrompt) and not p.start_layer
    }
    selected = dict([*comparable.items()][:_PROMPTS])
    if len(selected) > 1:
        with use_style():
            figure = draw_similarity(compute_similarity([*selected.values()]), [*selected])
        caption = "Cosine similarity between the prompts of variants and seeds"
        yield Picture(render_svg(figure, name="similarity", description=caption), caption)


def _draw_attention(
    artifacts: Mapping[str, Artifact], backbone: Backbone, table: "Table"
) -> Iterator[ReportPart]:
    """The share of attention to each prompt, by layer."""
    rows = table.select(range(min(_ROWS, len(table)))).to_list()
    try:
        shares = {
            variant: compute_attention_shares(attach(artifact, backbone), rows)
            for variant, artifact in artifacts.items()
        }
    except PromptError as error:
        yield Paragraph(f"Attention was not inspected: {error}")
        return
    shares = {variant: sites for variant, sites in shares.items() if sites}
    if not shares:
        yield Paragraph("No token follows the soft tokens, so no token attends to them.")
        return
    with use_style():
        figure = draw_attention(shares)
    caption = f"Share of attention to the prompt, {len(rows)} validation rows"
    yield Picture(render_svg(figure, name="attention", description=caption), caption)
