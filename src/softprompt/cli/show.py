"""``softprompt show``: what a prompt is, how it was made, and what it looks like."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.options import Artifact, AsJson
from softprompt.cli.say import aligned, listed, note, print_json

if TYPE_CHECKING:
    from softprompt.artifact import Artifact as Loaded
    from softprompt.evaluate.look import Site, SoftToken
    from softprompt.prompt import InputPrompt


def show(
    artifact: Artifact,
    no_backbone: Annotated[
        bool, typer.Option("--no-backbone", help="Do not load the backbone; no nearest words.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a prompt is and how it was made."""
    from softprompt.artifact import load
    from softprompt.evaluate.look import sizes
    from softprompt.prompt import InputPrompt, KVPrefix

    loaded = load(artifact)
    tokens: list[SoftToken] = []
    sites: list[Site] = []
    match loaded.prompt:
        case KVPrefix() as prefix:
            sites = sizes(prefix)
        case InputPrompt() as prompt if not (no_backbone or prompt.layer):
            tokens = _nearest(artifact, prompt)
    if as_json:
        print_json(_facts(loaded, artifact) | _look(tokens, sites))
        return
    print(listed(_said(_facts(loaded, artifact))))
    if tokens:
        rows = [[str(n), f"{t.norm:.2f}", _words(t)] for n, t in enumerate(tokens)]
        print(
            f"\nsoft tokens (norm relative to the table's; nearest words by cosine)\n{_left(rows)}"
        )
    if sites:
        rows = [[str(s.layer), f"{s.keys:.3f}", f"{s.values:.3f}"] for s in sites]
        print(f"\nmean norms\n{aligned([['layer', 'keys', 'values'], *rows])}")


def _nearest(path: Path, prompt: "InputPrompt") -> "list[SoftToken]":
    """The nearest words, or a note that the backbone cannot be had."""
    from softprompt.errors import BackboneError, MissingPackageError
    from softprompt.evaluate import load_model
    from softprompt.evaluate.look import nearest

    try:
        backbone = load_model(path).backbone
    except (BackboneError, MissingPackageError) as error:
        note(f"no nearest words: {error}")
        return []
    return nearest(prompt, backbone)


def _facts(loaded: "Loaded", path: Path) -> dict[str, Any]:
    from softprompt.artifact.files import find

    manifest = loaded.manifest
    folder = find(path)
    return {
        "artifact": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        **asdict(manifest),
    }


def _said(facts: dict[str, Any]) -> dict[str, str]:
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
        "method": _method(recipe.get("method")),
        "task": str(facts["task"].get("kind", "not said")),
        "template": repr(facts["template"]),
        "labels": ", ".join(facts["labels"]) or "none (free text)",
        "backbone": f"{backbone['name']} ({backbone['family']}{revision})",
        "fingerprint": backbone["fingerprint"],
        "data": data or "not said",
        "validation": _metrics(facts["metrics"]),
        "made by": f"softprompt {facts['softprompt']}",
    }


def _method(section: object) -> str:
    """The method's name, and what the recipe says of it beyond."""
    match section:
        case {"name": str(name), **more}:
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


def _words(token: "SoftToken") -> str:
    pairs = zip(token.words, token.cosines, strict=True)
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in pairs)


def _left(rows: list[list[str]]) -> str:
    """Number and norm to the right, words to the left."""
    width = len(str(len(rows)))
    return "\n".join(f"{n:>{width}}  {norm:>6}  {words}" for n, norm, words in rows)


def _look(tokens: "list[SoftToken]", sites: "list[Site]") -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tokens:
        found["soft_tokens"] = [asdict(token) for token in tokens]
    if sites:
        found["sites"] = [asdict(site) for site in sites]
    return found
