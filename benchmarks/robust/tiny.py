"""Tiny random backbones in folders, data for them, and prompts that were trained on both."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch
from build import BOS, END, PAD, ROWS, make_tokenizer  # of the sweep over families
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from softprompt.inference import PromptModel
from softprompt.injection import load_backbone
from softprompt.recipe import make_recipe
from softprompt.train import train_recipe

TEXTS = ["the film was good", "bad", "it is a good film, and its ending is as good: yes"]
WORDS = {"no": " bad", "yes": " good"}
_SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
load = partial(load_backbone, device="cpu", dtype="float32")


def make_backbone(folder: Path, family: str) -> Path:
    """A tiny random backbone in a folder: ``llama`` or ``bert``."""
    sizes: dict[str, Any] = _SIZES | ({"num_key_value_heads": 2} if family == "llama" else {})
    auto = AutoModelForCausalLM if family == "llama" else AutoModelForMaskedLM
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if family == "bert" else "<s> $A",
        special_tokens=[("<s>", BOS), ("</s>", END)],
    )
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int = 24) -> list[dict[str, str]]:
    """Rows with a text, a label and a text to be written."""
    return [
        {
            "text": f"the film {row} is {'good' if row % 2 else 'bad'}, and its plot is thin",
            "label": "yes" if row % 2 else "no",
            "target": "good" if row % 2 else "bad film",
        }
        for row in range(count)
    ]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


# The family, the method and the task of each kind of trained prompt.
PROMPTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vectors": (
        "llama",
        {"name": "prompt-tuning"},
        {"kind": "classify", "template": "{text} it was{soft:4}", "verbalizer": WORDS},
    ),
    "vectors first": (
        "llama",
        {"name": "prompt-tuning"},
        {"kind": "classify", "template": "{soft:4}{bos}{text} it was", "verbalizer": WORDS},
    ),
    "prefix": (
        "llama",
        {"name": "p-tuning-v2", "length": 3, "shift_positions": True},
        {"kind": "classify", "template": "{text} it was", "verbalizer": WORDS},
    ),
    "masked": (
        "bert",
        {"name": "prompt-tuning"},
        {"kind": "classify", "template": "{soft:3}{text} it was {mask}", "verbalizer": WORDS},
    ),
    "head": (
        "bert",
        {"name": "p-tuning-v2", "length": 3, "shift_positions": True},
        # PEFT and P-tuning v2, to which it is exported, read [CLS].
        {"kind": "classify", "template": "{text}", "head": "mlp-tanh", "pooling": "cls"},
    ),
    "choices": (
        "llama",
        {"name": "prompt-tuning"},
        {
            "kind": "generate",
            "template": "{soft:3}{text} so",
            "target_column": "label",
            "choices": ["no", "yes"],
            "max_new_tokens": 8,
        },
    ),
    "text": (
        "llama",
        {"name": "prefix-tuning", "length": 3, "encoder_hidden_size": 8},
        {"kind": "generate", "template": "{text} so", "max_new_tokens": 4},
    ),
}


def make_recipe_data(place: Path, prompt: str) -> dict[str, Any]:
    """A recipe of one of `PROMPTS`, with its backbone and its data in a folder."""
    family, method, task = PROMPTS[prompt]
    if not (place / family).exists():
        make_backbone(place / family, family)
    if not (place / "rows.csv").exists():
        write_csv(place / "rows.csv", make_rows())
    return {
        "backbone": {"name": str(place / family), "device": "cpu", "dtype": "float32"},
        "data": {"train": str(place / "rows.csv")},
        "task": task,
        "method": method,
        "train": {"max_steps": 2, "batch_size": 8, "learning_rate": 0.05},
        "cache": {"disk_gb": 0.0},
    }


def train(place: Path, prompt: str) -> PromptModel:
    """Train one of `PROMPTS` for two steps; its run is in a folder of its name."""
    recipe = make_recipe(make_recipe_data(place, prompt))
    return train_recipe(recipe, place / f"run-{prompt}", progress=False)


def ask(model: PromptModel) -> list[tuple[Any, ...]]:
    """The answers of a model to some texts."""
    return [(one.label, one.token_ids, *one.probabilities.items()) for one in model.predict(TEXTS)]
