"""``softprompt show``: what a prompt is, how it was made, and what it contains."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.console import (
    format_columns,
    format_fields,
    print_json,
    print_progress,
    print_status,
)
from softprompt.cli.options import ArtifactPath, AsJson, PromptBackbone

if TYPE_CHECKING:
    from softprompt.analysis import Similarity, SoftToken
    from softprompt.analysis.inspection import Inspection
    from softprompt.artifact import Artifact
    from softprompt.inference import PromptModel

_DISTANCE = "distance from initialization, relative to its norm"
_FORMATS = (".png", ".svg", ".pdf")
_PICTURE = Path("similarity.png")

NoBackbone = Annotated[
    bool, typer.Option("--no-backbone", help="Do not load the backbone; no nearest words.")
]
WithAttention = Annotated[
    bool, typer.Option("--attention", help="Also attention to the prompt, by layer.")
]
AttentionData = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Rows for --attention (default: its validation rows)."),
]
PictureFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A .png, .svg or .pdf (for several: similarity.png)."),
]


def show(
    artifact: ArtifactPath,
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ARTIFACT", help="Others to compare it with."),
    ] = None,
    backbone: PromptBackbone = None,
    no_backbone: NoBackbone = False,
    attention: WithAttention = False,
    data: AttentionData = None,
    output: PictureFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a prompt is, how it was made, and its content."""
    from softprompt.analysis import compute_similarity
    from softprompt.analysis.inspection import add_attention, inspect_prompts, save_figures
    from softprompt.artifact import load_artifact
    from softprompt.artifact.describe import describe_artifact
    from softprompt.artifact.ensembles import list_members

    paths = [member for path in (artifact, *(more or [])) for member in list_members(path)]
    _check(len(paths), attention=attention, data=data, no_backbone=no_backbone, output=output)
    _check_backbone(backbone, no_backbone=no_backbone)
    artifacts = [*map(load_artifact, paths)]
    similarity = compute_similarity(artifacts) if len(paths) > 1 else None
    model = None
    if not no_backbone:
        model = _load_model(artifacts, paths[0], backbone=backbone, required=attention)
    inspections = inspect_prompts(artifacts, model)
    if attention and model is not None:
        inspections = add_attention(inspections, artifacts, model=model, data=data)
    names = _name_artifacts(paths)
    file = output or (_PICTURE if more else None)
    files = save_figures(file, inspections, names=names, similarity=similarity) if file else []
    shown = [*zip(map(describe_artifact, artifacts, paths), inspections, strict=True)]
    if as_json:
        print_json(_to_dict(shown, names=names, similarity=similarity, files=files))
        return
    _print_text(shown, names=names, similarity=similarity)
    for path in files:
        print_status(f"drawn: {path}")


def _check(
    count: int, *, attention: bool, data: str | None, no_backbone: bool, output: Path | None
) -> None:
    """Refuse options that would have no effect."""
    if attention and no_backbone:
        msg = "--attention needs the backbone. Leave --no-backbone out."
        raise typer.BadParameter(msg)
    if data is not None and not attention:
        msg = f"--data {data} is for --attention. Add that option."
        raise typer.BadParameter(msg)
    if output is None:
        return
    if count == 1 and not attention:
        msg = f"there is nothing to draw in {output}. Name several artifacts, or add --attention."
        raise typer.BadParameter(msg)
    if output.suffix.lower() not in _FORMATS:
        msg = f"{output} is not a picture. Its name must end in {', '.join(_FORMATS)}."
        raise typer.BadParameter(msg)


def _check_backbone(backbone: str | None, *, no_backbone: bool) -> None:
    if backbone is not None and no_backbone:
        msg = f"--backbone {backbone} is not loaded with --no-backbone. Leave one of them out."
        raise typer.BadParameter(msg)


def _load_model(
    artifacts: "Sequence[Artifact]", path: Path, *, backbone: str | None, required: bool
) -> "PromptModel | None":
    """The model of the first artifact; None where its backbone is not needed or not available.

    Args:
        path: of the first artifact.
        backbone: where its backbone is now; None for the recorded place.
        required: whether a backbone that is not available is an error instead of a note.
    """
    from softprompt.analysis.inspection import has_nearest_words
    from softprompt.errors import BackboneError, MissingPackageError
    from softprompt.inference import PromptModel

    print_progress(f"loading the backbone of {path} …")
    if required or backbone is not None:
        return PromptModel.from_pretrained(path, backbone=backbone)
    if not has_nearest_words(artifacts):
        return None
    try:
        return PromptModel.from_pretrained(path)
    except (BackboneError, MissingPackageError) as error:
        print_status(f"no nearest words: {error}")
        return None


def _name_artifacts(paths: Sequence[Path]) -> list[str]:
    """A short name for each artifact: its run's folder, or the whole path where that is taken."""
    short = [p.resolve().parent.name if p.name == "artifact" else p.resolve().name for p in paths]
    return short if len({*short}) == len(short) else [str(path) for path in paths]


def _print_text(
    shown: "Sequence[tuple[dict[str, Any], Inspection]]",
    *,
    names: Sequence[str],
    similarity: "Similarity | None",
) -> None:
    print("\n\n".join(_format_artifact(*pair) for pair in shown))
    if similarity is not None:
        print(_format_similarity(similarity, names))


def _to_dict(
    shown: "Sequence[tuple[dict[str, Any], Inspection]]",
    *,
    names: Sequence[str],
    similarity: "Similarity | None",
    files: Sequence[Path],
) -> dict[str, Any]:
    """Everything that is shown as plain data.

    Args:
        shown: the facts and the inspection of each artifact.
    """
    artifacts = [facts | _inspection_to_dict(inspection) for facts, inspection in shown]
    pictures = {"pictures": [str(path) for path in files]} if files else {}
    if similarity is None:
        return artifacts[0] | pictures
    matrices = {"names": names, **asdict(similarity)}
    return {"artifacts": artifacts, "similarity": matrices, **pictures}


def _inspection_to_dict(inspection: "Inspection") -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if inspection.tokens:
        parts["soft_tokens"] = [asdict(token) for token in inspection.tokens]
    if inspection.sites:
        parts["sites"] = [asdict(site) for site in inspection.sites]
    if inspection.attention is not None:
        parts["attention"] = [asdict(share) for share in inspection.attention]
    return parts


def _format_artifact(facts: dict[str, Any], inspection: "Inspection") -> str:
    """The facts of an artifact and its inspection as a text."""
    parts = [
        format_fields(_name_facts(facts)),
        _format_tokens(inspection, facts),
        _format_layers(inspection, facts),
        _format_attention(inspection),
    ]
    return "\n\n".join(part for part in parts if part)


def _name_facts(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as texts, by their titles."""
    recipe, backbone, shapes = facts["recipe"], facts["backbone"], facts["shapes"]
    kind = "vectors among the input embeddings"
    if facts["kind"] == "kv":
        kind = f"keys and values on {len(facts['layers'])} layers"
    elif facts["layers"]:
        kind = f"vectors among the hidden states at layer {facts['layers'][0]}"
    from softprompt.artifact.describe import describe_no_labels

    revision = f", revision {backbone['revision']}" if backbone["revision"] else ""
    data = "\n".join(
        f"{name}: {split['rows']:,} rows, sha256 {split['sha256'][:16]}…"
        for name, split in facts["data"].items()
        if isinstance(split, dict) and {"rows", "sha256"} <= {*split}
    )
    return {
        "artifact": f"{facts['artifact']} ({facts['bytes']:,} bytes)",
        "prompt": f"{facts['length']} soft tokens, {kind}, {facts['dtype']}"
        if facts["length"]
        else "none: a trained head alone",
        "tensors": "\n".join(f"{name} {shape}" for name, shape in shapes.items()),
        "method": _format_method(recipe),
        "task": _format_task(facts["task"], shapes),
        "template": repr(facts["template"]),
        "labels": ", ".join(facts["labels"]) or describe_no_labels(facts["task"]),
        "backbone": f"{backbone['name']} ({backbone['model_type']}{revision})",
        "fingerprint": backbone["fingerprint"],
        "data": data or "unknown",
        "validation": _format_metrics(facts["metrics"]),
        "distance": _format_distance(facts["metrics"]),
        **_format_seed(facts["metrics"]),
        "made by": f"softprompt {facts['softprompt']}",
    }


def _format_task(task: dict[str, Any], shapes: dict[str, Any]) -> str:
    """The kind of the task, and the readout of a trained head."""
    kind = str(task.get("kind", "unknown"))
    if not any(name.startswith("head.") for name in shapes):
        return kind
    reads = "the tokens of the context" if kind == "extract" else task.get("pooling", "cls")
    return f"{kind}, by a trained head that reads: {reads}"


def _format_method(recipe: object) -> str:
    """The method's name and settings; or the format that the prompt was imported from."""
    match recipe:
        case {"imported": {"format": str(form)}}:
            return f"imported from {form}"
        case {"method": {"name": str(name), **settings}}:
            listed = (f"{key} = {_format_setting(value)}" for key, value in settings.items())
            return ", ".join([name, *listed])
        case _:
            return "unknown"


def _format_setting(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{k} = {v!r}" for k, v in value.items() if v is not None) + "}"


def _format_metrics(metrics: dict[str, Any]) -> str:
    validation = metrics.get("validation")
    if not isinstance(validation, dict) or not validation:
        return "not measured"
    step = f" (step {metrics['step']})" if "step" in metrics else ""
    return ", ".join(f"{name} {value:.4f}" for name, value in validation.items()) + step


def _format_seed(metrics: dict[str, Any]) -> dict[str, str]:
    """The seed of the training, where its recipe had several."""
    return {"seed": f"{metrics['seed']}"} if isinstance(metrics.get("seed"), int) else {}


def _format_distance(metrics: dict[str, Any]) -> str:
    match metrics.get("moved"):
        case {"overall": float(overall)}:
            return f"{overall:.3f} from initialization, relative to its norm"
        case _:
            return "not recorded"


def _format_tokens(inspection: "Inspection", facts: dict[str, Any]) -> str:
    """A line for each soft token of an input prompt: number, norm, distance, words."""
    from softprompt.artifact.describe import read_distances

    recorded = read_distances(facts) is not None
    if facts["kind"] != "input" or not (inspection.tokens or recorded):
        return ""
    distances = _format_distances(facts, count=facts["length"])
    width = len(str(facts["length"]))
    if not inspection.tokens:
        lines = [f"{n:>{width}}  {distance:>7}" for n, distance in enumerate(distances)]
        return f"soft tokens ({_DISTANCE})\n" + "\n".join(lines)
    lines = [
        f"{n:>{width}}  {token.norm:>6.2f}  {distance:>7}  {_format_words(token)}"
        for n, (token, distance) in enumerate(zip(inspection.tokens, distances, strict=True))
    ]
    title = f"soft tokens (norm relative to the table's; {_DISTANCE}; nearest words by cosine)"
    return f"{title}\n" + "\n".join(lines)


def _format_distances(facts: dict[str, Any], *, count: int) -> list[str]:
    """The distance of each soft token or layer; dashes if they were not recorded."""
    from softprompt.artifact.describe import read_distances

    distances = read_distances(facts)
    return ["-"] * count if distances is None else [f"{distance:.3f}" for distance in distances]


def _format_words(token: "SoftToken") -> str:
    pairs = zip(token.words, token.cosines, strict=True)
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in pairs)


def _format_layers(inspection: "Inspection", facts: dict[str, Any]) -> str:
    """A line for each layer of a prefix: norms of keys and values, distance."""
    if not inspection.sites:
        return ""
    distances = _format_distances(facts, count=len(inspection.sites))
    rows = [
        [str(site.layer), f"{site.keys:.3f}", f"{site.values:.3f}", distance]
        for site, distance in zip(inspection.sites, distances, strict=True)
    ]
    title = f"mean norms; {_DISTANCE}"
    return f"{title}\n{format_columns([['layer', 'keys', 'values', 'distance'], *rows])}"


def _format_attention(inspection: "Inspection") -> str:
    if inspection.attention is None:
        return ""
    rows = [
        [
            f"{share.site}" if share.part == "row" else f"{share.site} ({share.part})",
            f"{share.share:.1%}",
            "-" if share.at_readout is None else f"{share.at_readout:.1%}",
            f"{share.uniform:.1%}",
        ]
        for share in inspection.attention
    ]
    title = (
        f"attention to the prompt, {inspection.rows} (readout: at the position the answer is read "
        "from; uniform: under uniform attention)"
    )
    return f"{title}\n{format_columns([['site', 'share', 'readout', 'uniform'], *rows])}"


def _format_similarity(similarity: "Similarity", names: Sequence[str]) -> str:
    tables = {
        "similarity of the mean soft tokens (cosine)": similarity.pooled,
        "similarity of the best matching soft tokens (mean cosine)": similarity.matched,
        "similarity of all pairs of soft tokens (mean cosine)": similarity.pairwise,
    }
    parts = []
    for title, table in tables.items():
        rows = [[n, *(f"{x:.3f}" for x in row)] for n, row in zip(names, table, strict=True)]
        parts.append(f"\n{title}\n{format_columns([['', *names], *rows])}")
    return "\n".join(parts)
