"""What the Hub reads of a model card: its front matter, made from a manifest."""

import re
from collections.abc import Iterator, Mapping

from huggingface_hub import EvalResult, ModelCardData

from softprompt.artifact.manifest import Manifest
from softprompt.artifact.names import is_id
from softprompt.artifact.outward import source_of
from softprompt.backbone.builtin import PREFIX

MEMORY = "memory"  # what a recipe says of rows that were given as values
PIPELINES = {"classify": "text-classification", "generate": "text-generation"}
_KINDS = {"input": "input-prompt", "kv": "key-value-prefix"}
# The Hub's names of metrics that are called otherwise here.
_METRICS = {"macro_f1": "f1", "matthews": "matthews_correlation"}
_WORD = re.compile(r"[a-z0-9][a-z0-9-]*")


def metrics_of(manifest: Manifest) -> dict[str, dict[str, float]]:
    """What was measured, by split; numbers that stand alone are under no name."""
    tables = {"": manifest.metrics, **manifest.metrics}
    found = {
        split: {name: value for name, value in numbers.items() if _is_score(name, value)}
        for split, numbers in tables.items()
        if isinstance(numbers, dict) and split != "moved"
    }
    return {split: numbers for split, numbers in found.items() if numbers}


def _is_score(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name != "step"


def front_of(manifest: Manifest, repo: str) -> ModelCardData:
    """The front matter of the card of ``OWNER/NAME``."""
    base = manifest.backbone["name"]
    method = method_of(manifest).get("name")
    tags = ["soft-prompt", "parameter-efficient", _KINDS[manifest.kind]]
    tags += [method] if isinstance(method, str) and _WORD.fullmatch(method) else []
    sources = [name for text in sources_of(manifest).values() if (name := _data_set(text))]
    results = [*_results(manifest)]
    return ModelCardData(
        library_name="softprompt",
        base_model=base if is_id(base) else None,
        pipeline_tag=PIPELINES.get(str(manifest.task.get("kind"))),
        tags=tags,
        datasets=[*dict.fromkeys(sources)] or None,
        eval_results=results or None,
        model_name=repo.partition("/")[2] if results else None,
        base_model_relation="adapter" if is_id(base) else None,
    )


def _results(manifest: Manifest) -> Iterator[EvalResult]:
    task = PIPELINES.get(str(manifest.task.get("kind")), "other")
    sources = sources_of(manifest)
    for split, numbers in metrics_of(manifest).items():
        source = sources.get(split) or sources.get("train") or "not said"
        plain = " ".join(source.split())
        for name, value in numbers.items():
            yield EvalResult(
                task_type=task,
                dataset_type=_data_set(source) or "local",
                dataset_name="rows in memory" if plain == MEMORY else plain,
                dataset_split=split or None,
                metric_type=_METRICS.get(name, name),
                metric_name=name,
                metric_value=value,
            )


def method_of(manifest: Manifest) -> Mapping[str, object]:
    """What the recipe says of the method; nothing if it does not say."""
    found = manifest.recipe.get("method")
    return found if isinstance(found, Mapping) else {}


def sources_of(manifest: Manifest) -> dict[str, str]:
    """What the recipe names as data, by split."""
    found = manifest.recipe.get("data")
    named = found if isinstance(found, Mapping) else {}
    splits = ("train", "validation", "test")
    return {split: text for split in splits if isinstance(text := named.get(split), str)}


def _data_set(text: str) -> str | None:
    """The Hub's name of a data source; None for files and other rows."""
    source, _ = source_of(text)
    name = source.partition(":")[0].partition("@")[0]
    found = is_id(name) and "." not in name.rpartition("/")[2]
    return name if found and name not in {MEMORY, PREFIX.rstrip(":")} else None
