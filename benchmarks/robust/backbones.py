"""Damaged folders of backbones, and damaged GGUF files."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from damage import (
    ODD_VALUES,
    damage_bytes,
    damage_json_file,
    damage_safetensors,
)
from gguf import GGUFWriter
from judge import is_same, require, require_numbers
from safetensors.torch import load_file, save_file
from tiny import ROWS, ask, load, make_backbone, train
from trials import Given, Kind, Trial

from softprompt.artifact import load_artifact
from softprompt.errors import ArtifactError
from softprompt.inference import attach
from softprompt.inference.loops import predict_rows
from softprompt.tasks import Classify, LengthBudget, build_task

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

OTHER = "another backbone with the fingerprint of the original"


def list_kinds() -> list[Kind]:
    """A kind for each file of a folder, and for GGUF files."""
    kinds: dict[str, tuple[int, str, Callable[[Path, Given], None]]] = {
        "config": (450, "vectors", _damage_config),
        "config of an encoder": (250, "masked", _damage_config),
        "tokenizer": (350, "vectors", _damage_tokenizer),
        "tokenizer's settings": (200, "masked", _damage_settings),
        "weights": (350, "vectors", _damage_weights),
        "index": (200, "vectors", _damage_index),
    }
    return [
        *(Kind(f"backbone: {n}", c, partial(_prepare, p, d)) for n, (c, p, d) in kinds.items()),
        Kind("backbone: GGUF", 200, _prepare_gguf),
    ]


def _prepare(prompt: str, damage: Callable[[Path, Given], None], place: Path) -> Trial:
    trained = train(place, prompt)
    artifact = load_artifact(place / f"run-{prompt}")
    folder = Path(trained.backbone.name)
    if damage is _damage_index:
        _divide(folder)
    original = ask(attach(artifact, load(folder)))

    def trial(given: Given) -> Literal["refused", "answered"]:
        copy = given.folder / "backbone"
        shutil.copytree(folder, copy)
        damage(copy, given)
        _use(copy, artifact, original, given)
        return "answered"

    return trial


def _use(path: Path, artifact: Any, original: Any, given: Given) -> None:  # noqa: ANN401
    """Load a backbone, and ask a prompt of the original on it.

    With other numbers or settings it is another backbone. A fingerprint is of samples, so it does
    not tell every other one: these are counted.
    """
    backbone = load(path)
    try:
        model = attach(artifact, backbone)
    except ArtifactError:
        return
    answers = ask(model)
    require_numbers(answers)
    if not is_same(answers, original):
        given.note = OTHER


_ODD_CONFIG = (
    *ODD_VALUES,
    *(3, 4, 16, 31, 33, 64, 1000, 10**7, "llama", "bert", "gpt2", "t5", "gelu", "relu", "float16"),
    *({"rope_type": "x"}, {"rope_type": "linear", "factor": 2.0}, {"quant_method": "fp8"}, ["x"]),
    *({"AutoConfig": "evil.Evil"}, "evil.py", "eager", "flash_attention_2", "LlamaForCausalLM"),
)


def _damage_json(path: Path, given: Given, odd: tuple[Any, ...] = _ODD_CONFIG) -> None:
    content, given.damage = damage_json_file(path.read_bytes(), given.random, ways=8, odd=odd)
    path.write_bytes(content)


def _damage_config(folder: Path, given: Given) -> None:
    _damage_json(folder / CONFIG, given)


def _damage_tokenizer(folder: Path, given: Given) -> None:
    _damage_json(folder / TOKENIZER, given)


def _damage_settings(folder: Path, given: Given) -> None:
    """The settings of the tokenizer, or a file that is missing or of another kind."""
    chance = given.random
    if chance.random() < 0.7:  # noqa: PLR2004
        _damage_json(folder / SETTINGS, given)
        return
    path = folder / chance.choice([p.name for p in folder.iterdir()])
    path.unlink()
    match chance.randrange(5):
        case 0:
            given.damage = f"{path.name} is gone"
        case 1:
            path.mkdir()
            given.damage = f"{path.name} is a folder"
        case 2:
            path.write_bytes(b"")
            given.damage = f"{path.name} is empty"
        case 3:
            path.symlink_to("nowhere")
            given.damage = f"{path.name} is a link to nowhere"
        case _:
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
            given.damage = f"{path.name} is a pointer of git-lfs"


def _damage_weights(folder: Path, given: Given) -> None:
    path = folder / WEIGHTS
    content, given.damage = damage_safetensors(path.read_bytes(), given.random)
    path.write_bytes(content)


def _divide(folder: Path) -> None:
    """Divide the weights of a backbone into two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    names, of = sorted(tensors), {}
    for part in range(2):
        file = f"model-{part + 1:05}-of-00002.safetensors"
        held = {name: tensors[name] for name in names[part::2]}
        save_file(held, folder / file, metadata={"format": "pt"})
        of |= dict.fromkeys(held, file)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": of}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


_ODD_FILES = (
    *(
        "/dev/zero",
        "../evil.safetensors",
        "config.json",
        "nowhere.safetensors",
        ".",
        "",
        "/etc/passwd",
    ),
    *(None, 1, [], {}, "\x00", "\ud800", "x" * 10_000, "tokenizer.json", "~/x", "model.bin"),
)


def _damage_index(folder: Path, given: Given) -> None:
    _damage_json(folder / INDEX, given, odd=_ODD_FILES)


def _prepare_gguf(place: Path) -> Trial:
    """A tiny Llama as GGUF, and prompts that were trained on it."""
    plain = make_backbone(place / "llama", "llama")
    path = place / "tiny.gguf"
    _write_gguf(path, plain)
    original = _score(path)
    raw = path.read_bytes()

    def trial(given: Given) -> Literal["refused", "answered"]:
        copy = given.folder / "tiny.gguf"
        content, given.damage = _damage_gguf(raw, given.random)
        copy.write_bytes(content)
        fingerprint, scores = _score(copy)
        if fingerprint == original[0] and not torch.allclose(scores, original[1], atol=1e-4):
            given.note = OTHER
        return "answered"

    return trial


def _score(path: Path) -> tuple[str, torch.Tensor]:
    backbone = load(path)
    ids = torch.tensor([[0, 60, 61, 62, 63]])
    with torch.no_grad():
        scores = backbone.model(input_ids=ids).logits
    if not bool(scores.isfinite().all()):
        # The task refuses such scores with a PromptError.
        task = build_task(
            Classify("{text}", verbalizer={"a": " good", "b": " bad"}),
            backbone,
            template="{text}",
            labels=("a", "b"),
            budget=LengthBudget(64, 0),
        )
        example = task.make_example({"text": "good bad good bad"})
        answers = [*predict_rows(task, [example], prompt=None)]
        require(holds=False, rule=f"scores are not finite, and the answers are {answers}")
    return backbone.fingerprint, scores


def _damage_gguf(raw: bytes, chance: Random) -> tuple[bytes, str]:
    """Damage of the head, which has everything but the weights' numbers."""
    head = raw.index(b"blk.0.attn_k.weight") + 2000
    match chance.randrange(4):
        case 0:
            at = chance.randrange(len(raw))
            return raw[:at], f"cut at byte {at}"
        case 1:
            at = chance.randrange(8, 40)
            value = chance.choice((0, 1, 255, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
            return raw[:at] + value + raw[at + 8 :], f"{value!r} at {at}"
        case _:
            changed, what = damage_bytes(raw[:head], chance)
            return changed + raw[head:], what


def _write_gguf(path: Path, folder: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    vocabulary = json.loads((folder / TOKENIZER).read_text("utf-8"))["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    tokens += [f"<extra{n}>" for n in range(ROWS - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"}
    parts |= {"self_attn.o_proj": "attn_output"}
    parts |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    for layer in range(2):
        names |= {
            f"model.layers.{layer}.{k}.weight": f"blk.{layer}.{v}.weight" for k, v in parts.items()
        }
    for name, tensor in load_file(folder / WEIGHTS).items():
        writer.add_tensor(names[name], tensor.float().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
