"""The three settings, and registries of as many random prompts as a measurement needs."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

# Inner modules: ten thousand artifacts are written without checking each of them twice; the server
# checks each of them when it loads it.
from softprompt import Backbone, Classify, Generate, InputPrompt, KVPrefix, load_backbone
from softprompt._io import ErrorContext, to_bytes
from softprompt.artifact import Artifact, describe_backbone, make_artifact
from softprompt.artifact.manifest import dump_manifest
from softprompt.artifact.store import MANIFEST, TENSORS
from softprompt.data import read_data
from softprompt.prompt import Prompt
from softprompt.tasks import TaskSettings, build_task
from softprompt.tasks.config import describe_settings

CUDA = torch.cuda.is_available()
SMOLLM, MINILM = "builtin:smollm2-135m-instruct", "builtin:minilm"
WORDS = {"rotten": " negative", "fresh": " positive"}
LENGTH, PREFIX_LENGTH, NEW_TOKENS = 20, 10, 16
_TEXT = "Overall, the sentiment of the review is"
# Soft tokens are those of a text, moved by this share of their size.
_NOISE = 0.3


@dataclass(frozen=True)
class Setting:
    """One of the things that are served.

    Args:
        name: of the setting.
        title: in tables.
        backbone: its name.
        task: of all prompts.
        unit: what throughput counts.
    """

    name: str
    title: str
    backbone: str
    task: TaskSettings
    unit: str = "rows"

    @property
    def template(self) -> str:
        """What a row looks like."""
        return str(self.task.template)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "classify",
            f"SmolLM2, classification with {LENGTH} soft tokens",
            SMOLLM,
            Classify(f"{{soft:{LENGTH}}}Review: {{text}}\nSentiment:", verbalizer=WORDS),
        ),
        Setting(
            "generate",
            f"SmolLM2, generation with {LENGTH} soft tokens",
            SMOLLM,
            Generate(f"{{soft:{LENGTH}}}Review: {{text}}\nSummary:", max_new_tokens=NEW_TOKENS),
            "tokens",
        ),
        Setting(
            "minilm",
            f"MiniLM, classification with prefixes of {PREFIX_LENGTH} in every layer",
            MINILM,
            Classify("{text}", pooling="mean"),
        ),
    )
}


def read_texts() -> list[str]:
    """Real reviews, in an order that does not depend on their length or label."""
    texts = [str(row["text"]) for row in read_data("builtin:rotten-tomatoes")]
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def load(setting: Setting) -> Backbone:
    """The backbone of a setting, on this machine's best device."""
    return load_backbone(setting.backbone)


def make_name(number: int) -> str:
    """The name of a prompt."""
    return f"p{number:05d}"


def make_registry(setting: Setting, backbone: Backbone, *, count: int, folder: Path) -> Path:
    """Write a registry of random prompts.

    Args:
        setting: of the prompts.
        backbone: of the setting.
        count: the number of prompts.
        folder: to write to.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    source = ErrorContext(str(folder), "Run the benchmark again.")
    for number, artifact in enumerate(_make_artifacts(setting, backbone, count=count)):
        version = folder / f"{make_name(number)}@1"
        version.mkdir()
        raw = to_bytes(artifact.to_tensors())
        (version / TENSORS).write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        described = dump_manifest(artifact.manifest, digest, source=source)
        (version / MANIFEST).write_bytes(described)
    print(f"{setting.name}: {count:,} prompts", file=sys.stderr)
    return folder


def _make_artifacts(setting: Setting, backbone: Backbone, *, count: int) -> Iterator[Artifact]:
    """Artifacts with random tensors, all with one manifest."""
    labels = list(WORDS) if isinstance(setting.task, Classify) else []
    task = build_task(setting.task, backbone, template=setting.template, labels=labels)
    head = {} if task.head is None else dict(task.head.state_dict())
    first = make_artifact(
        _make_prompt(setting, backbone, 0),
        head,
        template=setting.template,
        max_length=None,
        task=describe_settings(setting.task, template=setting.template),
        labels=labels,
        backbone=describe_backbone(backbone),
        data={"train": {"rows": 2000, "source": "builtin:rotten-tomatoes"}},
        recipe={"seed": 0, "backbone": {"name": setting.backbone}},
        metrics={"validation": {"accuracy": 0.8, "loss": 0.5}},
    )
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        own = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in head.items()
        }
        yield replace(first, prompt=_make_prompt(setting, backbone, number), head=own)


def _make_prompt(setting: Setting, backbone: Backbone, number: int) -> Prompt:
    """A random prompt in the dtype of training; the same number gives the same prompt."""
    generator = torch.Generator().manual_seed(number)
    if setting.name == "minilm":
        geometry = backbone.geometry
        layers, size = geometry.num_attention_sites, geometry.head_dim
        shape = (2, layers, geometry.num_kv_heads, PREFIX_LENGTH, size)
        keys, values = torch.randn(shape, generator=generator) * 0.5
        return KVPrefix(keys, values, tuple(range(layers)))
    ids = backbone.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    ids = torch.tensor((ids * LENGTH)[:LENGTH], device=backbone.device)
    vectors = backbone.embed(ids).detach().float().cpu()
    noise = torch.randn(vectors.shape, generator=generator) * vectors.std() * _NOISE
    return InputPrompt(vectors + noise)
