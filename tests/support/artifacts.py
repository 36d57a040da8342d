"""Sample artifacts with values that are easily lost, saved ones to damage, and tiny models."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from softprompt.artifact import (
    Artifact,
    ManifestFields,
    describe_backbone,
    make_artifact,
    save_artifact,
)
from softprompt.artifact.manifest import compute_digest
from softprompt.backbone import Backbone
from softprompt.inference import PromptModel, attach
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks import Classify, TaskSettings
from softprompt.tasks.config import describe_settings
from softprompt.tasks.pooling import resolve_pooling

ORIGIN: ManifestFields = {
    "template": "{soft:3} {text} – war es schön? {mask}",  # noqa: RUF001  # a real dash
    "max_length": 64,
    "task": {"kind": "classify", "verbalizer": {"gut": "good", "schlecht": ["bad", "awful"]}},
    "labels": ["gut", "schlecht"],
    "backbone": {
        "name": "tiny/bert",
        "revision": "0123abc",
        "fingerprint": "0123456789abcdef-fedcba9876543210",
        "model_type": "bert",
    },
    "data": {"hashes": {"train": "ab12"}, "sources": ["reviews.csv"], "rows": {"train": 100}},
    "recipe": {"train": {"rate": 0.01, "max_steps": 100, "resume": False, "seed": None}},
    "metrics": {"accuracy": 0.875, "macro_f1": 0.1 + 0.2},
}

# Arguments of ``make_sample``: every kind and precision, with and without a head.
SAMPLES = [
    pytest.param(
        {"kind": kind, "dtype": dtype, "head": head},
        id=f"{kind}-{dtype}-{'head' if head else 'bare'}",
    )
    for kind in ("input", "kv")
    for dtype in ("float32", "bfloat16", "float16")
    for head in (False, True)
]


def draw_numbers(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random numbers, among them a negative zero and a subnormal number."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    numbers.view(-1)[:2] = torch.tensor([-0.0, torch.finfo(dtype).smallest_normal / 4], dtype=dtype)
    return numbers


def make_sample(kind: str = "input", dtype: str = "float32", *, head: bool = False) -> Artifact:
    """An artifact with random numbers; the arguments are those of its prompt, and its head."""
    torch_dtype = getattr(torch, dtype)
    prompt: Prompt
    origin = describe_origin(kind, head=head)
    if kind == "input":
        prompt = InputPrompt(draw_numbers(3, 8, dtype=torch_dtype))
    else:
        keys, values = (draw_numbers(2, 4, 3, 5, dtype=torch_dtype, seed=seed) for seed in (1, 2))
        prompt = KVPrefix(keys, values, (1, 3), shift_positions=True)
    weights = {
        "output.weight": draw_numbers(2, 8, dtype=torch.float32, seed=3),
        "output.bias": torch.tensor([0.5, -0.5]),
    }
    return make_artifact(prompt, weights if head else {}, **origin)


def describe_origin(kind: str, *, head: bool) -> ManifestFields:
    """The other fields of a sample's manifest, which fit its prompt and its head."""
    template, task = ORIGIN["template"], ORIGIN["task"]
    return {
        **ORIGIN,
        "template": template if kind == "input" else template.removeprefix("{soft:3} "),
        "task": {"kind": "classify"} if head else task,
    }


def forge(raw: bytes) -> bytes:
    """A manifest with a digest that fits its content, as a forger would write it."""
    content = json.loads(raw)
    content.pop("manifest_digest", None)
    return json.dumps(content | {"manifest_digest": compute_digest(content)}).encode()


def read_bits(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    """The shape, dtype and bytes of a tensor."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), tensor.dtype, raw


class Stored:
    """An artifact on disk that can be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest.json"
        self.tensors = folder / "prompt.safetensors"

    def edit(self, **changes: object) -> None:
        """Set keys of the manifest, and its digest."""
        content = json.loads(self.manifest.read_text("utf-8"))
        self.manifest.write_bytes(forge(json.dumps(content | changes).encode()))

    def drop(self, key: str) -> None:
        """Remove a key from the manifest, and set its digest."""
        content = json.loads(self.manifest.read_text("utf-8"))
        del content[key]
        self.manifest.write_bytes(forge(json.dumps(content).encode()))

    def put(self, raw: bytes) -> None:
        """Replace the file of tensors, and its digest in the manifest."""
        self.tensors.write_bytes(raw)
        self.edit(digest=hashlib.sha256(raw).hexdigest())

    def put_tensors(self, **tensors: Tensor) -> None:
        """Replace the tensors; two underscores in a name stand for a dot."""
        named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        self.put(safetensors.torch.save(named))


def store_sample(folder: Path, kind: str = "input") -> Stored:
    """Save a sample in a folder inside the given one."""
    return Stored(save_artifact(make_sample(kind), folder / "mood"))


WORDS = {"no": " bad", "yes": " good"}
TEXTS = ["the film was good", "bad", "a dull story and an awful actor in a boring film", "great"]


@dataclass(frozen=True)
class Desk:
    """Makes models of given prompts on tiny backbones.

    Args:
        backbone: gives a backbone by family.
        maker: gives a `Maker` by family.
    """

    backbone: Callable[[str], Backbone]
    maker: Callable[..., Any]

    def asking(self, backbone: Backbone, template: str) -> Classify:
        """A task with label words; an encoder predicts them at a mask."""
        mask = " {mask}" if backbone.geometry.architecture == "encoder" else ""
        return Classify(template=f"{template}{mask}", verbalizer=WORDS)

    def vectors(self, family: str, length: int = 3) -> Tensor:
        """The vectors of a random input prompt."""
        return self.maker(family).input_prompt(length).vectors

    def model(
        self,
        backbone: Backbone,
        prompt: Prompt,
        settings: TaskSettings,
        *,
        head: Mapping[str, Tensor] | None = None,
        **changes: object,
    ) -> PromptModel:
        """A model of a prompt; ``changes`` replace fields of its manifest."""
        readout: dict[str, object] = {}
        if isinstance(settings, Classify) and settings.verbalizer is None:
            kind = backbone.geometry.architecture
            readout = {"pooling": resolve_pooling(settings.pooling, kind)}
        fields: dict[str, object] = {
            "template": settings.template,
            "task": describe_settings(settings, template=settings.template) | readout,
            "labels": ["no", "yes"],
            "backbone": describe_backbone(backbone),
            "recipe": {},
            "max_length": None,
        }
        return attach(make_artifact(prompt, head or {}, **ORIGIN | fields | changes), backbone)

    def scores(self, model: PromptModel, texts: Sequence[str] = TEXTS) -> Tensor:
        """The scores of texts of different lengths, in one batch."""
        with torch.no_grad():
            return model.task.compute_scores([model.render(text) for text in texts], [model.prompt])
