"""The section of a report on its prompts: nearest words, distances, similarity, attention."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.analysis import (
    LayerNorms,
    SoftToken,
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

# Nearest words of a soft token.
_WORDS = 3
# The most layers of a table, prompts of a figure, and rows that attention is measured on.
_MAX_LAYERS = 12
_MAX_PROMPTS = 12
_MAX_ROWS = 64

_DISTANCE = "distance from initialization, relative to its norm"


def describe_prompts(
    summaries: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[Extra]:
    """A section on the prompts of a comparison: for each variant, that of its first seed.

    Args:
        summaries: of the variants and baselines.
        folder: of the comparison.
        backbone: of all variants.
        tables: rows by split; attention is measured on validation rows.
    """
    try:
        parts = _make_parts(summaries, folder, backbone=backbone, tables=tables)
    except SoftpromptError as error:  # a run's folder was removed
        parts = [Paragraph(f"The prompts could not be inspected: {error}")]
    return [Extra("The trained prompts", parts)] if parts else []


def _make_parts(
    summaries: Sequence[Summary],
    folder: Path,
    *,
    backbone: Backbone,
    tables: "Mapping[str, Table]",
) -> list[ReportPart]:
    paths = {s.variant: list_artifacts(s, folder) for s in summaries if not s.is_baseline}
    artifacts = {variant: load_artifact(each[0]) for variant, each in paths.items() if each}
    if not artifacts:
        return []
    parts: list[ReportPart] = []
    for variant, artifact in artifacts.items():
        parts += _make_tables(variant, artifact, backbone)
    parts += _draw_similarity(paths)
    parts += _draw_attention(artifacts, backbone, tables["validation"])
    return parts


def list_artifacts(summary: Summary, folder: Path) -> list[Path]:
    """The artifacts of a variant, that of the first seed first.

    Args:
        summary: of the variant.
        folder: of the comparison.
    """
    results = sorted((result for result in summary.results if result.run), key=_get_seed)
    return [RunDir(folder / result.run).artifact for result in results]


def _get_seed(result: RunResult) -> int:
    return -1 if result.seed is None else result.seed


def _make_tables(variant: str, artifact: Artifact, backbone: Backbone) -> Iterator[Grid]:
    """The table of a prompt: by soft token or by layer; none for a prompt on hidden states."""
    distances = read_distances(asdict(artifact.manifest))
    match artifact.prompt:
        case InputPrompt(start_layer=0) as prompt:
            tokens = find_nearest_words(prompt, backbone, count=_WORDS)
            yield _make_token_table(variant, tokens, distances)
        case InputPrompt():
            return
        case prefix:
            yield make_layer_table(variant, compute_layer_norms(prefix), distances=distances)


def _make_token_table(
    variant: str, tokens: Sequence[SoftToken], distances: Sequence[float] | None
) -> Grid:
    pairs = zip(tokens, _format_distances(distances, count=len(tokens)), strict=True)
    rows = [
        (str(number), f"{token.norm:.2f}", distance, _list_words(token))
        for number, (token, distance) in enumerate(pairs)
    ]
    caption = f"{variant}: norm relative to the table's; {_DISTANCE}; nearest words by cosine"
    return Grid(("soft token", "norm", "distance", "nearest words"), rows, caption)


def make_layer_table(
    variant: str, norms: Sequence[LayerNorms], *, distances: Sequence[float] | None
) -> Grid:
    """The table of a prefix, with equally spaced layers if it has many.

    Args:
        variant: its name.
        norms: by layer.
        distances: by layer; None if they were not recorded.
    """
    pairs = zip(norms, _format_distances(distances, count=len(norms)), strict=True)
    rows = [
        (str(layer.layer), f"{layer.keys:.2f}", f"{layer.values:.2f}", distance)
        for layer, distance in pairs
    ]
    step = ceil(len(rows) / _MAX_LAYERS)
    selection = f"; one of every {step} layers" if step > 1 else ""
    caption = f"{variant}: mean norms of keys and values; {_DISTANCE}{selection}"
    return Grid(("layer", "keys", "values", "distance"), rows[::step], caption)


def _format_distances(distances: Sequence[float] | None, *, count: int) -> list[str]:
    return [""] * count if distances is None else [f"{distance:.2f}" for distance in distances]


def _list_words(token: SoftToken) -> str:
    pairs = zip(token.words, token.cosines, strict=True)
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in pairs)


def _draw_similarity(paths: Mapping[str, Sequence[Path]]) -> Iterator[ReportPart]:
    """The similarity of the input prompts of all seeds and variants."""
    prompts = {
        f"{variant} {path.parent.name.rpartition('-')[2]}": load_artifact(path).prompt
        for variant, each in paths.items()
        for path in each
    }
    comparable = {
        n: p for n, p in prompts.items() if isinstance(p, InputPrompt) and not p.start_layer
    }
    selected = dict([*comparable.items()][:_MAX_PROMPTS])
    if len(selected) > 1:
        with use_style():
            figure = draw_similarity(compute_similarity([*selected.values()]), [*selected])
        caption = "Cosine similarity between the prompts of variants and seeds"
        yield Picture(render_svg(figure, name="similarity", description=caption), caption)


def _draw_attention(
    artifacts: Mapping[str, Artifact], backbone: Backbone, table: "Table"
) -> Iterator[ReportPart]:
    """The share of attention to each prompt, by layer."""
    rows = table.select(range(min(_MAX_ROWS, len(table)))).to_list()
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
