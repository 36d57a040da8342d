"""Peak memory of training to generate text with a large vocabulary.

vocabulary.py ours|peft [gemma]

100 soft tokens stand before the text, and the vocabulary is as large as Gemma 3's. The body of the
model is small and random, because the logits take the memory here; with ``gemma`` the model is
Gemma 3 270M itself, if it is installed.
"""

import json
import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from arms import SMOLLM, make_long_texts, make_recipe_data, pad_rows
from datasets import Dataset
from peak import measure_peak
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

# Inner modules: the backbone is a random model, and single steps are measured.
from softprompt.backbone import wrap_model
from softprompt.backbone.builtin import resolve_builtin
from softprompt.backbone.loading import convert_gguf
from softprompt.recipe import make_recipe
from softprompt.tasks import Example
from softprompt.train import make_trainer, setup_run

GEMMA = "builtin:gemma3-270m"
VOCABULARY, TOKENS, ROWS, TARGET = 262_144, 100, 8, 64


def main() -> None:
    """Run steps of a variant; print the memory in use before them, and the peak during them."""
    variant, use_gemma = sys.argv[1], "gemma" in sys.argv[2:]
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint(GEMMA if use_gemma else SMOLLM))
    rows = [
        {"text": "A review:", "label": text["text"]}
        for text in make_long_texts(ROWS, tokens=TARGET, tokenizer=tokenizer)
    ]
    data = make_recipe_data("", rows=ROWS, batch=ROWS)
    template = f"{{soft:{TOKENS}}}{{text}}"
    data["task"] = {"kind": "generate", "template": template, "target_column": "label"}
    tables = {name: Dataset.from_list(rows) for name in ("train", "validation", "test")}
    model = make_model(use_gemma=use_gemma)
    backbone = wrap_model("measured", model, tokenizer=tokenizer, kind="causal")
    prepared = setup_run(make_recipe(data), backbone=backbone, tables=tables)
    trainer = make_trainer(prepared, Accelerator(cpu=True))
    examples = prepared.rows["train"].examples
    step = trainer.train_step
    if variant == "peft":
        step = make_peft_step(make_model(use_gemma=use_gemma), examples)
    if variant == "peft":
        backbone.model.to("meta")  # only PEFT's own weights are counted
    print(json.dumps(measure_peak([step] * 3)))


def find_checkpoint(name: str) -> str:
    """The converted folder of a built-in backbone."""
    return str(convert_gguf(resolve_builtin(name), torch.bfloat16))


def make_model(*, use_gemma: bool) -> PreTrainedModel:
    """A small random model with a large vocabulary, or Gemma."""
    if use_gemma:
        return AutoModelForCausalLM.from_pretrained(find_checkpoint(GEMMA), dtype=torch.bfloat16)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def make_peft_step(base: PreTrainedModel, examples: list[Example]) -> Callable[[], None]:
    """PEFT's prompt tuning on the same rows, with the loss on the same tokens."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=TOKENS)
    model = get_peft_model(base, config)
    texts = [[t for t in e.variants[0].input_ids if t < VOCABULARY] for e in examples]
    targets = [e.target for e in examples]
    ids, mask = pad_rows([[*text, *target] for text, target in zip(texts, targets, strict=True)])
    labels = torch.full_like(ids, -100)
    for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
        labels[row, len(text) : len(text) + len(target)] = torch.tensor(target)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()

    return step


if __name__ == "__main__":
    main()
