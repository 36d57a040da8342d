"""Inspect the prompts of artifacts: nearest words, norms, attention, and figures of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt._io import replace_file
from softprompt.analysis.nearest import SoftToken, find_nearest_words
from softprompt.analysis.norms import LayerNorms, compute_layer_norms
from softprompt.analysis.plots import draw_attention, draw_similarity
from softprompt.analysis.similarity import Similarity
from softprompt.artifact import Artifact
from softprompt.prompt import InputPrompt, KVPrefix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softprompt.analysis.attention import AttentionShare
    from softprompt.inference import PromptModel

# Attention is measured on at most so many rows.
_MAX_ROWS = 64


@dataclass(frozen=True)
class Inspection:
    """What was measured of a prompt.

    Args:
        tokens: the nearest words of each soft token; empty if there are none or no backbone.
        sites: the norms of a prefix by layer.
        attention: by layer; None if it was not measured.
        rows: a description of the rows on which attention was measured.
    """

    tokens: tuple[SoftToken, ...] = ()
    sites: tuple[LayerNorms, ...] = ()
    attention: "tuple[AttentionShare, ...] | None" = None
    rows: str = ""


def has_nearest_words(artifacts: Sequence[Artifact]) -> bool:
    """Whether the nearest words of some prompt can be found, which needs its backbone."""
    return any(_is_embedded(artifact) for artifact in artifacts)


def inspect_prompts(artifacts: Sequence[Artifact], model: "PromptModel | None") -> list[Inspection]:
    """Find nearest words and norms of prompts of one backbone.

    Args:
        artifacts: of the prompts.
        model: one on that backbone; None leaves out nearest words.

    Returns:
        A value for each prompt, without attention.
    """
    inspections = []
    for artifact in artifacts:
        match artifact.prompt:
            case KVPrefix() as prefix:
                inspections.append(Inspection(sites=tuple(compute_layer_norms(prefix))))
            case InputPrompt(start_layer=0) as prompt if model is not None:
                tokens = find_nearest_words(prompt, model.backbone)
                inspections.append(Inspection(tokens=tuple(tokens)))
            case _:
                inspections.append(Inspection())
    return inspections


def add_attention(
    inspections: Sequence[Inspection],
    artifacts: Sequence[Artifact],
    *,
    model: "PromptModel",
    data: str | None,
) -> list[Inspection]:
    """Add the attention that rows pay to each prompt.

    Args:
        inspections: of the artifacts.
        artifacts: of the prompts, in the same order.
        model: of the first artifact.
        data: the rows: a file or a data set; None for each artifact's own validation rows.

    Returns:
        The inspections, with attention.

    Raises:
        SoftpromptError: the backbone's attention cannot be read, or the rows do not
            fit.
    """
    # Slow to import, and only needed with a backbone.
    from softprompt.analysis.attention import compute_attention_shares  # noqa: PLC0415
    from softprompt.data import read_source, to_table  # noqa: PLC0415
    from softprompt.inference import attach  # noqa: PLC0415

    models = [model, *(attach(artifact, model.backbone) for artifact in artifacts[1:])]
    name = data or "validation"
    extended = []
    for inspection, prompt_model in zip(inspections, models, strict=True):
        table = prompt_model.read_split(name) if data is None else read_source(data)
        task, where = prompt_model.task, f"the {name} data"
        table = to_table(table, columns=task.columns, where=where, flexible=task.flexible_columns)
        rows = table.select(range(min(_MAX_ROWS, len(table))))
        shares = tuple(compute_attention_shares(prompt_model, rows))
        extended.append(replace(inspection, attention=shares, rows=f"{len(rows)} rows of {name}"))
    return extended


def save_figures(
    path: Path,
    inspections: Sequence[Inspection],
    *,
    names: Sequence[str],
    similarity: Similarity | None,
) -> list[Path]:
    """Draw the similarity of several prompts, and the attention to them if it was measured.

    Args:
        path: of the picture; its suffix decides the format.
        inspections: of the prompts.
        names: of the prompts.
        similarity: of the prompts, in the same order; None for a single prompt.

    Returns:
        The files that were written: ``path``, or with both figures also ``…-attention``.
    """
    figures: dict[Path, Figure] = {}
    if similarity is not None:
        figures[path] = draw_similarity(similarity, names)
    pairs = zip(names, inspections, strict=True)
    attention = {name: inspection.attention for name, inspection in pairs if inspection.attention}
    if attention:
        second = path if similarity is None else path.with_stem(f"{path.stem}-attention")
        figures[second] = draw_attention(attention)
    for file, figure in figures.items():
        with replace_file(file) as fresh:
            figure.savefig(fresh, dpi=120, format=file.suffix.removeprefix(".").lower())
    return [*figures]


def _is_embedded(artifact: Artifact) -> bool:
    """Whether a prompt's soft tokens stand among the input embeddings."""
    prompt = artifact.prompt
    return isinstance(prompt, InputPrompt) and prompt.length > 0 and not prompt.start_layer
