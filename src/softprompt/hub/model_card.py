"""The model card of a pushed artifact, made from its manifest."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from softprompt.artifact.manifest import HEAD, PROMPT, Manifest
from softprompt.backbone.builtin import BUILTIN, PREFIX
from softprompt.hub.names import is_repo_id
from softprompt.hub.redaction import split_source

CARD = "README.md"
MEMORY = "memory"  # the source in a recipe for rows that were passed from Python
PIPELINES = {
    "classify": "text-classification",
    "regress": "text-classification",  # as transformers has regressions
    "generate": "text-generation",
    "tag": "token-classification",
    "extract": "question-answering",
    "choose": "multiple-choice",
}
_KINDS = {"input": "input-prompt", "kv": "key-value-prefix"}
# The Hub's names of metrics that have another name in softprompt.
_METRICS = {"macro_f1": "f1", "matthews": "matthews_correlation"}
_WORD = re.compile(r"[a-z0-9][a-z0-9-]*")
_EXAMPLE = "A text to answer."
_FIELD = re.compile(r"\{\{|\}\}|\{(?!soft:|mask\}|sep\}|bos\})([^{}]+)\}")
_TICKS = re.compile(r"`+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def format_code(text: str) -> str:
    r"""Format a text as inline code, in which nothing is interpreted as Markdown.

    Line breaks and other control characters are escaped as in JSON.

    Examples:
        >>> format_code("a|b"), format_code("`"), format_code("a\nb")
        ('`a\\|b`', '`` ` ``', '`a\\nb`')
    """
    plain = _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], text)
    fence = "`" * (_measure_backticks(plain) + 1)
    # In a table a bar must be escaped even in code; one space on each side is not part of the code.
    inner = plain.replace("|", r"\|") if plain.strip() else json.dumps(plain)
    pad = " " if inner[0] in "` " or inner[-1] in "` " else ""
    return f"{fence}{pad}{inner}{pad}{fence}"


def format_block(text: str, language: str = "") -> str:
    """Format a text as a code block, with a fence that the text cannot close."""
    fence = "`" * max(3, _measure_backticks(text) + 1)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"{fence}{language}\n{plain}\n{fence}"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows of cells, which are Markdown, as a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measure_backticks(text: str) -> int:
    """The length of the longest run of backticks."""
    return max((len(run) for run in _TICKS.findall(text)), default=0)


# What an artifact records in addition to its scores.
_NOT_SCORES = {"moved", "start_choice"}


def list_card_metrics(manifest: Manifest) -> dict[str, dict[str, float]]:
    """The metrics by split; those without a split are under the name ""."""
    tables = {"": manifest.metrics, **manifest.metrics}
    scores = {
        split: {name: value for name, value in numbers.items() if _is_score(name, value)}
        for split, numbers in tables.items()
        if isinstance(numbers, dict) and split not in _NOT_SCORES
    }
    return {split: numbers for split, numbers in scores.items() if numbers}


def _is_score(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name != "step"


def make_card_metadata(manifest: Manifest, repo: str) -> ModelCardData:
    """The metadata of the model card of ``OWNER/NAME``."""
    base = manifest.backbone["name"]
    method = describe_method(manifest).get("name")
    tags = ["soft-prompt", "parameter-efficient", _KINDS[manifest.kind]]
    tags += [method] if isinstance(method, str) and _WORD.fullmatch(method) else []
    sources = describe_sources(manifest).values()
    data_sets = [name for text in sources if (name := _get_data_set_name(text))]
    results = [*_list_results(manifest)]
    return ModelCardData(
        library_name="softprompt",
        base_model=base if is_repo_id(base) else None,
        pipeline_tag=PIPELINES.get(str(manifest.task.get("kind"))),
        tags=tags,
        datasets=[*dict.fromkeys(data_sets)] or None,
        eval_results=results or None,
        model_name=repo.partition("/")[2] if results else None,
        base_model_relation="adapter" if is_repo_id(base) else None,
    )


def _list_results(manifest: Manifest) -> Iterator[EvalResult]:
    task = PIPELINES.get(str(manifest.task.get("kind")), "other")
    sources = describe_sources(manifest)
    for split, numbers in list_card_metrics(manifest).items():
        source = sources.get(split) or sources.get("train") or "not stated"
        plain = " ".join(source.split())
        for name, value in numbers.items():
            yield EvalResult(
                task_type=task,
                dataset_type=_get_data_set_name(source) or "local",
                dataset_name="rows in memory" if plain == MEMORY else plain,
                dataset_split=split or None,
                metric_type=_METRICS.get(name, name),
                metric_name=name,
                metric_value=value,
            )


def describe_method(manifest: Manifest) -> Mapping[str, object]:
    """The recipe's table ``[method]``; empty if it has none."""
    method = manifest.recipe.get("method")
    return method if isinstance(method, Mapping) else {}


def describe_sources(manifest: Manifest) -> dict[str, str]:
    """The data sources of the recipe, by split."""
    data = manifest.recipe.get("data")
    table = data if isinstance(data, Mapping) else {}
    splits = ("train", "validation", "test")
    return {split: text for split in splits if isinstance(text := table.get(split), str)}


def _get_data_set_name(text: str) -> str | None:
    """The name of a data source on the Hub; None for files and other sources."""
    source, _ = split_source(text)
    name = source.partition(":")[0].partition("@")[0]
    is_on_hub = is_repo_id(name) and "." not in name.rpartition("/")[2]
    return name if is_on_hub and name not in {MEMORY, PREFIX.rstrip(":")} else None


def make_model_card(manifest: Manifest, *, repo: str, size: int) -> str:
    """The text of ``README.md``: YAML for the Hub, and Markdown for people.

    Args:
        manifest: the manifest that is pushed.
        repo: the repository, ``OWNER/NAME``.
        size: the size of ``prompt.safetensors`` in bytes.
    """
    parts = [
        f"# {repo.partition('/')[2].replace('_', chr(92) + '_')}",
        _format_summary(manifest),
        "## What it does",
        *_format_task(manifest),
        "## How to use it",
        *_format_usage(manifest, repo),
        "## The backbone",
        _format_backbone(manifest),
        "## The prompt",
        _format_prompt(manifest, size),
        "## How it was trained",
        *_format_training(manifest),
    ]
    return (
        f"---\n{make_card_metadata(manifest, repo).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    )


def _format_summary(manifest: Manifest) -> str:
    what = "soft tokens that make" if manifest.length > 1 else "soft token that makes"
    return (
        f"A soft prompt: {manifest.length:,} trained {what} the frozen language model "
        f"{format_code(manifest.backbone['name'])} do a task. It works only with that model, whose "
        "weights are not in this repository. Made with softprompt "
        f"{format_code(manifest.softprompt)}."
    )


_SENTENCES = {
    "classify": "It classifies text: it gives a probability for each label.",
    "regress": "It predicts numbers, in the unit of the training rows.",
    "tag": "It gives each word of a text a tag, in the scheme {scheme}.",
    "extract": "It answers questions by a part of a text, or says that it has no answer.",
    "choose": "It chooses one of a row's own options, {scorer}.",
    "generate": "It generates text.",
}


def _describe_kind(manifest: Manifest) -> str:
    """What the task does with a row, in a sentence."""
    task, kind = manifest.task, str(manifest.task.get("kind"))
    if kind == "classify" and task.get("multi_label"):
        return "It labels text: a row gets every label whose probability reaches its threshold."
    if kind == "generate" and manifest.labels:
        return "It generates one of these texts."
    if kind == "generate" and task.get("messages_column"):
        return "It answers conversations, which the chat template of the model writes."
    sentence = _SENTENCES.get(kind, f"Its task is {format_code(kind)}.")
    if kind == "choose":
        return sentence.replace("{scorer}", _describe_scorer(task))
    return sentence.replace("{scheme}", format_code(str(task.get("scheme"))))


def _describe_scorer(task: Mapping[str, Any]) -> str:
    """What scores the options of a choice."""
    if task.get("head") is not None:
        return f"which a trained head scores; it reads {format_code(str(task.get('pooling')))}"
    length = {"tokens": ", divided by their number", "characters": ", divided by its length"}
    divisor = length.get(str(task.get("length_normalization")), "")
    return f"by the log-probabilities of each option's tokens{divisor}"


def _format_task(manifest: Manifest) -> Iterator[str]:
    yield _describe_kind(manifest)
    if manifest.task.get("multi_label"):
        yield format_table(("label", "threshold"), [*_list_thresholds(manifest)])
    words = manifest.task.get("verbalizer")
    if isinstance(words, Mapping):
        rows = [(format_code(label), _format_words(words.get(label))) for label in manifest.labels]
        yield format_table(("label", "words that the language model scores"), rows)
    elif manifest.labels and not manifest.task.get("multi_label"):
        yield "\n".join(f"- {format_code(label)}" for label in manifest.labels)
        if any(name.startswith(HEAD) for name in manifest.shapes):
            readout = format_code(str(manifest.task.get("pooling", "cls")))
            yield f"A trained head scores the labels, in this order. It reads {readout}."
    places = ", with the soft tokens in their places" if manifest.kind == "input" else ""
    yield f"The template of a row{places}:"
    yield format_block(manifest.template)
    in_windows = manifest.task.get("kind") in {"tag", "extract"}
    if manifest.max_length is not None and not in_windows:
        yield f"The text of rows of more than {manifest.max_length:,} tokens is truncated."


def _list_thresholds(manifest: Manifest) -> Iterator[tuple[str, str]]:
    thresholds = manifest.task.get("thresholds")
    by_label = thresholds if isinstance(thresholds, Mapping) else {}
    for label in manifest.labels:
        yield format_code(label), str(by_label.get(label, thresholds))


def _format_words(words: object) -> str:
    listed = words if isinstance(words, list | tuple) else [words]
    return ", ".join(format_code(str(word)) for word in listed)


def _make_row(manifest: Manifest) -> str | dict[str, Any]:
    """A text or a row that the prompt can answer."""
    fields = [*dict.fromkeys(name for name in _FIELD.findall(manifest.template) if name)]
    messages = manifest.task.get("messages_column")
    if messages:
        names = [name for name in fields if name.partition(":")[0] != messages]
        conversation = [{"role": "user", "content": _EXAMPLE}]
        return dict.fromkeys(names, "…") | {str(messages): conversation}
    if manifest.task.get("kind") != "choose":
        return _EXAMPLE if len(fields) == 1 else dict.fromkeys(fields, "…")
    row: dict[str, Any] = dict.fromkeys((name for name in fields if name != "option"), "…")
    match manifest.task.get("options_column", "options"):
        case str(column):
            row[column] = ["one", "two"]
        case [*columns]:
            row |= {str(name): f"option {at}" for at, name in enumerate(columns)}
        case _:
            pass
    return row


# What the example prints of an answer that is not one of some labels.
_SHOWN = {
    "extract": "answer.text, answer.start, answer.end",
    "choose": "answer.label, answer.choice, answer.probabilities",
}


def _format_usage(manifest: Manifest, repo: str) -> Iterator[str]:
    folder = repo.partition("/")[2]
    row = _make_row(manifest)
    single = isinstance(row, str)
    lines = ["pip install softprompt"]
    base = manifest.backbone["name"].removeprefix(PREFIX)
    if base != manifest.backbone["name"] and base in BUILTIN:
        terms = BUILTIN[base].terms
        lines.append(BUILTIN[base].command + (terms and f"  # terms of use: {terms}"))
    lines.append(f"softprompt pull {repo} --output {folder}")
    if single:
        lines.append(f'softprompt predict {folder} "{row}"')
    else:
        # In the shell everything between single quotes is literal, except a single quote.
        quoted = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
        lines.append(f"echo '{quoted}' | softprompt predict {folder} --input -")
    yield format_block("\n".join(lines), "sh")
    shown = "answer.label, answer.probabilities" if manifest.labels else "answer.label"
    shown = _SHOWN.get(str(manifest.task.get("kind")), shown)
    python = [
        "import softprompt",
        "",
        f'model = softprompt.PromptModel.from_pretrained("{repo}")',
        f"for answer in model.predict([{json.dumps(row, ensure_ascii=False)}]):",
        f"    print({shown})",
    ]
    yield format_block("\n".join(python), "python")
    yield "`--revision COMMIT` (`revision=` in Python) pins the version that is pulled."


def _format_backbone(manifest: Manifest) -> str:
    ref = manifest.backbone
    rows = [
        ("model", format_code(ref["name"])),
        ("revision", format_code(ref["revision"]) if ref["revision"] else "not stated"),
        ("model type", format_code(ref["model_type"])),
        ("fingerprint", f"{format_code(ref['fingerprint'])}, compared before the prompt is used"),
    ]
    return format_table(("", ""), rows)


def _format_prompt(manifest: Manifest, size: int) -> str:
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
        ("method", _format_method(describe_method(manifest))),
        ("length", f"{manifest.length:,} soft token{'s' * (manifest.length > 1)}, {where}"),
        ("precision", format_code(manifest.dtype)),
        ("trained numbers", numbers),
        ("size", f"{size:,} bytes"),
    ]
    return format_table(("", ""), rows)


def _format_training(manifest: Manifest) -> Iterator[str]:
    sources = describe_sources(manifest)
    split_off = "split off the training data"
    rows = [
        (
            format_code(split),
            _format_count(about.get("rows")),
            format_code(sources[split]) if split in sources else split_off,
            format_code(str(about["sha256"])),
        )
        for split, about in manifest.data.items()
        if isinstance(about, dict) and "sha256" in about
    ]
    if rows:
        yield format_table(("data", "rows", "source", "SHA-256 of the rows"), rows)
    scores = [
        (format_code(split) if split else "", format_code(name), f"{value:.4f}")
        for split, numbers in list_card_metrics(manifest).items()
        for name, value in numbers.items()
    ]
    yield format_table(("split", "metric", "value"), scores) if scores else "It was not evaluated."
    step = manifest.metrics.get("step")
    if isinstance(step, int):
        yield f"The best prompt by validation, after step {step:,}."
    yield "`manifest.json` contains the whole recipe, without the local folders of files."


def _format_count(rows: object) -> str:
    return f"{rows:,}" if isinstance(rows, int) else "not stated"


def _format_method(method: Mapping[str, object]) -> str:
    if not method:
        return "not stated"
    settings = {key: value for key, value in method.items() if key != "name"}
    texts = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return ", ".join(format_code(text) for text in [str(method.get("name")), *texts])
