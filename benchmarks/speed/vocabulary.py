"""Peak memory of learning to write with a large vocabulary, in a process of its own: ours|peft.

A hundred soft tokens stand in front, and there are as many words as Gemma 3 has. The body is small
and random: it is the logits that matter here.
"""

import json
import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from arms import SMOLLM, long_texts, padded, recipe_of
from datasets import Dataset
from peak import peak_of
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from softprompt.backbone import wrap_model
from softprompt.backbone.loading import convert_gguf, resolve_builtin
from softprompt.recipe import make_recipe
from softprompt.tasks import Example
from softprompt.train import make_trainer, setup_run

WORDS, TOKENS, ROWS, TARGET = 262_144, 100, 8, 64


def main() -> None:
    """Run the arm; print what was in use before its steps, and the most during them."""
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16))
    rows = [
        {"text": "A review:", "label": text["text"]}
        for text in long_texts(ROWS, tokens=TARGET, tokenizer=tokenizer)
    ]
    data = recipe_of("", rows=ROWS, batch=ROWS)
    template = f"{{soft:{TOKENS}}}{{text}}"
    data["task"] = {"kind": "generate", "template": template, "target_column": "label"}
    tables = {name: Dataset.from_list(rows) for name in ("train", "validation", "test")}
    own = wrap_model("random", bare(), tokenizer=tokenizer, kind="causal")
    prepared = setup_run(make_recipe(data), backbone=own, tables=tables)
    trainer = make_trainer(prepared, Accelerator(cpu=True))
    examples = prepared.rows["train"].examples
    step = trainer.train_step if sys.argv[1] == "ours" else peft_step(examples)
    if sys.argv[1] == "peft":
        own.model.to("meta")
    print(json.dumps(peak_of([step] * 3)))


def bare() -> LlamaForCausalLM:
    """A small random model with many words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def peft_step(examples: list[Example]) -> Callable[[], None]:
    """PEFT's prompt tuning on the same rows, with the loss on the same tokens."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=TOKENS)
    model = get_peft_model(bare(), config)
    texts = [[t for t in e.variants[0].input_ids if t < WORDS] for e in examples]
    targets = [e.target for e in examples]
    ids, mask = padded([[*text, *target] for text, target in zip(texts, targets, strict=True)])
    labels = torch.full_like(ids, -100)
    for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
        labels[row, len(text) : len(text) + len(target)] = torch.tensor(target)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()

    return step


if __name__ == "__main__":
    main()
