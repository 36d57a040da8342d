"""``softprompt show``: what a prompt is, how it was made, and what it contains."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.console import format_columns, format_fields, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson

if TYPE_CHECKING:
    from softprompt.analysis import Similarity, SoftToken
    from softprompt.analysis.inspection import Inspection
    from softprompt.artifact import Artifact
    from softprompt.inference import PromptModel


def format_facts(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as texts, by their titles."""
    recipe, backbone, shapes = facts["recipe"], facts["backbone"], facts["shapes"]
    kind = "vectors among the input embeddings"
    if facts["kind"] == "kv":
        kind = f"keys and values on {len(facts['layers'])} layers"
    elif facts["layers"]:
        kind = f"vectors among the hidden states at layer {facts['layers'][0]}"
    revision = f", revision {backbone['revision']}" if backbone["revision"] else ""
    data = "\n".join(
        f"{name}: {about['rows']:,} rows, sha256 {about['sha256'][:16]}…"
        for name, about in facts["data"].items()
        if isinstance(about, dict) and {"rows", "sha256"} <= {*about}
    )
    return {
        "artifact": f"{facts['artifact']} ({facts['bytes']:,} bytes)",
        "prompt": f"{facts['length']} soft tokens, {kind}, {facts['dtype']}",
        "tensors": "\n".join(f"{name} {shape}" for name, shape in shapes.items()),
        "method": _method(recipe),
        "task": str(facts["task"].get("kind", "unknown")),
        "template": repr(facts["template"]),
        "labels": ", ".join(facts["labels"]) or "none (free text)",
        "backbone": f"{backbone['name']} ({backbone['model_type']}{revision})",
        "fingerprint": backbone["fingerprint"],
        "data": data or "unknown",
        "validation": _metrics(facts["metrics"]),
        "distance": _distance(facts),
        "made by": f"softprompt {facts['softprompt']}",
    }


def _method(recipe: object) -> str:
    """The method's name and settings; or the format that the prompt was imported from."""
    match recipe:
        case {"imported": {"format": str(form)}}:
            return f"imported from {form}"
        case {"method": {"name": str(name), **more}}:
            return ", ".join([name, *(f"{key} = {_plain(value)}" for key, value in more.items())])
        case _:
            return "unknown"


def _plain(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{k} = {v!r}" for k, v in value.items() if v is not None) + "}"


def _metrics(metrics: dict[str, Any]) -> str:
    found = metrics.get("validation")
    if not isinstance(found, dict) or not found:
        return "not measured"
    step = f" (step {metrics['step']})" if "step" in metrics else ""
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items()) + step


def _distance(facts: dict[str, Any]) -> str:
    match facts["metrics"].get("moved"):
        case {"overall": float(overall)}:
            return f"{overall:.3f} from initialization, relative to its norm"
        case _:
            return "not recorded"


def name_artifacts(paths: Sequence[Path]) -> list[str]:
    """A short name for each artifact: its run's folder, or the whole path where that is taken."""
    short = [p.resolve().parent.name if p.name == "artifact" else p.resolve().name for p in paths]
    return short if len({*short}) == len(short) else [str(path) for path in paths]


def convert_inspection(inspection: "Inspection") -> dict[str, Any]:
    """An inspection as JSON has it."""
    found: dict[str, Any] = {}
    if inspection.tokens:
        found["soft_tokens"] = [asdict(token) for token in inspection.tokens]
    if inspection.sites:
        found["sites"] = [asdict(site) for site in inspection.sites]
    if inspection.attention is not None:
        found["attention"] = [asdict(one) for one in inspection.attention]
    return found


def format_inspection(inspection: "Inspection", facts: dict[str, Any]) -> str:
    """An inspection as a text."""
    parts = [_tokens(inspection, facts), _sites(inspection, facts), _attention(inspection)]
    return "".join(f"\n\n{part}" for part in parts if part)


def _tokens(inspection: "Inspection", facts: dict[str, Any]) -> str:
    """A line for each soft token of an input prompt: number, norm, distance, words."""
    from softprompt.artifact.describe import read_distances

    each = read_distances(facts)
    if facts["kind"] != "input" or not (inspection.tokens or each):
        return ""
    distances = (
        ["-"] * facts["length"] if each is None else [f"{distance:.3f}" for distance in each]
    )
    width = len(str(facts["length"]))
    if not inspection.tokens:
        lines = [f"{n:>{width}}  {distance:>7}" for n, distance in enumerate(distances)]
        return f"soft tokens ({_DISTANCE})\n" + "\n".join(lines)
    lines = [
        f"{n:>{width}}  {token.norm:>6.2f}  {distance:>7}  {_words(token)}"
        for n, (token, distance) in enumerate(zip(inspection.tokens, distances, strict=True))
    ]
    title = f"soft tokens (norm relative to the table's; {_DISTANCE}; nearest words by cosine)"
    return f"{title}\n" + "\n".join(lines)


def _words(token: "SoftToken") -> str:
    pairs = zip(token.words, token.cosines, strict=True)
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in pairs)


def _sites(inspection: "Inspection", facts: dict[str, Any]) -> str:
    from softprompt.artifact.describe import read_distances

    if not inspection.sites:
        return ""
    each = read_distances(facts)
    distances = (
        ["-"] * len(inspection.sites) if each is None else [f"{distance:.3f}" for distance in each]
    )
    rows = [
        [str(site.layer), f"{site.keys:.3f}", f"{site.values:.3f}", distance]
        for site, distance in zip(inspection.sites, distances, strict=True)
    ]
    title = f"mean norms; {_DISTANCE}"
    return f"{title}\n{format_columns([['layer', 'keys', 'values', 'distance'], *rows])}"


def _attention(inspection: "Inspection") -> str:
    if inspection.attention is None:
        return ""
    rows = [
        [
            f"{one.site}" if one.part == "row" else f"{one.site} ({one.part})",
            f"{one.share:.1%}",
            "-" if one.at_readout is None else f"{one.at_readout:.1%}",
            f"{one.uniform:.1%}",
        ]
        for one in inspection.attention
    ]
    title = (
        f"attention to the prompt, {inspection.rows} (readout: at the position the answer is read "
        "from; uniform: under uniform attention)"
    )
    return f"{title}\n{format_columns([['site', 'share', 'readout', 'uniform'], *rows])}"


_DISTANCE = "distance from initialization, relative to its norm"
_FORMATS = (".png", ".svg", ".pdf")
_PICTURE = Path("similarity.png")


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
    no_backbone: Annotated[
        bool, typer.Option("--no-backbone", help="Do not load the backbone; no nearest words.")
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also attention to the prompt, by layer.")
    ] = False,
    data: AttentionData = None,
    output: PictureFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a prompt is, how it was made, and its content."""
    from softprompt.analysis import compute_similarity
    from softprompt.analysis.inspection import add_attention, inspect_prompts, save_figures
    from softprompt.artifact import load_artifact
    from softprompt.artifact.describe import describe_artifact

    paths = [artifact, *(more or [])]
    _check(len(paths), attention=attention, data=data, no_backbone=no_backbone, output=output)
    loaded = [*map(load_artifact, paths)]
    similarity = compute_similarity(loaded) if len(paths) > 1 else None
    model = _load_model(loaded, artifact, allowed=not no_backbone, required=attention)
    found = inspect_prompts(loaded, model)
    if attention and model is not None:
        found = add_attention(found, loaded, model=model, data=data)
    names = name_artifacts(paths)
    file = output or (_PICTURE if similarity else None)
    files = save_figures(file, found, names=names, similarity=similarity) if file else []
    facts = [*map(describe_artifact, loaded, paths)]
    (_print_report if as_json else _print_text)(
        facts, found, names=names, similarity=similarity, files=files
    )


def _load_model(
    loaded: "Sequence[Artifact]", path: Path, *, allowed: bool, required: bool
) -> "PromptModel | None":
    """The model of the first artifact; None where its backbone is not needed or not available.

    Args:
        allowed: whether the backbone may be loaded.
        required: whether a backbone that is not available is an error instead of a note.
    """
    from softprompt.analysis.inspection import has_nearest_words
    from softprompt.errors import BackboneError, MissingPackageError
    from softprompt.inference import PromptModel

    if required:
        return PromptModel.from_pretrained(path)
    if not allowed or not has_nearest_words(loaded):
        return None
    try:
        return PromptModel.from_pretrained(path)
    except (BackboneError, MissingPackageError) as error:
        print_status(f"no nearest words: {error}")
        return None


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


def _format_similarity(similarity: "Similarity", names: Sequence[str]) -> str:
    tables = {
        "similarity of the mean soft tokens (cosine)": similarity.pooled,
        "similarity of the best matching soft tokens (mean cosine)": similarity.matched,
    }
    parts = []
    for title, table in tables.items():
        rows = [[n, *(f"{x:.3f}" for x in row)] for n, row in zip(names, table, strict=True)]
        parts.append(f"\n{title}\n{format_columns([['', *names], *rows])}")
    return "\n".join(parts)


def _print_text(
    facts: Sequence[dict[str, Any]],
    inspections: "Sequence[Inspection]",
    *,
    names: Sequence[str],
    similarity: "Similarity | None",
    files: Sequence[Path],
) -> None:
    for number, (fact, one) in enumerate(zip(facts, inspections, strict=True)):
        separator = "\n" if number else ""
        print(separator + format_fields(format_facts(fact)) + format_inspection(one, fact))
    if similarity is not None:
        print(_format_similarity(similarity, names))
    for path in files:
        print_status(f"drawn: {path}")


def _print_report(
    facts: Sequence[dict[str, Any]],
    inspections: "Sequence[Inspection]",
    *,
    names: Sequence[str],
    similarity: "Similarity | None",
    files: Sequence[Path],
) -> None:
    pairs = zip(facts, inspections, strict=True)
    artifacts = [fact | convert_inspection(one) for fact, one in pairs]
    pictures = {"pictures": [str(path) for path in files]} if files else {}
    if similarity is None:
        print_json(artifacts[0] | pictures)
        return
    matrices = {
        "names": names,
        "pooled": similarity.pooled,
        "matched": similarity.matched,
    }
    print_json({"artifacts": artifacts, "similarity": matrices, **pictures})
