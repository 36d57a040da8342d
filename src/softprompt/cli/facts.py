"""What an artifact says of itself, for people and for programs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.artifact import Artifact as Loaded


def facts_of(loaded: "Loaded", path: Path) -> dict[str, Any]:
    """What ``--json`` says of an artifact before anything is computed."""
    from softprompt.artifact.files import find

    manifest = loaded.manifest
    folder = find(path)
    return {
        "artifact": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        **asdict(manifest),
    }


def said(facts: dict[str, Any]) -> dict[str, str]:
    """The facts for people."""
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
        "task": str(facts["task"].get("kind", "not said")),
        "template": repr(facts["template"]),
        "labels": ", ".join(facts["labels"]) or "none (free text)",
        "backbone": f"{backbone['name']} ({backbone['family']}{revision})",
        "fingerprint": backbone["fingerprint"],
        "data": data or "not said",
        "validation": _metrics(facts["metrics"]),
        "moved": _moved(facts),
        "made by": f"softprompt {facts['softprompt']}",
    }


def _method(recipe: object) -> str:
    """The method's name, and what the recipe says of it beyond; or where it was imported from."""
    match recipe:
        case {"imported": {"format": str(form)}}:
            return f"imported from {form}"
        case {"method": {"name": str(name), **more}}:
            return ", ".join([name, *(f"{key} = {_plain(value)}" for key, value in more.items())])
        case _:
            return "not said"


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


def moves(facts: dict[str, Any]) -> tuple[float, ...] | None:
    """How far each soft token, or layer, moved from its start; None where it was not recorded."""
    count = facts["length"] if facts["kind"] == "input" else len(facts["layers"])
    match facts["metrics"].get("moved"):
        case {"each": [*each]} if len(each) == count and all(isinstance(x, float) for x in each):
            return tuple(each)
        case _:
            return None


def _moved(facts: dict[str, Any]) -> str:
    match facts["metrics"].get("moved"):
        case {"overall": float(overall)}:
            return f"{overall:.3f} of the start's norm"
        case _:
            return "not recorded"
