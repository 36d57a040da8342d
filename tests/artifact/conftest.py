"""Artifacts of every sort, made of bits that are easily lost, and ways to spoil saved ones."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from softprompt.artifact import Artifact, Origin, assemble, name_of, save
from softprompt.backbone import Backbone
from softprompt.errors import (
    ArtifactError,
    BackboneError,
    PromptError,
    SoftpromptError,
)
from softprompt.evaluate import Model, bring, import_prompts
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks import Classify, TaskSettings

ORIGIN: Origin = {
    "template": "{soft:3} {text} – war es schön? {mask}",  # noqa: RUF001  # a real dash
    "max_length": 64,
    "task": {"kind": "classify", "verbalizer": {"gut": "good", "schlecht": ["bad", "awful"]}},
    "labels": ["gut", "schlecht"],
    "backbone": {
        "name": "tiny/bert",
        "revision": "0123abc",
        "fingerprint": "0123456789abcdef-fedcba9876543210",
        "family": "bert",
    },
    "data": {"hashes": {"train": "ab12"}, "sources": ["reviews.csv"], "rows": {"train": 100}},
    "recipe": {"train": {"rate": 0.01, "steps": 100, "resume": False, "seed": None}},
    "metrics": {"accuracy": 0.875, "macro_f1": 0.1 + 0.2},
}
SORTS = [
    pytest.param((kind, dtype, head), id=f"{kind}-{dtype}-{'head' if head else 'bare'}")
    for kind in ("input", "kv")
    for dtype in ("float32", "bfloat16", "float16")
    for head in (False, True)
]


def numbers(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random numbers with a negative zero and the smallest number that is none among them."""
    made = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    made.view(-1)[:2] = torch.tensor([-0.0, torch.finfo(dtype).smallest_normal / 4], dtype=dtype)
    return made


def make(kind: str = "input", dtype: str = "float32", *, head: bool = False) -> Artifact:
    precision = getattr(torch, dtype)
    prompt: Prompt
    if kind == "input":
        prompt = InputPrompt(numbers(3, 8, dtype=precision))
    else:
        keys, values = (numbers(2, 4, 3, 5, dtype=precision, seed=seed) for seed in (1, 2))
        prompt = KVPrefix(keys, values, (1, 3), shifted=True)
    weights = {
        "dense.weight": numbers(2, 8, dtype=torch.float32, seed=3),
        "scale": torch.tensor(0.5),
    }
    return assemble(prompt, weights if head else {}, **ORIGIN)


def bits(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    """All that there is to know of a tensor."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), tensor.dtype, raw


class Stored:
    """An artifact on disk that can be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest.json"
        self.tensors = folder / "prompt.safetensors"

    def edit(self, **changes: object) -> None:
        """Set keys of the manifest."""
        content = json.loads(self.manifest.read_text("utf-8"))
        self.manifest.write_text(json.dumps(content | changes), "utf-8")

    def drop(self, key: str) -> None:
        """Take a key out of the manifest."""
        content = json.loads(self.manifest.read_text("utf-8"))
        del content[key]
        self.manifest.write_text(json.dumps(content), "utf-8")

    def put(self, raw: bytes) -> None:
        """Replace the tensors' file, and let the manifest vouch for it."""
        self.tensors.write_bytes(raw)
        self.edit(digest=hashlib.sha256(raw).hexdigest())

    def put_tensors(self, **tensors: Tensor) -> None:
        """Likewise, by name; two underscores stand for a dot."""
        named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        self.put(safetensors.torch.save(named))


@pytest.fixture(scope="session")
def new() -> Callable[..., Artifact]:
    """Artifacts by kind, precision and with or without a head."""
    return make


@pytest.fixture(scope="session", name="bits")
def bits_of() -> Callable[[Tensor], tuple[tuple[int, ...], torch.dtype, bytes]]:
    """All that there is to know of a tensor."""
    return bits


@pytest.fixture(params=SORTS)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """One of every sort."""
    kind, dtype, head = request.param
    return make(kind, dtype, head=head)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """An input prompt on disk."""
    return Stored(save(make(), tmp_path / "mood"))


@pytest.fixture
def stored_prefix(tmp_path: Path) -> Stored:
    """A prefix on disk."""
    return Stored(save(make("kv"), tmp_path / "mood"))


@pytest.fixture(scope="session")
def same() -> Callable[[Artifact, Artifact], bool]:
    """Whether two artifacts agree in every bit and every word."""

    def equal(first: Artifact, second: Artifact) -> bool:
        pairs = [{n: bits(t) for n, t in one.tensors().items()} for one in (first, second)]
        # What the values themselves say of kind, layers and shift, whatever their manifests say.
        told = [assemble(one.prompt, one.head, **ORIGIN).manifest for one in (first, second)]
        return first.manifest == second.manifest and pairs[0] == pairs[1] and told[0] == told[1]

    return equal


WORDS = {"no": " bad", "yes": " good"}
TEXTS = ["the film was good", "bad", "a dull story and an awful actor in a boring film", "great"]


@dataclass(frozen=True)
class Desk:
    """Prompts at work on tiny backbones, asked for label words or by a head."""

    backbone: Callable[[str], Backbone]
    maker: Callable[..., Any]

    def asking(self, own: Backbone, template: str) -> Classify:
        """Label words, which every backbone can say; an encoder at the mask."""
        mask = " {mask}" if own.geometry.kind == "encoder" else ""
        return Classify(template=f"{template}{mask}", verbalizer=WORDS)

    def vectors(self, family: str, length: int = 3) -> Tensor:
        return self.maker(family).input_prompt(length).vectors

    def model(
        self,
        own: Backbone,
        prompt: Prompt,
        settings: TaskSettings,
        *,
        head: Mapping[str, Tensor] | None = None,
        **origin: object,
    ) -> Model:
        told = {"kind": settings.kind, **asdict(settings)}
        usual = {"template": settings.template, "task": told, "labels": ["no", "yes"]}
        more = {"backbone": name_of(own), "recipe": {}, "max_length": None}
        return bring(assemble(prompt, head or {}, **ORIGIN | usual | more | origin), own)

    def scores(self, model: Model, texts: Sequence[str] = TEXTS) -> Tensor:
        """Of texts of different lengths, in one batch."""
        with torch.no_grad():
            return model.task.scores([model.example(text) for text in texts], [model.prompt])


@pytest.fixture
def desk(backbone, maker) -> Desk:
    """Where prompts are put to work."""
    return Desk(backbone, maker)


@pytest.fixture
def refused(desk) -> Callable[..., str]:
    """What is said when something is not imported; nothing but an error of ours will do."""

    def said(form: str, source: Path, *, family: str = "llama", **more: Any) -> str:
        with pytest.raises(SoftpromptError) as caught:
            import_prompts(form, source, backbone=desk.backbone(family), **more)
        assert isinstance(caught.value, ArtifactError | BackboneError | PromptError)
        return str(caught.value)

    return said
